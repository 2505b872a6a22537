"""Scoring new images: as the manifest says, under whose Gaussians, with heat maps and with stored anomaly maps."""

import math
import shutil
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import zarr
from numpy.typing import NDArray
from PIL import Image

import pipeline.commands.score
from pipeline.commands.clean import clean
from pipeline.commands.score import score
from schemas.config import Config, parse_config
from schemas.errors import ConfigError, GaussianMapError, RunConflictError
from schemas.names import storage_name
from schemas.tables import scores as scores_table
from schemas.tables.scores import ANOMALY_MAPS, SCORES
from tests.support.archives import part_pixels, png, tiny_config, write_parts
from tests.support.runs import CLUSTER, Run
from workers.features.extractor import choose_channels
from workers.map.reader import GaussianMap
from workers.map.writer import complete_map
from workers.storage.directory import Directory

FIRST, SECOND = "Line 1", "line-2"
CHANNELS = 20

# PaDiM: everything is kept, on a random subset of channels with an absolute ridge.
PADIM = ("trim.strategy=none", "gaussian.ridge=0.01", f"features.channels={CHANNELS}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two groups whose map is fitted on all images but one, which cannot be read."""
    folder = tmp_path_factory.mktemp("scoring")
    write_parts(folder / "archive" / FIRST, 9, 1)
    write_parts(folder / "archive" / SECOND, 5, first_seed=50)
    (folder / "archive" / FIRST / "good_004.png").write_bytes(b"torn")
    (folder / "archive" / FIRST / "note.txt").write_text("not an image")
    settings = (*PADIM, "input.group_by={line}/**", "input.max_unreadable_fraction=1", "features.pool_stride=6")
    clean(str(folder / "archive"), str(folder / "run"), tiny_config(*settings))
    return folder / "run"


def scored(run: Path, source: Path, out: Path, *settings: str, **options: Any) -> pd.DataFrame:
    """Score with a configuration that says nothing of the features, as a user would."""
    return score(str(run / "model"), str(source), str(out), parse_config(None, (*CLUSTER, *settings)), **options)


def rows_of(scores: pd.DataFrame, source: Path) -> dict[str, dict[Hashable, Any]]:
    names = [str(Path(path).relative_to(source)) for path in scores["image_path"]]
    return dict(zip(names, scores.to_dict("records"), strict=True))


def stored(out: Path, group: str) -> NDArray[np.float64]:
    """Return a group's anomaly maps (images, rows, columns)."""
    return np.asarray(zarr.open_array(out / ANOMALY_MAPS / storage_name(group), mode="r")[:])


def assert_maps_are_those_of_the_scores(scores: pd.DataFrame, out: Path) -> None:
    for group, part in scores[scores["row"].notna()].groupby("group"):
        largest = stored(out, str(group)).max(axis=(1, 2))
        np.testing.assert_array_equal(largest[part["row"].astype(int)], part["anomaly_score"].astype(float))


# --- scores


@pytest.fixture(scope="module")
def again(settled: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Return the training images of a run scored under its map: where to, and the scores."""
    out = tmp_path_factory.mktemp("again")
    return out, scored(settled.path, settled.source, out)


def test_training_images_score_what_the_manifest_says(settled: Run, again: tuple[Path, pd.DataFrame]) -> None:
    (_, scores), manifest = again, settled.manifest
    assert scores["image_path"].tolist() == manifest["image_path"].tolist()
    readable = manifest["anomaly_score"].notna()
    for column in ("anomaly_score", "margin", "worst_row", "worst_col"):
        found, expected = scores.loc[readable, column].astype(float), manifest.loc[readable, column].astype(float)
        np.testing.assert_allclose(found, expected, rtol=1e-9, err_msg=column)
    is_anomalous = scores.loc[readable, "is_anomalous"].astype(bool)
    assert is_anomalous.tolist() == (manifest.loc[readable, "label"] == "abnormal").tolist()


def test_scores_are_written_as_they_are_returned(again: tuple[Path, pd.DataFrame]) -> None:
    out, scores = again
    schema = pq.read_schema(out / SCORES)
    assert [(field.name, field.type) for field in schema] == [(c.name, c.type) for c in scores_table.COLUMNS]
    assert pd.read_parquet(out / SCORES)["anomaly_score"].dropna().tolist() == scores["anomaly_score"].dropna().tolist()


def test_what_cannot_be_scored_has_a_reason(settled: Run, again: tuple[Path, pd.DataFrame]) -> None:
    rows = rows_of(again[1], settled.source)
    assert rows["empty.png"]["reason"] == "the file is empty (0 bytes)"
    assert "extension" in rows["notes.txt"]["reason"]
    for name, row in rows.items():
        has_score = row["anomaly_score"] is not None and not math.isnan(row["anomaly_score"])
        assert has_score == (row["reason"] == ""), name
        assert has_score == (name not in {"empty.png", "notes.txt"})


def test_heat_maps_cover_each_image_that_was_scored(settled: Run, tmp_path: Path) -> None:
    source = tmp_path / "new"
    write_parts(source, 2, 1)
    (source / "two\nlines.png").write_bytes(png(part_pixels(5)[:, :40]))
    (source / "torn.png").write_bytes(b"")
    scored(settled.path, source, tmp_path / "scores", maps=True)
    sizes = {}
    for path in (tmp_path / "scores" / "maps").iterdir():
        with Image.open(path) as image:
            sizes[path.name] = image.size
    names = ("good_000.png", "good_001.png", "bad_000.png", "two\nlines.png")
    assert sizes == {f"{storage_name(name)}.png": (40 if "lines" in name else 64, 64) for name in names}


def test_scores_do_not_go_into_a_run_directory(settled: Run) -> None:
    with pytest.raises(RunConflictError, match="run directory"):
        scored(settled.path, settled.source, settled.path)


def test_other_features_than_the_map_was_fitted_with_are_refused(settled: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"features\.pool_stride = 2.*fitted with 8"):
        scored(settled.path, settled.source, tmp_path, "features.pool_stride=2")


def test_another_run_at_the_same_place_is_scored_by_its_own_map(finished: Run, settled: Run, tmp_path: Path) -> None:
    write_parts(tmp_path / "new", 2, first_seed=200)
    place, found = tmp_path / "run", []
    for run in (finished, settled):
        if place.exists():
            place.rename(tmp_path / "old run")
        shutil.copytree(run.path, place)
        found.append(scored(place, tmp_path / "new", tmp_path / "scores")["anomaly_score"].tolist())
    expected = scored(settled.path, tmp_path / "new", tmp_path / "expected")["anomaly_score"].tolist()
    assert found[1] == expected != found[0]


# --- groups


def test_a_named_group_scores_everything_under_its_gaussians(run: Path, tmp_path: Path) -> None:
    write_parts(tmp_path / "new", 2, first_seed=300)
    under = {name: scored(run, tmp_path / "new", tmp_path / name, group=name) for name in (FIRST, SECOND)}
    assert set(under[FIRST]["group"]) == {FIRST}
    assert under[FIRST]["anomaly_score"].tolist() != under[SECOND]["anomaly_score"].tolist()


@pytest.mark.parametrize("group", ["c", None])
def test_images_of_no_known_group_are_an_error_that_names_the_groups(
    run: Path, tmp_path: Path, group: str | None
) -> None:
    write_parts(tmp_path / "new", 1)
    with pytest.raises(GaussianMapError, match=f"'{FIRST}', '{SECOND}'"):
        scored(run, tmp_path / "new", tmp_path / "scores", group=group)


def test_the_only_group_of_a_map_needs_no_name(run: Path, tmp_path: Path) -> None:
    only = tmp_path / "run"
    shutil.copytree(run / "model", only / "model")
    (only / "_SUCCESS").touch()
    shutil.rmtree(only / "model" / storage_name(FIRST))
    complete_map(Directory.at(only / "model"))
    write_parts(tmp_path / "new", 2)
    scores = scored(only, tmp_path / "new", tmp_path / "scores")
    assert set(scores["group"]) == {SECOND}
    assert scores["anomaly_score"].notna().all()


# --- stored maps


@pytest.fixture(scope="module")
def with_maps(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Return the training images scored with their maps: where to, and the scores."""
    out = tmp_path_factory.mktemp("maps")
    return out, scored(run, run.parent / "archive", out, "input.group_by={line}/**", anomaly_maps=True)


def test_the_map_of_a_training_image_is_its_distances_in_the_run(
    run: Path, with_maps: tuple[Path, pd.DataFrame]
) -> None:
    out, scores = with_maps
    assert_maps_are_those_of_the_scores(scores, out)
    for group, images in ((FIRST, 10), (SECOND, 5)):
        distances = np.asarray(zarr.open_array(run / "distances" / storage_name(group) / "distance", mode="r")[:])
        assert distances.shape[0] == images
        np.testing.assert_allclose(stored(out, group), distances, rtol=1e-9)
        node = zarr.open_array(out / ANOMALY_MAPS / storage_name(group), mode="r")
        assert (node.attrs["group"], node.dtype.name) == (group, "float64")


def test_what_was_not_scored_has_no_row_and_no_map(with_maps: tuple[Path, pd.DataFrame]) -> None:
    out, scores = with_maps
    without = scores[scores["row"].isna()]
    assert [Path(path).name for path in without["image_path"]] == ["good_004.png", "note.txt"]
    assert without["anomaly_score"].isna().all()
    assert np.isnan(stored(out, FIRST)).all(axis=(1, 2)).sum() == 1
    of_first = scores[(scores["group"] == FIRST) & scores["row"].notna()]
    assert of_first["row"].tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]  # by name, the torn one in between
    assert pd.read_parquet(out / SCORES)["row"].isna().sum() == 2


def test_only_the_chosen_channels_are_stored_fitted_and_scored(run: Path, tmp_path: Path) -> None:
    opened = GaussianMap.open(run / "model")
    assert opened.description.features.channels == opened.description.geometry.channels == CHANNELS
    assert zarr.open_array(run / "features" / SECOND, mode="r").shape[-1] == CHANNELS
    # The same archive with all channels: its features at the chosen ones are the same numbers.
    settings = ("input.group_by={line}/**", "input.max_unreadable_fraction=1", "features.pool_stride=6")
    clean(str(run.parent / "archive"), str(tmp_path / "run"), tiny_config("trim.strategy=none", *settings))
    every = np.asarray(zarr.open_array(tmp_path / "run" / "features" / SECOND, mode="r")[:])
    chosen = choose_channels(every.shape[-1], CHANNELS, seed=0)
    np.testing.assert_array_equal(
        every[..., chosen], np.asarray(zarr.open_array(run / "features" / SECOND, mode="r")[:])
    )


def test_another_subset_than_the_maps_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"features\.channels = 21, .*fitted with 20"):
        scored(run, run.parent / "archive", tmp_path, "features.channels=21")


