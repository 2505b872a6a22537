"""Tables and books of a run directory: what is written is read back, anything else is an error that names it."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from pipeline.run_directory.tables import read_ledger, read_table, write_ledger, write_table
from schemas.errors import SourceError
from schemas.tables.columns import Column
from schemas.tables.manifest import DECISIONS
from workers.storage.directory import Directory

COLUMNS = (Column("name", pa.string(), "a name"), Column("count", pa.int64(), "a number"))


@pytest.fixture
def run(tmp_path: Path) -> Directory:
    return Directory.at(str(tmp_path))


def test_a_table_that_is_written_is_read_back(run: Directory) -> None:
    frame = pd.DataFrame({"count": [3, 1], "name": ["a", "b"], "left out": [0, 0]})
    write_table(run, "table.parquet", frame, COLUMNS)
    read = read_table(run, "table.parquet", COLUMNS)
    assert read.columns.tolist() == ["name", "count"]
    assert read["count"].tolist() == [3, 1]
    assert read["name"].tolist() == ["a", "b"]


@pytest.mark.parametrize("content", [None, b"", b"PAR1 torn"])
def test_a_missing_or_damaged_table_is_named_with_what_to_do(run: Directory, content: bytes | None) -> None:
    if content is not None:
        run.write("table.parquet", content)
    with pytest.raises(SourceError, match=r"table\.parquet cannot be read \(.*\)\. Restore it"):
        read_table(run, "table.parquet", COLUMNS)


def test_a_table_without_a_column_is_refused_by_its_name(run: Directory) -> None:
    write_table(run, "table.parquet", pd.DataFrame({"name": ["a"]}), COLUMNS[:1])
    with pytest.raises(SourceError, match=r"table\.parquet cannot be read \(no column 'count' of type int64\)"):
        read_table(run, "table.parquet", COLUMNS)


def ledger(**counts: int) -> dict[str, Any]:
    """Return a ledger of one group with two inputs."""
    books = {"inputs": 2, **dict.fromkeys(DECISIONS, 0), **counts}
    return {"total": books, "groups": {"a": books}}


def test_a_ledger_that_is_written_is_read_back(run: Directory) -> None:
    write_ledger(run, ledger(clean=2))
    assert read_ledger(run) == ledger(clean=2)


def test_a_ledger_that_does_not_balance_is_refused(run: Directory) -> None:
    write_ledger(run, ledger(clean=1))
    with pytest.raises(SourceError, match=r"ledger\.json cannot be read \(its books do not balance\)\. Restore it"):
        read_ledger(run)


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"total": {}, "groups": {}}'])
def test_a_missing_or_malformed_ledger_is_refused(run: Directory, content: bytes | None) -> None:
    if content is not None:
        run.write("ledger.json", content)
    with pytest.raises(SourceError, match=r"ledger\.json cannot be read"):
        read_ledger(run)
