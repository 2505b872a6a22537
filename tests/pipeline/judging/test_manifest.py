"""The manifest of hand-made results: every column of every kind of row."""

import dataclasses
import math
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.judging.examination import Examination
from pipeline.judging.manifest import build_manifest
from pipeline.judging.result import GroupResult, take_census
from pipeline.judging.strategies.base import UNCHANGED, Trimming
from pipeline.run_directory.finished import read_outcomes
from schemas.arrays import Mask
from schemas.errors import SourceError
from schemas.records.image import ImageOutcome
from schemas.stores.features import FeatureGeometry
from schemas.tables import catalog as catalog_table
from schemas.tables.columns import to_arrow
from schemas.tables.manifest import COLUMNS, DECISIONS
from workers.verdict.selection import Evidence

# 4 x 4 positions, each pooling 4 x 4 cells of a 16 x 16 grid without overlap.
GEOMETRY = FeatureGeometry(4, 4, 8, grid_rows=16, grid_columns=16, pool_kernel=4, pool_stride=4)

# Two groups, rows of the feature arrays counted in each; 'skip.txt' and 'other.txt' never were candidates.
INPUTS = [
    # file name, group, row, reason
    ("a/clean.png", "a", 0, ""),
    ("a/copy of bad.png", "a", 1, ""),
    ("a/copy of clean.png", "a", 2, ""),
    ("a/far.png", "a", 3, ""),
    ("a/floor.png", "a", 4, ""),
    ("a/skip.txt", "a", None, "not an image"),
    ("a/torn.png", "a", 5, ""),
    ("a/untrimmed.png", "a", 6, ""),
    ("b/copy.png", "b", 0, ""),
    ("b/one.png", "b", 1, ""),
    ("b/other.txt", "b", None, "not an image"),
    ("b/torn.png", "b", 2, ""),
    ("c/only.txt", "c", None, "not an image"),
]

OUTCOMES = {
    "a": (
        ImageOutcome(0, "sha-clean", 100, 64, 32),
        ImageOutcome(1, "sha-bad", 200, 160, 320),
        ImageOutcome(2, "sha-clean", 100, 64, 32),
        ImageOutcome(3, "sha-bad", 200, 160, 320),
        ImageOutcome(4, "sha-floor", 300, 16, 16),
        ImageOutcome(5, "sha-torn", 50, reason="cannot be decoded: torn"),
        ImageOutcome(6, "sha-untrimmed", 400, 17, 16),
    ),
    "b": (
        ImageOutcome(0, "sha-same", 10, 64, 64),
        ImageOutcome(1, "sha-same", 10, 64, 64),
        ImageOutcome(2, reason="cannot be read: no such file"),
    ),
}

# The images that took part: clean, 'copy of bad' (the first of its copies), floor, untrimmed.
EVIDENCE = Evidence(
    score=np.array([9.0, 90.0, 30.0, 5.0]),
    margin=np.array([0.5, 3.0, 1.25, 0.0]),
    row=np.array([0, 3, 1, 2], np.int16),
    column=np.array([1, 2, 0, 3], np.int16),
    distance=np.array([8.0, 90.0, 25.0, 5.0]),
    threshold=np.array([16.0, 30.0, 20.0, np.inf]),
)

# The guard's findings are for the ledger.
NOTHING = Examination(None, ())


def catalog() -> pd.DataFrame:
    """Return the inputs as a catalog."""
    frame = pd.DataFrame(INPUTS, columns=["file_name", "group", "row", "reason"])
    frame["row"] = frame["row"].astype("Int64")
    frame["sample_id"] = [f"id of {name}" for name in frame["file_name"]]
    frame["image_path"] = [f"/archive/{name}" for name in frame["file_name"]]
    return frame


def trimmed(clean: Mask, last_changed: list[int]) -> Trimming:
    """Return how a group came out, as far as the manifest shows it."""
    thresholds = np.full((GEOMETRY.rows, GEOMETRY.columns), 16.0)
    changed = np.array(last_changed, np.int16)
    return Trimming(clean, clean, clean, changed, thresholds, clean[np.newaxis], (), UNCHANGED)


