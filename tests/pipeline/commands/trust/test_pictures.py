"""The pictures of a trust test: drawn whatever was found, also where nothing was."""

from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.commands.trust.pictures import Example, draw_examples, draw_recall
from workers.trust.planting import KINDS, Defect, Scene, plant, planted_view
from workers.trust.recall import CONTRASTS, DEFECTS, SIZES, GroupTrust
from workers.trust.trial import Trials

BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def pixels(picture: bytes) -> NDArray[np.uint8]:
    with Image.open(BytesIO(picture), formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def shows(picture: bytes, colour: tuple[int, int, int]) -> bool:
    return bool((pixels(picture) == colour).all(axis=2).any())


def trust(margin: float, images: int = 8) -> GroupTrust:
    planted = np.full((images, len(DEFECTS)), margin)
    return GroupTrust.of("a", 40, Trials(np.full(images, 0.5), planted, planted, ("",) * images))


def example(defect: Defect, margin: float) -> Example:
    scene = Scene.of(np.random.default_rng(0).random((80, 120, 3)).astype(np.float32))
    planting = plant(scene, defect, np.random.default_rng(1))
    view = planted_view(np.full((64, 64, 3), 0.5, np.float32), planting, height=80, width=120)
    return Example.of(defect, planting, view, margin, height=80, width=120)


def test_recall_is_drawn_as_a_readable_picture_that_depends_on_it() -> None:
    low, high = trust(0.5), trust(2.0)
    drawn, other = draw_recall(low, [low]), draw_recall(high, [high])
    assert min(pixels(drawn).shape[:2]) > 800
    assert shows(drawn, BLUE)
    assert shows(drawn, ORANGE)
    assert (pixels(drawn) != pixels(other)).any()


def test_recall_of_several_groups_and_of_no_image_is_drawn() -> None:
    groups = [trust(0.5), trust(2.0)]
    assert pixels(draw_recall(GroupTrust.together(groups), groups)).any()
    assert pixels(draw_recall(trust(0.5, images=0), [])).any()


@pytest.mark.parametrize(("margin", "colour", "absent"), [(1.0, BLUE, ORANGE), (0.999, ORANGE, BLUE)])
def test_an_example_is_framed_by_its_outcome(
    margin: float, colour: tuple[int, int, int], absent: tuple[int, int, int]
) -> None:
    drawn = draw_examples([example(DEFECTS[-1], margin)])
    assert shows(drawn, colour)
    assert not shows(drawn, absent)


def test_the_contact_sheet_has_a_place_for_each_defect_and_leaves_it_empty_where_there_is_none() -> None:
    empty, full = draw_examples([]), draw_examples([example(defect, 2.0) for defect in DEFECTS])
    assert pixels(empty).shape[1] > 100 * len(SIZES)
    assert pixels(empty).shape[0] > 100 * len(KINDS) * len(CONTRASTS)
    assert not shows(empty, BLUE)
    assert shows(full, BLUE)


def test_the_outline_is_where_the_defect_is_in_the_view() -> None:
    defect = Defect(KINDS[2], 0.2, 0.4)
    scene = Scene.of(np.random.default_rng(0).random((80, 120, 3)).astype(np.float32))
    planting = plant(scene, defect, np.random.default_rng(1))
    left, top, width, height = example(defect, 2.0).box
    assert (left * 120 / 64, top) == pytest.approx((planting.left, planting.top * 64 / 80))
    assert (width, height) == pytest.approx((16 * 64 / 120, 16 * 64 / 80))
