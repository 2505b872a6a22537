"""Heat maps: of their image's size, unchanged where nothing is anomalous, hot where the map is."""

from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from workers.map.heatmap import OPACITY, heat_map_png

HEIGHT, WIDTH = 60, 90


def grey(level: float = 0.5) -> NDArray[np.float32]:
    pixels = np.full((HEIGHT, WIDTH, 3), level, np.float32)
    pixels.flags.writeable = False
    return pixels


def drawn(
    pixels: NDArray[np.float32], anomaly_map: NDArray[np.float64], reference: float = 10.0
) -> NDArray[np.float64]:
    """Return a heat map as (height, width, 3) in 0..1."""
    anomaly_map.flags.writeable = False
    with Image.open(BytesIO(heat_map_png(pixels, anomaly_map, reference=reference))) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        return np.asarray(image) / 255


def one_hot_position(row: int, column: int, distance: float = 40.0) -> NDArray[np.float64]:
    anomaly_map = np.zeros((4, 6))
    anomaly_map[row, column] = distance
    return anomaly_map


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (60, 90), (500, 3)])
def test_a_heat_map_is_a_png_of_its_images_size(size: tuple[int, int]) -> None:
    pixels = np.zeros((*size, 3), np.float32)
    assert drawn(pixels, np.ones((14, 14))).shape == (*size, 3)


def test_an_image_without_anomaly_is_drawn_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.float32) / np.float32(255)
    np.testing.assert_allclose(drawn(pixels, np.zeros((4, 6))), pixels, atol=1e-6)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 4), (3, 5)])
def test_a_heat_map_is_hot_where_the_map_is_and_nowhere_else(row: int, column: int) -> None:
    change = np.abs(drawn(grey(), one_hot_position(row, column)) - grey()).sum(axis=2)
    place = np.unravel_index(np.argmax(change), change.shape)
    assert (int(place[0]) // 15, int(place[1]) // 15) == (row, column)
    far = np.ones((HEIGHT, WIDTH), bool)
    far[max(0, 15 * row - 15) : 15 * row + 30, max(0, 15 * column - 15) : 15 * column + 30] = False
    assert change[far].max() <= 3 / 255


def test_twice_the_reference_and_more_is_drawn_alike_at_full_strength() -> None:
    full = drawn(grey(), np.full((4, 6), 20.0))
    np.testing.assert_array_equal(drawn(grey(), np.full((4, 6), 1e9)), full)
    assert np.abs(full - grey()).max() > 0.2


def test_the_reference_is_drawn_between_nothing_and_full_strength() -> None:
    nothing, half, full = (
        np.abs(drawn(grey(), np.full((4, 6), distance)) - grey()).sum() for distance in (0.0, 10.0, 20.0)
    )
    assert nothing < half
    assert not np.array_equal(half, full)


def test_the_image_stays_visible_under_full_strength() -> None:
    # The same heat over black and white differs by what shows through.
    white, black = (drawn(grey(level), np.full((4, 6), 1e9)) for level in (1.0, 0.0))
    np.testing.assert_allclose(white - black, 1 - OPACITY, atol=1 / 255)
    assert OPACITY <= 0.8


def test_drawing_twice_gives_the_same_bytes() -> None:
    anomaly_map = one_hot_position(1, 1)
    assert heat_map_png(grey(), anomaly_map, reference=3.0) == heat_map_png(grey(), anomaly_map, reference=3.0)
