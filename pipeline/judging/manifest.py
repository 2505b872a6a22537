"""From the verdicts of all groups to the manifest: one row for every input."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from pipeline.judging.result import Census, GroupResult
from schemas.arrays import Indices, Mask
from schemas.stores.features import FeatureGeometry
from schemas.tables.manifest import ANOMALOUS, CLEAN, COLUMNS, DUPLICATE, SKIPPED, UNREADABLE
from workers.verdict.selection import Evidence


def build_manifest(
    catalog: pd.DataFrame,
    results: Mapping[str, GroupResult],
    geometry: FeatureGeometry,
    *,
    run_id: str,
    config_digest: str,
    weights_digest: str,
) -> pd.DataFrame:
    """Return the manifest, one row per row of the catalog and in its order."""
    parts = []
    for group, part in catalog.groupby("group", sort=True):
        candidates = part[part["row"].notna()]
        if len(candidates):
            parts.append(_candidate_rows(candidates, results[str(group)], geometry))
        parts.append(part[part["row"].isna()].assign(decision=SKIPPED))
    rows = pd.concat([part for part in parts if len(part)]).sort_index()
    rows["split"] = np.where(rows["decision"] == CLEAN, "train", "")
    rows = rows.assign(run_id=run_id, config_digest=config_digest, weights_digest=weights_digest)
    return rows.reindex(columns=[column.name for column in COLUMNS])


def _candidate_rows(candidates: pd.DataFrame, result: GroupResult, geometry: FeatureGeometry) -> pd.DataFrame:
    """Return a group's candidates with the facts of reading, then the evidence, then the decision."""
    outcomes, census = result.outcomes, result.census
    facts = pd.DataFrame(
        {
            "content_sha256": pd.array([outcome.content_sha256 or None for outcome in outcomes], dtype="string"),
            "bytes": pd.array([outcome.byte_count for outcome in outcomes], dtype="Int64"),
            "width": pd.array([outcome.width for outcome in outcomes], dtype="Int32"),
            "height": pd.array([outcome.height for outcome in outcomes], dtype="Int32"),
        },
        index=candidates.index,
    )
    readable = np.array([outcome.is_readable for outcome in outcomes], dtype=bool)
    reason = np.array([outcome.reason for outcome in outcomes], dtype=object)
    decision = np.full(len(outcomes), UNREADABLE, dtype=object)
    rows = candidates.drop(columns="reason").join(facts)
    if result.trimming is None or result.fitted_for is None:
        decision[readable], reason[readable] = SKIPPED, result.not_judged
    else:
        evidence = _evidence_rows(result, facts, geometry).pipe(
            _name_near_duplicates, candidates, census, result.fitted_for
        )
        own = np.where(readable, (np.cumsum(census.measured) - 1)[census.first_copy], -1)
        shared = evidence.reindex(own).set_axis(candidates.index)  # a duplicate shares that of its first copy
        decision[readable] = np.where(shared["label"][readable] == "normal", CLEAN, ANOMALOUS)
        reason[readable] = shared.pop("reason")[readable]
        rows = rows.join(shared)
    return rows.assign(decision=decision, reason=reason).pipe(_mark_duplicates, census, readable)


def _mark_duplicates(rows: pd.DataFrame, census: Census, readable: Mask) -> pd.DataFrame:
    """Return the rows with duplicates decided as such, each with the name of its first copy."""
    duplicate = np.flatnonzero(readable & ~census.measured)
    first = rows.iloc[census.first_copy[duplicate]]
    duplicate_of = np.full(len(rows), None, dtype=object)
    duplicate_of[duplicate] = first["sample_id"]
    decision, reason = rows["decision"].to_numpy(object).copy(), rows["reason"].to_numpy(object).copy()
    decision[duplicate] = DUPLICATE
    reason[duplicate] = [
        f"byte-identical to {name!r}, which is {verdict}"
        for name, verdict in zip(first["file_name"], first["decision"], strict=True)
    ]
    return rows.assign(decision=decision, reason=reason, duplicate_of=duplicate_of)


def _evidence_rows(result: GroupResult, facts: pd.DataFrame, geometry: FeatureGeometry) -> pd.DataFrame:
    """Return evidence and label of the images that took part, in rows numbered from 0."""
    trimming, evidence, measured = result.trimming, result.evidence, result.census.measured
    assert trimming is not None
    assert evidence is not None
    clean = trimming.clean[measured]
    boxes = [
        geometry.patch_box(int(row), int(column), width=int(width), height=int(height))
        for row, column, width, height in zip(
            evidence.row, evidence.column, facts["width"][measured], facts["height"][measured], strict=True
        )
    ]
    box = pd.DataFrame(boxes, columns=["bbox_x", "bbox_y", "bbox_width", "bbox_height"], dtype="Int32")
    return pd.DataFrame(
        {
            "reason": [_reason(evidence, index, is_clean=bool(kept)) for index, kept in enumerate(clean)],
            "anomaly_score": evidence.score,
            "margin": evidence.margin,
            "worst_row": pd.array(evidence.row, dtype="Int16"),
            "worst_col": pd.array(evidence.column, dtype="Int16"),
            "distance": evidence.distance,
            "threshold": evidence.threshold,
            **box,
            "iteration": pd.array(trimming.last_changed[measured], dtype="Int16"),
            "label": np.where(clean, "normal", "abnormal"),
            "label_index": pd.array(np.where(clean, 0, 1), dtype="Int8"),
            "outlier_score": 1.0 / (1.0 + evidence.margin),
            "is_outlier_issue": pd.array(~clean, dtype="boolean"),
        }
    )


def _name_near_duplicates(
    rows: pd.DataFrame, candidates: pd.DataFrame, census: Census, fitted_for: Indices
) -> pd.DataFrame:
    """Return the evidence; each near-duplicate names the image that it was judged with."""
    near = (fitted_for != np.arange(len(fitted_for)))[census.measured]
    first = candidates.iloc[fitted_for[census.measured][near]]
    near_duplicate_of, reason = np.full(len(rows), None, dtype=object), rows["reason"].to_numpy(object).copy()
    near_duplicate_of[near] = first["sample_id"]
    reason[near] = [
        f"{own}; near-duplicate of {name!r} and judged no better"
        for own, name in zip(reason[near], first["file_name"], strict=True)
    ]
    return rows.assign(reason=reason, near_duplicate_of=near_duplicate_of)


def _reason(evidence: Evidence, index: int, *, is_clean: bool) -> str:
    """Say a verdict in words."""
    margin, place = evidence.margin[index], f"patch ({evidence.row[index]}, {evidence.column[index]})"
    if not is_clean:
        return f"distance {evidence.distance[index]:.6g} at {place} is {margin:.3g} x its threshold"
    if margin >= 1.0:
        return f"kept by the floor although {place} is at {margin:.3g} x its threshold: too few images passed"
    if not np.isfinite(evidence.threshold[index]):
        return "no patch position has a threshold"
    return f"every patch is below its threshold; {place} comes closest at {margin:.3g} x"