def results() -> dict[str, GroupResult]:
    """Return group a's result, and b's, which is too small to be judged."""
    return {
        "a": GroupResult(
            OUTCOMES["a"],
            take_census(OUTCOMES["a"]),
            NOTHING,
            trimming=trimmed(np.array([True, False, False, False, True, False, True]), [0, 1, 0, 0, 3, 0, 2]),
            evidence=EVIDENCE,
            fitted_for=np.array([0, 1, 2, 3, 4, 5, 6]),
        ),
        "b": GroupResult(OUTCOMES["b"], take_census(OUTCOMES["b"]), NOTHING, not_judged="group 'b' has 1 image"),
    }


def manifest() -> pd.DataFrame:
    return build_manifest(
        catalog(), results(), GEOMETRY, run_id="run", config_digest="config", weights_digest="weights"
    )


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    """Return the manifest as it comes back from parquet, file name to row."""
    buffer = BytesIO()
    pq.write_table(to_arrow(manifest(), COLUMNS), buffer)
    return {row["file_name"]: row for row in pq.read_table(BytesIO(buffer.getvalue())).to_pylist()}


def test_there_is_one_row_per_input_in_catalog_order() -> None:
    assert manifest()["file_name"].tolist() == [name for name, *_ in INPUTS]
    assert manifest()["sample_id"].is_unique


def test_columns_and_types_survive_parquet() -> None:
    buffer = BytesIO()
    pq.write_table(to_arrow(manifest(), COLUMNS), buffer)
    schema = pq.read_schema(BytesIO(buffer.getvalue()))
    assert schema.names == [column.name for column in COLUMNS]
    assert schema.types == [column.type for column in COLUMNS]
    meanings = [schema.field(column.name).metadata[b"description"].decode() for column in COLUMNS]
    assert meanings == [column.meaning for column in COLUMNS]


@pytest.mark.parametrize("name", [name for name, *_ in INPUTS])
def test_every_row_says_which_input_and_which_run(rows: dict[str, dict[str, Any]], name: str) -> None:
    row = rows[name]
    assert (row["sample_id"], row["image_path"]) == (f"id of {name}", f"/archive/{name}")
    assert row["group"] == name[0]
    assert row["decision"] in DECISIONS
    assert (row["run_id"], row["config_digest"], row["weights_digest"]) == ("run", "config", "weights")


