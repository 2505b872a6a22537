"""The extraction stage on a cluster: what is missing on a worker is said before the first image."""

from unittest.mock import MagicMock

import pytest

from pipeline.cluster import Cluster, open_cluster
from pipeline.extract import check_extractor
from schemas.errors import DeviceError
from tests.archives import tiny_config


def test_a_worker_without_the_gpu_that_is_needed_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = tiny_config("features.device=cuda")
    with open_cluster(config.cluster) as cluster, pytest.raises(DeviceError, match=r"^features\.device = 'cuda'"):
        check_extractor(cluster, config, "")


def test_of_several_workers_the_one_that_lacks_it_is_named() -> None:
    client = MagicMock()
    client.run.return_value = {"tcp://a:1": None, "tcp://b:2": DeviceError("no CUDA device")}
    with pytest.raises(DeviceError, match=r"^worker tcp://b:2: no CUDA device$"):
        check_extractor(Cluster(client, 2, 1, {"a": 1, "b": 1}), tiny_config(), "")


def test_what_nobody_expected_of_a_worker_is_raised_as_it_is() -> None:
    client = MagicMock()
    client.run.return_value = {"tcp://a:1": ZeroDivisionError("odd")}
    with pytest.raises(ZeroDivisionError, match="odd"):
        check_extractor(Cluster(client, 1, 1, {"a": 1}), tiny_config(), "")
