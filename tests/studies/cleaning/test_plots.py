"""The figures: drawn from whatever results there are, every line told apart without its colour."""

from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from studies.cleaning.plots import STYLES, draw_ablations, draw_archive, draw_passes
from tests.studies.cleaning.test_report import rows

__all__ = ["rows"]


def pixels(png: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    with Image.open(BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def has_colour(png: bytes, colour: str) -> bool:
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return bool((pixels(png) == wanted).all(axis=-1).any())


@pytest.mark.parametrize("noises", [[0.0, 0.1, 0.2], [0.0]])
def test_an_archive_is_drawn_with_every_method(rows: pd.DataFrame, noises: list[float]) -> None:
    png = draw_archive(rows[rows["noise"].isin(noises)], "part")
    assert pixels(png).shape[1] > 900
    assert all(has_colour(png, style.colour) for style in STYLES.values())


def test_ablations_are_smaller_where_nothing_was_swept(rows: pd.DataFrame) -> None:
    own = rows[rows["protocol"] == "overlap"]
    whole = draw_ablations(own[own["setting"] == ""], own[own["noise"] > 0])
    without = draw_ablations(own[own["setting"] == ""], own[own["noise"] < 0])
    assert pixels(whole).shape[0] > 1.5 * pixels(without).shape[0]
    assert has_colour(whole, STYLES["paire"].colour)
    assert has_colour(without, STYLES["paire"].colour)


def test_passes_are_drawn_for_each_noise(rows: pd.DataFrame) -> None:
    own = rows[(rows["protocol"] == "overlap") & (rows["setting"] == "")]
    assert has_colour(draw_passes(own[own["noise"] > 0]), STYLES["grow"].colour)
    assert has_colour(draw_passes(own[own["noise"] == 0.1]), STYLES["grow"].colour)


def test_lines_differ_in_more_than_their_colour() -> None:
    assert len({(style.marker, style.line) for style in STYLES.values()}) == len(STYLES)
    assert len({style.colour for style in STYLES.values()}) == len(STYLES)
