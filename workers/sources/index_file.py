"""Index files: tables that name images, read strictly and as text.

The readers of table libraries guess types and skip over damage. Here a file or a group may be called 'NA' or '007', and
a torn row is an error.
"""

import csv
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

import pandas as pd

from schemas.errors import SourceError
from schemas.tables.columns import from_parquet
from workers.storage.directory import is_url, read_bytes, split_location

CSV_EXTENSION = ".csv"


@dataclass(frozen=True)
class IndexFormat:
    """What an index file must hold; columns that are neither required nor optional are ignored."""

    kind: str  # the file's name in messages
    required: tuple[str, ...]
    optional: tuple[str, ...]
    advice: str  # what to write into it, as a sentence


def read_index(location: str, expected: IndexFormat) -> pd.DataFrame:
    """Read the required and optional columns of an index.

    Parameters
    ----------
    location
        Path or URL; a CSV by its extension, else a parquet file.

    Returns
    -------
    pandas.DataFrame
        The required columns and the optional ones that exist, in that order, with one row per line. The values of a CSV
        are text, empty if missing; those of a parquet file keep their types.

    Raises
    ------
    SourceError
        When the file cannot be read, is not a table, lacks a required column, or has a column twice.
    """
    try:
        content = read_bytes(location)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"the {expected.kind} {location!r} cannot be read ({type(error).__name__}). Check the path."
        ) from error
    is_csv = location.lower().endswith(CSV_EXTENSION)
    try:
        table = _parse_csv(content) if is_csv else from_parquet(content)
    except (ValueError, OSError, csv.Error) as error:
        detail = " ".join(str(error).split())
        raise SourceError(
            f"the {expected.kind} {location!r} is not a readable table ({detail}). {expected.advice}"
        ) from error
    return _columns(table, location, expected)


def folder_of(location: str) -> str:
    """Return the folder of an index file, an absolute path or URL; the paths in the index are relative to it."""
    return posixpath.dirname(location if is_url(location) else split_location(location)[1])


def resolve(folder: str, path: str) -> str:
    """Return a path from an index as an absolute path or URL; an empty one names nothing and stays empty.

    ``folder`` is the absolute path or URL that relative paths start from.
    """
    if not path or is_url(path):
        return path
    if is_url(folder):
        return f"{folder}/{posixpath.normpath(path)}"
    return posixpath.normpath(posixpath.join(folder, path))


def _parse_csv(content: bytes) -> pd.DataFrame:
    rows = csv.reader(StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    header = next(rows, None)
    if header is None:
        raise ValueError("it is empty")
    records = []
    for row in rows:
        if len(row) > len(header):
            raise ValueError(f"line {rows.line_num} has more fields than its header, {len(row)} against {len(header)}")
        if row:
            records.append(row + [""] * (len(header) - len(row)))
    return pd.DataFrame(records, columns=header, dtype="str")


def _columns(table: pd.DataFrame, location: str, expected: IndexFormat) -> pd.DataFrame:
    names = list(map(str, table.columns))
    missing = [name for name in expected.required if name not in names]
    if missing:
        raise SourceError(
            f"the {expected.kind} {location!r} has columns {_listed(names)} but no "
            f"{' and no '.join(map(repr, missing))}. {expected.advice}"
        )
    wanted = [name for name in (*expected.required, *expected.optional) if name in names]
    again = [name for name in wanted if names.count(name) > 1]
    if again:
        raise SourceError(
            f"the {expected.kind} {location!r} has more than one column {_listed(again)}. Remove or rename all but one."
        )
    return table[wanted]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
