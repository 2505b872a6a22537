"""Sections 2, 3 and 4 of the algorithm, step by step in plain NumPy, one position and one window at a time.

Written from the description alone, for reading rather than speed, so that the packages have something independent to
agree with: explicit covariance matrices and inverses where there are any, singular values of the centred samples
elsewhere.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Distances of one position whose spread is below this share of the largest are equal.
EQUAL_DISTANCES = 1e-9


@dataclass(frozen=True)
class Parameters:
    """The numbers of sections 2 to 4 under the paper's names, with their defaults."""

    ridge: float = 1e-6
    alpha: float = 0.05
    beta: float = 3.0
    tau: float = 1.15
    eta: float = 2.3
    min_clean_fraction: float = 0.1
    stop_fraction: float = 0.5
    max_iterations: int = 20


@dataclass(frozen=True)
class Pass:
    """What one pass of the iteration saw and decided."""

    distances: Floats
    thresholds: Floats
    clean: Mask
    n_added: int
    n_removed: int
    n_positions_trimmed: int
    floor_applied: bool


@dataclass
class Outcome:
    """All passes in order, and why there were no more."""

    passes: list[Pass] = field(default_factory=list)
    stop_reason: str = ""

    @property
    def clean(self) -> Mask:
        """The set that the last pass kept."""
        return self.passes[-1].clean

    @property
    def last_changed(self) -> list[int]:
        """For each sample the last pass, counted from 1, after which it was not where it had been before."""
        before = np.ones_like(self.clean)
        changed = np.zeros(len(before), dtype=int)
        for number, one_pass in enumerate(self.passes, start=1):
            changed[one_pass.clean != before] = number
            before = one_pass.clean
        return [int(number) for number in changed]


def distances_at_one_position(samples: NDArray[Any], fitted: Mask, parameters: Parameters) -> Floats:
    """Mahalanobis distances of all samples (N, D) from the Gaussian of the fitted ones, Eqs. 4 to 6."""
    everything = np.asarray(samples, dtype=np.float64)
    chosen = everything[fitted]
    count, channels = chosen.shape
    mean = np.mean(chosen, axis=0)
    if count > channels:
        covariance = np.cov(chosen, rowvar=False, ddof=1).reshape(channels, channels)
        inverse = np.linalg.inv(covariance + parameters.ridge * np.eye(channels))
        return np.array([math.sqrt((x - mean) @ inverse @ (x - mean)) for x in everything])
    _, singular, directions = np.linalg.svd(chosen - mean, full_matrices=False)
    variances = singular**2 / (count - 1)
    found = []
    for x in everything:
        offset = x - mean
        along = directions @ offset
        across = offset - directions.T @ along
        found.append(
            math.sqrt(np.sum(along**2 / (variances + parameters.ridge)) + np.sum(across**2) / parameters.ridge)
        )
    return np.array(found)


def distances(features: NDArray[Any], fitted: Mask, parameters: Parameters) -> Floats:
    """Distances (N, rows, columns) of features (N, rows, columns, D) from the map of the fitted samples."""
    found = np.empty(features.shape[:3])
    for row in range(features.shape[1]):
        for column in range(features.shape[2]):
            found[:, row, column] = distances_at_one_position(features[:, row, column], fitted, parameters)
    return found


