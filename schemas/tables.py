"""Tables as files: the one form in which every parquet table's schema is written, and CSV that is safe to open."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
from pandas.api.types import is_numeric_dtype

# What a spreadsheet takes for the beginning of a formula, or leaves out before one (OWASP, "CSV Injection"); the last
# four are the first four in full width.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class Column(NamedTuple):
    """One column: its name, Arrow type and meaning."""

    name: str
    type: pa.DataType
    meaning: str


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """Return the Arrow schema, each field carrying its meaning as metadata."""
    return pa.schema([pa.field(c.name, c.type, metadata={"description": c.meaning}) for c in columns])


def to_arrow(frame: pd.DataFrame, columns: Sequence[Column]) -> pa.Table:
    """Return ``frame`` as an Arrow table with exactly these columns, in this order and of these types.

    Raises
    ------
    KeyError
        When a column is missing.
    pyarrow.ArrowInvalid
        When values do not fit the declared type.
    """
    names = [column.name for column in columns]
    return pa.Table.from_pandas(
        frame[names], schema=arrow_schema(columns), preserve_index=False
    ).replace_schema_metadata(None)


def csv_for_people(frame: pd.DataFrame) -> bytes:
    """Return a table as CSV that a spreadsheet shows and does not execute.

    File names and groups come from whoever fills the archive, and a spreadsheet runs a text like ``=HYPERLINK(...)``.
    Such a text gets an apostrophe before it, which spreadsheets take for *this is text*. Numbers, ids, absolute paths
    and URLs begin otherwise and stay as they are.
    """
    texts = {str(name): column.map(_inert) for name, column in frame.items() if not is_numeric_dtype(column)}
    return frame.assign(**texts).to_csv(index=False).encode()


def _inert(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def reference(columns: Sequence[Column]) -> str:
    """Return the columns as a Markdown table."""
    rows = ["| column | type | meaning |", "|---|---|---|"]
    rows += [f"| `{column.name}` | {column.type} | {column.meaning} |" for column in columns]
    return "\n".join(rows) + "\n"
