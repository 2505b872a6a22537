"""Runs that several test files read and none changes, and processes that they share: made once in a test session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cluster import Cluster, open_cluster
from pipeline.trim import UNCHANGED
from tests.archives import tiny_config, write_parts
from tests.pipeline.runs import SETTLED, Run, run_on


@pytest.fixture(scope="session")
def full_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive with all that real ones hold."""
    folder = tmp_path_factory.mktemp("archive")
    write_parts(folder, 16, 3)
    (folder / "copy of good.png").write_bytes((folder / "good_002.png").read_bytes())
    (folder / "sub").mkdir()
    (folder / "sub" / "copy of bad.png").write_bytes((folder / "bad_001.png").read_bytes())
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="session")
def finished(full_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a finished run with the paper's stop, in a directory that was there and empty."""
    return run_on(full_archive, tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def settled(full_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a finished run that stopped because nothing changed."""
    run = run_on(full_archive, tmp_path_factory.mktemp("runs") / "settled", SETTLED)
    assert run.result.ledger["groups"]["all"]["stop_reason"] == UNCHANGED
    return run


@pytest.fixture(scope="session")
def two_processes() -> Iterator[Cluster]:
    """Return a cluster of two worker processes, which take seconds to import torch."""
    with open_cluster(tiny_config("cluster.workers=2", "cluster.processes=true").cluster) as cluster:
        assert cluster.workers == 2
        yield cluster
