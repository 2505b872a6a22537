"""The last stage: from verdicts to the manifest, the clean list, the ledger and the run's other tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas import iterations as iterations_table
from schemas import manifest as manifest_table
from schemas.features import FeatureGeometry
from schemas.image import ImageOutcome
from schemas.manifest import ANOMALOUS, CLEAN, DUPLICATE, SKIPPED, UNREADABLE
from schemas.run import CLEAN_LIST, ITERATIONS, LEDGER, MANIFEST
from schemas.tables import Column, to_arrow
from workers.selection import Evidence
from workers.storage import Directory

CLEAN_LIST_COLUMNS = ("sample_id", "image_path", "file_name", "group")

EVIDENCE_COLUMNS = (
    "anomaly_score",
    "margin",
    "worst_row",
    "worst_col",
    "distance",
    "threshold",
    "bbox_x",
    "bbox_y",
    "bbox_width",
    "bbox_height",
    "iteration",
    "label",
    "label_index",
    "outlier_score",
    "is_outlier_issue",
)


@dataclass(frozen=True)
class Census:
    """Which of a group's candidates take part in its statistics.

    Attributes
    ----------
    measured
        (images,) bool: readable, and the first of its byte-identical copies.
    duplicate_of
        Row of a duplicate to the row of its representative.
    """

    measured: NDArray[np.bool_]
    duplicate_of: dict[int, int]


def take_census(outcomes: Sequence[ImageOutcome]) -> Census:
    """Find the duplicates and the unreadable among a group's outcomes, which are in row order."""
    first_with: dict[str, int] = {}
    duplicate_of: dict[int, int] = {}
    measured = np.zeros(len(outcomes), bool)
    for row, outcome in enumerate(outcomes):
        if not outcome.is_readable:
            continue
        representative = first_with.setdefault(outcome.content_sha256, row)
        if representative == row:
            measured[row] = True
        else:
            duplicate_of[row] = representative
    return Census(measured, duplicate_of)


@dataclass(frozen=True)
class GroupVerdict:
    """Everything that the manifest says of a group's images.

    Attributes
    ----------
    outcomes
        One per candidate, in row order.
    census
        Who took part.
    clean
        (images,) bool; None where the group could not be judged.
    last_changed
        (images,) int16.
    evidence
        Of the images that took part, in row order; None where the group could not be judged.
    floor_applied
        Whether the floor chose the clean set of the last pass.
    not_judged
        Why the group could not be judged; empty when it was.
    """

    outcomes: Sequence[ImageOutcome]
    census: Census
    clean: NDArray[np.bool_] | None = None
    last_changed: NDArray[np.int16] | None = None
    evidence: Evidence | None = None
    floor_applied: bool = False
    not_judged: str = ""


def build_manifest(
    catalog: pd.DataFrame,
    verdicts: Mapping[str, GroupVerdict],
    geometry: FeatureGeometry,
    *,
    run_id: str,
    config_digest: str,
    weights_digest: str,
) -> pd.DataFrame:
    """Return the manifest, one row per row of the catalog and in its order."""
    groups = []
    for group, part in catalog.groupby("group", sort=True):
        candidates = part[part["row"].notna()].reset_index(drop=True)
        if str(group) in verdicts:
            groups.append(_judged_rows(candidates, verdicts[str(group)], geometry))
        groups.append(part[part["row"].isna()].assign(decision=SKIPPED))
    rows = pd.concat([frame.astype(object) for frame in groups if len(frame)], ignore_index=True)
    rows = rows.set_index("sample_id").loc[catalog["sample_id"]].reset_index()
    rows["split"] = np.where(rows["decision"] == CLEAN, "train", "")
    rows = rows.assign(run_id=run_id, config_digest=config_digest, weights_digest=weights_digest)
    return rows.reindex(columns=[column.name for column in manifest_table.COLUMNS])


def write_manifest(run: Directory, manifest: pd.DataFrame) -> None:
    """Write ``manifest.parquet`` and ``clean.csv``."""
    write_table(run, MANIFEST, manifest, manifest_table.COLUMNS)
    kept = manifest.loc[manifest["decision"] == CLEAN, list(CLEAN_LIST_COLUMNS)]
    run.write(CLEAN_LIST, kept.to_csv(index=False).encode())


def write_iterations(run: Directory, iterations: Sequence[Mapping[str, Any]]) -> None:
    """Write ``iterations.parquet``."""
    names = [column.name for column in iterations_table.COLUMNS]
    write_table(run, ITERATIONS, pd.DataFrame(list(iterations), columns=names), iterations_table.COLUMNS)


