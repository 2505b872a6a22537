"""Sets made from others: the same labels, the same pixels each time, really turned, shifted and mixed."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from schemas.errors import SourceError
from studies.cleaning.archives import TEST_BAD, TEST_GOOD, TRAIN_GOOD, write_category
from studies.cleaning.made import SHIFT, Change, make_mixed, shift, turn, write_changed
from workers.sources.labelled import read_labelled


@pytest.fixture
def category(tmp_path: Path) -> Path:
    return write_category(tmp_path / "part")


@pytest.mark.parametrize("change", [turn, shift])
def test_a_changed_set_has_the_labels_and_splits_of_its_origin(category: Path, tmp_path: Path, change: Change) -> None:
    write_changed(category, tmp_path / "made", change)
    origin, made = read_labelled(str(category)), pd.read_csv(tmp_path / "made" / "labels.csv")
    assert list(made.columns) == ["image_path", "label_index", "split"]
    assert made["label_index"].tolist() == origin["label_index"].tolist()
    assert made["split"].tolist() == origin["split"].tolist()
    contents = {(tmp_path / "made" / name).read_bytes() for name in made["image_path"]}
    assert len(contents) == len(made)


def test_the_same_source_gives_the_same_pixels(category: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_changed(category, tmp_path / name, turn)
    for path in (tmp_path / "one" / "images").iterdir():
        with Image.open(path) as one, Image.open(tmp_path / "two" / "images" / path.name) as two:
            np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def test_a_set_that_is_there_is_used_again(category: Path, tmp_path: Path) -> None:
    write_changed(category, tmp_path / "made", turn)
    (tmp_path / "made" / "images" / "0000.png").unlink()
    write_changed(category, tmp_path / "made", turn)
    assert not (tmp_path / "made" / "images" / "0000.png").exists()


def test_corners_that_turning_uncovers_have_the_colour_of_the_border() -> None:
    pixels = np.full((40, 40, 3), 90, np.uint8)
    pixels[15:25, 15:25] = 200
    turned = np.asarray(turn(Image.fromarray(pixels), np.random.default_rng(0)))
    assert turned.shape == pixels.shape
    assert (turned[[0, 0, -1, -1], [0, -1, 0, -1]] == 90).all()
    assert (turned != pixels).any()


def test_an_image_moves_by_at_most_a_tenth() -> None:
    pixels = np.zeros((60, 40, 3), np.uint8)
    pixels[30, 20] = 255
    places = []
    for seed in range(50):
        moved = np.asarray(shift(Image.fromarray(pixels), np.random.default_rng(seed)))
        assert moved.shape == pixels.shape
        places.append(np.argwhere(moved[..., 0])[0] - [30, 20])
    assert np.abs(places).max(axis=0).tolist() == [round(SHIFT * 60), round(SHIFT * 40)]


def test_two_products_are_mixed_half_and_half_with_the_defects_of_both(category: Path, tmp_path: Path) -> None:
    other = write_category(tmp_path / "other", first_seed=500)
    make_mixed([category, other], tmp_path / "made")
    counts = pd.read_csv(tmp_path / "made" / "labels.csv").groupby(["split", "label_index"]).size()
    half, tested = -(-(TRAIN_GOOD + 1) // 2), -(-TEST_GOOD // 2)
    assert counts.to_dict() == {("train", 0): 2 * half, ("test", 0): 2 * tested, ("test", 1): 2 * TEST_BAD}


def test_an_image_that_cannot_be_read_is_named(category: Path, tmp_path: Path) -> None:
    (category / "train" / "good" / "000.png").write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"'000\.png' in .* cannot be read"):
        write_changed(category, tmp_path / "made", turn)
    assert not (tmp_path / "made" / "labels.csv").exists()
