"""Measure, at one position, how far an image is from those that it resembles most.

A Gaussian knows one mean and one covariance: it forgives whatever lies between two variants of a part, and what a few
fitted images share, however far all of them lie from the rest. The distance to the second nearest of a bounded set of
reference images forgives neither: one image alone supports nothing, not even the twin of a defect. Reference images
are taken evenly from the fitted ones, so the cost is linear in the number of images measured.
"""

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import Floats, Indices, Mask

# At most this many reference images; a map has them all.
REFERENCES = 256

# The distance to the second nearest reference image: a pair of like defects does not support itself.
NEIGHBOUR = 2

# Squared distances below this share of the squared norms are rounding: equal images have distance 0.
_ROUNDING = 1e-12


def choose_references(fitted: Mask, most: int = REFERENCES) -> Mask:
    """Return which fitted images (images,) are reference images: all, or ``most`` of them, evenly by row."""
    rows = np.flatnonzero(fitted)
    chosen = np.zeros_like(fitted)
    if len(rows) > most:
        rows = rows[((np.arange(most) + 0.5) * len(rows) / most).astype(np.int64)]
    chosen[rows] = True
    return chosen


def neighbour_distances(
    samples: NDArray[np.floating], references: NDArray[np.floating], own: Indices | None = None
) -> Floats:
    """Return the Euclidean distance of each sample to its second nearest reference image.

    Parameters
    ----------
    samples
        (m, channels).
    references
        (r, channels); with only one besides a sample's own, the distance is to that one, and with none it is infinite.
    own
        (m,) int64: the place of each sample among the references, which it is measured without; -1 if it is none.
        None if no sample is.

    Returns
    -------
    ndarray
        (m,) float64.
    """
    shift = references.mean(axis=0, dtype=np.float64) if len(references) else 0.0
    left, right = samples.astype(np.float64) - shift, references.astype(np.float64) - shift
    norms = np.einsum("ij,ij->i", left, left)
    squared = norms[:, np.newaxis] + np.einsum("ij,ij->i", right, right) - 2.0 * (left @ right.T)
    return _second_nearest(squared, norms, own)


def neighbour_distances_of_products(products: Floats, references: Indices, measured: Indices) -> Floats:
    """Return what `neighbour_distances` does, from the inner products (images, images) of the images at a position.

    ``references`` (r,) and ``measured`` (m,) int64 are rows of the images; a reference is measured without itself.
    """
    norms = np.diag(products)
    squared = norms[measured, np.newaxis] + norms[references] - 2.0 * products[np.ix_(measured, references)]
    place = np.full(len(products), -1)
    place[references] = np.arange(len(references))
    return _second_nearest(squared, norms[measured], place[measured])


def _second_nearest(squared: Floats, norms: Floats, own: Indices | None) -> Floats:
    """Return the distances from squared ones (samples, references); overwrites them."""
    if own is not None:
        rows = np.flatnonzero(own >= 0)
        squared[rows, own[rows]] = np.inf
    if not squared.shape[1]:
        return np.full(len(squared), np.inf)
    nearest = np.partition(squared, min(NEIGHBOUR, squared.shape[1]) - 1, axis=1)[:, :NEIGHBOUR]
    chosen = np.where(np.isfinite(nearest), nearest, -np.inf).max(axis=1)
    chosen = np.where(np.isfinite(chosen), chosen, np.inf)
    distances: Floats = np.sqrt(np.where(chosen <= _ROUNDING * norms, 0.0, chosen))
    return distances