def write_ledger(run: Directory, ledger: Mapping[str, Any]) -> None:
    """Write ``ledger.json``."""
    run.write(LEDGER, (json.dumps(ledger, indent=2, ensure_ascii=False) + "\n").encode())


def write_table(directory: Directory, name: str, frame: pd.DataFrame, columns: Sequence[Column]) -> None:
    """Write a parquet file with exactly these columns."""
    buffer = BytesIO()
    pq.write_table(to_arrow(frame, columns), buffer, compression="zstd")
    directory.write(name, buffer.getvalue())


def _judged_rows(candidates: pd.DataFrame, verdict: GroupVerdict, geometry: FeatureGeometry) -> pd.DataFrame:
    """Return the rows of a group's candidates: facts of reading, then evidence, then the decision."""
    rows = candidates.assign(
        content_sha256=[outcome.content_sha256 or None for outcome in verdict.outcomes],
        bytes=[outcome.byte_count for outcome in verdict.outcomes],
        width=[outcome.width for outcome in verdict.outcomes],
        height=[outcome.height for outcome in verdict.outcomes],
        reason=[outcome.reason for outcome in verdict.outcomes],
        decision=UNREADABLE,
        duplicate_of=None,
    ).astype(object)
    readable = np.array([outcome.is_readable for outcome in verdict.outcomes])
    if verdict.evidence is None or verdict.clean is None or verdict.last_changed is None:
        rows.loc[readable, ["decision", "reason"]] = [SKIPPED, verdict.not_judged]
    else:
        _add_evidence(rows, verdict, geometry)
    for row, representative in verdict.census.duplicate_of.items():
        _share_verdict(rows, row, representative)
    return rows


def _add_evidence(rows: pd.DataFrame, verdict: GroupVerdict, geometry: FeatureGeometry) -> None:
    """Fill in decision, reason, evidence and label of the images that took part."""
    assert verdict.evidence is not None
    assert verdict.clean is not None
    assert verdict.last_changed is not None
    evidence, measured = verdict.evidence, verdict.census.measured
    clean = verdict.clean[measured]
    places = np.flatnonzero(measured)
    boxes = [
        geometry.patch_box(int(row), int(column), width=int(rows.at[place, "width"]), height=int(rows.at[place, "height"]))
        for place, row, column in zip(places, evidence.row, evidence.column, strict=True)
    ]
    values = {
        "decision": np.where(clean, CLEAN, ANOMALOUS),
        "reason": [
            _reason(evidence, index, is_clean=bool(is_clean), floor_applied=verdict.floor_applied)
            for index, is_clean in enumerate(clean)
        ],
        "anomaly_score": evidence.score,
        "margin": evidence.margin,
        "worst_row": evidence.row,
        "worst_col": evidence.column,
        "distance": evidence.distance,
        "threshold": evidence.threshold,
        **{f"bbox_{name}": side for name, side in zip(("x", "y", "width", "height"), zip(*boxes, strict=True), strict=True)},
        "iteration": verdict.last_changed[measured],
        "label": np.where(clean, "normal", "abnormal"),
        "label_index": np.where(clean, 0, 1),
        "outlier_score": 1.0 / (1.0 + evidence.margin),
        "is_outlier_issue": ~clean,
    }
    for name, column in values.items():
        if name not in rows:
            rows[name] = None
        rows.loc[measured, name] = pd.Series(list(column), index=places, dtype=object)


def _reason(evidence: Evidence, index: int, *, is_clean: bool, floor_applied: bool) -> str:
    """Say a verdict in words."""
    margin, place = evidence.margin[index], f"patch ({evidence.row[index]}, {evidence.column[index]})"
    if margin >= 1.0 and is_clean:
        return f"kept by the floor although {place} is at {margin:.3g} x its threshold: too few images passed"
    if margin >= 1.0:
        return f"distance {evidence.distance[index]:.6g} at {place} is {margin:.3g} x its threshold"
    if not is_clean:  # only the floor can exclude an image that is below every threshold
        raise AssertionError(f"an image with margin {margin} was excluded")
    if not np.isfinite(evidence.threshold[index]):
        return "no patch position has a threshold for it to be beyond"
    return f"every patch is below its threshold; {place} comes closest at {margin:.3g} x"


def _share_verdict(rows: pd.DataFrame, row: int, representative: int) -> None:
    """Give a duplicate its representative's evidence and label."""
    name, decision = rows.at[representative, "file_name"], rows.at[representative, "decision"]
    for column in EVIDENCE_COLUMNS:
        if column in rows:
            rows.at[row, column] = rows.at[representative, column]
    rows.at[row, "decision"] = DUPLICATE
    rows.at[row, "duplicate_of"] = rows.at[representative, "sample_id"]
    rows.at[row, "reason"] = f"byte-identical to {name!r}, which is {decision}"
