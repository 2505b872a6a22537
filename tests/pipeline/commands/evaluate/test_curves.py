"""The picture of an evaluation: the same each time, a colour for each group, any names and nothing to draw."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.commands.evaluate.curves import draw_curves
from pipeline.commands.evaluate.evaluation import OVERALL, Evaluation, Figures, GroupCurves
from pipeline.commands.evaluate.metrics import Curve
from pipeline.commands.evaluate.truth import Coverage


def pixels_of(picture: bytes) -> NDArray[np.uint8]:
    with Image.open(BytesIO(picture)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def hand_made(groups: Sequence[str], *, area: float | None = 0.8) -> Evaluation:
    """Return an evaluation whose groups have the same figures and curves one below the other."""
    figures = [Figures(name, 9, 1, 8, 0, 1.0, 8 / 9, 1.0, area, area, area, area, 10) for name in groups]
    passes = pd.DataFrame(
        [
            {"group": name, "iteration": number, "purity": 1 - 0.1 / number, "kept_share": 0.2 * number}
            for name in groups
            for number in (1, 2, 3)
        ],
        columns=["group", "iteration", "purity", "kept_share"],
    )
    overall = Figures(OVERALL, 9, 1, 8, 0, 1.0, 8 / 9, 1.0, area, area, area, area, 10)
    curves = {}
    for place, name in enumerate(groups):
        line = None if area is None else Curve(np.array([0.0, 0.1, 0.3]), np.array([0.0, 0.8, 1.0]) - 0.03 * place)
        curves[name] = GroupCurves(line, line, line)
    return Evaluation(tuple(figures), overall, passes, curves, Coverage(10, 0, 0, 0, 0, 0, 0))


def pixels_in(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
    return int((picture == colour).all(axis=2).sum())


def test_each_group_has_a_colour_of_its_own_until_there_are_too_many() -> None:
    blue, vermilion = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
    one, two, many = (
        pixels_of(draw_curves(hand_made([f"line {number}" for number in range(count)]))) for count in (1, 2, 20)
    )
    assert [pixels_in(one, colour) > 0 for colour in (blue, vermilion)] == [True, False]
    assert [pixels_in(two, colour) > 0 for colour in (blue, vermilion)] == [True, True]
    # The diagonal of the ROC panel is grey, too, but no curve of so few groups.
    grey = [pixels_in(picture, (0xBB, 0xBB, 0xBB)) for picture in (two, many)]
    assert grey[1] > 2 * grey[0] > 0


@pytest.mark.parametrize("groups", [[], ["a"], ["_hidden", "$\\frac$ & %", "日本", "x" * 300]])
@pytest.mark.parametrize("area", [None, 0.5])
def test_groups_without_curves_and_with_any_name_are_drawn(groups: list[str], area: float | None) -> None:
    empty = pixels_of(draw_curves(hand_made([], area=None)))
    picture = pixels_of(draw_curves(hand_made(groups, area=area)))
    assert picture.shape == empty.shape
    assert np.array_equal(picture, empty) == (not groups)


def test_curves_are_drawn_alike_each_time() -> None:
    evaluation = hand_made(["a", "b"])
    picture = draw_curves(evaluation)
    assert picture == draw_curves(evaluation)
    height, width, _ = pixels_of(picture).shape
    assert width > height > 800