def test_a_clean_image_has_every_column(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["a/clean.png"] == {
        "sample_id": "id of a/clean.png",
        "image_path": "/archive/a/clean.png",
        "file_name": "a/clean.png",
        "group": "a",
        "content_sha256": "sha-clean",
        "bytes": 100,
        "width": 64,
        "height": 32,
        "decision": "clean",
        "reason": "every patch is below its threshold; patch (0, 1) comes closest at 0.5 x",
        "anomaly_score": 9.0,
        "margin": 0.5,
        "worst_row": 0,
        "worst_col": 1,
        "distance": 8.0,
        "threshold": 16.0,
        "bbox_x": 16,
        "bbox_y": 0,
        "bbox_width": 16,
        "bbox_height": 8,
        "iteration": 0,
        "near_duplicate_of": None,
        "duplicate_of": None,
        "label": "normal",
        "label_index": 0,
        "split": "train",
        "outlier_score": pytest.approx(1 / 1.5),
        "is_outlier_issue": False,
        "run_id": "run",
        "config_digest": "config",
        "weights_digest": "weights",
    }


def test_an_anomalous_image_has_the_evidence_against_it(rows: dict[str, dict[str, Any]]) -> None:
    row = rows["a/copy of bad.png"]
    assert (row["decision"], row["label"], row["label_index"], row["split"]) == ("anomalous", "abnormal", 1, "")
    assert (row["anomaly_score"], row["margin"], row["distance"], row["threshold"]) == (90.0, 3.0, 90.0, 30.0)
    assert (row["worst_row"], row["worst_col"], row["iteration"]) == (3, 2, 1)
    # An image of 160 x 320 pixels: a cell is 10 x 20.
    assert [row[f"bbox_{side}"] for side in ("x", "y", "width", "height")] == [80, 240, 40, 80]
    assert row["outlier_score"] == 0.25
    assert row["is_outlier_issue"] is True
    assert row["duplicate_of"] is None
    assert row["reason"] == "distance 90 at patch (3, 2) is 3 x its threshold"


def test_an_image_kept_by_the_floor_says_so(rows: dict[str, dict[str, Any]]) -> None:
    row = rows["a/floor.png"]
    assert (row["decision"], row["label_index"], row["split"], row["iteration"]) == ("clean", 0, "train", 3)
    assert (row["margin"], row["is_outlier_issue"]) == (1.25, False)
    assert "floor" in row["reason"]


def test_an_image_that_no_threshold_was_found_for_says_so(rows: dict[str, dict[str, Any]]) -> None:
    row = rows["a/untrimmed.png"]
    assert (row["decision"], row["margin"], row["outlier_score"]) == ("clean", 0.0, 1.0)
    assert math.isinf(row["threshold"])
    assert row["reason"] == "no patch position has a threshold"
    # 17 pixels over 16 cells: the box is rounded outwards and ends at the edge.
    assert (row["bbox_x"], row["bbox_width"]) == (12, 5)


SHARED_COLUMNS = (
    "content_sha256",
    "bytes",
    "width",
    "height",
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


@pytest.mark.parametrize(
    ("copy", "first", "verdict"),
    [("a/copy of clean.png", "a/clean.png", "clean"), ("a/far.png", "a/copy of bad.png", "anomalous")],
)
def test_a_duplicate_shares_label_and_evidence_of_the_first(
    rows: dict[str, dict[str, Any]], copy: str, first: str, verdict: str
) -> None:
    row = rows[copy]
    assert (row["decision"], row["duplicate_of"], row["split"]) == ("duplicate", f"id of {first}", "")
    assert row["reason"] == f"byte-identical to {first!r}, which is {verdict}"
    assert {name: row[name] for name in SHARED_COLUMNS} == {name: rows[first][name] for name in SHARED_COLUMNS}


EVIDENCE_COLUMNS = SHARED_COLUMNS[4:]


@pytest.mark.parametrize(
    ("name", "reason", "facts"),
    [
        ("a/torn.png", "cannot be decoded: torn", ("sha-torn", 50, None, None)),
        ("b/torn.png", "cannot be read: no such file", (None, None, None, None)),
    ],
)
def test_an_unreadable_file_has_a_reason_what_is_known_and_no_evidence(
    rows: dict[str, dict[str, Any]], name: str, reason: str, facts: tuple[Any, ...]
) -> None:
    row = rows[name]
    assert (row["decision"], row["reason"], row["split"]) == ("unreadable", reason, "")
    assert tuple(row[column] for column in ("content_sha256", "bytes", "width", "height")) == facts
    assert [row[column] for column in (*EVIDENCE_COLUMNS, "duplicate_of")] == [None] * (len(EVIDENCE_COLUMNS) + 1)


@pytest.mark.parametrize("name", ["a/skip.txt", "b/other.txt", "c/only.txt"])
def test_a_skipped_input_has_its_reason_and_nothing_else(rows: dict[str, dict[str, Any]], name: str) -> None:
    row = rows[name]
    assert (row["decision"], row["reason"], row["split"]) == ("skipped", "not an image", "")
    assert [row[column] for column in SHARED_COLUMNS] == [None] * len(SHARED_COLUMNS)


def test_a_group_that_is_not_judged_is_skipped_with_the_reason(rows: dict[str, dict[str, Any]]) -> None:
    row = rows["b/copy.png"]
    assert (row["decision"], row["reason"], row["split"]) == ("skipped", "group 'b' has 1 image", "")
    assert (row["content_sha256"], row["bytes"], row["width"], row["height"]) == ("sha-same", 10, 64, 64)
    assert [row[column] for column in EVIDENCE_COLUMNS] == [None] * len(EVIDENCE_COLUMNS)


def test_a_duplicate_in_a_group_that_is_not_judged_is_still_one(rows: dict[str, dict[str, Any]]) -> None:
    row = rows["b/one.png"]
    assert (row["decision"], row["duplicate_of"]) == ("duplicate", "id of b/copy.png")
    assert row["reason"] == "byte-identical to 'b/copy.png', which is skipped"
    assert row["label"] is None


def test_the_census_takes_the_first_of_equal_contents_and_no_unreadable_file() -> None:
    census = take_census(OUTCOMES["a"])
    assert census.measured.tolist() == [True, True, False, False, True, False, True]
    assert census.first_copy.tolist() == [0, 1, 0, 1, 4, 5, 6]


def test_two_unreadable_files_of_equal_content_are_no_duplicates() -> None:
    outcomes = [ImageOutcome(row, "sha", 3, reason="torn") for row in range(2)]
    census = take_census(outcomes)
    assert not census.measured.any()
    assert census.first_copy.tolist() == [0, 1]


def test_the_census_of_nothing_is_empty() -> None:
    assert take_census([]).measured.tolist() == []


@pytest.mark.parametrize("kept", [True, False])
def test_a_group_of_one_kind_only_keeps_its_types(kept: bool) -> None:
    one = catalog().query("file_name == 'a/clean.png'").reset_index(drop=True)
    outcomes = OUTCOMES["a"][:1]
    evidence = Evidence(*(getattr(EVIDENCE, name)[:1] for name in EVIDENCE.__dataclass_fields__))
    trimming = trimmed(np.array([kept]), [1])
    result = GroupResult(outcomes, take_census(outcomes), NOTHING, trimming, evidence, np.array([0]))
    table = to_arrow(
        build_manifest(one, {"a": result}, GEOMETRY, run_id="r", config_digest="c", weights_digest="w"), COLUMNS
    )
    assert table.column("decision").to_pylist() == ["clean" if kept else "anomalous"]
    assert table.schema.types == [column.type for column in COLUMNS]


def test_a_near_duplicate_names_the_image_that_it_was_judged_with() -> None:
    parts = catalog().query("group == 'a' and row.notna()").sort_values("row")
    names = parts["file_name"].tolist()
    first, second = np.flatnonzero(take_census(OUTCOMES["a"]).measured)[:2]
    fitted_for = np.arange(len(names))
    fitted_for[second] = first
    rows = build_manifest(
        catalog(),
        results() | {"a": dataclasses.replace(results()["a"], fitted_for=fitted_for)},
        GEOMETRY,
        run_id="run",
        config_digest="config",
        weights_digest="weights",
    ).set_index("file_name")
    near = rows.loc[names[second]]
    assert near["near_duplicate_of"] == f"id of {names[first]}"
    assert near["reason"].endswith(f"; near-duplicate of {names[first]!r} and judged no better")
    assert rows["near_duplicate_of"].drop(names[second]).dropna().tolist() in ([], [f"id of {names[first]}"])


def test_a_catalog_without_candidates_is_a_manifest_of_skipped_rows() -> None:
    skipped = catalog().query("row.isna()").reset_index(drop=True)
    table = to_arrow(build_manifest(skipped, {}, GEOMETRY, run_id="r", config_digest="c", weights_digest="w"), COLUMNS)
    assert table.column("decision").to_pylist() == ["skipped"] * 3


# --- and back


def read_back() -> pd.DataFrame:
    buffer = BytesIO()
    pq.write_table(to_arrow(manifest(), COLUMNS), buffer)
    return pd.read_parquet(BytesIO(buffer.getvalue()))


def test_a_manifest_has_all_that_reading_the_images_established() -> None:
    buffer = BytesIO()
    pq.write_table(to_arrow(catalog(), catalog_table.COLUMNS), buffer)
    stored = pd.read_parquet(BytesIO(buffer.getvalue()))
    assert read_outcomes(read_back(), stored) == {group: list(images) for group, images in OUTCOMES.items()}


def test_outcomes_come_in_row_order_whatever_the_order_of_the_tables() -> None:
    assert read_outcomes(read_back()[::-1], catalog().sample(frac=1, random_state=0)) == read_outcomes(
        read_back(), catalog()
    )


@pytest.mark.parametrize("change", [lambda frame: frame.iloc[1:], lambda frame: pd.concat([frame, frame.iloc[:1]])])
def test_a_manifest_that_is_not_the_catalog_s_is_refused(change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    with pytest.raises(SourceError, match="expected one for each"):
        read_outcomes(change(read_back()), catalog())
