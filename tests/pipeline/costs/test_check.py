"""A run with too small workers is refused before the first image, with the memory that they need."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline.costs.check
from pipeline.cluster.cluster import Cluster, open_cluster
from pipeline.commands.clean import clean
from pipeline.costs.check import require_memory
from pipeline.costs.footprint import Layout
from pipeline.costs.working_memory import USABLE_MEMORY, judging_memory
from schemas.errors import ClusterError
from schemas.stores.features import FeatureGeometry
from tests.support.archives import tiny_config, write_parts

GEOMETRY = FeatureGeometry(14, 14, 1792, 64, 64, 10, 4)
GIGABYTE = 1024**3


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(tiny_config().cluster) as opened:
        yield opened


def workers_with(monkeypatch: pytest.MonkeyPatch, limit: int, held: int = GIGABYTE) -> None:
    monkeypatch.setattr(pipeline.costs.check, "_limit_and_held", lambda: (limit, held))


def test_a_worker_without_a_limit_is_not_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    workers_with(monkeypatch, 0)
    require_memory(cluster, [1_000_000], GEOMETRY, tiny_config())


def test_the_number_asked_for_is_enough_and_less_is_not(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    workers_with(monkeypatch, GIGABYTE)
    with pytest.raises(ClusterError, match=r"may use 1\.00 GiB.*judging a group of 5000 images") as refused:
        require_memory(cluster, [5000, 40], GEOMETRY, tiny_config())
    found = re.search(r"Give each worker ([\d.]+) GiB", str(refused.value))
    assert found
    layout = Layout.of(GEOMETRY, tiny_config())
    needed = (GIGABYTE + judging_memory(layout, 5000, 5000, threads=cluster.threads)) / USABLE_MEMORY
    assert float(found[1]) == pytest.approx(needed / GIGABYTE, abs=0.01)
    workers_with(monkeypatch, int(needed) + 1)
    require_memory(cluster, [5000, 40], GEOMETRY, tiny_config())
    workers_with(monkeypatch, int(needed) - GIGABYTE // 50)
    with pytest.raises(ClusterError):
        require_memory(cluster, [5000, 40], GEOMETRY, tiny_config())


def test_large_batches_need_memory_too(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    workers_with(monkeypatch, 4 * GIGABYTE)
    config = tiny_config("features.batch_size=4096", "features.image_size=512")
    with pytest.raises(ClusterError, match="extracting batches of 4096 images"):
        require_memory(cluster, [20], GEOMETRY, config)


def test_every_worker_says_what_it_may_and_does_use(cluster: Cluster) -> None:
    found = cluster.client.run(pipeline.costs.check._limit_and_held)
    assert len(found) == cluster.workers
    assert all(limit >= 0 and held > 0 for limit, held in found.values())


def test_more_threads_need_more(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout.of(GEOMETRY, tiny_config())
    needed = (GIGABYTE + judging_memory(layout, 1000, 1000, threads=1)) / USABLE_MEMORY
    workers_with(monkeypatch, int(needed) + 1)
    require_memory(dataclasses.replace(cluster, threads=1), [1000], GEOMETRY, tiny_config())
    with pytest.raises(ClusterError):
        require_memory(dataclasses.replace(cluster, threads=64), [1000], GEOMETRY, tiny_config())


def test_a_run_that_cannot_end_is_refused_before_its_first_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parts(tmp_path / "archive", good=4)
    workers_with(monkeypatch, GIGABYTE // 2)
    with pytest.raises(ClusterError, match="Give each worker"):
        clean(str(tmp_path / "archive"), str(tmp_path / "run"), tiny_config())
    assert not (tmp_path / "run" / "features").exists()
