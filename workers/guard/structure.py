"""Check whether the images of a group vary one view, from the principal components of a sample over all positions.

One Gaussian per position supposes one product in one pose. Two products make the leading component two-valued, a freely
turned part moves on a ring, several products sit on the corners of a simplex: always at one distance from the mean, in
few directions that carry most of the variance. Noise has no direction, and defects lie far out: both have the
kurtosis of the normal law or more.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import Floats, Indices, Mask
from workers.features.arrays import ArrayRef

# A share in a sample of this size is right to 2 %, and its Gram matrix has 2 MiB.
SAMPLE = 512
SEED = 0

# Among fewer images even drift looks like two kinds or a ring by chance: in 1 of 100 groups of 20, 1 of 2000 of 50.
MIN_SAMPLE = 50

# Three components hold the corners of four products.
MAX_LEADING = 3

# The leading components are those that together carry half of the variance: more than all others.
LEADING_SHARE = 0.5


@dataclass(frozen=True)
class Structure:
    """What the leading components of a sample of images say about the group.

    ``leading`` is the number of components, at most 3 and together with half of the variance, that has the least
    kurtosis; 3 if none carries half. ``kurtosis`` is theirs by Mardia (1970), as a share of the normal law's excess
    over its minimum: 0 if all images lie at one distance from the mean (two even products, a ring), 0.4 for even
    drift, 1 for the normal law, more with outliers. The two kinds come from the best split along the first component.
    """

    images: int  # in the sample
    leading: int
    share: float  # of the variance in the leading components
    kurtosis: float
    tightness: float  # share of the first component's variance that lies between the two kinds
    between: float  # the same as a share of the whole variance
    minority: float  # share of the smaller kind in the sample
    kept_minority: float  # share, among the sample's kept images, of the kind that has fewer of them


def sample_images(measured: Mask, *, seed: int = SEED) -> Indices:
    """Return the rows (sample,), ascending, of at most 512 random images that take part (images,), kept or not."""
    rows = np.flatnonzero(measured)
    if len(rows) <= SAMPLE:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, SAMPLE, replace=False))


def gram_row(features: ArrayRef, row: int, sample: Indices) -> Floats:
    """Return the Gram matrix (sample, sample) at one row of positions: one task. The caller sums all rows in order.

    Parameters
    ----------
    features
        The group's array (images, rows, columns, channels).
    row
        The row of positions.
    sample
        (sample,) ascending indices of images.
    """
    chosen = features.open().get_orthogonal_selection((sample, slice(row, row + 1), slice(None), slice(None)))
    return gram(np.asarray(chosen)[:, 0])


def gram(values: NDArray[np.floating]) -> Floats:
    """Return the Gram matrix (images, images) of features (images, positions, channels) about their mean.

    Every position has the same weight.
    """
    total = np.zeros((len(values), len(values)))
    for position in range(values.shape[1]):
        centred = values[:, position].astype(np.float64)
        centred -= centred.mean(axis=0)
        products = centred @ centred.T
        variance = float(np.trace(products))
        if variance > 0:
            total += products / variance
    return total


def describe_structure(products: Floats, kept: Mask) -> Structure | None:
    """Describe a sample by its Gram matrix; None if it is too small, or all images are the same.

    Parameters
    ----------
    products
        (sample, sample) float64: the sum over all positions.
    kept
        (sample,) bool: which of them are in the clean set.
    """
    count = len(products)
    if count < MIN_SAMPLE or np.trace(products) <= 0:
        return None
    variances, vectors = np.linalg.eigh(products)
    variances, vectors = np.maximum(variances[::-1], 0.0), vectors[:, ::-1]
    shares = variances / variances.sum()
    carried = np.cumsum(shares)
    smallest = min(MAX_LEADING, int(np.searchsorted(carried, LEADING_SHARE)) + 1)
    whitened = vectors[:, :MAX_LEADING] * np.sqrt(count)
    kurtosis, leading = min(
        (_relative_kurtosis(whitened[:, :number]), number) for number in range(smallest, MAX_LEADING + 1)
    )
    first = vectors[:, 0]
    explained, limit = _split(first)
    is_high = first > limit
    return Structure(
        images=count,
        leading=leading,
        share=float(carried[leading - 1]),
        kurtosis=kurtosis,
        tightness=explained,
        between=explained * float(shares[0]),
        minority=_smaller(is_high),
        kept_minority=_smaller(is_high[kept]),
    )


def _smaller(is_high: Mask) -> float:
    """Return the share of the smaller of two parts; 0 if there are no images."""
    high = int(is_high.sum())
    return min(high, len(is_high) - high) / max(len(is_high), 1)


def _relative_kurtosis(whitened: Floats) -> float:
    """Return Mardia's kurtosis mean |z|^4 of m components, from 0 at its minimum m^2 to 1 for the normal m (m + 2)."""
    dimensions = whitened.shape[1]
    fourth = float((np.square(whitened).sum(axis=1) ** 2).mean())
    excess: float = (fourth - dimensions**2) / (2.0 * dimensions)
    return excess


def _split(coordinate: Floats) -> tuple[float, float]:
    """Return the largest share of variance between two parts of a coordinate (Otsu 1979), and where to split it."""
    ordered = np.sort(coordinate) - coordinate.mean()
    count, lower = len(ordered), np.arange(1, len(ordered))
    between = np.cumsum(ordered)[:-1] ** 2 * count / (lower * (count - lower))
    best = int(between.argmax())
    middle = (ordered[best] + ordered[best + 1]) / 2
    return float(between[best] / np.square(ordered).sum()), float(middle + coordinate.mean())
