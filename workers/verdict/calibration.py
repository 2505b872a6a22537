"""Find, without labels, a threshold on image scores that clean images exceed at a chosen rate.

An image's score is the largest of many correlated log distances, and the largest of many follows Gumbel's law to first
approximation, whatever the law of each. Location and scale come from the lower half of the scores, which
contamination hardly reaches, never from the upper tail, which the threshold judges.
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
    """The law of clean images' scores: location plus scale times a standard Gumbel variable; arrays hold many laws."""

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
    """Return the laws with these medians and lower quartiles (laws,); equal scores have the spread of rounding."""
    scale = np.maximum((median - quartile) / _LOWER_DEVIATION, RESOLUTION * np.maximum(1.0, np.abs(median)))
    return ScoreLaw(median - scale * _MEDIAN, scale)


def fit_score_law(scores: Floats) -> ScoreLaw[float]:
    """Fit the law on the lower half of scores (images,): the line of least squares in their probability plot.

    Ascending scores lie at the law's quantiles of (i - 0.44) / (n + 0.12), which is unbiased for Gumbel's law
    (Gringorten 1963). Only the number of scores in the upper half counts. The threshold varies as much as that of the
    law with the median and the lower quartile of twice as many scores.
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
    """Return how many more images lie just above the threshold than the law of clean images puts there.

    "Just above" reaches as far above the threshold as the law's median lies below it. If the scores of anomalies have
    one mode, and it lies above the threshold, at least as many of them lie just above as within that distance below:
    the result bounds the anomalies that pass for clean. ``scores`` (images,) are of all images that took part.
    """
    threshold = law.threshold(false_reject)
    end = 2 * threshold - law.threshold(0.5)
    clean = float((scores < threshold).sum()) / (1.0 - false_reject)
    expected = clean * (law.exceedance(threshold) - law.exceedance(end))
    return float(((scores >= threshold) & (scores < end)).sum()) - expected
