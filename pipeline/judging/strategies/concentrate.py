"""Beyond the paper: concentrate on the better half, as FAST-MCD does, then grow by robust deviations."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline.costs.footprint import PassKind
from pipeline.judging.strategies.base import (
    CYCLE,
    MAX_ITERATIONS,
    UNCHANGED,
    Forecast,
    GroupPasses,
    PassLog,
    Search,
    Trimming,
    better_half,
)
from schemas.arrays import Floats, Mask
from schemas.config import TrimConfig
from workers.passes.by_features import NORMAL_DEVIATION

_DEVIATIONS = PassKind(scores=True, by_rows=True)
_FORECAST = Forecast(usual=32, fewest=6, most=40, kept=0.65, first=_DEVIATIONS, later=_DEVIATIONS, iterates=2)


@dataclass(frozen=True)
class Concentrate:
    """Keeps the images within some robust deviations of the better half."""

    name: str = "concentrate"
    forecast: Forecast = _FORECAST
    estimator: str = "oas"
    fits_distinct_images: bool = False
    keeps_fitted: bool = False
    measures_neighbours: bool = False
    rejects: bool = True

    def find(self, passes: GroupPasses, group: Search) -> Trimming:
        """Concentrate, then grow."""
        score = partial(passes.score_pass, smoothing=None)
        return concentrate(score, passes.thresholds_at, group.measured, group.config, grid=group.grid, name=group.name)

    def map_thresholds(self, passes: GroupPasses, trimming: Trimming) -> Floats:
        """Return the thresholds that decided."""
        return trimming.thresholds

    def holdout_thresholds(self, passes: GroupPasses, fitted: Mask, config: TrimConfig, *, smoothing: int) -> Floats:
        """Place the thresholds some robust deviations above the median of the fitted images' scores."""
        scores = passes.score_pass(fitted, 1, smoothing=None)
        return passes.thresholds_at(robust_limit(scores[fitted], config.deviations))


def concentrate(
    score: Callable[[Mask, int], Floats],
    thresholds: Callable[[float], Floats],
    measured: Mask,
    config: TrimConfig,
    *,
    grid: tuple[int, int],
    name: str = "",
) -> Trimming:
    """Concentrate on the half with the smallest scores, then grow by ``config.deviations`` robust deviations.

    ``score`` runs one pass and returns the scores (images,) in robust deviations; it takes the images to fit on and the
    number of the pass, from 1. ``thresholds`` gives the distances (rows, columns) that mean a score in the last pass.
    """
    log = PassLog(measured, name)
    positions = grid[0] * grid[1]
    for _ in range(config.max_iterations):
        half = better_half(score(log.clean, log.number), measured)
        if log.record(half, positions_trimmed=positions):
            break
    reason = MAX_ITERATIONS
    for _ in range(config.max_iterations):
        scores = score(log.clean, log.number)
        threshold = robust_limit(scores[log.clean], config.deviations)
        was_seen = log.record(measured & (scores < threshold), positions_trimmed=positions)
        if was_seen:
            reason = CYCLE if log.last.n_added or log.last.n_removed else UNCHANGED
            break
    return log.result(thresholds(threshold), reason)


def robust_limit(scores: Floats, deviations: float) -> float:
    """Return the median plus a number of robust deviations; the spread is that of the scores below the median."""
    median = float(np.median(scores))
    lower = float(np.median(median - scores[scores <= median]))
    return median + deviations * NORMAL_DEVIATION * lower
