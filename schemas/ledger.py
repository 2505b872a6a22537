"""The ledger: the run's books. Every input is counted once, under exactly one decision."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from schemas.errors import LedgerError
from schemas.manifest import DECISIONS


def build_ledger(
    manifest: pd.DataFrame, catalog: pd.DataFrame, outcomes_by_group: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Count the manifest and check it against the catalog.

    Parameters
    ----------
    manifest, catalog
        One row per input each.
    outcomes_by_group
        How each group ended (iterations, stop reason, warnings), copied into its entry.

    Returns
    -------
    dict
        ``total`` and ``groups``, each with ``inputs`` and one count per decision.

    Raises
    ------
    LedgerError
        When an input was lost, appears twice, or has no known decision.
    """
    seen, decided = catalog["sample_id"], manifest["sample_id"]
    lost = set(seen) - set(decided)
    if lost or len(seen) != len(decided) or decided.duplicated().any():
        raise LedgerError(
            f"The manifest has {len(decided)} rows for {len(seen)} inputs ({len(lost)} lost). "
            "This is a defect of the program; nothing was published. Please report it with log.jsonl."
        )
    inputs = catalog["group"].value_counts()
    groups = {
        str(group): {**_count(part, int(inputs.get(group, 0))), **outcomes_by_group.get(str(group), {})}
        for group, part in manifest.groupby("group", sort=True)
    }
    return {"total": _count(manifest, len(catalog)), "groups": groups}


def _count(part: pd.DataFrame, inputs: int) -> dict[str, int]:
    counts = {decision: int((part["decision"] == decision).sum()) for decision in DECISIONS}
    if sum(counts.values()) != inputs:
        raise LedgerError(
            f"{inputs} inputs but {sum(counts.values())} decisions ({counts}). "
            "This is a defect of the program; nothing was published. Please report it with log.jsonl."
        )
    return {"inputs": inputs, **counts}
