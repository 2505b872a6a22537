"""Find the distance threshold at one position by sliding windows over the sorted distances (Eqs. 7-11, 14, 15).

*Reading* marks every step that the paper leaves open.
"""

from itertools import pairwise

import numpy as np

from schemas.arrays import Floats
from schemas.config import TrimConfig

NO_TRIMMING = np.inf

# Distances that agree to this relative spread are equal: they are right to about 1e-11, and one pass on real features
# has had a spread of only 2e-6.
RESOLUTION = 1e-9


def position_threshold(distances: Floats, trim: TrimConfig, *, fitted: int, is_first: bool) -> float:
    """Return the threshold at one position, +inf to trim nothing.

    Parameters
    ----------
    distances
        (N,) float64: the Mahalanobis distance of every image of the group at this position.
    fitted
        n: how many of the images the Gaussian was fitted on.
    is_first
        Whether this is the first pass, in which all images are fitted.
    """
    ordered = np.sort(distances)
    count = len(ordered)
    if count < 2 or ordered[-1] - ordered[0] <= RESOLUTION * ordered[-1]:
        return NO_TRIMMING
    scaled = (ordered - ordered[0]) / (ordered[-1] - ordered[0])  # Eq. 7

    length = max(2, round(trim.alpha * count))  # L, Eq. 8
    step = max(1, round(length / trim.beta))  # S, Eq. 9
    consecutive = round(length / step) + 1  # U, Eq. 10
    # Reading: the "jump point" is the end of the fitted samples, the "small offset" one step.
    start = count // 3 if is_first else max(0, min(fitted + step, count - length - 2))

    multiplier = _slope_multiplier(scaled[start:], trim)
    if multiplier is None:
        return NO_TRIMMING
    window = _first_target_window(scaled, start, length, step, consecutive, multiplier)
    if window is None:
        return NO_TRIMMING
    return float(ordered[window : window + length].mean())  # Eq. 11


def _slope_multiplier(tail: Floats, trim: TrimConfig) -> float | None:
    """Return v (Eq. 15), or None if the tail is too short or close to a straight line."""
    # Reading: for a straight line the paper takes the endpoint as threshold, which with Eq. 12's strict inequality
    # would exclude one good image at every position; here the endpoint stays.
    last = len(tail) - 1
    if last < 3:
        return None
    ends = [last * part // 3 for part in range(4)]
    slopes = [(tail[b] - tail[a]) / (b - a) for a, b in pairwise(ends)]
    before = (slopes[0] + slopes[1]) / 2
    ratio = slopes[2] / before if before > 0 else np.inf  # R, Eq. 14
    if ratio < trim.tau:
        return None
    return float((ratio - trim.tau) / trim.eta + trim.tau)


def _first_target_window(
    scaled: Floats, start: int, length: int, step: int, consecutive: int, multiplier: float
) -> int | None:
    """Return where the first of enough consecutive target windows begins."""
    # A target window's slope is larger than the multiplier times the mean slope of the windows saved before it, so the
    # first window cannot be one. Reading: target windows are not saved into that mean, else most positions stop
    # trimming after the first pass and the anomalies come back. A run of targets still open at the end counts.
    background_sum, background_count = 0.0, 0
    run_start, run_length = 0, 0
    for window in range(start, len(scaled) - length + 1, step):
        slope = (scaled[window + length - 1] - scaled[window]) / (length - 1)
        if background_count and slope > _limit(multiplier, background_sum / background_count):
            if not run_length:
                run_start = window
            run_length += 1
            if run_length >= consecutive:
                break
        else:
            background_sum, background_count = background_sum + slope, background_count + 1
            run_length = 0
    return run_start if run_length else None


def _limit(multiplier: float, background: float) -> float:
    """Return v x Slope_mean; 0 over a flat background, even if v is infinite."""
    return multiplier * background if background > 0 else 0.0
