"""A test set as `paire score` writes it against true labels and masks: scores and anomaly maps made by hand."""

import logging
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pipeline.commands.evaluate.evaluate import evaluate, evaluate_test
from schemas.errors import SourceError
from schemas.names import storage_name
from schemas.tables import scores as scores_table
from schemas.tables.columns import to_arrow
from schemas.tables.scores import ANOMALY_MAPS, SCORES
from tests.support.hand_made import corner_map, corner_mask, labelled, scored, write_grey
from workers.storage.directory import Directory

FIRST, SECOND = "Line 1", "line-2"


def write_scores(folder: Path, scores: pd.DataFrame, maps: Mapping[str, NDArray[np.float64]]) -> Directory:
    """Write a table of scores and the anomaly maps of each group."""
    directory = Directory.at(folder)
    directory.write(SCORES, b"")
    pq.write_table(to_arrow(scores, scores_table.COLUMNS), folder / SCORES)
    if maps:
        directory.zarr_group(ANOMALY_MAPS, "w")
    for group, values in maps.items():
        directory.zarr_group(ANOMALY_MAPS, "r+").create_array(storage_name(group), data=values, chunks=(2, 4, 4))
    return directory


@pytest.fixture
def test_set(tmp_path: Path) -> tuple[Directory, str, str]:
    """Return scores of six images in two groups, with maps of all but the torn one, their labels and their masks."""
    for name in ("b.png", "c.png", "e.png"):
        write_grey(tmp_path / "masks" / name, corner_mask())
    names = {"a.png": 1.0, "b.png": 50.0, "torn.png": None, "c.png": 40.0, "d.png": 2.0, "e.png": 60.0}
    labels = labelled(tmp_path, {name: int(name in {"b.png", "c.png", "e.png"}) for name in names})
    groups = [FIRST, FIRST, FIRST, FIRST, SECOND, SECOND]
    rows = [0, 1, None, 3, 0, 1]
    scores = scored(tmp_path, names, group=groups, row=rows, width=[16] * 6, height=[16] * 6)
    maps = {
        FIRST: np.stack([corner_map(hot=False), corner_map(hot=True), np.full((4, 4), np.nan), corner_map(hot=True)]),
        SECOND: np.stack([corner_map(hot=False), corner_map(hot=True)]),
    }
    return write_scores(tmp_path / "scores", scores, maps), labels, str(tmp_path / "masks")


def test_stored_scores_and_maps_have_the_figures_of_those_in_memory(test_set: tuple[Directory, str, str]) -> None:
    directory, labels, masks = test_set
    hot = [False, True, None, True, False, True]

    def maps(position: int) -> NDArray[np.float64] | None:
        is_hot = hot[position]
        return None if is_hot is None else corner_map(hot=is_hot)

    expected = evaluate_test(pd.read_parquet(BytesIO(directory.read(SCORES))), maps, labels, masks=masks)
    found = evaluate(directory.url, labels, masks=masks)
    assert found.to_json() == expected.to_json()
    assert [(figures.image_auroc, figures.n_pixel_images) for figures in found.groups] == [(1.0, 3), (1.0, 2)]
    assert found.overall.pixel_auroc == pytest.approx(1, abs=0.05)


def test_the_sizes_of_normal_images_come_from_the_scores_where_they_have_them(
    test_set: tuple[Directory, str, str],
) -> None:
    directory, labels, masks = test_set  # the normal images themselves are not there
    assert evaluate(directory.url, labels, masks=masks).overall.n_pixel_images == 5


def test_without_maps_there_are_no_pixel_metrics_and_masks_are_refused(test_set: tuple[Directory, str, str]) -> None:
    directory, labels, masks = test_set
    scores = pd.read_parquet(BytesIO(directory.read(SCORES)))
    for bare in (scores.assign(row=None), scores.drop(columns=["row", "width", "height"])):  # also an older version's
        bare.to_parquet(f"{directory.url}/{SCORES}")
        evaluation = evaluate(directory.url, labels)
        assert [figures.image_auroc for figures in evaluation.groups] == [1.0, 1.0]
        assert evaluation.overall.pixel_auroc is None
        with pytest.raises(SourceError, match=r"no anomaly maps.*--anomaly-maps.*--masks"):
            evaluate(directory.url, labels, masks=masks)


def test_masks_in_the_labels_are_left_aside_with_a_warning_where_there_are_no_maps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_grey(tmp_path / "c_mask.png", corner_mask())
    labels = labelled(tmp_path, {"a.png": 0, "c.png": 1}, mask_path=["", "c_mask.png"])
    directory = write_scores(tmp_path / "scores", scored(tmp_path, {"a.png": 1.0, "c.png": 50.0}), {})
    with caplog.at_level(logging.WARNING, logger="paire"):
        evaluation = evaluate(directory.url, labels)
    assert (evaluation.overall.image_auroc, evaluation.overall.aupro) == (1.0, None)
    assert "no anomaly maps" in caplog.text


@pytest.mark.parametrize("damage", ["group gone", "all gone", "too short"])
def test_maps_that_the_scores_name_and_that_are_gone_are_an_error_that_names_their_group(
    test_set: tuple[Directory, str, str], damage: str
) -> None:
    directory, labels, masks = test_set
    name = f"{ANOMALY_MAPS}/{storage_name(FIRST)}"
    directory.remove(ANOMALY_MAPS if damage == "all gone" else name)
    if damage == "too short":
        directory.zarr_group(ANOMALY_MAPS, "r+").create_array(storage_name(FIRST), data=np.ones((3, 4, 4)))
    with pytest.raises(SourceError, match=rf"lacks maps of group '{FIRST}'.*--anomaly-maps"):
        evaluate(directory.url, labels, masks=masks)


def test_what_is_neither_a_run_nor_scores_is_an_error_that_names_both(tmp_path: Path) -> None:
    labels = labelled(tmp_path, {"a.png": 0})
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SourceError, match=r"neither a finished run nor .*no _SUCCESS and no scores\.parquet"):
            evaluate(str(place), labels)


def test_scores_that_are_none_are_an_error_that_names_them(tmp_path: Path) -> None:
    labels, directory = labelled(tmp_path, {"a.png": 0}), Directory.at(tmp_path / "scores")
    directory.write(SCORES, b"no table")
    with pytest.raises(SourceError, match=r"scores\.parquet cannot be read \(ArrowInvalid: .*Score the images again"):
        evaluate(directory.url, labels)
    pd.DataFrame({"image_path": ["a.png"]}).to_parquet(tmp_path / "scores" / SCORES)
    with pytest.raises(SourceError, match=r"scores\.parquet has no column 'group'"):
        evaluate(directory.url, labels)
