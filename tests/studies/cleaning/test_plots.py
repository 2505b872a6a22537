"""The figures: drawn from whatever results there are, every line told apart without its colour."""

from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from studies.cleaning.plots import _MORE, STYLES, draw_archive, styles_of
from tests.studies.cleaning.test_report import rows

__all__ = ["rows"]


def has_colour(png: bytes, colour: str) -> bool:
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    with Image.open(BytesIO(png)) as image:
        return bool((np.asarray(image.convert("RGB")) == wanted).all(axis=-1).any())


@pytest.mark.parametrize("noises", [[0.0, 0.1], [0.0]])
def test_an_archive_is_drawn_with_every_method(rows: pd.DataFrame, noises: list[float]) -> None:
    png = draw_archive(rows[rows["noise"].isin(noises) & (rows["archive"] == "bottle")], "bottle")
    assert all(has_colour(png, style.colour) for style in STYLES.values())


def test_a_strategy_without_a_style_of_its_own_gets_one(rows: pd.DataFrame) -> None:
    assert styles_of(pd.DataFrame({"method": ["paire", "new"]})) == {"paire": STYLES["paire"], "new": _MORE[0]}


def test_lines_differ_in_more_than_their_colour() -> None:
    styles = [*STYLES.values(), *_MORE]
    assert len({(style.marker, style.line) for style in styles}) == len(styles)
    assert len({style.colour for style in styles}) == len(styles)
