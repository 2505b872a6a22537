"""What distinguishes two manifests of the same inputs: which images became clean, and which ceased to be."""

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
    Column("decision_before", pa.string(), "decision in the manifest that was compared with"),
    Column("decision_after", pa.string(), "decision now"),
    Column("reason_before", pa.string(), "that decision in words"),
    Column("reason_after", pa.string(), "this decision in words"),
    Column("change", pa.string(), "`added` (became clean), `removed` (ceased to be clean) or `other`"),
)


def find_changes(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Return the inputs whose decision changed.

    Parameters
    ----------
    before, after
        Two manifests of the same inputs.

    Returns
    -------
    pandas.DataFrame
        With this file's columns, in the order of ``after``.

    Raises
    ------
    LedgerError
        When an input is in only one of them, or in one of them twice.
    """
    ids, previous = after["sample_id"], before["sample_id"]
    if ids.duplicated().any() or previous.duplicated().any() or set(ids) != set(previous):
        raise LedgerError(
            f"The manifests to compare have {len(previous)} and {len(ids)} rows, {len(set(ids) ^ set(previous))} of "
            "them of inputs that the other lacks. Only manifests of one archive can be compared."
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
    """Count the changes in total and for each group of a manifest.

    Parameters
    ----------
    changes
        What `find_changes` found.
    manifest
        One of the two manifests.

    Returns
    -------
    dict
        ``total`` and ``groups``, each with ``added``, ``removed``, ``flipped`` (both together), ``other`` and
        ``unchanged``, whose last three sum to the inputs.
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
