"""Distances from Gram matrices: those of the production kernels, whatever is fitted and however."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.config import GaussianConfig
from tests.studies.cleaning.gram import Fitting, Gram, products_of
from workers.gaussian import fit_dual

IMAGES, POSITIONS, CHANNELS, FITTED = 30, 3, 64, 18
RELATIVE = 1e-6


def features(seed: int = 0) -> NDArray[np.float64]:
    """Return features (images, positions, channels) with a spectrum of six decades, far from the origin."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(IMAGES, POSITIONS, CHANNELS)) * np.geomspace(1, 1e-3, CHANNELS) + 3.0


def gram_of(values: NDArray[Any]) -> Gram:
    products = np.empty((values.shape[1], len(values), len(values)))
    products_of(values, products)
    products.setflags(write=False)
    return Gram(products, values.shape[2])


def expected(values: NDArray[Any], fitted: NDArray[np.int64], fitting: Fitting) -> NDArray[np.float64]:
    is_fitted = np.isin(np.arange(len(values)), fitted)
    columns = []
    for samples in np.moveaxis(values, 1, 0):
        fit = fit_dual(samples[is_fitted], fitting.config, fitting.estimator, leaves_one_out=fitting.leaves_one_out)
        columns.append(
            fit.leave_one_out(samples, is_fitted) if fitting.leaves_one_out else fit.gaussian.mahalanobis(samples)
        )
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("leaves_one_out", [False, True])
@pytest.mark.parametrize("estimator", ["ridge", "relative-ridge", "oas", "ledoit-wolf"])
def test_distances_are_those_of_the_production_kernels(estimator: str, leaves_one_out: bool) -> None:
    values, fitted = features(), np.random.default_rng(1).permutation(IMAGES)[:FITTED]
    fitting = Fitting(GaussianConfig(), estimator, leaves_one_out)
    found = gram_of(values).distances(fitted, np.arange(IMAGES), fitting)
    np.testing.assert_allclose(found, expected(values, fitted, fitting), rtol=RELATIVE)


def test_the_paper_s_ridge_leaves_fitted_images_at_almost_one_distance_and_still_tells_them_apart() -> None:
    values, fitted = features(), np.arange(FITTED)
    found = gram_of(values).distances(fitted, fitted, Fitting(GaussianConfig(), "ridge"))
    np.testing.assert_allclose(found, (FITTED - 1) / np.sqrt(FITTED), rtol=1e-3)
    assert (np.ptp(found, axis=0) > 0).all()


def test_images_measured_are_in_the_order_asked_for_and_may_be_asked_for_twice() -> None:
    gram, fitting = gram_of(features()), Fitting(GaussianConfig(), "relative-ridge", True)
    measured = np.array([29, 3, 3, 0, 17])
    everything = gram.distances(np.arange(FITTED), np.arange(IMAGES), fitting)
    np.testing.assert_allclose(gram.distances(np.arange(FITTED), measured, fitting), everything[measured], rtol=1e-12)


@pytest.mark.parametrize("leaves_one_out", [False, True])
def test_an_estimator_that_believes_nothing_of_the_sample_covariance_leaves_its_ridge(leaves_one_out: bool) -> None:
    # White noise; this draw of it OAS shrinks to a multiple of the identity.
    values, fitted = np.random.default_rng(3).normal(size=(50, 3, CHANNELS))[:, 1:], np.arange(40)
    fitting = Fitting(GaussianConfig(), "oas", leaves_one_out)
    fits = [fit_dual(values[fitted, position], GaussianConfig(), "oas") for position in range(2)]
    assert [fit.weight for fit in fits] == [0.0, 0.0]
    found = gram_of(values).distances(fitted, np.arange(50), fitting)
    np.testing.assert_allclose(found, expected(values, fitted, fitting), rtol=RELATIVE)


def test_each_position_may_be_fitted_on_images_of_its_own() -> None:
    values, rng = features(), np.random.default_rng(2)
    fitted = np.stack([rng.permutation(IMAGES)[:FITTED] for _ in range(POSITIONS)], axis=1)
    gram, fitting, measured = gram_of(values), Fitting(GaussianConfig(), "relative-ridge", True), np.arange(IMAGES)
    found = gram.distances(fitted, measured, fitting)
    for position in range(POSITIONS):
        alone = gram.distances(fitted[:, position], measured, fitting)
        np.testing.assert_array_equal(found[:, position], alone[:, position])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), offset=st.floats(-100, 100), leaves_one_out=st.booleans())
def test_distances_do_not_depend_on_the_origin(seed: int, offset: float, leaves_one_out: bool) -> None:
    values, fitting = features(seed), Fitting(GaussianConfig(), "relative-ridge", leaves_one_out)
    fitted, measured = np.arange(FITTED), np.arange(IMAGES)
    here = gram_of(values).distances(fitted, measured, fitting)
    there = gram_of(values + offset).distances(fitted, measured, fitting)
    np.testing.assert_allclose(there, here, rtol=RELATIVE)
