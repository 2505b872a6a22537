"""The Gaussian at one position: dual and primal form against each other, a literal inverse and exact arithmetic."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.config import GaussianConfig
from schemas.errors import SingularCovarianceError
from tests.support.exact import exact_distances, literal_distances
from workers.gaussian.fit import (
    FittedGaussian,
    Gaussian,
    PrimalGaussian,
    WhiteningGaussian,
    fit_dual,
    fit_primal,
    invert,
    uses_dual,
)
from workers.gaussian.moments import accumulate

Array = NDArray[np.float64]

RIDGE = 1e-6
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, count: int, channels: int) -> Array:
    """Return (count, channels) float64 of the size of patch features, read-only."""
    rng = np.random.default_rng(seed)
    values: Array = rng.normal(size=(count, channels)) * rng.uniform(0.3, 3, channels) + rng.uniform(0, 2, channels)
    values.flags.writeable = False
    return values


def dual(samples: NDArray[Any], ridge: float = RIDGE) -> Gaussian:
    return fit_dual(samples, GaussianConfig(ridge=ridge), "ridge").gaussian


def fit_by_factor(samples: NDArray[Any], ridge: float = RIDGE) -> FittedGaussian:
    moments = accumulate(samples[:, np.newaxis])
    moments.mean.flags.writeable = False
    moments.scatter.flags.writeable = False
    return fit_primal(moments, GaussianConfig(ridge=ridge), "ridge")[0]


def primal(samples: NDArray[Any], ridge: float = RIDGE) -> Gaussian:
    return fit_by_factor(samples, ridge).gaussian


def whitening(samples: NDArray[Any], ridge: float = RIDGE) -> WhiteningGaussian:
    return invert(fit_by_factor(samples, ridge)).gaussian


all_forms = pytest.mark.parametrize("fit", [dual, primal, whitening])


def assert_relative(distances: Array, expected: Array, relative: float = 1e-6) -> None:
    assert distances.dtype == np.float64
    np.testing.assert_allclose(distances, expected, rtol=relative, atol=0)


@pytest.mark.parametrize(("fitted", "channels", "expected"), [(3, 4, True), (4, 4, True), (5, 4, False)])
def test_the_dual_form_is_for_no_more_samples_than_channels(fitted: int, channels: int, expected: bool) -> None:
    assert uses_dual(fitted, channels) is expected


@given(seed=seeds, channels=st.integers(3, 40), data=st.data())
@settings(max_examples=60, deadline=None)
def test_dual_and_primal_give_the_same_distances(seed: int, channels: int, data: st.DataObject) -> None:
    # Both apply up to as many samples as channels; beyond, the dual has all directions and still holds.
    count = data.draw(st.integers(3, channels + 2))
    fitted, others = draw(seed, count, channels), draw(seed + 1, 10, channels)
    samples = np.concatenate([fitted, others])
    assert_relative(dual(fitted).mahalanobis(samples), primal(fitted).mahalanobis(samples))


@pytest.mark.parametrize("count", [59, 60, 61])
def test_dual_and_primal_agree_where_one_takes_over_from_the_other(count: int) -> None:
    fitted, others = draw(1, count, 60), draw(2, 20, 60)
    samples = np.concatenate([fitted, others])
    assert_relative(dual(fitted).mahalanobis(samples), primal(fitted).mahalanobis(samples))


@all_forms
@given(seed=seeds, count=st.integers(2, 30), channels=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_distances_equal_the_literal_formula_on_well_conditioned_data(
    fit: Any, seed: int, count: int, channels: int
) -> None:
    fitted, others = draw(seed, count, channels), draw(seed + 1, 5, channels)
    samples = np.concatenate([fitted, others])
    assert_relative(fit(fitted, 0.1).mahalanobis(samples), literal_distances(fitted, samples, 0.1), 1e-9)


@all_forms
@pytest.mark.parametrize("count", [2, 3, 6, 7, 8, 20])
def test_distances_equal_exact_arithmetic(fit: Any, count: int) -> None:
    fitted, others = draw(3, count, 7), draw(4, 4, 7)
    samples = np.concatenate([fitted, others])
    assert_relative(fit(fitted).mahalanobis(samples), exact_distances(fitted, samples, RIDGE), 1e-8)


@all_forms
@pytest.mark.parametrize("difference", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10])
def test_nearly_identical_samples_cost_no_accuracy(fit: Any, difference: float) -> None:
    # Such as one part photographed twice, or one image that was saved again: their variances lie between the rounding
    # error of the largest one and the ridge.
    fitted = draw(5, 6, 8).copy()
    fitted[3:] = fitted[:3] + difference * draw(6, 3, 8)
    samples = np.concatenate([fitted, draw(7, 5, 8)])
    assert_relative(fit(fitted).mahalanobis(samples), exact_distances(fitted, samples, RIDGE))


@all_forms
def test_duplicate_samples_cost_no_accuracy(fit: Any) -> None:
    fitted = np.repeat(draw(8, 3, 8), [1, 2, 3], axis=0)
    samples = np.concatenate([fitted, draw(9, 5, 8)])
    assert_relative(fit(fitted).mahalanobis(samples), exact_distances(fitted, samples, RIDGE))


@all_forms
def test_linearly_dependent_samples_cost_no_accuracy(fit: Any) -> None:
    # Ten samples in a plane: rank 2 of at most 9. Integers, so that they lie in it exactly.
    rng = np.random.default_rng(10)
    fitted = (rng.integers(-9, 9, (10, 2)) @ rng.integers(-9, 9, (2, 8))).astype(np.float64)
    samples = np.concatenate([fitted, draw(11, 5, 8)])
    assert_relative(fit(fitted).mahalanobis(samples), exact_distances(fitted, samples, RIDGE))


@all_forms
def test_linearly_dependent_channels_cost_no_accuracy(fit: Any) -> None:
    fitted = draw(12, 6, 4)[:, [0, 1, 2, 3, 0, 1, 2]]
    samples = np.concatenate([fitted, draw(13, 5, 7)])
    assert_relative(fit(fitted).mahalanobis(samples), exact_distances(fitted, samples, RIDGE))


@all_forms
@pytest.mark.parametrize("count", [4, 30])
def test_a_constant_channel_has_the_ridge_for_its_variance(fit: Any, count: int) -> None:
    fitted = draw(14, count, 6).copy()
    fitted[:, 2] = 0.1
    gaussian = fit(fitted)
    at_mean, off = np.tile(fitted.mean(axis=0), (2, 1))
    off[2] += 0.5
    near, far = gaussian.mahalanobis(np.stack([at_mean, off]))
    assert near == pytest.approx(0, abs=1e-6)
    assert far == pytest.approx(0.5 / np.sqrt(RIDGE), rel=1e-6)


@all_forms
@pytest.mark.parametrize("count", [3, 30])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_identical_samples_are_at_distance_zero_and_others_are_measured_by_the_ridge(
    fit: Any, count: int, dtype: Any
) -> None:
    fitted = np.tile(np.full(6, 0.1, dtype), (count, 1))
    gaussian = fit(fitted)
    np.testing.assert_allclose(gaussian.mahalanobis(fitted), 0, atol=1e-10)
    other = fitted[:1].astype(np.float64) + np.array([3.0, 0, 4.0, 0, 0, 0])
    assert gaussian.mahalanobis(other)[0] == pytest.approx(5 / np.sqrt(RIDGE), rel=1e-6)


def test_fitted_samples_of_a_small_group_all_lie_at_the_same_distance() -> None:
    # (n - 1)^2 / n is the largest distance that a fitted sample can have; without a ridge all have it when n <= D.
    distances = dual(draw(15, 20, 60)).mahalanobis(draw(15, 20, 60))
    np.testing.assert_allclose(distances, np.sqrt(19**2 / 20), rtol=1e-5)


@all_forms
@given(seed=seeds, count=st.integers(3, 40), channels=st.integers(1, 15))
@settings(max_examples=50, deadline=None)
def test_no_fitted_sample_is_farther_than_its_number_allows(fit: Any, seed: int, count: int, channels: int) -> None:
    fitted = draw(seed, count, channels)
    distances = fit(fitted).mahalanobis(fitted)
    assert (distances >= 0).all()
    assert (distances <= np.sqrt((count - 1) ** 2 / count) * (1 + 1e-9)).all()


@all_forms
def test_unfitted_samples_of_a_small_group_are_orders_of_magnitude_farther(fit: Any) -> None:
    gaussian = fit(draw(16, 20, 60))
    assert gaussian.mahalanobis(draw(17, 20, 60)).min() > 100 * gaussian.mahalanobis(draw(16, 20, 60)).max()


@all_forms
@given(seed=seeds, count=st.integers(3, 20))
@settings(max_examples=30, deadline=None)
def test_distances_do_not_depend_on_the_basis_of_the_channels(fit: Any, seed: int, count: int) -> None:
    fitted, others = draw(seed, count, 8), draw(seed + 1, 5, 8)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))[0]
    shift = np.linspace(-3, 3, 8)
    rotated = fit(fitted @ rotation + shift).mahalanobis(others @ rotation + shift)
    assert_relative(rotated, fit(fitted).mahalanobis(others))


@all_forms
@pytest.mark.parametrize("count", [5, 50])
def test_samples_are_measured_independently_of_each_other(fit: Any, count: int) -> None:
    gaussian, samples = fit(draw(18, count, 10)), draw(19, 20, 10)
    together = gaussian.mahalanobis(samples)
    assert_relative(np.concatenate([gaussian.mahalanobis(part) for part in np.split(samples, [1, 8])]), together, 1e-12)


@all_forms
@pytest.mark.parametrize("count", [5, 50])
def test_half_precision_samples_are_measured_in_float64(fit: Any, count: int) -> None:
    half = draw(20, count, 10).astype(np.float16)
    half.flags.writeable = False
    gaussian = fit(half)
    assert gaussian.mean.dtype == np.float64
    assert_relative(
        gaussian.mahalanobis(half), fit(half.astype(np.float64)).mahalanobis(half.astype(np.float64)), 1e-12
    )


@all_forms
def test_no_samples_have_no_distances(fit: Any) -> None:
    assert fit(draw(21, 12, 10)).mahalanobis(np.empty((0, 10), np.float16)).shape == (0,)


def test_the_primal_form_is_fitted_at_every_position() -> None:
    samples = np.random.default_rng(22).normal(size=(30, 3, 5))
    gaussians = [one.gaussian for one in fit_primal(accumulate(samples), GaussianConfig(ridge=RIDGE), "ridge")]
    assert len(gaussians) == 3
    for position, gaussian in enumerate(gaussians):
        assert isinstance(gaussian, PrimalGaussian)
        np.testing.assert_allclose(gaussian.mean, samples[:, position].mean(axis=0), rtol=1e-14)
        sigma = np.cov(samples[:, position], rowvar=False) + RIDGE * np.eye(5)
        np.testing.assert_allclose(gaussian.cholesky @ gaussian.cholesky.T, sigma, rtol=1e-12, atol=1e-12)
        assert not np.triu(gaussian.cholesky, 1).any()


def test_a_ridge_that_does_not_make_a_covariance_definite_is_an_error_that_says_so() -> None:
    dependent = 1e3 * draw(23, 50, 2) @ np.random.default_rng(24).normal(size=(2, 6))
    with pytest.raises(SingularCovarianceError, match=r"a ridge of 1e-300 .* 50 samples .*gaussian\.ridge=1e-298"):
        primal(dependent, 1e-300)


@given(seed=seeds, channels=st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_the_inverse_of_the_factor_measures_what_the_factor_does(seed: int, channels: int) -> None:
    samples, others = draw(seed, 3 * channels + 9, channels), draw(seed + 1, 10, channels)
    fitted, inverted = fit_by_factor(samples), invert(fit_by_factor(samples))
    assert_relative(inverted.gaussian.mahalanobis(others), fitted.gaussian.mahalanobis(others), 1e-9)
    mask = np.arange(10) % 2 == 0
    assert_relative(inverted.leave_one_out(samples[:10], mask), fitted.leave_one_out(samples[:10], mask), 1e-9)
