"""Fixtures that all tests share: real images, runs that none of them changes, and a cluster."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from pipeline.cluster.cluster import Cluster, open_cluster
from pipeline.judging.strategies.base import UNCHANGED
from tests.support.archives import tiny_config, write_parts
from tests.support.commands import Here
from tests.support.loggers import restored_loggers
from tests.support.runs import SETTLED, Run, run_on

# A law that does not hold fails within a few examples, here or in the next run: each run draws others. Without a
# deadline, because on a shared machine it is the other work that misses it.
settings.register_profile("paire", max_examples=50, deadline=None)
settings.load_profile("paire")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real images and weights beside the checkout; skips the test where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"needs real images and weights in {SHARED.name}/ beside the checkout")
    return SHARED


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


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """Return the command inside this process, where a process of its own would only take longer."""
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    threads = torch.get_num_threads()
    with restored_loggers():
        yield Here(capfd, monkeypatch)
    torch.set_num_threads(threads)
