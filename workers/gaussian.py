"""The Gaussian at one patch position and the Mahalanobis distance to it (Eqs. 4-6), in two equal forms.

With n fitted samples in D channels and a ridge lambda, Sigma = S + lambda I.

- Dual, for n <= D: S has rank n - 1, so its eigenvectors are found from the n x n Gram matrix. Along them the
  variance is e + lambda, in the orthogonal complement it is lambda. The distance is a sum of non-negative terms,
  so nothing cancels however small lambda is.
- Primal, for n > D: the Cholesky factor of Sigma.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from schemas.errors import SingularCovarianceError
from workers.moments import Moments, finalize

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DualGaussian:
    """A Gaussian fitted on no more samples than channels.

    Attributes
    ----------
    mean
        (channels,) float64.
    directions
        (rank, channels) float64: orthonormal rows V spanning the fitted samples about their mean.
    variances
        (rank,) float64: the variances e along them, without the ridge.
    ridge
        lambda.
    """

    mean: Array
    directions: Array
    variances: Array
    ridge: float

    def mahalanobis(self, samples: NDArray[np.floating]) -> Array:
        """Return the distances (images,) float64 of samples (images, channels): Eq. 6.

        M^2 = sum_k (v_k . u)^2 / (e_k + lambda) + |u - V^T V u|^2 / lambda, with u = x - mean.
        """
        centred = samples.astype(np.float64) - self.mean
        along = centred @ self.directions.T
        centred -= along @ self.directions
        inside = np.einsum("ik,ik,k->i", along, along, 1.0 / (self.variances + self.ridge))
        outside = np.einsum("ij,ij->i", centred, centred)
        distances: Array = np.sqrt(inside + outside / self.ridge)
        return distances


@dataclass(frozen=True)
class PrimalGaussian:
    """A Gaussian fitted on more samples than channels.

    Attributes
    ----------
    mean
        (channels,) float64.
    cholesky
        (channels, channels) float64: lower triangular L with L L^T = Sigma.
    """

    mean: Array
    cholesky: Array

    def mahalanobis(self, samples: NDArray[np.floating]) -> Array:
        """Return the distances (images,) float64 of samples (images, channels): |L^-1 (x - mean)|, Eq. 6."""
        centred = samples.astype(np.float64) - self.mean
        whitened = scipy.linalg.solve_triangular(
            self.cholesky, centred.T, lower=True, overwrite_b=True, check_finite=False
        )
        distances: Array = np.sqrt(np.einsum("ji,ji->i", whitened, whitened))
        return distances


Gaussian = DualGaussian | PrimalGaussian


def uses_dual(fitted: int, channels: int) -> bool:
    """Tell which form a fit on so many samples takes."""
    return fitted <= channels


def fit_dual(samples: NDArray[np.floating], ridge: float) -> DualGaussian:
    """Fit the dual form on samples (images, channels).

    Directions whose variance is below the rounding error of the largest one are left out: they can not be
    normalised, and belong to the complement as far as float64 can tell.
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
    # The Gram matrix squares the condition: small directions come out a little skew to the large ones.
    skew = np.linalg.cholesky(directions @ directions.T)
    directions = scipy.linalg.solve_triangular(skew, directions, lower=True, check_finite=False)
    variances = np.square(directions @ centred.T).sum(axis=1) / (count - 1)
    return DualGaussian(mean, directions, variances, ridge)


def fit_primal(moments: Moments, ridge: float) -> tuple[PrimalGaussian, ...]:
    """Fit the primal form at every position of some moments.

    Raises
    ------
    SingularCovarianceError
        When the ridge is too small to make a covariance positive definite in float64.
    """
    means, covariances = finalize(moments)
    gaussians = []
    for mean, covariance in zip(means, covariances, strict=True):
        covariance[np.diag_indices_from(covariance)] += ridge
        try:
            cholesky = scipy.linalg.cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError as error:
            raise SingularCovarianceError(
                f"gaussian.ridge = {ridge:g} does not make a covariance of {moments.count} samples positive definite "
                f"(largest variance {float(np.max(np.diag(covariance))):g}). Use a larger one, like --set "
                f"gaussian.ridge={ridge * 100:g}."
            ) from error
        gaussians.append(PrimalGaussian(mean, cholesky))
    return tuple(gaussians)
