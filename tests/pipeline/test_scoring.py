"""Scoring with stored anomaly maps: which row is whose, and that a subset of channels scores as it was fitted."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from numpy.typing import NDArray

import pipeline.score
import pipeline.scoring
from pipeline.run import clean
from pipeline.scoring import score
from schemas.config import Config, parse_config
from schemas.errors import ConfigError
from schemas.names import storage_name
from schemas.scores import ANOMALY_MAPS, SCORES
from tests.archives import part_pixels, png, tiny_config, write_parts
from workers.extractor import choose_channels
from workers.gaussian_map import GaussianMap

FIRST, SECOND = "Line 1", "line-2"
CHANNELS = 20

# PaDiM: everything is kept, on a random subset of channels with an absolute ridge.
PADIM = ("trim.strategy=none", "gaussian.ridge=0.01", f"features.channels={CHANNELS}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two groups whose map is fitted on all its images, one of which can not be read."""
    folder = tmp_path_factory.mktemp("scoring")
    write_parts(folder / "archive" / FIRST, 9, 1)
    write_parts(folder / "archive" / SECOND, 5, first_seed=50)
    (folder / "archive" / FIRST / "good_004.png").write_bytes(b"torn")
    (folder / "archive" / FIRST / "note.txt").write_text("not an image")
    settings = (*PADIM, "input.group_by={line}/**", "input.max_unreadable_fraction=1", "features.pool_stride=6")
    clean(str(folder / "archive"), str(folder / "run"), tiny_config(*settings))
    return folder / "run"


def scored(run: Path, source: Path, out: Path, *settings: str, **options: Any) -> pd.DataFrame:
    cluster = ("cluster.workers=1", "cluster.threads_per_worker=1", "cluster.processes=false")
    return score(str(run / "model"), str(source), str(out), parse_config(None, (*cluster, *settings)), **options)


def stored(out: Path, group: str) -> NDArray[np.float64]:
    """Return a group's anomaly maps (images, rows, columns)."""
    return np.asarray(zarr.open_array(out / ANOMALY_MAPS / storage_name(group), mode="r")[:])


def assert_maps_are_those_of_the_scores(scores: pd.DataFrame, out: Path) -> None:
    for group, part in scores[scores["row"].notna()].groupby("group"):
        largest = stored(out, str(group)).max(axis=(1, 2))
        np.testing.assert_array_equal(largest[part["row"].astype(int)], part["anomaly_score"].astype(float))


def test_the_map_of_a_training_image_is_its_distances_in_the_run(run: Path, tmp_path: Path) -> None:
    source = run.parent / "archive"
    scores = scored(run, source, tmp_path, "input.group_by={line}/**", anomaly_maps=True)
    assert_maps_are_those_of_the_scores(scores, tmp_path)
    for group, images in ((FIRST, 10), (SECOND, 5)):
        distances = np.asarray(zarr.open_array(run / "distances" / storage_name(group) / "distance", mode="r")[:])
        assert distances.shape[0] == images
        np.testing.assert_allclose(stored(tmp_path, group), distances, rtol=1e-9)
        node = zarr.open_array(tmp_path / ANOMALY_MAPS / storage_name(group), mode="r")
        assert (node.attrs["group"], node.dtype.name) == (group, "float64")


def test_what_was_not_scored_has_no_row_and_no_map(run: Path, tmp_path: Path) -> None:
    source = run.parent / "archive"
    scores = scored(run, source, tmp_path, "input.group_by={line}/**", anomaly_maps=True)
    without = scores[scores["row"].isna()]
    assert [Path(path).name for path in without["image_path"]] == ["good_004.png", "note.txt"]
    assert without["anomaly_score"].isna().all()
    assert np.isnan(stored(tmp_path, FIRST)).all(axis=(1, 2)).sum() == 1
    of_first = scores[(scores["group"] == FIRST) & scores["row"].notna()]
    assert of_first["row"].tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]  # by name, the torn one in between
    assert pd.read_parquet(tmp_path / SCORES)["row"].isna().sum() == 2


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


@pytest.mark.parametrize("block", [1, 3, 4])
def test_blocks_of_any_size_fill_the_same_rows(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    write_parts(tmp_path / "new", 6, 2, first_seed=300)
    (tmp_path / "new" / "bad_001.png").write_bytes(b"")
    whole = scored(run, tmp_path / "new", tmp_path / "whole", group=FIRST, anomaly_maps=True)
    monkeypatch.setattr(pipeline.score, "BLOCK_IMAGES", block)
    parts = scored(run, tmp_path / "new", tmp_path / "parts", group=FIRST, anomaly_maps=True)
    assert parts["row"].tolist() == whole["row"].tolist()
    assert_maps_are_those_of_the_scores(parts, tmp_path / "parts")
    # Batches of other sizes round differently in the backbone.
    np.testing.assert_allclose(stored(tmp_path / "parts", FIRST), stored(tmp_path / "whole", FIRST), rtol=1e-2)


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

    monkeypatch.setattr(pipeline.scoring, "score_images", fail)
    for anomaly_maps, is_left in ((False, True), (True, False)):
        with pytest.raises(RuntimeError, match="lost"):
            scored(run, tmp_path / "new", out, group=SECOND, anomaly_maps=anomaly_maps)
        assert (out / SCORES).exists() == is_left


def test_a_subset_of_channels_is_part_of_what_a_run_is() -> None:
    assert tiny_config(*PADIM).digest() != tiny_config(*PADIM, "features.channels=21").digest()
    assert Config().features.channels is None
