"""The drawing of a contact sheet: what is framed where, and that any content gives a small picture."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pipeline.commands.sheet.drawing import MAX_BYTES, WIDTH, Box, Sheet, Tile, draw_sheet, thumbnail
from schemas.tables.manifest import DECISIONS

COUNTS = dict.fromkeys(DECISIONS, 100)
NOTHING = Sheet("nothing", dict.fromkeys(DECISIONS, 0), [], [], [], 0)


def opened(png: bytes) -> Image.Image:
    image = Image.open(BytesIO(png))
    assert image.format == "PNG"
    return image.convert("RGB")


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (90, 90, 90))


def rejected(tile: Tile) -> Sheet:
    return Sheet("one", COUNTS, [], [tile], [], 0)


def orange(picture: Image.Image) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the orange below the headings."""
    pixels = np.asarray(picture).astype(int)
    is_orange = (abs(pixels - (213, 94, 0)).max(axis=2) < 12) & (np.arange(len(pixels)) > 255)[:, np.newaxis]
    rows, columns = np.nonzero(is_orange.any(axis=1))[0], np.nonzero(is_orange.any(axis=0))[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def test_a_run_without_any_image_gives_a_sheet() -> None:
    assert opened(draw_sheet(NOTHING)).width == WIDTH
    assert NOTHING.blank == 0


def test_pictures_of_pure_noise_fit_into_the_size() -> None:
    rng = np.random.default_rng(0)
    tiles = [Tile("x", Image.fromarray(rng.integers(0, 256, (300, 300, 3), np.uint8))) for _ in range(32)]
    png = draw_sheet(Sheet("noise", COUNTS, tiles[:20], tiles[:12], [(tiles[0], tiles[1])] * 3, 3))
    assert opened(png)
    assert len(png) <= MAX_BYTES


def test_the_frame_moves_and_grows_with_the_patch() -> None:
    def framed(box: Box) -> tuple[int, int, int, int]:
        image = grey(400, 400)
        return orange(opened(draw_sheet(rejected(Tile("x", thumbnail(image), size=(400, 400), box=box)))))

    first, right, larger = framed((40, 40, 80, 80)), framed((240, 40, 80, 80)), framed((40, 40, 160, 80))
    scale = 173 / 400
    assert right[0] - first[0] == pytest.approx(200 * scale, abs=1)
    assert right[1] == first[1]
    assert (larger[2] - larger[0]) - (first[2] - first[0]) == pytest.approx(80 * scale, abs=2)


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (399, 399, 1, 1), (0, 0, 400, 400), (-9, -9, 5, 5), (900, 900, 5, 5)])
def test_a_patch_at_an_edge_or_outside_is_no_error(box: Box) -> None:
    tile = Tile("x", thumbnail(grey(400, 400)), size=(400, 400), box=box)
    assert opened(draw_sheet(rejected(tile)))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (5000, 1), (1, 5000), (300, 200)])
def test_any_shape_fits_into_a_tile(width: int, height: int) -> None:
    small = thumbnail(grey(width, height))
    assert max(small.size) == 173
    assert opened(draw_sheet(rejected(Tile("x", small, size=(width, height), box=(0, 0, 1, 1)))))


@pytest.mark.parametrize("text", ["", "x" * 5000, "日本語 عربى 🙂", "$\\frac{1}{0}$ " * 50])
def test_any_text_fits(text: str) -> None:
    tile = Tile(text, reason=text, note=text)
    sheet = Sheet(text, COUNTS, [tile], [tile], [(tile, tile)], 1)
    assert sheet.blank == 4
    assert opened(draw_sheet(sheet)).width == WIDTH
