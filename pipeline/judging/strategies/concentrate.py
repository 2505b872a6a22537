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
    Trimming,
    better_half,
)
from schemas.arrays import Floats, Indices, Mask
from schemas.config import TrimConfig
from workers.passes.by_features import NORMAL_DEVIATION

_DEVIATIONS = PassKind(scores=True, by_rows=True)
_FORECAST = Forecast(usual=32, fewest=6, most=40, kept=0.65, first=_DEVIATIONS, later=_DEVIATIONS, iterates=2)


@dataclass(frozen=True)
class Concentrate:
    """Keeps what lies within some robust deviations of the better half."""

    name: str = "concentrate"
    forecast: Forecast = _FORECAST
    estimator: str = "oas"
    fits_distinct_images: bool = False
    keeps_fitted: bool = False
    rejects: bool = True

    def find(
        self,
        passes: GroupPasses,
        measured: Mask,
        config: TrimConfig,
        *,
        grid: tuple[int, int],
        fitted_for: Indices,  # noqa: ARG002 - as every strategy is asked
        name: str = "",
    ) -> Trimming:
        """Concentrate, then grow."""
        score = partial(passes.score_pass, smoothing=None)
        return concentrate(score, passes.thresholds_at, measured, config, grid=grid, name=name)

    def map_thresholds(self, passes: GroupPasses, trimming: Trimming) -> Floats:  # noqa: ARG002
        """Return the thresholds that decided."""
        return trimming.thresholds

    def holdout_thresholds(
        self,
        passes: GroupPasses,
        fitted: Mask,
        config: TrimConfig,
        *,
        smoothing: int,  # noqa: ARG002 - as every strategy is asked
        nearest: float,  # noqa: ARG002
    ) -> Floats:
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
    """Concentrate on the half with the smallest scores, as FAST-MCD does, then grow by robust deviations.

    Parameters
    ----------
    score
        As for `grow`, but in robust deviations at each position.
    thresholds
        Gives the distances (rows, columns) that correspond to a score under the last fit.
    measured, config, grid, name
        As for `grow`; ``deviations`` is k.
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
    """Return the median plus some robust deviations of the scores below it."""
    median = float(np.median(scores))
    lower = float(np.median(median - scores[scores <= median]))
    return median + deviations * NORMAL_DEVIATION * lower
