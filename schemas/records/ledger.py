"""The ledger of a run: it counts every input once, under exactly one decision.

The entry of each group also says how its judging ended and whether the result can be trusted:

- ``iterations``, ``stop_reason``, ``floor_applied``: how many passes there were and why they stopped.
- ``near_duplicates``: how many images are near-duplicates of earlier ones.
- ``warnings``: sentences about what makes the verdicts less trustworthy.
- ``contamination``: ``share``, the estimated share of images that do not follow the law of the clean ones, with its
  95 % interval ``lower`` to ``upper``; null if there is no estimate.
- ``purity``: the share of clean images among those that are kept, its ``estimate`` and a ``lower`` bound; null if the
  strategy does not estimate it.
- ``power``: what the published map sees of strong defects that were planted into kept images: ``planted``, ``seen``,
  its 95 % interval ``low`` to ``high``, the counts ``by_kind`` and ``by_size``, ``smallest_seen``, and the counts of
  ``medium`` defects in the same places; images that do not
  count: ``rejected_untouched``, ``too_faint``, ``left_out``; and a ``note`` why nothing was planted, or why an image
  was left out.
- ``findings``: those of the breakdown guard, each with its ``condition``, its ``sentence`` and whether it ``stops`` the
  publication, because the result is untrustworthy.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd
from pydantic import BaseModel, ValidationError

from schemas.errors import LedgerError
from schemas.tables.manifest import DECISIONS


def build_ledger(
    manifest: pd.DataFrame, catalog: pd.DataFrame, outcomes_by_group: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Count the manifest and check it against the catalog; both have one row per input.

    Returns
    -------
    dict
        ``total`` and ``groups``, each with ``inputs`` and one count per decision; the entry of each group also repeats
        its part of ``outcomes_by_group``.

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


class _Finding(BaseModel):
    condition: str
    sentence: str
    stops: bool


class _Books(BaseModel):
    inputs: int
    clean: int
    anomalous: int
    duplicate: int
    unreadable: int
    skipped: int
    findings: list[_Finding] = []

    def counts(self) -> list[int]:
        return [getattr(self, name) for name in DECISIONS]


class _Ledger(BaseModel):
    total: _Books
    groups: dict[str, _Books]


def parse_ledger(content: bytes) -> dict[str, Any]:
    """Return a ledger from its JSON; raises `ValueError` if it is malformed or does not balance."""
    try:
        books = _Ledger.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}") from error
    groups = [group.counts() for group in books.groups.values()]
    if any(sum(each.counts()) != each.inputs for each in (books.total, *books.groups.values())) or (
        list(map(sum, zip(*groups, strict=True))) != books.total.counts() and groups
    ):
        raise ValueError("its books do not balance")
    ledger: dict[str, Any] = json.loads(content)
    return ledger


def stopping_sentences(ledger: Mapping[str, Any], *, accepted: Collection[str] = ()) -> dict[str, list[str]]:
    """Return why groups are untrustworthy: the sentences of each group's stopping findings, if it has any.

    Findings whose condition is ``accepted`` do not count.
    """
    stopping = {
        group: [
            finding["sentence"]
            for finding in entry.get("findings", ())
            if finding["stops"] and finding["condition"] not in accepted
        ]
        for group, entry in ledger["groups"].items()
    }
    return {group: sentences for group, sentences in stopping.items() if sentences}


def _count(part: pd.DataFrame, inputs: int) -> dict[str, int]:
    counts = {decision: int((part["decision"] == decision).sum()) for decision in DECISIONS}
    if sum(counts.values()) != inputs:
        raise LedgerError(
            f"{inputs} inputs but {sum(counts.values())} decisions ({counts}). "
            "This is a defect of the program; nothing was published. Please report it with log.jsonl."
        )
    return {"inputs": inputs, **counts}
