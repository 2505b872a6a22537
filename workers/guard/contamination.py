"""Estimate how much of a group does not follow the law of its clean images, with an interval.

The size of the clean set is not an answer: a cautious strategy keeps only half of the good images. Here the law of
clean scores grows out of the clean set until it settles: the images below its threshold are those it was fitted on.
Images beyond the threshold, in excess of what the law itself puts there, are contamination (Storey 2002, with the
p-values of the scores under the law and lambda the rate of false rejects).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from schemas.arrays import Floats, Mask
from workers.verdict.calibration import ScoreLaw, laws_of_quartiles
from workers.verdict.selection import smallest

CONFIDENCE = 0.95

# A percentile at 2.5 % then stands on ten replicates.
REPLICATES = 400
SEED = 0

# More scores than this are replaced by this many of their quantiles, a grid far finer than the tail in question.
GRID = 1024

# A few of hundreds of replicates never settle: their law goes back and forth between some scores.
MAX_ROUNDS = 50

# A quartile of fewer scores means nothing.
MIN_SCORES = 4

# Gumbel's law is an approximation: the real rate of clean images beyond a threshold in its tail may be anything from
# zero to twice the nominal one.
TAIL_FACTOR = 2.0


@dataclass(frozen=True)
class Contamination:
    """The share of images that do not follow the law of clean scores.

    The share misses bad images whose scores look clean. If bad scores join the good ones without a gap, the share is
    too small and the interval need not cover the truth.
    """

    share: float
    lower: float  # of the 95 % interval
    upper: float
    images: int  # that have a score
    law: ScoreLaw[float] | None  # of clean scores, once settled; None if too few images have a score


def fit_and_estimate(
    score: Callable[[Mask], Floats], clean: Mask, *, false_reject: float = 0.02
) -> Contamination | None:
    """Estimate the share of contamination, whatever strategy chose the clean set; None if that has too few images.

    A cautious clean set, such as half of the good images, leaves the other half far off in the directions that its fit
    lacks. So a second fit uses all images that follow the law of the scores under the first, and the estimate comes
    from the scores under the second. The second fit uses at least the better half of the images: a clean set of a
    tenth may leave all others beyond its law, and paire supposes that half of any archive is good.

    Parameters
    ----------
    score
        Fits on the images (images,) bool that it is given and scores all, as `estimate_contamination` expects.
    clean
        (images,) bool: the final clean set.
    """
    if int(clean.sum()) < MIN_SCORES:
        return None
    scores = score(clean)
    found = estimate_contamination(scores, clean, false_reject=false_reject)
    assert found.law is not None
    # A score that is NaN is below no threshold.
    following = scores < found.law.threshold(false_reject)
    half = max(MIN_SCORES, found.images // 2)
    if int(following.sum()) < half:
        following = smallest(scores, ~np.isnan(scores), half)
    if (following == clean).all():
        return found
    return estimate_contamination(score(following), following, false_reject=false_reject)


def estimate_contamination(
    scores: Floats, clean: Mask, *, false_reject: float = 0.02, seed: int = SEED
) -> Contamination:
    """Estimate the share of contamination from the scores under the final fit.

    1. Fit the law's median and lower quartile on the clean images, and find its threshold at ``false_reject``.
    2. Take all images below the threshold, in the clean set or not, as the lower ``1 - false_reject`` of the law,
       refit, and repeat until they are unchanged. A clean set that kept only the better half of the good images thus
       grows to all of them, but not across a gap.
    3. share = 1 - (images below) / (N (1 - false_reject)).
    4. Interval: bootstrap the images below, let the law settle again in each replicate, and widen by `TAIL_FACTOR`.
       The interval is about this archive, not about the line that made it: images beyond are not drawn again. If bad
       scores join the good ones without a gap, the law grows into them. So the upper end also counts the images beyond
       the law of the clean set alone, bootstrapped in the same way.

    Parameters
    ----------
    scores
        (images,) float64: higher is worse, every fitted image measured without itself; NaN if it takes no part.
    clean
        (images,) bool: the final clean set.
    false_reject
        The rate at which clean images may exceed the threshold.

    Raises
    ------
    ValueError
        If the shapes differ or ``false_reject`` is not between 0 and 0.25.
    """
    if scores.shape != clean.shape:
        raise ValueError(f"scores {scores.shape} and clean {clean.shape} must describe the same images")
    if not 0 < false_reject < 0.25:
        raise ValueError(f"false_reject = {false_reject} must lie between 0 and 0.25: the law is fitted on the rest")
    taking_part = ~np.isnan(scores)
    ordered = np.sort(scores[taking_part])
    count, known = len(ordered), scores[clean & taking_part]
    if len(known) < MIN_SCORES:
        return Contamination(1.0 - len(known) / count if count else 0.0, 0.0, 1.0, count, None)
    values = _quantiles(ordered)
    median, quartile = np.quantile(known, [[0.5], [0.25]])
    start = laws_of_quartiles(median, quartile).threshold(false_reject)
    weights = np.full((1, len(values)), count / len(values))
    settled, below = _settle(values, weights, start, false_reject)
    law = ScoreLaw(float(settled.location[0]), float(settled.scale[0]))
    _, replicates = _settle(
        values,
        _resample(weights[0], int(np.searchsorted(values, law.threshold(false_reject))), seed),
        np.array([law.threshold(false_reject)]),
        false_reject,
    )
    fewest, most = np.quantile(replicates, [(1.0 - CONFIDENCE) / 2.0, (1.0 + CONFIDENCE) / 2.0]) / count
    fewest = min(fewest, _fewest_below(_quantiles(np.sort(known)), values, weights, false_reject, seed) / count)
    lower, upper = _clip(1.0 - most / (1.0 - TAIL_FACTOR * false_reject)), _clip(1.0 - fewest)
    share = _clip(1.0 - float(below[0]) / count / (1.0 - false_reject))
    return Contamination(share, min(lower, share), max(upper, share), count, law)


def beyond_gap(images: int, kept: int) -> Contamination:
    """Return the contamination of images that a clear gap divides: what lies beyond it, whatever the law of the others.

    Beyond the gap may be good images of another kind.
    """
    share = 1.0 - kept / images
    return Contamination(share, 0.0, share, images, None)


def widen(found: Contamination, upper: float, *, lower: float = 1.0) -> Contamination:
    """Return the contamination with an interval that reaches up and down to some shares, if it does not yet."""
    return replace(found, lower=_clip(min(found.lower, lower)), upper=_clip(max(found.upper, upper)))


def _quantiles(ordered: Floats) -> Floats:
    """Return ascending scores, or `GRID` of them, evenly spaced, if there are more."""
    count = len(ordered)
    return ordered if count <= GRID else ordered[((np.arange(GRID) + 0.5) * count / GRID).astype(np.int64)]


def _fewest_below(known: Floats, values: Floats, weights: Floats, false_reject: float, seed: int) -> float:
    """Return the lower percentile of the number of images below the threshold of the clean set's own law."""
    drawn = np.random.default_rng(seed).choice(known, (REPLICATES, len(known)))
    threshold = laws_of_quartiles(*np.quantile(drawn, [0.5, 0.25], axis=1)).threshold(false_reject)
    padded = np.repeat(np.concatenate([[[0.0]], np.cumsum(weights, axis=1)], axis=1), REPLICATES, axis=0)
    return float(np.quantile(_count_below(values, padded, threshold), (1.0 - CONFIDENCE) / 2.0))


