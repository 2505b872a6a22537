"""Which label and which mask belongs to which image, seen in the figures of scores made by hand."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.commands.evaluate.evaluate import evaluate_test
from schemas.errors import SourceError
from tests.support.archives import png
from tests.support.folders import lock
from tests.support.hand_made import corner_map, corner_mask, labelled, no_maps, scored, write_grey
from workers.storage.directory import Directory


@pytest.mark.parametrize(
    "name",
    ["c_mask.png", "c.png", "c_GT.png", "images/c_mask.png", "images/c.png", "images/c_GT.png"],
)
def test_masks_are_found_by_name(tmp_path: Path, name: str) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    write_grey(images / "a.png", np.zeros((16, 16)))
    write_grey(masks / name, 255 * corner_mask())
    labels = labelled(tmp_path, {"images/a.png": 0, "images/c.png": 1})
    evaluation = evaluate_test(
        scored(images, {"a.png": 1.0, "c.png": 50.0}),
        lambda place: corner_map(hot=place == 1),
        labels,
        masks=str(masks),
    )
    figures = evaluation.groups[0]
    assert figures.n_pixel_images == 2
    assert figures.pixel_auroc is not None
    assert figures.pixel_auroc > 0.95
    assert figures.aupro is not None
    assert figures.aupro > 0.9


def test_a_mask_below_the_images_folder_goes_before_one_of_the_same_name(tmp_path: Path) -> None:
    write_grey(tmp_path / "masks" / "scratch" / "000_mask.png", corner_mask())
    write_grey(tmp_path / "masks" / "000_mask.png", ~corner_mask())
    labels = labelled(tmp_path, {"test/scratch/000.png": 1})
    scores = scored(tmp_path / "test" / "scratch", {"000.png": 50.0})
    evaluation = evaluate_test(scores, lambda _: corner_map(hot=True), labels, masks=str(tmp_path / "masks"))
    assert evaluation.groups[0].pixel_auroc == pytest.approx(1, abs=0.05)


def test_an_image_is_never_its_own_mask(tmp_path: Path) -> None:
    write_grey(tmp_path / "c.png", np.full((16, 16), 90))
    labels = labelled(tmp_path, {"c.png": 1})
    scores = scored(tmp_path, {"c.png": 50.0})
    with pytest.raises(SourceError, match=r"none of the 2 files .* is a mask .*c_mask\.png, .*c_GT\.png"):
        evaluate_test(scores, lambda _: corner_map(hot=True), labels, masks=str(tmp_path))
    write_grey(tmp_path / "c_GT.png", corner_mask())
    evaluation = evaluate_test(scores, lambda _: corner_map(hot=True), labels, masks=str(tmp_path))
    assert evaluation.groups[0].pixel_auroc == pytest.approx(1, abs=0.05)


def test_masks_named_by_the_labels_need_no_folder_and_go_before_one(tmp_path: Path) -> None:
    write_grey(tmp_path / "anywhere" / "truth.png", corner_mask())
    write_grey(tmp_path / "masks" / "c.png", ~corner_mask())
    write_grey(tmp_path / "a.png", np.zeros((16, 16)))
    labels = labelled(tmp_path, {"a.png": 0, "c.png": 1}, mask_path=["", "anywhere/truth.png"])
    scores = scored(tmp_path, {"a.png": 1.0, "c.png": 50.0})
    for masks in (None, str(tmp_path / "masks")):
        evaluation = evaluate_test(scores, lambda place: corner_map(hot=place == 1), labels, masks=masks)
        assert evaluation.groups[0].pixel_auroc == pytest.approx(1, abs=0.05)


def test_an_anomalous_image_without_a_mask_is_left_out_of_the_pixel_metrics_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_grey(tmp_path / "masks" / "c.png", corner_mask())
    labels = labelled(tmp_path, {"c.png": 1, "lost.png": 1})
    scores = scored(tmp_path, {"c.png": 50.0, "lost.png": 40.0})
    with caplog.at_level(logging.WARNING, logger="paire"):
        evaluation = evaluate_test(scores, lambda _: corner_map(hot=True), labels, masks=str(tmp_path / "masks"))
    assert evaluation.coverage.without_mask == 1
    assert (evaluation.groups[0].n_anomalous, evaluation.groups[0].n_pixel_images) == (2, 1)
    assert str(tmp_path / "lost.png") in caplog.text


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_any_colour_that_is_not_zero_is_anomalous_but_transparency_is_not(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.where(corner_mask(), np.uint8(255), np.uint8(0)))
    mask = Image.fromarray(corner_mask().astype(np.uint16)) if mode == "I;16" else grey.convert(mode)
    mask.save(tmp_path / "c_mask.png")
    labels = labelled(tmp_path, {"c.png": 1})
    evaluation = evaluate_test(
        scored(tmp_path, {"c.png": 50.0}), lambda _: corner_map(hot=True), labels, masks=str(tmp_path)
    )
    points = evaluation.curves["all"].pro
    assert points is not None
    # All normal pixels and all anomalous ones are there: as with the plain mask.
    write_grey(tmp_path / "c_mask.png", corner_mask())
    plain = evaluate_test(
        scored(tmp_path, {"c.png": 50.0}), lambda _: corner_map(hot=True), labels, masks=str(tmp_path)
    )
    assert evaluation.groups == plain.groups


def test_no_label_that_matches_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    labels = labelled(tmp_path / "labels", {"wrong/a.png": 0})
    with pytest.raises(SourceError) as caught:
        evaluate_test(scored(tmp_path, {"a.png": 1.0}), no_maps, labels)
    for expected in (str(tmp_path / "labels" / "wrong" / "a.png"), "'wrong/a.png'", str(tmp_path / "a.png")):
        assert expected in str(caught.value)


@pytest.mark.parametrize("rows", [{"a.png": 2}, {"a.png": "bad"}])
def test_a_label_that_is_neither_0_nor_1_is_an_error(tmp_path: Path, rows: dict[str, int]) -> None:
    with pytest.raises(SourceError, match="label_index"):
        evaluate_test(scored(tmp_path, {"a.png": 1.0}), no_maps, labelled(tmp_path, rows))


def test_a_mask_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "c_mask.png").write_bytes(b"no image")
    labels = labelled(tmp_path, {"c.png": 1})
    with pytest.raises(SourceError, match=r"c_mask\.png"):
        evaluate_test(scored(tmp_path, {"c.png": 50.0}), lambda _: corner_map(hot=True), labels, masks=str(tmp_path))


@pytest.mark.parametrize("labels", [{"c.png": 1}, {"c.png": 0}])
def test_masks_that_are_not_there_are_an_error_also_where_none_is_needed(
    tmp_path: Path, labels: dict[str, int]
) -> None:
    place, scores = labelled(tmp_path, labels), scored(tmp_path, {"c.png": 50.0})
    for masks in (f"{tmp_path}/nowhere", "memory://nowhere"):
        with pytest.raises(SourceError, match="nowhere"):
            evaluate_test(scores, no_maps, place, masks=masks)


@pytest.mark.parametrize("locked", ["masks", "masks/cut"])
def test_masks_that_may_not_be_listed_are_an_error_and_not_fewer_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    write_grey(tmp_path / "masks" / "c_mask.png", corner_mask())
    write_grey(tmp_path / "masks" / "cut" / "d_mask.png", corner_mask())
    labels = labelled(tmp_path, {"c.png": 1, "d.png": 1})
    lock(monkeypatch, tmp_path / locked)
    with pytest.raises(SourceError, match=r"cannot be listed \(PermissionError\)"):
        evaluate_test(scored(tmp_path, {"c.png": 50.0, "d.png": 40.0}), no_maps, labels, masks=str(tmp_path / "masks"))


def test_a_normal_image_whose_size_is_unknown_and_that_is_gone_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_grey(tmp_path / "c_mask.png", corner_mask())
    labels = labelled(tmp_path, {"a.png": 0, "c.png": 1})
    scores = scored(tmp_path, {"a.png": 1.0, "c.png": 50.0})
    with pytest.raises(SourceError, match=r"normal image '.*a\.png', whose size .*FileNotFoundError"):
        evaluate_test(scores, lambda _: corner_map(hot=True), labels, masks=str(tmp_path))


def test_labels_and_masks_may_be_urls() -> None:
    store = Directory("memory://evaluate")
    store.write("labels.csv", b"image_path,label_index\na.png,0\nbad/c.png,1\n")
    store.write("masks/bad/c_mask.png", png(corner_mask().astype(np.uint8)))
    store.write("a.png", png(np.zeros((16, 16), np.uint8)))
    scores = scored(Path(), {"a": 1.0, "c": 50.0}, image_path=[f"{store.url}/a.png", f"{store.url}/bad/c.png"])
    evaluation = evaluate_test(
        scores, lambda place: corner_map(hot=place == 1), f"{store.url}/labels.csv", masks=f"{store.url}/masks"
    )
    assert evaluation.groups[0].n_pixel_images == 2
    assert evaluation.groups[0].pixel_auroc == pytest.approx(1, abs=0.05)
