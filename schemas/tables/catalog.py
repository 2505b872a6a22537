"""The catalog: every input, listed before any image is opened."""

import hashlib

import pandas as pd
import pyarrow as pa

from schemas.tables.columns import Column

COLUMNS = (
    Column("sample_id", pa.string(), "stable hash of `file_name`"),
    Column("image_path", pa.string(), "absolute path or URL of the input"),
    Column("file_name", pa.string(), "path relative to the source, or as written in the index"),
    Column("group", pa.string(), "product group; each has its own Gaussian map"),
    Column("row", pa.int64(), "row in the group's `features/` and `distances/` arrays; null if skipped"),
    Column("reason", pa.string(), "why the input is skipped; empty if it is not"),
)


def catalog_digest(catalog: pd.DataFrame) -> str:
    """Return the sha256 of the ids, groups and skip reasons of all inputs, in catalog order."""
    digest = hashlib.sha256()
    for column in ("sample_id", "group", "reason"):
        digest.update("\0".join(catalog[column].astype(str)).encode(errors="surrogateescape"))
        digest.update(b"\1")
    return digest.hexdigest()