def test_blocks_of_any_size_fill_the_same_rows(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(tmp_path / "new", 6, 2, first_seed=300)
    (tmp_path / "new" / "bad_001.png").write_bytes(b"")
    whole = scored(run, tmp_path / "new", tmp_path / "whole", group=FIRST, anomaly_maps=True)
    for block in (1, 3, 4):
        monkeypatch.setattr(pipeline.commands.score, "BLOCK_IMAGES", block)
        out = tmp_path / f"blocks of {block}"
        parts = scored(run, tmp_path / "new", out, group=FIRST, anomaly_maps=True)
        assert parts["row"].tolist() == whole["row"].tolist()
        assert_maps_are_those_of_the_scores(parts, out)
        # Batches of other sizes round differently in the backbone.
        np.testing.assert_allclose(stored(out, FIRST), stored(tmp_path / "whole", FIRST), rtol=1e-2)


def test_images_of_several_groups_scored_under_one_share_its_array(run: Path, tmp_path: Path) -> None:
    for name, seed in (("a/1.png", 301), ("b/1.png", 302), ("b/2.png", 303)):
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / name).write_bytes(png(part_pixels(seed)))
    scores = scored(run, tmp_path / "new", tmp_path / "out", "input.group_by={part}/*", group=SECOND, anomaly_maps=True)
    assert scores["row"].tolist() == [0, 1, 2]
    assert_maps_are_those_of_the_scores(scores, tmp_path / "out")


