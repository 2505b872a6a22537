"""Distances from Gram matrices: those of the production kernels, whatever is fitted and however."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.config import GaussianConfig
from studies.cleaning.gram import Gram, products_of
from workers.gaussian.fit import Fit, fit_dual
from workers.guard import structure

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


def expected(values: NDArray[Any], fitted: NDArray[np.int64], fit: Fit) -> NDArray[np.float64]:
    is_fitted = np.isin(np.arange(len(values)), fitted)
    columns = []
    for samples in np.moveaxis(values, 1, 0):
        one = fit_dual(samples[is_fitted], fit.config, fit.estimator, leaves_one_out=fit.leaves_one_out)
        columns.append(
            one.leave_one_out(samples, is_fitted) if fit.leaves_one_out else one.gaussian.mahalanobis(samples)
        )
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("leaves_one_out", [False, True])
@pytest.mark.parametrize("estimator", ["ridge", "relative-ridge", "oas", "ledoit-wolf"])
def test_distances_are_those_of_the_production_kernels(estimator: str, leaves_one_out: bool) -> None:
    values, fitted = features(), np.random.default_rng(1).permutation(IMAGES)[:FITTED]
    fit = Fit(GaussianConfig(), estimator, leaves_one_out)
    found = gram_of(values).distances(fitted, np.arange(IMAGES), fit)
    np.testing.assert_allclose(found, expected(values, fitted, fit), rtol=RELATIVE)


def test_each_position_may_be_fitted_on_images_of_its_own() -> None:
    values, rng = features(), np.random.default_rng(2)
    fitted = np.stack([rng.permutation(IMAGES)[:FITTED] for _ in range(POSITIONS)], axis=1)
    gram, fit, measured = gram_of(values), Fit(GaussianConfig(), "relative-ridge", True), np.arange(IMAGES)
    found = gram.distances(fitted, measured, fit)
    for position in range(POSITIONS):
        alone = gram.distances(fitted[:, position], measured, fit)
        np.testing.assert_array_equal(found[:, position], alone[:, position])


def test_inner_products_over_all_positions_are_those_of_the_guard() -> None:
    values, chosen = features(), np.array([3, 7, 8, 20])
    found = gram_of(values).over_all_positions(chosen)
    np.testing.assert_allclose(found, structure.gram(values[chosen]), rtol=RELATIVE)
