"""A parquet table as a list of documented columns: the one form in which every table's schema is written."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import pyarrow as pa


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


def reference(columns: Sequence[Column]) -> str:
    """Return the columns as a Markdown table."""
    rows = ["| column | type | meaning |", "|---|---|---|"]
    rows += [f"| `{column.name}` | {column.type} | {column.meaning} |" for column in columns]
    return "\n".join(rows) + "\n"
