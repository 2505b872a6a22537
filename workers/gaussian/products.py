"""Measure Mahalanobis distances at one position from the inner products of its images, in groups of at most D images.

In such a group a distance depends on the features only through their inner products. Those are the same in every pass,
whatever is fitted, so they are computed once, and a pass costs one Cholesky factor of n x n. With the n fitted
samples' u about their mean, K = U U^T, Sigma = a U^T U + r I and c = r / a, Woodbury's identity gives for another
sample with k = U u

    d^2 = (|u|^2 - k^T (K + c I)^-1 k) / r.                                                                     (1)

For a fitted sample that difference cancels to nothing if r is small; but then u = U^T e_i, and

    d^2 = (1 - 1/n - c H_ii) / a,                                                                               (2)

where H is (K + c I)^-1 without its part along the ones: those are K's null space, so that part, 1/c, is known. The
factorised matrix has the mean eigenvalue there instead; no k has a part along the ones.

Without sample i the mean is mu - u/(n - 1) and the scatter U^T U - (1 + 1/(n - 1)) u u^T. Woodbury's identity then
gives

    d^2 = (1/(c H_ii) - 1 - 1/(n - 1)) / a,                                                                     (3)

with a and c of n - 1 samples: `workers.gaussian.fit.FittedGaussian.leave_one_out` without its cancellation.

Rounding: inner products are exact to eps times the norms, so K's error is at most E = eps tr K, and H's relative error
E |H|, which is at most E / c = eps tr S / r. The differences above divide it by what they leave. `measure` returns
that bound; if it is too large, use `workers.gaussian.fit.fit_dual`, which sees the features themselves.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import Floats, Indices
from workers.gaussian.fit import Fit
from workers.gaussian.lapack import factorise, invert_triangle
from workers.gaussian.shrinkage import Shrinkage, Spectrum, shrink

# Above this bound on the relative error, distances come from the features themselves: two forms of one distance must
# agree to it. On real features the bound is a thousand to ten thousand times the error.
TOLERANCE = 1e-6

_EPS = float(np.finfo(np.float64).eps)

# Keeps squared distances positive despite rounding: later steps take their logarithms.
_TINY = float(np.finfo(np.float64).tiny)


class Measured(NamedTuple):
    """Distances (images,) float64, and a bound on the relative error that rounded inner products mean for them."""

    distances: Floats
    error: float


class _Squared(NamedTuple):
    """Squared distances (images,) float64, and bounds (images,) on their errors."""

    values: Floats
    errors: Floats


@dataclass(frozen=True)
class _Resolvent:
    """H, for a covariance with 1 / degrees."""

    inverse: Floats  # (n, n): L^-1 of the lower Cholesky factor L
    scale: float  # a
    offset: float  # c
    along_ones: float  # n times the factorised matrix's eigenvalue along the ones
    error: float  # a bound on H's relative error

    def diagonal(self) -> Floats:
        """Return the diagonal (n,) of c H."""
        diagonal: Floats = np.einsum("ki,ki->i", self.inverse, self.inverse) - 1.0 / self.along_ones
        return self.offset * diagonal


@dataclass(frozen=True)
class _Kernel:
    """The fitted samples about their mean."""

    centred: Floats  # (n, n): K
    to_mean: Floats  # (n,): inner products of the samples with their mean
    mean_square: float  # inner product of the mean with itself
    rounding: float  # E, the error of K
    shrinkage: Shrinkage

    @classmethod
    def of(cls, products: Floats, channels: int, fitted: Indices, fit: Fit) -> "_Kernel":
        """Centre the inner products of the fitted images, and ask the estimator."""
        centred = products[np.ix_(fitted, fitted)]
        rounding = _EPS * float(np.trace(centred))
        to_mean = centred.mean(axis=1)
        mean_square = float(to_mean.mean())
        centred -= to_mean[:, np.newaxis]
        centred -= to_mean - mean_square
        degrees = len(fitted) - 1
        spectrum = Spectrum(
            count=len(fitted),
            channels=channels,
            trace=float(np.trace(centred)) / degrees,
            squared_trace=float(np.einsum("ij,ij->", centred, centred)) / degrees**2,
            fourth_moment=float(np.square(np.diag(centred)).sum()),
        )
        return cls(centred, to_mean, mean_square, rounding, shrink(spectrum, fit.config, fit.estimator))

    def resolvent(self, degrees: int) -> _Resolvent | None:
        """Factorise for a covariance with 1 / degrees; None if the estimator gives it no weight."""
        count, scale = len(self.centred), self.shrinkage.weight / degrees
        if not scale:
            return None
        offset, mean_eigenvalue = self.shrinkage.ridge / scale, float(np.trace(self.centred)) / count
        matrix = self.centred + mean_eigenvalue / count
        matrix[np.diag_indices(count)] += offset
        # Symmetric: its transpose is the same matrix in Fortran order, which the routines need.
        inverse = invert_triangle(factorise(matrix.T))
        # The squared Frobenius norm of L^-1 is the trace of H, which bounds its spectral norm.
        norm = float(np.einsum("ij,ij->", inverse, inverse))
        return _Resolvent(inverse, scale, offset, count * (mean_eigenvalue + offset), self.rounding * norm)


def inner_products(samples: NDArray[np.floating]) -> Floats:
    """Return the inner products (images, images) float64 of samples (images, channels) about their mean.

    About the mean, so that a fit loses little when it subtracts its own mean.
    """
    values = samples.astype(np.float64)
    values -= values.mean(axis=0)
    products: Floats = values @ values.T  # NumPy turns A A^T into a symmetric rank-k update
    return products


def measure(products: Floats, channels: int, fitted: Indices, measured: Indices, fit: Fit) -> Measured:
    """Fit on some images and measure others, which may be among them: Eq. 6.

    Distances are NaN, with an infinite error, if rounding makes K + c I indefinite.

    Parameters
    ----------
    products
        (images, images) float64, from `inner_products`.
    channels
        D.
    fitted
        (n,) int64: rows of the images to fit on, each once.
    measured
        (m,) int64: rows of the images to measure, in any order.
    fit
        With ``leaves_one_out`` fitted images are measured without themselves.
    """
    count = len(fitted)
    kernel = _Kernel.of(products, channels, fitted, fit)
    try:
        resolvent = kernel.resolvent(count - 2 if fit.leaves_one_out else count - 1)
    except np.linalg.LinAlgError:
        return Measured(np.full(len(measured), np.nan), np.inf)
    own = _without_themselves(kernel, resolvent) if fit.leaves_one_out else _as_fitted(kernel, resolvent)
    place = np.full(len(products), -1)
    place[fitted] = np.arange(count)
    at = place[measured]
    is_fitted = at >= 0
    squared, errors = np.empty(len(measured)), np.empty(len(measured))
    squared[is_fitted], errors[is_fitted] = own.values[at[is_fitted]], own.errors[at[is_fitted]]
    squared[~is_fitted], errors[~is_fitted] = _others(kernel, resolvent, products, fitted, measured[~is_fitted])
    squared = np.maximum(squared, _TINY)
    return Measured(np.sqrt(squared), float((errors / squared).max(initial=0.0)) / 2.0)


def _as_fitted(kernel: _Kernel, resolvent: _Resolvent | None) -> _Squared:
    """Measure the fitted samples under the fit of all: (2)."""
    count, ridge = len(kernel.centred), kernel.shrinkage.ridge
    if resolvent is None:
        return _Squared(np.diag(kernel.centred) / ridge, np.full(count, kernel.rounding / ridge))
    rest = resolvent.diagonal()
    squared = (1.0 - 1.0 / count - rest) / resolvent.scale
    return _Squared(squared, (_EPS + resolvent.error * rest) / resolvent.scale)


def _without_themselves(kernel: _Kernel, resolvent: _Resolvent | None) -> _Squared:
    """Measure each fitted sample under the fit of all others: (3); infinite if there are fewer than two others."""
    count, ridge = len(kernel.centred), kernel.shrinkage.ridge
    if count < 3:
        return _Squared(np.full(count, np.inf), np.zeros(count))
    if resolvent is None:
        shift = count / (count - 1)  # |u + u/(n - 1)|^2 / r
        return _Squared(shift**2 * np.diag(kernel.centred) / ridge, np.full(count, kernel.rounding / ridge))
    inverses = 1.0 / resolvent.diagonal()
    squared = (inverses - 1.0 - 1.0 / (count - 1)) / resolvent.scale
    return _Squared(squared, (_EPS + resolvent.error) * inverses / resolvent.scale)


def _others(
    kernel: _Kernel, resolvent: _Resolvent | None, products: Floats, fitted: Indices, others: Indices
) -> _Squared:
    """Measure images that were not fitted: (1)."""
    to_fitted = products[np.ix_(others, fitted)]
    to_mean = to_fitted.mean(axis=1)
    norms = products[others, others]
    squared: Floats = norms - 2.0 * to_mean + kernel.mean_square
    errors = _EPS * norms
    if resolvent is not None:
        to_fitted -= (to_mean - kernel.mean_square)[:, np.newaxis]
        to_fitted -= kernel.to_mean
        solved = to_fitted @ resolvent.inverse.T
        explained = np.einsum("ij,ij->i", solved, solved)
        squared -= explained
        errors += resolvent.error * explained
    return _Squared(squared / kernel.shrinkage.ridge, errors / kernel.shrinkage.ridge)
