"""Whole jobs on S3 over HTTP: equal to those on disk, through faults, and without a trace of the credentials."""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.commands.clean import clean
from pipeline.commands.evaluate.evaluate import evaluate
from pipeline.commands.recut import recut
from pipeline.commands.score import score
from schemas.config import Config, parse_config
from schemas.errors import ConfigError, SourceError, StorageError
from tests.support.archives import write_parts
from tests.support.commands import Ended, Here, paire
from tests.support.runs import CLUSTER, quick_config
from tests.support.storage.fault_proxy import FaultProxy, Faults, fault_proxy
from tests.support.storage.servers import (
    ACCESS_KEY,
    SECRET_KEY,
    SESSION_TOKEN,
    Server,
    bucket_on,
    moto_server,
    reached,
    short_pauses,
)
from workers.features.weights import build_model
from workers.storage.directory import Directory
from workers.storage.object_store import forget_stores
from workers.storage.settings import use_storage

# What differs on S3: where the images are, and which run it was.
PLACES = ["image_path", "run_id"]
NO_TRIM = "trim.strategy=none"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with moto_server() as endpoint, bucket_on(endpoint) as server:
        yield server


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    """Return an archive on disk which also lies in the bucket, below ``archive``."""
    folder = tmp_path_factory.mktemp("archive")
    write_parts(folder / "line 1", 8, 2)
    (folder / "line 1" / "50%#1+ü.png").write_bytes((folder / "line 1" / "good_001.png").read_bytes())
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png")) if path.stat().st_size]
    labels = pd.DataFrame({"image_path": names, "label_index": [int("bad" in name) for name in names]})
    labels.to_csv(folder / "labels.csv", index=False)
    server.put_folder(folder, "archive")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    """Return weights on disk which also lie in the bucket."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(build_model(quick_config().features)[0].state_dict(), path)
    server.put("weights/resnet18.pth", path.read_bytes())
    return path


def on_s3(server: Server, *settings: str) -> Config:
    return quick_config(*server.options(), f"features.weights={server.url('weights/resnet18.pth')}", *settings)


@pytest.fixture(scope="module")
def on_disk(archive: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    clean(str(archive), str(run), quick_config(f"features.weights={weights}"))
    use_storage(server.settings)
    return run


@pytest.fixture(scope="module")
def in_bucket(archive: Path, weights: Path, server: Server) -> Directory:
    run = server.url("runs/first")
    assert not clean(server.url("archive"), run, on_s3(server)).was_done
    return Directory.at(run)


def table(directory: Directory, name: str) -> pd.DataFrame:
    return pd.read_parquet(BytesIO(directory.read(name)))


def manifest(run: Directory) -> pd.DataFrame:
    return table(run, "manifest.parquet").drop(columns=PLACES)


def assert_same_arrays(one: Any, other: Any) -> None:
    """Check that two Zarr groups hold the same arrays, bit for bit."""
    names = {name: array for name, array in one.members(max_depth=None) if hasattr(array, "shape")}
    assert names
    assert names.keys() == {name for name, array in other.members(max_depth=None) if hasattr(array, "shape")}
    for name, array in names.items():
        np.testing.assert_array_equal(np.asarray(array[:]), np.asarray(other[name][:]), err_msg=name)


# --- the same as on disk


def test_a_run_on_s3_is_that_on_disk_bit_for_bit(on_disk: Path, in_bucket: Directory) -> None:
    disk = Directory.at(on_disk)
    pd.testing.assert_frame_equal(manifest(in_bucket), manifest(disk))
    seconds = ["seconds"]
    pd.testing.assert_frame_equal(
        table(in_bucket, "iterations.parquet").drop(columns=seconds),
        table(disk, "iterations.parquet").drop(columns=seconds),
    )
    assert json.loads(in_bucket.read("ledger.json"))["total"] == json.loads(disk.read("ledger.json"))["total"]
    for name in ("features", "distances", "model"):
        assert_same_arrays(in_bucket.zarr_group(name), disk.zarr_group(name))


def test_a_finished_run_on_s3_says_so(in_bucket: Directory, server: Server) -> None:
    assert clean(server.url("archive"), in_bucket.url, on_s3(server)).was_done


def test_recut_score_and_evaluate_on_s3_are_those_on_disk(
    on_disk: Path, in_bucket: Directory, archive: Path, server: Server, tmp_path: Path
) -> None:
    recut(str(on_disk), tiny_recut())
    local = score(str(on_disk / "model"), str(archive), str(tmp_path), config_of_scoring(), anomaly_maps=True)
    there = evaluate(str(on_disk), str(archive / "labels.csv"))

    recut(in_bucket.url, tiny_recut(*server.options()))
    remote_config = config_of_scoring(*server.options())
    model, source = f"{in_bucket.url}/model", server.url("archive")
    remote = score(model, source, server.url("scores"), remote_config, anomaly_maps=True, maps=True)
    evaluated = evaluate(in_bucket.url, server.url("archive/labels.csv"))

    version = "recuts/0001"
    pd.testing.assert_frame_equal(manifest(in_bucket / version), manifest(Directory.at(on_disk) / version))
    columns = remote.columns.difference([*PLACES])
    pd.testing.assert_frame_equal(remote[columns], local[columns])
    assert_same_arrays(
        Directory.at(server.url("scores")).zarr_group("anomaly_maps"), Directory.at(tmp_path).zarr_group("anomaly_maps")
    )
    assert evaluated.table().equals(there.table())
    assert server.objects("scores/maps")


def config_of_scoring(*settings: str) -> Config:
    return parse_config(None, (*CLUSTER, *settings))


def tiny_recut(*settings: str) -> Config:
    return parse_config(None, (*CLUSTER, NO_TRIM, "guard.accept_untrustworthy=true", *settings))


# --- faults


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with fault_proxy(server.endpoint, Faults()) as proxy, reached(server.at(proxy.endpoint)), short_pauses():
        yield proxy


def test_a_run_rides_through_faults_to_the_same_manifest(
    in_bucket: Directory, server: Server, proxy: FaultProxy
) -> None:
    proxy.faults = Faults(slow_down=0.04, reset=0.04, lost_answer=0.04, truncated=0.04, relabelled=0.04, latency=0.2)
    behind = server.at(proxy.endpoint)
    clean(server.url("archive"), server.url("runs/faulty"), on_s3(behind))
    assert proxy.injected >= 0.1 * proxy.counts["requests"] > 10
    proxy.faults = Faults()
    faulty = Directory.at(server.url("runs/faulty"))
    pd.testing.assert_frame_equal(manifest(faulty), manifest(in_bucket))
    for name in ("features", "distances", "model"):
        assert_same_arrays(faulty.zarr_group(name), in_bucket.zarr_group(name))


def test_an_outage_ends_a_run_and_no_image_is_blamed_for_it(server: Server, proxy: FaultProxy) -> None:
    behind, run = server.at(proxy.endpoint), server.url("runs/outage")

    proxy.faults = Faults(slow_down=1.0, only=".png")
    with pytest.raises(StorageError, match=r"get_object of s3://.*\.png .*status 503"):
        clean(server.url("archive"), run, on_s3(behind, "storage.retry_seconds=0.2"))
    written = {key.rpartition("/")[2]: content for key, content in server.objects("runs/outage").items()}
    assert "manifest.parquet" not in written
    log = written["log.jsonl"].decode()
    assert "status 503" in log
    assert_no_trace(log, "log.jsonl")


def test_a_run_whose_store_goes_away_half_way_is_finished_by_its_repetition(
    in_bucket: Directory, server: Server, proxy: FaultProxy
) -> None:
    behind, run = server.at(proxy.endpoint), server.url("runs/half")
    proxy.faults = Faults(slow_down=1.0, only="runs/half/distances")
    with pytest.raises(StorageError, match=r"distances.* status 503"):
        clean(server.url("archive"), run, on_s3(behind, "storage.retry_seconds=0.2"))
    proxy.faults = Faults(slow_down=0.1, truncated=0.1)
    clean(server.url("archive"), run, on_s3(behind))
    proxy.faults = Faults()
    half = Directory.at(run)
    assert "12 of 12 images had been extracted before" in half.read("log.jsonl").decode()
    pd.testing.assert_frame_equal(manifest(half), manifest(in_bucket))
    for name in ("features", "distances", "model"):
        assert_same_arrays(half.zarr_group(name), in_bucket.zarr_group(name))


@pytest.mark.parametrize(
    "faults",
    [Faults(slow_down=1.0), Faults(reset=1.0), Faults(lost_answer=1.0), Faults(truncated=1.0), Faults(relabelled=1.0)],
    ids=["SlowDown", "resets", "lost answers", "truncated bodies", "bodies cut with their length"],
)
def test_a_command_gives_up_with_one_sentence(server: Server, proxy: FaultProxy, planted: Here, faults: Faults) -> None:
    proxy.faults = faults
    options = setting(*HERE, *server.at(proxy.endpoint).options(retry_seconds=0.2))
    ended = planted("clean", server.url("archive"), "--out", server.url("runs/none"), *options, "--quiet")
    assert ended.code == 2
    assert "storage.retry_seconds = 0.2" in ended.error
    assert "run the same command again" in ended.error


# --- credentials

PLANTED = (ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, "planted-password")


# No processes of workers for commands that get nowhere near them.
HERE = ("cluster.processes=false", "cluster.workers=1")


def setting(*options: str) -> list[str]:
    return [part for option in options for part in ("--set", option)]


@pytest.fixture
def planted(server: Server, monkeypatch: pytest.MonkeyPatch, here: Here) -> Iterator[Here]:
    """Return the command inside this process, with planted credentials in its environment."""
    for name, value in {**server.environment, "AWS_SESSION_TOKEN": SESSION_TOKEN}.items():
        monkeypatch.setenv(name, value)
    forget_stores()
    yield here
    forget_stores()
    use_storage(server.settings)


def assert_no_trace(text: str, where: str) -> None:
    for secret in PLANTED:
        assert secret not in text, where


def assert_no_trace_in(server: Server, ended: Ended, prefix: str) -> None:
    """Check all that a command has said and written."""
    assert_no_trace(ended.out, "stdout")
    assert_no_trace(ended.err, "stderr")
    for key, content in server.objects(prefix).items():
        assert_no_trace(content.decode(errors="replace"), key)


def test_a_run_with_worker_processes_leaves_no_trace_of_the_credentials(
    archive: Path, weights: Path, server: Server, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(on_s3(server, "cluster.processes=true", NO_TRIM).to_yaml())
    # The environment of commands in tests has proxies that lead nowhere.
    secrets = {
        **server.environment,
        "AWS_SESSION_TOKEN": SESSION_TOKEN,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    command = ("clean", server.url("archive"), "--out", server.url("runs/command"), "--config", config, "--json")
    ended = paire(*command, **secrets)
    assert ended.code == 0, ended.err
    assert "_SUCCESS" in {key.rpartition("/")[2] for key in server.objects("runs/command")}
    assert_no_trace_in(server, ended, "runs/command")
    assert "Unclosed" not in ended.err


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"AWS_ENDPOINT_URL": "http://user:planted-password@127.0.0.1:9"}, id="password in the endpoint"),
    ],
)
def test_failing_commands_leave_no_trace_of_the_credentials(
    server: Server, planted: Here, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    impatient = setting(*HERE, "storage.retry_seconds=0")
    ended = planted("clean", server.url("archive"), "--out", server.url("runs/failed"), *impatient)
    assert ended.code == 2, ended.err
    assert_no_trace_in(server, ended, "runs/failed")


WITH_PASSWORD = "https://user:planted-password@example.com/archive"
SIGNED = f"https://example.com/a.png?X-Amz-Credential={ACCESS_KEY}&X-Amz-Security-Token={SESSION_TOKEN}"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("clean", WITH_PASSWORD, "--out", "{out}"), id="source"),
        pytest.param(("clean", SIGNED, "--out", "{out}"), id="presigned source"),
        pytest.param(("clean", "{source}", "--out", WITH_PASSWORD), id="output"),
        pytest.param(
            ("clean", "{source}", "--out", "{out}", "--set", f"features.weights={WITH_PASSWORD}"), id="weights"
        ),
        pytest.param(
            ("clean", "{source}", "--out", "{out}", "--set", f"storage.endpoint_url={WITH_PASSWORD}"), id="endpoint"
        ),
        pytest.param(("score", WITH_PASSWORD, "{source}", "--out", "{out}"), id="map"),
        pytest.param(("evaluate", WITH_PASSWORD, "--labels", "{source}/labels.csv"), id="result"),
    ],
)
def test_urls_with_credentials_are_refused_without_repeating_them(
    archive: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    here: Here,
) -> None:
    filled = [argument.format(source=archive, out=tmp_path / "run") for argument in arguments]
    ended = here(*filled, *(setting(*HERE) if arguments[0] != "evaluate" else ()))
    assert ended.code == 2
    assert "credentials" in ended.err
    assert_no_trace(ended.out + ended.err, "output")
    assert not (tmp_path / "run").exists()


def test_an_index_with_credentials_is_refused(tmp_path: Path) -> None:
    for number, url in enumerate((f"{WITH_PASSWORD}/a.png", SIGNED)):
        index = tmp_path / f"{number}.csv"
        pd.DataFrame({"image_path": ["a.png", url]}).to_csv(index, index=False)
        with pytest.raises(SourceError, match=r"row 1 of the index .* credentials") as caught:
            clean(str(index), str(tmp_path / "run"), quick_config())
        assert_no_trace(str(caught.value), "message")


def test_the_configuration_has_no_place_for_secrets() -> None:
    for name in ("key", "secret", "token", "password"):
        with pytest.raises(ConfigError, match="unknown option"):
            quick_config(f"storage.{name}=x")
