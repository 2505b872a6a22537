"""A threshold on image scores that clean images exceed at a chosen rate, found without labels.

An image's score is the largest of many correlated log distances, and the largest of many is distributed as Gumbel's
law to first approximation, whatever the law of each. Its location and scale are taken from the lower half of the
scores, where contamination hardly reaches, never from the upper tail that is to be judged.
"""

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from schemas.arrays import Floats

Value = TypeVar("Value", float, Floats)

# Scores that agree to this relative spread are equal.
RESOLUTION = 1e-9


def gumbel_quantile(probability: float) -> float:
    """Return the quantile of the standard Gumbel law."""
    return -math.log(-math.log(probability))


# Half of the lower half lies below the quartile, so this is the lower half's median deviation from the median.
_MEDIAN = gumbel_quantile(0.5)
_LOWER_DEVIATION = _MEDIAN - gumbel_quantile(0.25)


@dataclass(frozen=True)
class ScoreLaw(Generic[Value]):
    """The law of clean images' scores: location plus scale times a standard Gumbel variable.

    Location and scale are numbers, or arrays for as many laws at once.
    """

    location: Value
    scale: Value

    def threshold(self, false_reject: float) -> Value:
        """Return the score that clean images exceed with this probability."""
        return self.location + self.scale * gumbel_quantile(1.0 - false_reject)

    def exceedance(self: "ScoreLaw[float]", score: float) -> float:
        """Return the probability that a clean image exceeds a score."""
        if not self.scale:
            return float(score < self.location)
        return -math.expm1(-math.exp(-(score - self.location) / self.scale))


def laws_of_quartiles(median: Floats, quartile: Floats) -> ScoreLaw[Floats]:
    """Return the laws with these medians and lower quartiles (laws,); equal scores have a spread of rounding."""
    scale = np.maximum((median - quartile) / _LOWER_DEVIATION, RESOLUTION * np.maximum(1.0, np.abs(median)))
    return ScoreLaw(median - scale * _MEDIAN, scale)


def fit_score_law(scores: Floats) -> ScoreLaw[float]:
    """Fit the law on the lower half of some scores: the line of least squares in their probability plot.

    Ascending scores lie at the law's quantiles of (i - 0.44) / (n + 0.12), which is unbiased for Gumbel's (Gringorten
    1963). Of the upper half only the number counts. The threshold varies as that of the law with the median and the
    lower quartile of twice as many scores.

    Parameters
    ----------
    scores
        (images,) float64: scores of images that are clean as far as is known.
    """
    count = len(scores)
    lower = np.sort(scores)[: (count + 1) // 2]
    plotted = -np.log(-np.log((np.arange(1, len(lower) + 1) - 0.44) / (count + 0.12)))
    centre, level = float(plotted.mean()), float(lower.mean())
    spread = plotted - centre
    scale = float(spread @ (lower - level)) / (float(spread @ spread) or 1.0)
    if scale <= RESOLUTION * max(1.0, abs(level)):
        scale = 0.0
    return ScoreLaw(level - scale * centre, scale)


def count_borderline(law: ScoreLaw[float], scores: Floats, false_reject: float) -> float:
    """Return how many images too many lie just above the threshold.

    Just above is as far above the threshold as the law's median lies below it. If the scores of anomalies have one
    mode, and it lies above the threshold, at least as many of them lie above it as within that distance below: the
    result bounds the anomalies that pass for clean.

    Parameters
    ----------
    law
        Of clean images.
    scores
        (images,) float64: the scores of all images that took part.
    false_reject
        The rate that sets the threshold.
    """
    threshold = law.threshold(false_reject)
    end = 2 * threshold - law.threshold(0.5)
    clean = float((scores < threshold).sum()) / (1.0 - false_reject)
    expected = clean * (law.exceedance(threshold) - law.exceedance(end))
    return float(((scores >= threshold) & (scores < end)).sum()) - expected
