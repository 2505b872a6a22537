"""The tables and the ledger of a run directory: how they are written and read."""

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from schemas.errors import SourceError
from schemas.records.ledger import parse_ledger
from schemas.records.run import CHANGES, CHANGES_LIST, CHANGES_SUMMARY, CLEAN_LIST, ITERATIONS, LEDGER, MANIFEST
from schemas.tables import changes as changes_table
from schemas.tables import iterations as iterations_table
from schemas.tables import manifest as manifest_table
from schemas.tables.columns import Column, csv_for_people, from_parquet, to_arrow
from schemas.tables.manifest import CLEAN
from workers.storage.directory import Directory

CLEAN_LIST_COLUMNS = ("sample_id", "image_path", "file_name", "group")


def write_manifest(run: Directory, manifest: pd.DataFrame) -> None:
    """Write ``manifest.parquet``, and ``clean.csv`` with the kept images for people and shell scripts."""
    write_table(run, MANIFEST, manifest, manifest_table.COLUMNS)
    kept = manifest.loc[manifest["decision"] == CLEAN, list(CLEAN_LIST_COLUMNS)]
    run.write(CLEAN_LIST, csv_for_people(kept))


def write_iterations(run: Directory, iterations: Sequence[Mapping[str, Any]]) -> None:
    """Write ``iterations.parquet``."""
    names = [column.name for column in iterations_table.COLUMNS]
    write_table(run, ITERATIONS, pd.DataFrame(list(iterations), columns=names), iterations_table.COLUMNS)


def write_ledger(run: Directory, ledger: Mapping[str, Any]) -> None:
    """Write ``ledger.json``."""
    run.write(LEDGER, _json_bytes(ledger))


def write_changes(run: Directory, changes: pd.DataFrame, summary: Mapping[str, Any]) -> None:
    """Write ``changes.parquet``, the same as ``changes.csv`` for people, and their counts as ``changes.json``."""
    write_table(run, CHANGES, changes, changes_table.COLUMNS)
    run.write(CHANGES_LIST, csv_for_people(changes))
    run.write(CHANGES_SUMMARY, _json_bytes(summary))


def write_table(directory: Directory, name: str, frame: pd.DataFrame, columns: Sequence[Column]) -> None:
    """Write a parquet file with exactly these columns."""
    buffer = BytesIO()
    pq.write_table(to_arrow(frame, columns), buffer, compression="zstd", write_page_checksum=True)
    directory.write(name, buffer.getvalue())


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def read_table(
    directory: Directory,
    name: str,
    columns: Sequence[Column] = (),
    *,
    advice: str = "Restore it, or clean the archive again.",
) -> pd.DataFrame:
    """Read a parquet table of the directory of any command.

    Raises
    ------
    SourceError
        If it is missing, damaged or lacks one of ``columns``; the message ends with ``advice``.
    """
    try:
        return from_parquet(directory.read(name), columns)
    except (OSError, ValueError) as error:
        detail = type(error).__name__ if isinstance(error, OSError) else error
        raise SourceError(f"{directory.url}/{name} cannot be read ({detail}). {advice}") from error


def read_ledger(run: Directory) -> dict[str, Any]:
    """Read the ledger of a run; raises SourceError if it is missing, malformed or does not balance."""
    try:
        return parse_ledger(run.read(LEDGER))
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{run.url}/{LEDGER} cannot be read ({error}). Restore it, or clean the archive again."
        ) from error
