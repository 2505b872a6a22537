"""A threshold on image scores that clean images exceed at a chosen rate, found without labels.

An image's score is the largest of many correlated log distances, and the largest of many is distributed as Gumbel's
law to first approximation, whatever the law of each. Its location and scale are taken from the lower half of the
scores, where contamination hardly reaches, never from the upper tail that is to be judged.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def gumbel_quantile(probability: float) -> float:
    """Return the quantile of the standard Gumbel law."""
    return -math.log(-math.log(probability))


# Half of the lower half lies below the quartile, so this is the lower half's median deviation from the median.
_MEDIAN = gumbel_quantile(0.5)
_LOWER_DEVIATION = _MEDIAN - gumbel_quantile(0.25)


@dataclass(frozen=True)
class ScoreLaw:
    """The law of clean images' scores: location plus scale times a standard Gumbel variable."""

    location: float
    scale: float

    def threshold(self, false_reject: float) -> float:
        """Return the score that clean images exceed with this probability."""
        return self.location + self.scale * gumbel_quantile(1.0 - false_reject)

    def exceedance(self, score: float) -> float:
        """Return the probability that a clean image exceeds a score."""
        if not self.scale:
            return float(score < self.location)
        return -math.expm1(-math.exp(-(score - self.location) / self.scale))


def fit_score_law(scores: NDArray[np.float64]) -> ScoreLaw:
    """Fit the law on the lower half of some scores.

    Parameters
    ----------
    scores
        (images,) float64: scores of images that are clean as far as is known.
    """
    median = float(np.median(scores))
    deviation = float(np.median(median - scores[scores <= median]))
    scale = deviation / _LOWER_DEVIATION
    return ScoreLaw(median - scale * _MEDIAN, scale)


def count_borderline(law: ScoreLaw, scores: NDArray[np.float64], false_reject: float) -> float:
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