def test_images_of_a_group_that_the_map_lacks_have_no_row(run: Path, tmp_path: Path) -> None:
    for name in (f"{SECOND}/1.png", "other/1.png"):
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / name).write_bytes(png(part_pixels(301)))
    scores = scored(run, tmp_path / "new", tmp_path / "out", "input.group_by={line}/*", anomaly_maps=True)
    rows = rows_of(scores, tmp_path / "new")
    assert {name: row["group"] for name, row in rows.items()} == {f"{SECOND}/1.png": SECOND, "other/1.png": "other"}
    assert rows[f"{SECOND}/1.png"]["reason"] == ""
    assert rows["other/1.png"]["reason"] == "the map has no group 'other'"
    assert pd.isna(rows["other/1.png"]["anomaly_score"])
    assert scores.set_index("group")["row"].isna().to_dict() == {SECOND: False, "other": True}
    assert [path.name for path in (tmp_path / "out" / ANOMALY_MAPS).iterdir() if path.is_dir()] == [SECOND]


def test_maps_are_stored_only_where_they_are_asked_for(run: Path, tmp_path: Path) -> None:
    write_parts(tmp_path / "new", 2)
    scores = scored(run, tmp_path / "new", tmp_path / "out", group=SECOND)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [SCORES]
    assert scores["row"].isna().all()
    assert (scores[["width", "height"]] == 64).all(axis=None)


def test_scores_never_name_maps_that_are_not_theirs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(tmp_path / "new", 2)
    out = tmp_path / "out"
    scored(run, tmp_path / "new", out, group=SECOND, anomaly_maps=True)
    # Without maps the new scores name none, though the old ones are still there.
    scored(run, tmp_path / "new", out, group=SECOND)
    assert pd.read_parquet(out / SCORES)["row"].isna().all()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("lost")

    monkeypatch.setattr(pipeline.commands.score, "TaskWindow", fail)
    for anomaly_maps, is_left in ((False, True), (True, False)):
        with pytest.raises(RuntimeError, match="lost"):
            scored(run, tmp_path / "new", out, group=SECOND, anomaly_maps=anomaly_maps)
        assert (out / SCORES).exists() == is_left


def test_a_subset_of_channels_is_part_of_what_a_run_is() -> None:
    assert tiny_config(*PADIM).digest() != tiny_config(*PADIM, "features.channels=21").digest()
    assert Config().features.channels is None
