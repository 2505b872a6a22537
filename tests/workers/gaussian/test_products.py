"""Distances from inner products: against the forms on features, a literal refit, exact arithmetic."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.config import GaussianConfig
from tests.support.exact import exact_distances
from workers.gaussian.fit import Fit, fit_dual, fit_primal
from workers.gaussian.moments import accumulate
from workers.gaussian.products import TOLERANCE, Measured, inner_products, measure
from workers.gaussian.shrinkage import Shrinkage, Spectrum, shrink

Array = NDArray[np.float64]

IMAGES, CHANNELS, FITTED = 30, 64, 18
ESTIMATORS = ("ridge", "relative-ridge", "oas", "ledoit-wolf")
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, count: int = IMAGES, channels: int = CHANNELS) -> Array:
    """Return (count, channels) float64 with a spectrum of two decades, far from the origin, read-only."""
    rng = np.random.default_rng(seed)
    values: Array = rng.normal(size=(count, channels)) * np.geomspace(1, 1e-2, channels) + 3.0
    values.flags.writeable = False
    return values


def measured(values: NDArray[Any], fitted: NDArray[np.int64], fit: Fit, **options: Any) -> Measured:
    products = inner_products(values)
    products.flags.writeable = False
    return measure(products, values.shape[1], fitted, np.arange(len(values)), fit, **options)


def on_features(values: NDArray[Any], fitted: NDArray[np.int64], fit: Fit) -> Array:
    """Return the distances by the form that sees the features."""
    is_fitted = np.isin(np.arange(len(values)), fitted)
    one = fit_dual(values[is_fitted], fit.config, fit.estimator, leaves_one_out=fit.leaves_one_out)
    return one.leave_one_out(values, is_fitted) if fit.leaves_one_out else one.gaussian.mahalanobis(values)


def estimate(samples: Array, fit: Fit) -> Shrinkage:
    covariance = np.atleast_2d(np.cov(samples, rowvar=False))
    spectrum = Spectrum(
        count=len(samples),
        channels=samples.shape[1],
        trace=float(np.trace(covariance)),
        squared_trace=float(np.square(covariance).sum()),
        fourth_moment=float((np.square(samples - samples.mean(axis=0)).sum(axis=1) ** 2).sum()),
    )
    return shrink(spectrum, fit.config, fit.estimator)


def literally_without(values: Array, fitted: NDArray[np.int64], fit: Fit) -> Array:
    """Return each fitted image's distance to a fit of the others, by an explicit inverse; weight and ridge of all."""
    shrinkage, found = estimate(values[fitted], fit), []
    for image in fitted:
        others = values[fitted[fitted != image]]
        covariance = shrinkage.weight * np.cov(others, rowvar=False) + shrinkage.ridge * np.eye(values.shape[1])
        offset = values[image] - others.mean(axis=0)
        found.append(np.sqrt(offset @ np.linalg.inv(covariance) @ offset))
    return np.array(found)


