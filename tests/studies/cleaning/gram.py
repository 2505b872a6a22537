"""Mahalanobis distances from Gram matrices: what makes a study of hundreds of cleanings affordable.

An archive of N images is cleaned over and over, with other images planted, by other strategies, in many passes. The
inner products of all images at a position are the same in all of them, and with no more images than channels they are
all that a distance depends on. So they are computed once, and a pass costs one Cholesky factor of n x n.

`workers.gaussian` is the production code; the tests hold the two together.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from schemas.config import GaussianConfig
from workers.shrinkage import Spectrum, shrink

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

# Keeps squared distances positive where rounding would not: their logarithms are taken.
_TINY = np.finfo(np.float64).tiny
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Fitting:
    """How to fit and measure: the covariance estimator, and whether fitted images are measured without themselves."""

    config: GaussianConfig
    estimator: str
    leaves_one_out: bool = False


@dataclass(frozen=True)
class Gram:
    """The inner products of images at every position.

    Attributes
    ----------
    products
        (positions, images, images) float64, of features about their mean; may be mapped from a file.
    channels
        D.
    """

    products: Array
    channels: int

    def distances(self, fitted: Rows, measured: Rows, fitting: Fitting) -> Array:
        """Fit on some images and measure others, which may be among them: Eq. 6.

        Parameters
        ----------
        fitted, measured
            (n,) and (m,) int64: rows of the images, each once in ``fitted``.
        fitting
            How.

        Returns
        -------
        ndarray
            (m, positions) float64.
        """
        result = np.empty((len(measured), len(self.products)))
        for position, products in enumerate(self.products):
            result[:, position] = _position_distances(products, self.channels, fitted, measured, fitting)
        return result


def products_of(features: NDArray[Any], out: Array) -> None:
    """Fill ``out`` (positions, images, images) with the inner products of features (images, positions, channels).

    They are taken about the mean of all images, so that little is lost when a fit subtracts its own.
    """
    for position in range(features.shape[1]):
        values = features[:, position].astype(np.float64)
        values -= values.mean(axis=0)
        np.matmul(values, values.T, out=out[position])


def _position_distances(products: Array, channels: int, fitted: Rows, measured: Rows, fitting: Fitting) -> Array:
    """Return the distances (m,) at one position.

    With U the fitted samples about their mean, K = U U^T, Sigma = a U^T U + ridge I and c = ridge / a, Woodbury's
    identity gives for a sample u with k = U u

        d^2 = (|u|^2 - k^T (K + c I)^-1 k) / ridge,

    and for the fitted sample i, where that difference cancels to nothing when the ridge is small,

        d^2 = (1 - c [(K + c I)^-1]_ii) / a.

    K has the vector of ones in its null space, where the inverse is 1 / c. That part is known, so it is taken out:
    the matrix factorised has the mean eigenvalue there instead, and the first term above becomes 1 - 1 / n - c h_i
    with h_i the rest of the diagonal. No k has a part along the ones, so nothing else changes.
    """
    count = len(fitted)
    at_fitted = products[np.ix_(fitted, fitted)]
    to_mean = at_fitted.mean(axis=1)
    mean_square = to_mean.mean()
    kernel = at_fitted - to_mean[:, np.newaxis] - to_mean + mean_square
    weight, ridge = _shrinkage(kernel, channels, fitting)
    scale = weight / (count - 2 if fitting.leaves_one_out else count - 1)
    offset = ridge / scale
    along_ones = float(np.trace(kernel)) / count + offset
    kernel += along_ones / count
    kernel[np.diag_indices(count)] += offset
    factor = np.linalg.cholesky(kernel)

    squared = np.empty(len(measured))
    place = np.full(len(products), -1)
    place[fitted] = np.arange(count)
    is_fitted = place[measured] >= 0
    if is_fitted.any():
        inverse = scipy.linalg.solve_triangular(factor, np.eye(count), lower=True, check_finite=False)
        rest = np.square(inverse).sum(axis=0) - 1.0 / (count * (along_ones + offset))
        inside = (1.0 - 1.0 / count - offset * rest) / scale
        if fitting.leaves_one_out:
            inside = _without_oneself(inside, offset * rest, count)
        squared[is_fitted] = inside[place[measured[is_fitted]]]
    others = measured[~is_fitted]
    if len(others):
        to_fitted = products[np.ix_(fitted, others)]
        to_others = to_fitted.mean(axis=0)
        norms = products[others, others] - 2.0 * to_others + mean_square
        to_fitted -= to_mean[:, np.newaxis] + to_others - mean_square
        solved = scipy.linalg.solve_triangular(factor, to_fitted, lower=True, overwrite_b=True, check_finite=False)
        squared[~is_fitted] = (norms - np.einsum("ij,ij->j", solved, solved)) / ridge
    return np.sqrt(np.maximum(squared, _TINY))


def _shrinkage(kernel: Array, channels: int, fitting: Fitting) -> tuple[float, float]:
    """Return weight and ridge of Sigma = weight S + ridge I, S with 1 / (n - 1), as the estimator has them."""
    degrees = len(kernel) - 1
    spectrum = Spectrum(
        count=len(kernel),
        channels=channels,
        trace=float(np.trace(kernel)) / degrees,
        squared_trace=float(np.einsum("ij,ij->", kernel, kernel)) / degrees**2,
        fourth_moment=float(np.square(np.diag(kernel)).sum()),
    )
    shrinkage = shrink(spectrum, fitting.config, fitting.estimator)
    return shrinkage.weight, shrinkage.ridge


def _without_oneself(squared: Array, rest: Array, count: int) -> Array:
    """Return squared distances to the fit without the sample itself, as `FittedGaussian.leave_one_out` has them.

    Its 1 - c q is n / (n - 1) times c h_i, in the terms of `_position_distances`: written so, it does not cancel.
    """
    remaining = np.maximum(count / (count - 1) * rest, _EPS)
    without: Array = (count / (count - 1)) ** 2 * squared / remaining
    return without
