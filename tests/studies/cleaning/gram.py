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
        fitted
            (n,) int64: rows of the images, each once; or (n, positions) where each position has its own.
        measured
            (m,) int64: rows of the images.
        fitting
            How.

        Returns
        -------
        ndarray
            (m, positions) float64.
        """
        result = np.empty((len(measured), len(self.products)))
        for position, products in enumerate(self.products):
            here = fitted if fitted.ndim == 1 else fitted[:, position]
            result[:, position] = _position_distances(products, self.channels, here, measured, fitting)
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
    """Return the distances (m,) at one position, fitted and other images each by their own form of `_Kernel`."""
    kernel = _Kernel.of(products, channels, fitted, fitting)
    place = np.full(len(products), -1)
    place[fitted] = np.arange(len(fitted))
    is_fitted = place[measured] >= 0
    squared = np.empty(len(measured))
    squared[is_fitted] = kernel.squared_of_fitted(fitting.leaves_one_out)[place[measured[is_fitted]]]
    squared[~is_fitted] = kernel.squared_of_others(products, fitted, measured[~is_fitted])
    return np.sqrt(np.maximum(squared, _TINY))


@dataclass(frozen=True)
class _Kernel:
    """The fit at one position, in terms of the inner products K = U U^T of the n fitted samples about their mean.

    With Sigma = a U^T U + ridge I and c = ridge / a, Woodbury's identity gives for a sample u with k = U u

        d^2 = (|u|^2 - k^T (K + c I)^-1 k) / ridge,

    and for the fitted sample i, where that difference cancels to nothing when the ridge is small,

        d^2 = (1 - c [(K + c I)^-1]_ii) / a.

    K has the vector of ones in its null space, where the inverse is 1 / c. That part is known, so it is taken out:
    the matrix factorised has the mean eigenvalue there instead, and the second form becomes (1 - 1 / n - c h_i) / a
    with h_i the rest of the diagonal. No k has a part along the ones, so nothing else changes.

    Attributes
    ----------
    to_mean
        (n,) float64: inner products of the fitted samples with their mean, and
    mean_square
        that of the mean with itself.
    norms
        (n,) float64: squared distances of the fitted samples from their mean.
    factor
        (n, n) float64: the Cholesky factor; None where Sigma = ridge I, as OAS may have it.
    along_ones, scale, ridge
        The factorised matrix's eigenvalue along the ones, a, and the ridge.
    """

    to_mean: Array
    mean_square: float
    norms: Array
    factor: Array | None
    along_ones: float
    scale: float
    ridge: float

    @classmethod
    def of(cls, products: Array, channels: int, fitted: Rows, fitting: Fitting) -> "_Kernel":
        """Fit on the images of some rows of the products (images, images)."""
        count = len(fitted)
        kernel = products[np.ix_(fitted, fitted)]
        to_mean = kernel.mean(axis=1)
        mean_square = float(to_mean.mean())
        kernel -= to_mean[:, np.newaxis] + to_mean - mean_square
        norms = np.diag(kernel).copy()
        weight, ridge = _shrinkage(kernel, channels, fitting)
        scale = weight / (count - 2 if fitting.leaves_one_out else count - 1)
        if not scale:
            return cls(to_mean, mean_square, norms, None, 0.0, scale, ridge)
        offset, mean_eigenvalue = ridge / scale, float(norms.sum()) / count
        kernel += mean_eigenvalue / count
        kernel[np.diag_indices(count)] += offset
        factor: Array = scipy.linalg.cholesky(kernel, lower=True, check_finite=False)
        return cls(to_mean, mean_square, norms, factor, mean_eigenvalue + offset, scale, ridge)

    def squared_of_fitted(self, leaves_one_out: bool) -> Array:
        """Return the squared distances (n,) of the fitted images, of each to the fit without it where asked."""
        count = len(self.norms)
        if self.factor is None:
            return self.norms / self.ridge * ((count / (count - 1)) ** 2 if leaves_one_out else 1.0)
        inverse = scipy.linalg.solve_triangular(self.factor, np.eye(count), lower=True, check_finite=False)
        rest = self.ridge / self.scale * (np.square(inverse).sum(axis=0) - 1.0 / (count * self.along_ones))
        squared: Array = (1.0 - 1.0 / count - rest) / self.scale
        return _without_oneself(squared, rest, count) if leaves_one_out else squared

    def squared_of_others(self, products: Array, fitted: Rows, others: Rows) -> Array:
        """Return the squared distances (images,) of images that were not fitted."""
        to_fitted = products[np.ix_(fitted, others)]
        to_others = to_fitted.mean(axis=0)
        squared: Array = products[others, others] - 2.0 * to_others + self.mean_square
        if self.factor is not None and len(others):
            to_fitted -= self.to_mean[:, np.newaxis] + to_others - self.mean_square
            solved = scipy.linalg.solve_triangular(self.factor, to_fitted, lower=True, check_finite=False)
            squared -= np.einsum("ij,ij->j", solved, solved)
        return squared / self.ridge


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

    Its 1 - c q is n / (n - 1) times c h_i, in the terms of `_Kernel`: so it does not cancel.
    """
    remaining = np.maximum(count / (count - 1) * rest, _EPS)
    without: Array = (count / (count - 1)) ** 2 * squared / remaining
    return without