@pytest.mark.parametrize("leaves_one_out", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("count", [3, FITTED, IMAGES])
def test_distances_are_those_of_the_form_on_features(estimator: str, leaves_one_out: bool, count: int) -> None:
    values, fitted = draw(0), np.random.default_rng(1).permutation(IMAGES)[:count]
    fit = Fit(GaussianConfig(ridge=1e-4), estimator, leaves_one_out)
    found = measured(values, fitted, fit)
    np.testing.assert_allclose(found.distances, on_features(values, fitted, fit), rtol=1e-8)
    assert found.error < TOLERANCE


@given(seed=seeds, channels=st.integers(3, 40), data=st.data())
@settings(max_examples=40, deadline=None)
def test_distances_are_those_of_the_primal_form(seed: int, channels: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(3, channels))
    values, fitted, config = draw(seed, count + 10, channels), np.arange(count), GaussianConfig(ridge=1e-4)
    primal = fit_primal(accumulate(values[:count, np.newaxis]), config, "ridge")[0].gaussian
    found = measured(values, fitted, Fit(config, "ridge"))
    np.testing.assert_allclose(found.distances, primal.mahalanobis(values), rtol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(seed=seeds, count=st.integers(3, 20))
@settings(max_examples=15, deadline=None)
def test_leaving_one_out_is_a_fit_of_the_others(estimator: str, seed: int, count: int) -> None:
    values, fit = draw(seed, count + 3), Fit(GaussianConfig(), estimator, leaves_one_out=True)
    fitted = np.random.default_rng(seed).permutation(count + 3)[:count]
    found = measured(values, fitted, fit).distances[fitted]
    np.testing.assert_allclose(found, literally_without(values, fitted, fit), rtol=1e-6)


def test_near_duplicates_hide_each_other() -> None:
    # What `workers.verdict.near_duplicates` is for.
    values = draw(3).copy()
    values[1] = values[0] + 1e-6
    fit = Fit(GaussianConfig(), "relative-ridge", leaves_one_out=True)
    together, alone = (measured(values, rows, fit) for rows in (np.arange(FITTED), np.arange(1, FITTED)))
    assert together.distances[1] < 0.7 * alone.distances[1]


@given(seed=seeds, count=st.integers(3, 6), exponent=st.integers(-12, -1), ridge=st.integers(-10, -1))
@settings(max_examples=60, deadline=None)
def test_the_error_of_near_duplicates_and_tiny_ridges_is_within_the_bound_or_refused(
    seed: int, count: int, exponent: int, ridge: int
) -> None:
    values = draw(seed, count + 3, 8).copy()
    values[count - 1] = values[0] + 10.0**exponent * values[1]
    values[count] = values[1] + 10.0**exponent * values[2]
    fit = Fit(GaussianConfig(ridge=10.0**ridge), "ridge")
    found = measured(values, np.arange(count), fit)
    if found.error <= TOLERANCE:
        expected = exact_distances(values[:count], values, 10.0**ridge)
        np.testing.assert_allclose(found.distances, expected, rtol=TOLERANCE)


@pytest.mark.parametrize("ridge", [1e-300, 1e-14])
def test_a_ridge_too_small_for_inner_products_is_refused(ridge: float) -> None:
    values = np.repeat(draw(4, 6), 2, axis=0)
    found = measured(values, np.arange(10), Fit(GaussianConfig(ridge=ridge), "ridge"))
    assert not found.error <= TOLERANCE


def test_the_paper_s_ridge_is_large_enough_for_features_like_real_ones() -> None:
    values = 10 * draw(5, 100, 200)
    assert measured(values, np.arange(60), Fit(GaussianConfig(), "ridge")).error < 1e-2 * TOLERANCE


@pytest.mark.parametrize("leaves_one_out", [False, True])
def test_images_without_any_variance_are_refused_rather_than_told_apart_by_rounding(leaves_one_out: bool) -> None:
    values = np.tile(np.full(8, 0.1, np.float32), (12, 1))
    found = measured(values, np.arange(8), Fit(GaussianConfig(), "ridge", leaves_one_out))
    assert not found.error <= TOLERANCE


@pytest.mark.parametrize("leaves_one_out", [False, True])
def test_an_estimator_that_believes_nothing_of_the_sample_covariance_leaves_its_ridge(leaves_one_out: bool) -> None:
    # White noise; this draw of it OAS shrinks to a multiple of the identity.
    values, fitted = np.random.default_rng(3).normal(size=(50, 3, CHANNELS))[:, 1], np.arange(40)
    fit = Fit(GaussianConfig(), "oas", leaves_one_out)
    assert estimate(values[fitted], fit).weight == 0.0
    found = measured(values, fitted, fit)
    np.testing.assert_allclose(found.distances, on_features(values, fitted, fit), rtol=1e-9)


def test_images_measured_are_in_the_order_asked_for_and_may_be_asked_for_twice() -> None:
    products, fit = inner_products(draw(6)), Fit(GaussianConfig(), "relative-ridge", True)
    rows = np.array([29, 3, 3, 0, 17])
    everything = measure(products, CHANNELS, np.arange(FITTED), np.arange(IMAGES), fit).distances
    found = measure(products, CHANNELS, np.arange(FITTED), rows, fit).distances
    np.testing.assert_allclose(found, everything[rows], rtol=1e-12)


@given(seed=seeds, offset=st.floats(-100, 100), leaves_one_out=st.booleans())
@settings(max_examples=15, deadline=None)
def test_distances_do_not_depend_on_the_origin(seed: int, offset: float, leaves_one_out: bool) -> None:
    values, fit = draw(seed), Fit(GaussianConfig(), "relative-ridge", leaves_one_out)
    here, there = (measured(shifted, np.arange(FITTED), fit).distances for shifted in (values, values + offset))
    np.testing.assert_allclose(there, here, rtol=1e-6)


def test_half_precision_samples_are_multiplied_in_float64() -> None:
    half = draw(7).astype(np.float16)
    half.flags.writeable = False
    np.testing.assert_array_equal(inner_products(half), inner_products(half.astype(np.float64)))
