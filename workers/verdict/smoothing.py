"""Average distances over neighbouring positions: overlapping patches see the same defect but different noise."""

import numpy as np
from scipy.ndimage import uniform_filter

from schemas.arrays import Floats

# A distance of zero has no logarithm; this is far below any distance between different images.
SMALLEST = 1e-12


def smooth(distances: Floats, side: int) -> Floats:
    """Return the geometric mean (images, rows, columns) of the distances in a square around each position.

    Parameters
    ----------
    distances
        (images, rows, columns) float64; NaN images stay NaN.
    side
        Of the square, in positions; beyond the border the nearest positions count again. 1 changes nothing.
    """
    if side == 1:
        return distances
    logs = np.log(np.maximum(distances, SMALLEST))
    smoothed: Floats = np.exp(uniform_filter(logs, size=(1, side, side), mode="nearest"))
    return smoothed
