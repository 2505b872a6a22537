"""Records of a run directory to which anything may have happened: ValueError, or a record of the right types."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.judging.result import GroupResult
from pipeline.run_directory.journal import Journal, StaleJournalError
from pipeline.run_directory.record import read_record
from pipeline.run_directory.tables import read_table, write_table
from schemas.errors import SourceError
from schemas.records.image import ImageOutcome
from schemas.records.lease import LeaseRecord
from schemas.records.receipt import BlockReceipt
from schemas.records.run import RunRecord
from schemas.tables.catalog import COLUMNS
from tests.fuzz.mutations import attempt, fuzzing, json_values, mutated, tried
from workers.storage.directory import Directory

RECORD = RunRecord(
    run_id="20260101T000000Z-abcdef",
    state="running",
    source="/archive",
    options={"trim.eta": 2.3, "features.nodes": ["layer1", "layer2"], "input.group_by": None},
    config_digest="c" * 64,
    catalog_digest="d" * 64,
    weights_digest="w" * 64,
    versions={"paire": "0.1.0"},
    hosts={"here": 2},
)
LEASE = LeaseRecord(owner="me", host="here", place="boot/1", pid=7, started="123", beat=3)
OUTCOMES = (
    ImageOutcome(row=0, content_sha256="a" * 64, byte_count=10, width=4, height=3, reason=""),
    ImageOutcome(row=1, content_sha256="", byte_count=None, width=None, height=None, reason="cannot be read"),
)
FEATURES = np.arange(2 * 2 * 3 * 4, dtype=np.float16).reshape(2, 2, 3, 4)
RECEIPT = BlockReceipt.of(OUTCOMES, FEATURES)
FACTS = {
    "not_judged": "too few",
    "near_duplicates": 0,
    "examination": {"contamination": None, "findings": []},
}
FITTED = np.array([True, False, True])


def altered(record: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Return a record's JSON with other values, missing and foreign ones."""

    def alter(changes: dict[str, Any], lost: set[str]) -> bytes:
        kept = {name: value for name, value in record.items() if name not in lost}
        return json.dumps({**kept, **changes}).encode()

    names = st.sampled_from(sorted(record))
    changes = st.dictionaries(names | st.text(max_size=4), json_values, max_size=2)
    others = json_values.map(lambda value: json.dumps(value).encode())
    return st.builds(alter, changes, st.sets(names, max_size=1)) | others


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Directory:
    return Directory.at(tmp_path_factory.mktemp("run"))


def _record_bytes() -> bytes:
    return json.dumps(RECORD.to_json(), indent=2).encode()


@fuzzing(200)
@given(content=mutated([_record_bytes()]) | altered(RECORD.to_json()))
def test_run_records(directory: Directory, content: bytes) -> None:
    tried["run.json"] += 1
    directory.write("run.json", content)
    record = attempt(lambda: read_record(directory), ValueError)
    if record is None:
        return
    assert all(isinstance(line, str) for line in record.differences(RECORD) + RECORD.differences(record))
    assert all(isinstance(value, str) for value in (record.run_id, record.state, *record.versions.values()))


@fuzzing(200)
@given(content=mutated([LEASE.to_bytes()]) | altered(asdict(LEASE)))
def test_leases(content: bytes) -> None:
    tried["leases"] += 1
    lease = attempt(lambda: LeaseRecord.from_bytes(content), ValueError)
    assert lease is None or LeaseRecord.from_bytes(lease.to_bytes()) == lease


@fuzzing(200)
@given(content=mutated([RECEIPT.to_bytes()]) | altered(json.loads(RECEIPT.to_bytes())))
def test_receipts(content: bytes) -> None:
    tried["receipts"] += 1
    receipt = attempt(lambda: BlockReceipt.from_bytes(content), ValueError)
    assert receipt is None or not receipt.agrees_with(FEATURES) or receipt.outcomes == OUTCOMES


def _table() -> pd.DataFrame:
    names = [f"{number}.png" for number in range(30)]
    frame = pd.DataFrame({"sample_id": names, "image_path": names, "file_name": names, "group": "all", "reason": ""})
    return frame.assign(row=pd.array(range(30), "Int64"))


def _table_bytes() -> bytes:
    directory = Directory.at("memory://fuzz-table")
    write_table(directory, "catalog.parquet", _table(), COLUMNS)
    return directory.read("catalog.parquet")


@fuzzing(100)
@given(content=mutated([_table_bytes()]))
def test_tables(directory: Directory, content: bytes) -> None:
    tried["tables of runs"] += 1
    directory.write("catalog.parquet", content)
    table = attempt(lambda: read_table(directory, "catalog.parquet", COLUMNS), SourceError)
    if table is not None:
        assert [list(map(str, table[column.name])) for column in COLUMNS] == [
            list(map(str, _table()[column.name])) for column in COLUMNS
        ]


def _journal(directory: Directory) -> Journal:
    return Journal(directory / "journal", "digest of the images")


def _entry() -> bytes:
    directory = Directory.at("memory://fuzz-journal")
    journal = _journal(directory)
    assert journal.recall("measure", FITTED, number=1) is None
    journal.note({"thresholds": np.arange(6.0), "clean": FITTED})
    content = (directory / "journal").read("0001.npz")
    directory.remove("")
    return content


@fuzzing(200)
@given(content=mutated([_entry()]))
def test_journal_entries(directory: Directory, content: bytes) -> None:
    tried["journal entries"] += 1
    (directory / "journal").write("0001.npz", content)
    outcome = attempt(lambda: _journal(directory).recall("measure", FITTED, number=1), StaleJournalError)
    if outcome is not None:
        np.testing.assert_array_equal(outcome["thresholds"], np.arange(6.0))
        np.testing.assert_array_equal(outcome["clean"], FITTED)


@fuzzing(100)
@given(facts=altered(FACTS))
def test_results_of_groups(facts: bytes) -> None:
    tried["results of groups"] += 1
    arrays = {"facts": np.frombuffer(facts, np.uint8)}
    result = attempt(lambda: GroupResult.from_arrays(arrays, OUTCOMES), StaleJournalError)
    assert result is None or (result.trimming, result.evidence, result.fitted_for) == (None, None, None)