def _resample(weights: Floats, below: int, seed: int) -> Floats:
    """Return weights (replicates, scores): the scores below the threshold bootstrapped, those beyond unchanged."""
    total = weights[:below].sum()
    drawn = np.random.default_rng(seed).multinomial(round(total), weights[:below] / total, size=REPLICATES)
    beyond = np.broadcast_to(weights[below:], (REPLICATES, len(weights) - below))
    return np.concatenate([drawn * (total / round(total)), beyond], axis=1)


def _settle(values: Floats, weights: Floats, start: Floats, false_reject: float) -> tuple[ScoreLaw[Floats], Floats]:
    """Grow the law until it settles, for each row of weights (weightings, scores); return laws and images below."""
    cumulative = np.cumsum(weights, axis=1)
    padded = np.concatenate([np.zeros((len(weights), 1)), cumulative], axis=1)
    threshold = np.repeat(start, len(weights))
    for _ in range(MAX_ROUNDS):
        below = _count_below(values, padded, threshold)
        whole = below / (1.0 - false_reject)
        laws = laws_of_quartiles(_ranked(values, cumulative, 0.5 * whole), _ranked(values, cumulative, 0.25 * whole))
        threshold = laws.threshold(false_reject)
        if (_count_below(values, padded, threshold) == below).all():
            break
    return laws, _count_below(values, padded, threshold)


def _count_below(values: Floats, padded: Floats, threshold: Floats) -> Floats:
    """Return how many images of each weighting lie below its threshold."""
    index = np.searchsorted(values, threshold)[:, np.newaxis]
    return np.take_along_axis(padded, index, axis=1)[:, 0]


def _ranked(values: Floats, cumulative: Floats, rank: Floats) -> Floats:
    """Return, for each weighting, the smallest score that at least ``rank`` images do not exceed."""
    index = (cumulative < rank[:, np.newaxis]).sum(axis=1)
    ranked: Floats = values[np.minimum(index, len(values) - 1)]
    return ranked


def _clip(share: float) -> float:
    return float(min(max(share, 0.0), 1.0))
