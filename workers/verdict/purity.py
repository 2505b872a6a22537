"""Estimate how many anomalies pass for clean, from the scores on both sides of a threshold.

Two groups of images have scores near the threshold (Efron 2008, "Microarrays, empirical Bayes and the two-groups
model"): clean ones follow their law, anomalies a normal law with its centre above the threshold. The law of clean ones
is known from the lower half of the scores, so only the share, the centre and the spread of the anomalies are fitted,
by expectation maximisation. What their law puts below a threshold is the number that passes there.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from schemas.arrays import Floats
from workers.verdict.calibration import ScoreLaw, Value, count_borderline

# Scores farther above the threshold than this many times the distance from the clean median to it are anomalies that
# say nothing of those near it.
REACH = 2.0

# The anomalies spread at least over this share of the distance from the clean median to the threshold.
LEAST_SPREAD = 0.125

# The share of anomalies among the kept images that a verdict may leave, by this estimate; less than one is chance.
IMPURITY, CHANCE = 0.01, 1.0

ROUNDS = 200

# Fewer anomalies than this many images have no law.
_NONE = 0.2


@dataclass(frozen=True)
class Purity:
    """The share of clean images among those that are kept."""

    estimate: float
    lower: float  # if the scores of anomalies have one mode, and it lies above the threshold, no less than this


@dataclass(frozen=True)
class Anomalies:
    """How many anomalies have scores near the threshold, and their normal law."""

    number: float
    centre: float
    spread: float

    def below(self, score: Value) -> Value:
        """Return how many anomalies have a lower score; an array holds many scores."""
        number: Value = self.number * ndtr((score - self.centre) / self.spread)
        return number


def fit_anomalies(law: ScoreLaw[float], scores: Floats, threshold: float) -> Anomalies:
    """Fit the law of the anomalies near a threshold.

    Parameters
    ----------
    law
        Of clean images' scores.
    scores
        (images,) float64: of all images that took part.
    threshold
        A score that clean images hardly ever exceed.
    """
    unit = threshold - law.threshold(0.5)
    near = scores[scores < threshold + REACH * unit]
    beyond = near[near >= threshold]
    least = LEAST_SPREAD * unit
    if not len(beyond) or not law.scale or not unit > 0:
        return Anomalies(0.0, threshold, max(least, np.finfo(float).tiny))
    reduced = (near - law.location) / law.scale
    clean = np.exp(-reduced - np.exp(-reduced)) / law.scale
    excess = max(len(beyond) - law.exceedance(threshold) * len(near), _NONE)
    share, centre, spread = excess / len(near), float(beyond.mean()), max(float(beyond.std()), least)
    for _ in range(ROUNDS):
        density = share * np.exp(-0.5 * ((near - centre) / spread) ** 2) / (spread * np.sqrt(2.0 * np.pi))
        weights = density / np.maximum(density + (1.0 - share) * clean, np.finfo(float).tiny)
        total = float(weights.sum())
        share = total / len(near)
        if total < _NONE:
            break
        centre = max(float(weights @ near) / total, threshold)
        spread = max(float(np.sqrt(weights @ (near - centre) ** 2 / total)), least)
    return Anomalies(share * len(near), centre, spread)


def is_pure(anomalies: Floats | float, kept: NDArray[np.int64] | int) -> Any:
    """Tell whether so many anomalies among the kept images are at most `IMPURITY` of them, or mere `CHANCE`."""
    return anomalies <= np.maximum(IMPURITY * kept, CHANCE)


def pure_threshold(anomalies: Anomalies, scores: Floats, threshold: float) -> float:
    """Return the largest threshold, at most the one given, below which scores are pure by `is_pure`; -inf if none."""
    ordered = np.sort(scores[scores < threshold])
    candidates = np.append(ordered, threshold)[1:]  # each keeps the scores before it
    pure = np.flatnonzero(is_pure(anomalies.below(candidates), np.arange(1, len(candidates) + 1)))
    return float(candidates[pure[-1]]) if len(pure) else -np.inf


def estimate_purity(
    law: ScoreLaw[float], anomalies: Anomalies, scores: Floats, threshold: float, false_reject: float
) -> Purity:
    """Return the purity of the images below a threshold, which may lie below the law's own at ``false_reject``."""
    kept = max(int((scores < threshold).sum()), 1)
    passing = anomalies.below(threshold)
    worst = max(passing, count_borderline(law, scores, false_reject))
    return Purity(_share(passing, kept), _share(worst, kept))


def _share(anomalies: float, kept: int) -> float:
    return float(np.clip(1.0 - anomalies / kept, 0.0, 1.0))