def threshold(measured: Floats, *, fitted_count: int, first_pass: bool, parameters: Parameters) -> float:
    """Threshold of one position's N distances by the sliding window, Eqs. 7 to 11, 14 and 15; infinite: no trimming."""
    # Step 1
    ascending = np.sort(measured)
    count = len(ascending)
    lowest, highest = ascending[0], ascending[-1]
    if highest - lowest <= EQUAL_DISTANCES * highest:
        return math.inf
    scaled = (ascending - lowest) / (highest - lowest)
    # Step 2
    length = max(2, round(parameters.alpha * count))
    step = max(1, round(length / parameters.beta))
    consecutive = round(length / step) + 1
    # Step 3
    start = count // 3 if first_pass else max(0, min(fitted_count + step, count - length - 2))
    end = count - 1
    if end - start < 3:
        return math.inf
    # Step 4
    bounds = [start + (end - start) * k // 3 for k in range(4)]
    first, second, third = ((scaled[right] - scaled[left]) / (right - left) for left, right in pairwise(bounds))
    base = (first + second) / 2
    ratio = third / base if base > 0 else math.inf
    # Step 5
    if ratio < parameters.tau:
        return math.inf
    # Step 6
    multiplier = (ratio - parameters.tau) / parameters.eta + parameters.tau
    # Steps 7 and 8
    saved: list[float] = []
    run: list[int] = []
    for window in range(start, end - length + 2, step):
        slope = (scaled[window + length - 1] - scaled[window]) / (length - 1)
        if saved:
            average = sum(saved) / len(saved)
            limit = multiplier * average if average > 0 else 0.0
            target = slope > limit
        else:
            target = False
        if target:
            run.append(window)
        else:
            run = []
            saved.append(slope)
        if len(run) == consecutive:
            break
    # Step 9
    if not run:
        return math.inf
    return float(np.mean(ascending[run[0] : run[0] + length]))


def thresholds(measured: Floats, *, fitted_count: int, first_pass: bool, parameters: Parameters) -> Floats:
    """Thresholds (rows, columns) of distances (N, rows, columns)."""
    found = np.empty(measured.shape[1:])
    for row in range(measured.shape[1]):
        for column in range(measured.shape[2]):
            found[row, column] = threshold(
                measured[:, row, column], fitted_count=fitted_count, first_pass=first_pass, parameters=parameters
            )
    return found


def margins(measured: Floats, limits: Floats) -> Floats:
    """For each sample the largest distance / threshold over the positions."""
    return np.array([np.max(sample / limits) for sample in measured])


def floor_count(count: int, parameters: Parameters) -> int:
    """The fewest samples that a pass may keep: the exact decimal fraction of all, rounded up, and never below 3."""
    return max(3, math.ceil(Fraction(str(parameters.min_clean_fraction)) * count))


def select(measured: Floats, limits: Floats, parameters: Parameters) -> tuple[Mask, bool]:
    """The clean set of Eqs. 12 and 13, and whether the floor had to fill it."""
    clean = np.array([bool(np.all(sample < limits)) for sample in measured])
    least = floor_count(len(measured), parameters)
    if np.count_nonzero(clean) >= least:
        return clean, False
    by_margin = np.argsort(margins(measured, limits), kind="stable")
    clean = np.zeros(len(measured), dtype=bool)
    clean[by_margin[:least]] = True
    return clean, True


def iterate(count: int, measure: Callable[[Mask], Floats], parameters: Parameters) -> Outcome:
    """Fit, measure all, cut, until a stop of section 4; ``measure`` gives the distances for a fitted set."""
    clean = np.ones(count, dtype=bool)
    seen = [clean]
    outcome = Outcome()
    while not outcome.stop_reason:
        measured = measure(clean)
        limits = thresholds(
            measured,
            fitted_count=int(np.count_nonzero(clean)),
            first_pass=not outcome.passes,
            parameters=parameters,
        )
        chosen, floored = select(measured, limits, parameters)
        outcome.passes.append(
            Pass(
                distances=measured,
                thresholds=limits,
                clean=chosen,
                n_added=int(np.count_nonzero(chosen & ~clean)),
                n_removed=int(np.count_nonzero(clean & ~chosen)),
                n_positions_trimmed=int(np.count_nonzero(np.isfinite(limits))),
                floor_applied=floored,
            )
        )
        if np.array_equal(chosen, clean):
            outcome.stop_reason = "unchanged"
        elif np.count_nonzero(chosen) > parameters.stop_fraction * count:
            outcome.stop_reason = "majority"
        elif any(np.array_equal(chosen, earlier) for earlier in seen):
            outcome.stop_reason = "cycle"
        elif len(outcome.passes) == parameters.max_iterations:
            outcome.stop_reason = "maximum"
        seen.append(chosen)
        clean = chosen
    return outcome


def trim(features: NDArray[Any], parameters: Parameters) -> Outcome:
    """The whole iteration on features (N, rows, columns, D)."""
    return iterate(len(features), lambda fitted: distances(features, fitted, parameters), parameters)
