"""Moments: any chunking, merged in order, equals NumPy's mean and covariance."""

from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from workers.gaussian.moments import Accumulator, Moments, accumulate, finalize, merge

Array = NDArray[np.float64]


def samples(seed: int, images: int, positions: int = 2, channels: int = 3, *, offset: float = 0.0) -> Array:
    """Return (images, positions, channels) float64, read-only, with correlated channels of different scales."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(channels, channels)) * np.geomspace(0.1, 10, channels)
    values: Array = rng.normal(size=(images, positions, channels)) @ mixing + offset
    values.flags.writeable = False
    return values


def frozen(moments: Moments) -> Moments:
    moments.mean.flags.writeable = False
    moments.scatter.flags.writeable = False
    return moments


def merged(parts: list[NDArray[Any]], positions: int = 2, channels: int = 3) -> Moments:
    return reduce(merge, (frozen(accumulate(part)) for part in parts), Moments.empty(positions, channels))


def assert_equal_to_numpy(moments: Moments, values: Array, *, relative: float = 1e-10) -> None:
    mean, covariance = finalize(moments)
    for position in range(values.shape[1]):
        expected = np.cov(values[:, position], rowvar=False)
        # An element of a covariance is known to the scale of its two standard deviations.
        deviations = np.sqrt(np.diag(expected))
        scale = np.outer(deviations, deviations)
        np.testing.assert_allclose(covariance[position] / scale, expected / scale, rtol=0, atol=relative)
        np.testing.assert_allclose(
            (mean[position] - values[:, position].mean(axis=0)) / deviations, 0, rtol=0, atol=relative
        )


def assert_close(one: Moments, other: Moments) -> None:
    assert one.count == other.count
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(one.scatter, other.scatter, rtol=1e-10, atol=1e-10 * np.abs(one.scatter).max(initial=1))


@st.composite
def cuts(draw: st.DrawFn, images: int) -> list[int]:
    return sorted(draw(st.lists(st.integers(0, images), max_size=8)))


@given(seed=st.integers(0, 2**32 - 1), images=st.integers(2, 60), data=st.data())
@settings(max_examples=100, deadline=None)
def test_moments_of_any_chunking_equal_numpy_cov(seed: int, images: int, data: st.DataObject) -> None:
    values = samples(seed, images)
    parts = np.split(values, data.draw(cuts(images)))  # some of them empty
    moments = merged(parts)
    assert moments.count == images
    assert_equal_to_numpy(moments, values)


@given(seed=st.integers(0, 2**32 - 1), sizes=st.tuples(*[st.integers(0, 12)] * 3))
@settings(max_examples=50, deadline=None)
def test_merge_is_associative(seed: int, sizes: tuple[int, int, int]) -> None:
    one, two, three = (frozen(accumulate(samples(seed + part, size))) for part, size in enumerate(sizes))
    assert_close(merge(merge(one, two), three), merge(one, merge(two, three)))


@given(seed=st.integers(0, 2**32 - 1), sizes=st.tuples(st.integers(0, 12), st.integers(0, 12)))
@settings(max_examples=50, deadline=None)
def test_merge_is_commutative(seed: int, sizes: tuple[int, int]) -> None:
    one, two = (frozen(accumulate(samples(seed + part, size))) for part, size in enumerate(sizes))
    assert_close(merge(one, two), merge(two, one))


@pytest.mark.parametrize("images", [0, 1, 7])
def test_the_moments_of_no_samples_are_the_neutral_element(images: int) -> None:
    moments, nothing = frozen(accumulate(samples(0, images))), frozen(Moments.empty(2, 3))
    for combined in (merge(moments, nothing), merge(nothing, moments)):
        assert combined.count == images
        np.testing.assert_array_equal(combined.mean, moments.mean)
        np.testing.assert_array_equal(combined.scatter, moments.scatter)


def test_accumulating_no_samples_gives_the_moments_of_no_samples() -> None:
    moments = accumulate(np.empty((0, 2, 3), np.float16))
    assert moments.count == 0
    assert not moments.mean.any()
    assert moments.scatter.shape == (2, 3, 3)


def test_literal_moments_of_three_samples() -> None:
    values = np.array([[[1.0, 2.0]], [[3.0, 2.0]], [[5.0, 8.0]]])
    moments = merge(accumulate(values[:1]), accumulate(values[1:]))
    assert moments.count == 3
    np.testing.assert_allclose(moments.mean, [[3.0, 4.0]])
    np.testing.assert_allclose(moments.scatter, [[[8.0, 12.0], [12.0, 24.0]]])
    mean, covariance = finalize(moments)
    np.testing.assert_allclose(mean, [[3.0, 4.0]])
    np.testing.assert_allclose(covariance, [[[4.0, 6.0], [6.0, 12.0]]])


@pytest.mark.parametrize("chunk", [1, 7, 200])
def test_a_large_offset_costs_no_digits_of_the_covariance(chunk: int) -> None:
    # The values are spaced by 2^-10 so that adding 2^20 to them is exact: the covariance is the same number.
    steps = np.random.default_rng(3).integers(-4096, 4096, (200, 2, 3)) / 1024
    parts = [steps[start : start + chunk] + 2.0**20 for start in range(0, 200, chunk)]
    _, covariance = finalize(merged(parts))
    _, expected = finalize(accumulate(steps))
    np.testing.assert_allclose(covariance, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_low_precision_features_are_accumulated_in_float64(dtype: type[np.floating[Any]]) -> None:
    values = samples(5, 300, offset=50).astype(dtype)
    values.flags.writeable = False
    moments = merged(np.split(values, [100, 150]))
    assert moments.mean.dtype == moments.scatter.dtype == np.float64
    assert_equal_to_numpy(moments, values.astype(np.float64))


def test_positions_do_not_mix() -> None:
    values = samples(7, 20, positions=4)
    together = accumulate(values)
    for position in range(4):
        alone = accumulate(values[:, position : position + 1])
        np.testing.assert_array_equal(together.mean[position], alone.mean[0])
        np.testing.assert_array_equal(together.scatter[position], alone.scatter[0])


def test_the_scatter_of_a_merge_is_symmetric() -> None:
    scatter = merged(np.split(samples(9, 50), [13, 31])).scatter
    np.testing.assert_allclose(scatter, scatter.transpose(0, 2, 1), rtol=1e-13)


@pytest.mark.parametrize("images", [0, 1])
def test_a_covariance_of_fewer_than_two_samples_is_an_error(images: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2 samples, not {images}"):
        finalize(accumulate(samples(0, images)))


@given(seed=st.integers(0, 2**32 - 1), images=st.integers(2, 60), offset=st.sampled_from([0.0, 1e4]), data=st.data())
@settings(max_examples=30, deadline=None)
def test_blocks_added_one_by_one_equal_numpy_whatever_the_first_of_them(
    seed: int, images: int, offset: float, data: st.DataObject
) -> None:
    values = samples(seed, images, positions=1, offset=offset)
    accumulator = Accumulator(3)
    for part in np.split(values[:, 0], data.draw(cuts(images))):
        accumulator.add(part)
    assert_equal_to_numpy(accumulator.result(), values, relative=1e-9)


def test_an_accumulator_of_nothing_is_the_neutral_element() -> None:
    assert_close(merge(Accumulator(3).result(), accumulate(samples(0, 5, positions=1))), accumulate(samples(0, 5, 1)))


@given(seed=st.integers(0, 2**32 - 1), offset=st.sampled_from([0.0, 1e3]), data=st.data())
@settings(max_examples=30, deadline=None)
def test_samples_taken_off_again_leave_the_moments_of_the_others_within_the_bound(
    seed: int, offset: float, data: st.DataObject
) -> None:
    values = samples(seed, 60, positions=1, offset=offset)[:, 0]
    stays = np.arange(60) < data.draw(st.integers(2, 59))
    accumulator = Accumulator.resume(frozen(accumulate(values[:, np.newaxis])))
    for part in np.split(values[~stays], data.draw(cuts(int((~stays).sum())))):
        accumulator.remove(part)
    accumulator.remove(values[:1])
    accumulator.add(values[:1])
    moments = accumulator.result()
    exact = values[stays].astype(np.longdouble)
    exact = exact - exact.mean(axis=0)
    assert moments.count == stays.sum()
    error = np.linalg.norm((moments.scatter[0] - exact.T @ exact).astype(np.float64))
    assert error <= moments.error < 1e-9 * np.trace(accumulate(values[:, np.newaxis]).scatter[0])


@given(seed=st.integers(0, 2**32 - 1), offset=st.sampled_from([0.0, 1e6]), data=st.data())
@settings(max_examples=30, deadline=None)
def test_merged_moments_are_right_within_their_bound(seed: int, offset: float, data: st.DataObject) -> None:
    values = samples(seed, 60, positions=1, offset=offset)
    moments = merged(np.split(values, data.draw(cuts(60))), positions=1)
    exact = values[:, 0].astype(np.longdouble)
    exact = exact - exact.mean(axis=0)
    assert np.linalg.norm((moments.scatter[0] - exact.T @ exact).astype(np.float64)) <= moments.error
