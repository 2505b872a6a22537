"""Fit the Gaussian at one patch position and measure the Mahalanobis distance to it (Eqs. 4-6), in two equal forms.

With n fitted samples in D channels, Sigma = weight S + ridge I; the covariance estimator sets weight and ridge.

- Dual, for n <= D: S has rank n - 1, so its eigenvectors come from the n x n Gram matrix. Along them the variance is
  e + ridge, in the orthogonal complement it is the ridge. The distance is a sum of non-negative terms, so nothing
  cancels however small the ridge is.
- Primal, for n > D: the Cholesky factor L of Sigma. To measure many images, L^-1 takes its place: matrix products are
  twice as fast as triangular solves. The inverse of a triangle adds a relative error of eps cond(L) to distances
  (Higham, Accuracy and Stability of Numerical Algorithms, section 14.2), and cond(L) is only the square root of
  cond(Sigma): factorising Sigma costs eps cond(Sigma) in any case.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from schemas.arrays import Floats, Mask
from schemas.config import GaussianConfig
from schemas.errors import SingularCovarianceError
from workers.gaussian.lapack import factorise, invert_diagonal_blocks, invert_factor, multiply_triangle, whiten
from workers.gaussian.moments import Moments, finalize
from workers.gaussian.shrinkage import Shrinkage, Spectrum, shrink


class Fit(NamedTuple):
    """How to fit: the covariance estimator, and whether fitted images will be measured without themselves."""

    config: GaussianConfig
    estimator: str
    leaves_one_out: bool = False


@dataclass(frozen=True)
class DualGaussian:
    """A Gaussian fitted on no more samples than channels."""

    mean: Floats  # (channels,)
    directions: Floats  # (rank, channels): orthonormal rows V that span the fitted samples about their mean
    variances: Floats  # (rank,): the variances e along them, without the ridge
    ridge: float  # the variance in the orthogonal complement

    def mahalanobis(self, samples: NDArray[np.floating]) -> Floats:
        """Return the distances (images,) float64 of samples (images, channels): Eq. 6.

        M^2 = sum_k (v_k . u)^2 / (e_k + ridge) + |u - V^T V u|^2 / ridge, with u = x - mean.
        """
        centred = samples.astype(np.float64) - self.mean
        along = centred @ self.directions.T
        centred -= along @ self.directions
        inside = np.einsum("ik,ik,k->i", along, along, 1.0 / (self.variances + self.ridge))
        outside = np.einsum("ij,ij->i", centred, centred)
        distances: Floats = np.sqrt(inside + outside / self.ridge)
        return distances


@dataclass(frozen=True)
class PrimalGaussian:
    """A Gaussian fitted on more samples than channels."""

    mean: Floats  # (channels,)
    cholesky: Floats  # (channels, channels): lower triangular L with L L^T = Sigma

    def mahalanobis(self, samples: NDArray[np.floating]) -> Floats:
        """Return the distances (images,) float64 of samples (images, channels): |L^-1 (x - mean)|, Eq. 6."""
        whitened = samples.astype(np.float64, order="C")
        whitened -= self.mean
        whiten(self._factor, self._inverses, whitened)
        distances: Floats = np.sqrt(np.einsum("ij,ij->i", whitened, whitened))
        return distances

    @cached_property
    def _factor(self) -> Floats:
        return np.asfortranarray(self.cholesky)

    @cached_property
    def _inverses(self) -> tuple[Floats, ...]:
        return invert_diagonal_blocks(self._factor)


Gaussian = DualGaussian | PrimalGaussian


@dataclass(frozen=True)
class WhiteningGaussian:
    """A Gaussian in primal form that measures many images fast."""

    mean: Floats  # (channels,)
    whitening: Floats  # (channels, channels), Fortran order: L^-1, lower triangular, with L L^T = Sigma

    def mahalanobis(self, samples: NDArray[np.floating]) -> Floats:
        """Return the distances (images,) float64 of samples (images, channels): |L^-1 (x - mean)|, Eq. 6."""
        whitened = samples.astype(np.float64, order="C")
        whitened -= self.mean
        multiply_triangle(self.whitening, whitened)
        distances: Floats = np.sqrt(np.einsum("ij,ij->i", whitened, whitened))
        return distances


@dataclass(frozen=True)
class FittedGaussian:
    """A Gaussian that knows how many samples it was fitted on, so that it can leave one of them out."""

    gaussian: Gaussian  # to leave one out, fitted with 1 / (n - 2), the scale of a fit without one of its n samples
    count: int  # n
    weight: float  # of the sample covariance in Sigma

    def leave_one_out(self, samples: NDArray[np.floating], is_fitted: Mask) -> Floats:
        """Return the distances (images,) of samples (images, channels), measuring each fitted one without itself.

        With q = u^T B^-1 u and c = weight n / ((n - 1)(n - 2)), Sherman and Morrison give for a fitted sample
        d^2 = (n / (n - 1))^2 q / (1 - c q); for all others d^2 = q. Fitted and other samples are on one scale.
        """
        return _leave_one_out(self.gaussian.mahalanobis(samples), is_fitted, self.count, self.weight)


@dataclass(frozen=True)
class FittedWhitening:
    """A `WhiteningGaussian` that knows how many samples it was fitted on, as `FittedGaussian` does."""

    gaussian: WhiteningGaussian
    count: int
    weight: float

    def leave_one_out(self, samples: NDArray[np.floating], is_fitted: Mask) -> Floats:
        """Do the same as `FittedGaussian.leave_one_out`."""
        return _leave_one_out(self.gaussian.mahalanobis(samples), is_fitted, self.count, self.weight)

    def relative_error(self, scatter_error: float) -> float:
        """Bound the relative error of distances, given (a bound on) the Frobenius norm of the fitted scatter's error.

        d^2 = u^T Sigma^-1 u changes by u^T Sigma^-1 E Sigma^-1 u, to first order, with E the error of Sigma. That is
        at most |E| |Sigma^-1| d^2, and |Sigma^-1| is at most the sum of squares of L^-1. The distance has half of it.
        """
        precision = float(np.einsum("ij,ij->", self.gaussian.whitening, self.gaussian.whitening))
        # 1 / (n - 2) at most, whatever the scale of the fit.
        return 0.5 * self.weight * scatter_error / max(self.count - 2, 1) * precision


def invert(fitted: FittedGaussian) -> FittedWhitening:
    """Turn a primal Gaussian into one that measures many images fast."""
    assert isinstance(fitted.gaussian, PrimalGaussian)
    whitening = invert_factor(np.asfortranarray(fitted.gaussian.cholesky))
    return FittedWhitening(WhiteningGaussian(fitted.gaussian.mean, whitening), fitted.count, fitted.weight)


def uses_dual(fitted: int, channels: int) -> bool:
    """Tell whether a fit on ``fitted`` samples takes the dual form."""
    return fitted <= channels


def fit_dual(
    samples: NDArray[np.floating], config: GaussianConfig, estimator: str, *, leaves_one_out: bool = False
) -> FittedGaussian:
    """Fit the dual form on samples (images, channels) of any floating dtype.

    Directions whose variance is below the rounding error of the largest one are left out: they cannot be normalised,
    and belong to the complement as far as float64 can tell. ``leaves_one_out`` scales the covariance with 1 / (n - 2),
    for `FittedGaussian.leave_one_out`.
    """
    values = samples.astype(np.float64)
    count = len(values)
    mean = values.mean(axis=0)
    centred = values - mean
    variances, rotation = np.linalg.eigh(centred @ centred.T / (count - 1))
    variances, rotation = variances[:0:-1], rotation[:, :0:-1]  # descending; n samples span n - 1 dimensions
    keep = variances > count * np.finfo(np.float64).eps * variances.max(initial=0.0)
    variances, rotation = variances[keep], rotation[:, keep]
    directions = (rotation.T @ centred) / np.sqrt(variances * (count - 1))[:, np.newaxis]
    # The Gram matrix squares the condition: small directions are not quite orthogonal to the large ones.
    skew = np.linalg.cholesky(directions @ directions.T)
    directions = scipy.linalg.solve_triangular(skew, directions, lower=True, check_finite=False)
    variances = np.square(directions @ centred.T).sum(axis=1) / (count - 1)
    spectrum = Spectrum(
        count=count,
        channels=values.shape[1],
        trace=float(variances.sum()),
        squared_trace=float((variances**2).sum()),
        fourth_moment=float((np.einsum("ij,ij->i", centred, centred) ** 2).sum()),
    )
    shrinkage = shrink(spectrum, config, estimator)
    variances *= shrinkage.weight * _rescaling(count, leaves_one_out)
    return FittedGaussian(DualGaussian(mean, directions, variances, shrinkage.ridge), count, shrinkage.weight)


def fit_primal(
    moments: Moments,
    config: GaussianConfig,
    estimator: str,
    *,
    fourth_moments: Floats | None = None,
    leaves_one_out: bool = False,
) -> tuple[FittedGaussian, ...]:
    """Fit the primal form at every position of the moments.

    Parameters
    ----------
    fourth_moments
        (positions,) sum of |x - mean|^4; only ``ledoit-wolf`` needs them.
    leaves_one_out
        As for `fit_dual`.

    Raises
    ------
    SingularCovarianceError
        If the ridge is too small to make a covariance positive definite in float64.
    """
    fitted = []
    means, covariances = finalize(moments)
    for position, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
        spectrum = Spectrum(
            count=moments.count,
            channels=len(mean),
            trace=float(np.trace(covariance)),
            squared_trace=float(np.einsum("ij,ij->", covariance, covariance)),
            fourth_moment=0.0 if fourth_moments is None else float(fourth_moments[position]),
        )
        shrinkage = shrink(spectrum, config, estimator)
        covariance *= shrinkage.weight * _rescaling(moments.count, leaves_one_out)
        covariance[np.diag_indices_from(covariance)] += shrinkage.ridge
        gaussian = PrimalGaussian(mean, _cholesky(covariance, shrinkage, moments.count))
        fitted.append(FittedGaussian(gaussian, moments.count, shrinkage.weight))
    return tuple(fitted)


def _leave_one_out(distances: Floats, is_fitted: Mask, count: int, weight: float) -> Floats:
    """Turn distances (images,) into those that measure each fitted sample without itself."""
    squared = distances**2
    leverage = weight * count / ((count - 1) * (count - 2)) * squared
    # The leverage is below 1 in exact arithmetic; a sample that alone spans a direction comes close within rounding.
    remaining = np.maximum(1.0 - leverage, np.finfo(np.float64).eps)
    without = (count / (count - 1)) ** 2 * squared / remaining
    left_out: Floats = np.sqrt(np.where(is_fitted, without, squared))
    return left_out


def _rescaling(count: int, leaves_one_out: bool) -> float:
    """Return the factor from 1 / (n - 1) to 1 / (n - 2) if one sample is left out, else 1."""
    return (count - 1) / (count - 2) if leaves_one_out else 1.0


def _cholesky(covariance: Floats, shrinkage: Shrinkage, count: int) -> Floats:
    """Return the lower factor, overwriting the covariance."""
    try:
        factor = factorise(covariance.T)
    except np.linalg.LinAlgError as error:
        raise SingularCovarianceError(
            f"a ridge of {shrinkage.ridge:g} does not make a covariance of {count} samples positive definite (largest "
            f"variance {float(np.max(np.diag(covariance))):g}). Use a larger one, like --set "
            f"gaussian.ridge={shrinkage.ridge * 100:g}, or another gaussian.estimator."
        ) from error
    return factor
