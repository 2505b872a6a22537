"""Index files: tables that name images, read strictly and as text throughout.

A file or a group may well be called 'NA' or '007', and a torn row must be an error, not a row of something else; the
readers of table libraries guess at both.
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
    """What an index file must hold.

    Attributes
    ----------
    kind
        What it is called in messages.
    required, optional
        Names of the columns that are read; others are left alone.
    advice
        What to write into it, as a sentence.
    """

    kind: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    advice: str


def read_index(location: str, expected: IndexFormat) -> pd.DataFrame:
    """Read the columns of an index that are asked for.

    Parameters
    ----------
    location
        Path or URL; a CSV by its extension, else a parquet file.
    expected
        The columns.

    Returns
    -------
    pandas.DataFrame
        The required columns and those optional ones that are there, in that order, with one row per line. Of a CSV
        all are text, empty where a line says nothing; of a parquet file they are what it says.

    Raises
    ------
    SourceError
        When it can not be read, is no table, or lacks a required column or has one twice.
    """
    try:
        content = read_bytes(location)
    except (OSError, ValueError) as error:
        raise SourceError(
            f"the {expected.kind} {location!r} can not be read ({type(error).__name__}). Check the path."
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
    """Return the folder that a file is in, as an absolute path or URL: what the paths in an index are relative to."""
    return posixpath.dirname(location if is_url(location) else split_location(location)[1])


def resolve(folder: str, path: str) -> str:
    """Return a path written in an index as an absolute path or URL; an empty one, which names nothing, stays empty.

    Parameters
    ----------
    folder
        The index's folder, an absolute path or URL.
    path
        Relative to it, absolute, or a URL.
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
