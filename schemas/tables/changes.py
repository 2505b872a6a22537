"""The difference between two manifests of the same inputs: which images became clean, and which are no longer clean."""

from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa

from schemas.errors import LedgerError
from schemas.tables.columns import Column
from schemas.tables.manifest import CLEAN

ADDED: Final = "added"
REMOVED: Final = "removed"
OTHER: Final = "other"

COLUMNS = (
    Column("sample_id", pa.string(), "stable hash of `file_name`"),
    Column("file_name", pa.string(), "path relative to the source, or as written in the index"),
    Column("group", pa.string(), "product group"),
    Column("decision_before", pa.string(), "decision in the manifest that this run is compared with"),
    Column("decision_after", pa.string(), "decision of this run"),
    Column("reason_before", pa.string(), "`decision_before` in words"),
    Column("reason_after", pa.string(), "`decision_after` in words"),
    Column("change", pa.string(), "`added` (became clean), `removed` (is no longer clean) or `other`"),
)


def find_changes(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Return the inputs whose decision changed, with this file's columns, in the order of ``after``.

    Raises `LedgerError` if an input is in only one manifest, or twice in one.
    """
    ids, previous = after["sample_id"], before["sample_id"]
    if ids.duplicated().any() or previous.duplicated().any() or set(ids) != set(previous):
        raise LedgerError(
            f"The two manifests have {len(previous)} and {len(ids)} rows, and {len(set(ids) ^ set(previous))} inputs "
            "are in only one of them. Compare two manifests of the same archive."
        )
    old = before.set_index("sample_id").loc[ids]
    both = pd.DataFrame(
        {
            "sample_id": ids.array,
            "file_name": after["file_name"].array,
            "group": after["group"].array,
            "decision_before": old["decision"].array,
            "decision_after": after["decision"].array,
            "reason_before": old["reason"].array,
            "reason_after": after["reason"].array,
        }
    )
    became, ceased = both["decision_after"] == CLEAN, both["decision_before"] == CLEAN
    both["change"] = np.select([became, ceased], [ADDED, REMOVED], OTHER)
    return both[both["decision_before"] != both["decision_after"]].reset_index(drop=True)


def count_changes(changes: pd.DataFrame, manifest: pd.DataFrame) -> dict[str, Any]:
    """Count the changes in total and for each group; ``manifest`` is either of the two that were compared.

    Returns
    -------
    dict
        ``total`` and ``groups``, each with ``added``, ``removed``, ``flipped`` (both together), ``other`` and
        ``unchanged``. The last three add up to the inputs.
    """
    inputs = manifest["group"].value_counts()
    groups = {
        str(group): _count(changes[changes["group"] == group], int(count))
        for group, count in inputs.sort_index().items()
    }
    return {"total": _count(changes, len(manifest)), "groups": groups}


def _count(changes: pd.DataFrame, inputs: int) -> dict[str, int]:
    added, removed, other = (int((changes["change"] == name).sum()) for name in (ADDED, REMOVED, OTHER))
    return {
        "added": added,
        "removed": removed,
        "flipped": added + removed,
        "other": other,
        "unchanged": inputs - len(changes),
    }
