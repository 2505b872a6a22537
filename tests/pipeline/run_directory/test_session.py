"""One command at work in a run directory: what it leaves when it ends, and when it is interrupted."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest

from pipeline.cluster.cluster import Cluster
from pipeline.run_directory.lease import Lease
from pipeline.run_directory.record import claim, new_record, read_record
from pipeline.run_directory.session import work_in
from schemas.config import parse_config
from schemas.errors import UntrustworthyError
from schemas.records import run as layout
from schemas.records.run import RunRecord
from schemas.tables.catalog import COLUMNS
from workers.storage.directory import Directory

CATALOG = pd.DataFrame({column.name: [] for column in COLUMNS}).astype({"row": "Int64"})
CONFIG = parse_config(None, ["trim.eta=2.5"])
BOOKS: dict[str, Any] = {"groups": {}}
STOPPED: dict[str, Any] = {
    "groups": {"a": {"findings": [{"condition": "kinds", "sentence": "two kinds of images", "stops": True}]}}
}


class NoCluster:
    """Stands for a cluster that computes nothing."""

    hosts = {"here": 2}  # noqa: RUF012


@pytest.fixture
def run(tmp_path: Path) -> Directory:
    return Directory.at(str(tmp_path / "run"))


def claimed(run: Directory) -> RunRecord:
    return claim(run, new_record("source", CATALOG, CONFIG, "digest"))


def work(run: Directory, ledger: dict[str, Any], *, versions: dict[str, str] | None = None) -> None:
    record, cluster = claimed(run), nullcontext(cast("Cluster", NoCluster()))
    said = record.versions if versions is None else versions
    with Lease(run) as lease, work_in(run, lease, record, CONFIG, CATALOG, cluster, versions=said) as session:
        assert read_record(run).state == layout.RUNNING
        assert not run.exists(layout.SUCCESS)
        session.ledger = ledger


def test_a_run_that_ends_is_published_with_its_configuration_catalog_and_log(run: Directory) -> None:
    work(run, BOOKS)
    record = read_record(run)
    assert (record.state, record.hosts) == (layout.DONE, {"here": 2})
    assert "eta: 2.5" in run.read(layout.CONFIG).decode()
    assert pd.read_parquet(f"{run.url}/{layout.CATALOG}").columns.tolist() == [column.name for column in COLUMNS]
    lines = [json.loads(line) for line in run.read(layout.LOG).decode().splitlines()]
    assert any("published" in line["message"] for line in lines)
    assert run.exists(layout.SUCCESS)
    assert not run.exists(layout.LEASE)


def test_what_the_guard_does_not_trust_is_written_and_not_published(run: Directory) -> None:
    with pytest.raises(UntrustworthyError, match="two kinds of images"):
        work(run, STOPPED)
    assert read_record(run).state == layout.UNTRUSTWORTHY
    assert not run.exists(layout.SUCCESS)


@pytest.mark.parametrize(("error", "state"), [(KeyboardInterrupt, layout.INTERRUPTED), (ValueError, layout.RUNNING)])
def test_only_an_interruption_is_noted_as_one(run: Directory, error: type[BaseException], state: str) -> None:
    record, cluster = claimed(run), nullcontext(cast("Cluster", NoCluster()))
    with (
        pytest.raises(error),
        Lease(run) as lease,
        work_in(run, lease, record, CONFIG, CATALOG, cluster, versions=record.versions),
    ):
        raise error
    assert read_record(run).state == state
    assert not run.exists(layout.SUCCESS)
    assert run.exists(layout.LOG)


def test_a_run_that_goes_on_with_other_versions_says_so(run: Directory) -> None:
    work(run, BOOKS, versions={"numpy": "0.1"})
    assert "which can change results: numpy" in run.read(layout.LOG).decode()
