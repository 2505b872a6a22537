"""The geometry of patch positions: array shapes, chunks, and which pixels a position pools over."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas.stores.features import CHUNK_IMAGES, FeatureGeometry

# 256 pixels through a backbone whose first node has a stride of 4, pooled with k = 10, s = 4 (paper, section 4.2).
PAPER = FeatureGeometry(
    rows=14, columns=14, channels=1792, grid_rows=64, grid_columns=64, pool_kernel=10, pool_stride=4
)


@st.composite
def geometries(draw: st.DrawFn) -> FeatureGeometry:
    kernel, stride = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    grid_rows, grid_columns = draw(st.integers(kernel, 80)), draw(st.integers(kernel, 80))
    return FeatureGeometry(
        rows=(grid_rows - kernel) // stride + 1,
        columns=(grid_columns - kernel) // stride + 1,
        channels=draw(st.integers(1, 8)),
        grid_rows=grid_rows,
        grid_columns=grid_columns,
        pool_kernel=kernel,
        pool_stride=stride,
    )


sizes = st.integers(1, 5000)


def test_array_shape_is_images_rows_columns_channels() -> None:
    assert PAPER.array_shape(209) == (209, 14, 14, 1792)


@pytest.mark.parametrize(("images", "expected"), [(0, 1), (1, 1), (209, 209), (256, 256), (10_000_000, 256)])
def test_a_chunk_holds_one_row_of_positions_of_up_to_256_images(images: int, expected: int) -> None:
    assert CHUNK_IMAGES == 256
    assert PAPER.chunk_shape(images) == (expected, 1, 14, 1792)


@pytest.mark.parametrize(
    ("position", "box"),
    [
        ((0, 0), (0, 0, 50, 50)),
        ((0, 1), (20, 0, 50, 50)),
        ((3, 0), (0, 60, 50, 50)),
        ((13, 13), (260, 260, 50, 50)),
    ],
)
def test_patch_box_of_a_320_pixel_image(position: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    assert PAPER.patch_box(*position, width=320, height=320) == box


def test_patch_box_scales_width_and_height_apart() -> None:
    assert PAPER.patch_box(2, 5, width=640, height=64) == (200, 8, 100, 10)


def test_patch_box_is_rounded_outwards_to_whole_pixels() -> None:
    # 100 pixels over 64 cells: cells 4 to 14 are pixels 6.25 to 21.875; 30 over 64: cells 8 to 18 are 3.75 to 8.44.
    assert PAPER.patch_box(2, 1, width=100, height=30) == (6, 3, 16, 6)


def test_patch_box_of_a_one_pixel_image_is_that_pixel() -> None:
    assert {PAPER.patch_box(row, row, width=1, height=1) for row in range(14)} == {(0, 0, 1, 1)}


@given(geometry=geometries(), width=sizes, height=sizes, data=st.data())
@settings(max_examples=50)
def test_patch_box_covers_its_cells_and_less_than_a_pixel_more(
    geometry: FeatureGeometry, width: int, height: int, data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, geometry.rows - 1))
    column = data.draw(st.integers(0, geometry.columns - 1))
    x, y, box_width, box_height = geometry.patch_box(row, column, width=width, height=height)
    left = column * geometry.pool_stride * width
    right = (column * geometry.pool_stride + geometry.pool_kernel) * width
    top = row * geometry.pool_stride * height
    bottom = (row * geometry.pool_stride + geometry.pool_kernel) * height
    # In units of 1 / grid, so that nothing is rounded.
    assert 0 <= left - x * geometry.grid_columns < geometry.grid_columns
    assert 0 <= (x + box_width) * geometry.grid_columns - right < geometry.grid_columns
    assert 0 <= top - y * geometry.grid_rows < geometry.grid_rows
    assert 0 <= (y + box_height) * geometry.grid_rows - bottom < geometry.grid_rows


@given(geometry=geometries(), width=sizes, height=sizes)
@settings(max_examples=50)
def test_every_patch_box_is_inside_the_image_and_not_empty(geometry: FeatureGeometry, width: int, height: int) -> None:
    for row, column in {(0, 0), (geometry.rows - 1, geometry.columns - 1), (0, geometry.columns - 1)}:
        x, y, box_width, box_height = geometry.patch_box(row, column, width=width, height=height)
        assert 0 <= x < x + box_width <= width
        assert 0 <= y < y + box_height <= height


@given(geometry=geometries(), width=st.integers(1, 300), height=st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_overlapping_patches_cover_the_image_up_to_what_pooling_leaves_out(
    geometry: FeatureGeometry, width: int, height: int
) -> None:
    assume(geometry.pool_kernel >= geometry.pool_stride)
    covered = np.zeros((height, width), bool)
    for row in range(geometry.rows):
        for column in range(geometry.columns):
            x, y, box_width, box_height = geometry.patch_box(row, column, width=width, height=height)
            covered[y : y + box_height, x : x + box_width] = True
    pooled_rows = (geometry.rows - 1) * geometry.pool_stride + geometry.pool_kernel
    pooled_columns = (geometry.columns - 1) * geometry.pool_stride + geometry.pool_kernel
    expected = np.zeros_like(covered)
    expected[
        : -(-pooled_rows * height // geometry.grid_rows), : -(-pooled_columns * width // geometry.grid_columns)
    ] = True
    np.testing.assert_array_equal(covered, expected)


def test_patches_cover_the_whole_image_where_pooling_leaves_nothing_out() -> None:
    geometry = FeatureGeometry(5, 5, 1, grid_rows=26, grid_columns=26, pool_kernel=10, pool_stride=4)
    covered = np.zeros((333, 77), bool)
    for row in range(5):
        for column in range(5):
            x, y, width, height = geometry.patch_box(row, column, width=77, height=333)
            covered[y : y + height, x : x + width] = True
    assert covered.all()
