"""Covariance estimators against scikit-learn, in both forms of the Gaussian."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf, oas

from schemas.config import GaussianConfig
from workers.gaussian.fit import FittedGaussian, fit_dual, fit_primal
from workers.gaussian.moments import accumulate
from workers.gaussian.shrinkage import Spectrum, shrink

# So small that the estimators are scikit-learn's own.
CONFIG = GaussianConfig(ridge=1e-300, relative_ridge=0.1)
Array = NDArray[np.float64]


def draw(seed: int, count: int, channels: int) -> Array:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(size=(count, channels)) @ rng.normal(size=(channels, channels)) + 3)


def dual(samples: Array, estimator: str, *, leaves_one_out: bool = False) -> FittedGaussian:
    return fit_dual(samples, CONFIG, estimator, leaves_one_out=leaves_one_out)


def primal(samples: Array, estimator: str, *, leaves_one_out: bool = False) -> FittedGaussian:
    moments = accumulate(samples[:, np.newaxis])
    centred = samples - samples.mean(axis=0)
    fourth = np.array([(np.square(centred).sum(axis=1) ** 2).sum()])
    return fit_primal(moments, CONFIG, estimator, fourth_moments=fourth, leaves_one_out=leaves_one_out)[0]


def covariance(samples: Array, estimator: str) -> Array:
    """Return the covariance that an estimator gives, with scikit-learn where it has it."""
    if estimator == "oas":
        return np.asarray(oas(samples)[0])
    if estimator == "ledoit-wolf":
        return np.asarray(ledoit_wolf(samples)[0])
    sample = np.cov(samples, rowvar=False)
    return np.asarray(sample + 0.1 * np.trace(sample) / len(sample) * np.eye(len(sample)))


def literal(samples: Array, others: Array, estimator: str) -> Array:
    offset = others - samples.mean(axis=0)
    precision = np.linalg.inv(covariance(samples, estimator))
    return np.asarray(np.sqrt(np.einsum("ij,jk,ik->i", offset, precision, offset)))


@pytest.mark.parametrize("fit", [dual, primal])
@pytest.mark.parametrize("estimator", ["oas", "ledoit-wolf", "relative-ridge"])
@pytest.mark.parametrize(("count", "channels"), [(5, 12), (12, 12), (40, 12), (400, 3)])
def test_distances_are_those_of_scikit_learns_covariance(fit: Any, estimator: str, count: int, channels: int) -> None:
    samples, others = draw(1, count, channels), draw(2, 6, channels)
    distances = fit(samples, estimator).gaussian.mahalanobis(others)
    np.testing.assert_allclose(distances, literal(samples, others, estimator), rtol=1e-7)


@pytest.mark.parametrize("estimator", ["oas", "ledoit-wolf"])
def test_samples_without_any_variance_are_shrunk_to_the_ridge_alone(estimator: str) -> None:
    shrinkage = shrink(Spectrum(4, 3, trace=0.0, squared_trace=0.0), GaussianConfig(ridge=1e-6), estimator)
    assert shrinkage.ridge == 1e-6


@given(st.integers(4, 30), st.integers(2, 12), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_leaving_one_out_is_fitting_without_it(count: int, channels: int, seed: int) -> None:
    # The absolute ridge does not depend on the samples, so leaving one out by hand is exact.
    samples, config = draw(seed, count, channels), GaussianConfig(ridge=0.5)
    fitted = fit_dual(samples, config, "ridge", leaves_one_out=True)
    distances = fitted.leave_one_out(samples, np.ones(count, bool))
    by_hand = [
        fit_dual(np.delete(samples, index, axis=0), config, "ridge").gaussian.mahalanobis(samples[index : index + 1])[0]
        for index in range(count)
    ]
    np.testing.assert_allclose(distances, by_hand, rtol=1e-6)


@pytest.mark.parametrize("estimator", ["oas", "ledoit-wolf", "relative-ridge", "ridge"])
def test_both_forms_leave_out_the_same(estimator: str) -> None:
    samples = draw(3, 9, 9)
    is_fitted = np.arange(9) < 7
    config = GaussianConfig(ridge=1e-3)
    moments = accumulate(samples[:, np.newaxis])
    fourth = np.array([(np.square(samples - samples.mean(axis=0)).sum(axis=1) ** 2).sum()])
    one = fit_dual(samples, config, estimator, leaves_one_out=True)
    other = fit_primal(moments, config, estimator, fourth_moments=fourth, leaves_one_out=True)[0]
    np.testing.assert_allclose(
        one.leave_one_out(samples, is_fitted), other.leave_one_out(samples, is_fitted), rtol=1e-6
    )


def test_images_outside_the_fit_are_measured_as_they_are() -> None:
    samples, others = draw(4, 10, 6), draw(5, 4, 6)
    fitted = dual(samples, "oas", leaves_one_out=True)
    distances = fitted.leave_one_out(others, np.zeros(4, bool))
    np.testing.assert_allclose(distances, fitted.gaussian.mahalanobis(others), rtol=1e-12)
