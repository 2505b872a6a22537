"""Tables as files: one way to write the schema of a parquet table, and CSV that is safe to open."""

from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.api.types import is_numeric_dtype

# Characters that start a formula in a spreadsheet, or that it skips before one (OWASP, "CSV Injection"); the last four
# are the full-width forms of the first four.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class Column(NamedTuple):
    """One column: its name, Arrow type and meaning."""

    name: str
    type: pa.DataType
    meaning: str


def arrow_schema(columns: Sequence[Column]) -> pa.Schema:
    """Return the Arrow schema, with the meaning of each field in its metadata."""
    return pa.schema([pa.field(c.name, c.type, metadata={"description": c.meaning}) for c in columns])


def to_arrow(frame: pd.DataFrame, columns: Sequence[Column]) -> pa.Table:
    """Return ``frame`` as an Arrow table with exactly these columns, in this order and of these types.

    Raises `KeyError` if a column is missing, `pyarrow.ArrowInvalid` if values do not fit the type.
    """
    names = [column.name for column in columns]
    return pa.Table.from_pandas(
        frame[names], schema=arrow_schema(columns), preserve_index=False
    ).replace_schema_metadata(None)


def csv_for_people(frame: pd.DataFrame) -> bytes:
    """Return a table as CSV that a spreadsheet shows and never executes.

    A stranger may have chosen the file names and groups of the archive, and a spreadsheet runs text such as
    ``=HYPERLINK(...)``. An apostrophe before such text marks it as text. Numbers, ids, absolute paths and URLs start
    differently and stay as they are.
    """
    texts = {str(name): column.map(_inert) for name, column in frame.items() if not is_numeric_dtype(column)}
    return frame.assign(**texts).to_csv(index=False).encode()


def _inert(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def from_parquet(content: bytes, columns: Sequence[Column] = ()) -> pd.DataFrame:
    """Read a table from the bytes of a parquet file.

    It must have these columns, of these types or types that pandas turns them into; it may have more. Raises
    `ValueError` if the bytes are not parquet, are torn or altered, hold text that is not UTF-8, or lack a column.
    """
    try:
        table = pq.read_table(BytesIO(content), page_checksum_verification=True)
        table.validate(full=True)
        types = {field.name: field.type for field in table.schema}
        frame = pd.read_parquet(BytesIO(content))
    except Exception as error:  # Arrow and its codecs raise anything on damaged bytes
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())) from error
    for column in columns:
        if not _fits(types.get(column.name), column.type):
            raise ValueError(f"no column {column.name!r} of type {column.type}")
    return frame


def _fits(found: pa.DataType | None, wanted: pa.DataType) -> bool:
    """Tell whether a column has the wanted type, or one that pandas makes of it when it rewrites the table."""
    if found is None or found in (wanted, pa.null()):
        return found is not None
    if pa.types.is_integer(wanted) or pa.types.is_floating(wanted):
        return bool(pa.types.is_integer(found) or pa.types.is_floating(found))
    return bool(found == pa.large_string() and wanted == pa.string())


def reference(columns: Sequence[Column]) -> str:
    """Return the columns as a Markdown table."""
    rows = ["| column | type | meaning |", "|---|---|---|"]
    rows += [f"| `{column.name}` | {column.type} | {column.meaning} |" for column in columns]
    return "\n".join(rows) + "\n"
