"""Averaging over neighbouring positions."""

import numpy as np
import pytest

from workers.verdict.smoothing import smooth


def test_each_position_becomes_the_geometric_mean_of_its_square() -> None:
    maps = np.exp(np.random.default_rng(0).normal(size=(2, 5, 6)))
    maps.flags.writeable = False
    smoothed = smooth(maps, 3)
    padded = np.pad(np.log(maps), ((0, 0), (1, 1), (1, 1)), mode="edge")
    expected = np.exp(
        [[[padded[n, i : i + 3, j : j + 3].mean() for j in range(6)] for i in range(5)] for n in range(2)]
    )
    np.testing.assert_allclose(smoothed, expected, rtol=1e-12)


def test_a_side_of_one_changes_nothing() -> None:
    maps = np.random.default_rng(1).uniform(size=(3, 4, 4))
    np.testing.assert_array_equal(smooth(maps, 1), maps)


@pytest.mark.parametrize("side", [3, 5])
def test_equal_distances_stay_as_they_are(side: int) -> None:
    np.testing.assert_allclose(smooth(np.full((1, 4, 7), 2.5), side), 2.5, rtol=1e-12)


def test_an_image_never_changes_another() -> None:
    maps = np.exp(np.random.default_rng(2).normal(size=(4, 6, 6)))
    np.testing.assert_array_equal(smooth(maps, 5)[2:3], smooth(maps[2:3], 5))


def test_a_distance_of_zero_is_not_an_error() -> None:
    assert np.isfinite(smooth(np.zeros((1, 3, 3)), 3)).all()


def test_images_that_take_no_part_stay_so() -> None:
    maps = np.ones((2, 3, 3))
    maps[0] = np.nan
    assert np.isnan(smooth(maps, 3)[0]).all()
    assert (smooth(maps, 3)[1] == 1).all()
