"""The paper's strategy (section 3.3.1): fit on the clean set, measure all images, trim again until nothing changes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.judging.strategies.base import (
    CYCLE,
    MAJORITY,
    MAX_ITERATIONS,
    SINGLE,
    UNCHANGED,
    Forecast,
    GroupPasses,
    PassLog,
    PassResult,
    Search,
    Trimming,
)
from schemas.arrays import Floats, Mask
from schemas.config import TrimConfig
from workers.verdict.selection import select

_FORECAST = Forecast(usual=3, fewest=2, most=12, kept=0.55)


@dataclass(frozen=True)
class Paire:
    """The paper's rule; ``iterates`` is False for its ablation of a single pass."""

    name: str = "paire"
    forecast: Forecast = _FORECAST
    iterates: bool = True
    estimator: str = "ridge"
    fits_distinct_images: bool = False
    keeps_fitted: bool = True
    measures_neighbours: bool = False
    rejects: bool = True

    def find(self, passes: GroupPasses, group: Search) -> Trimming:
        """Iterate until the clean set settles."""
        return trim(passes.run_pass, group.measured, group.config, iterates=self.iterates, name=group.name)

    def map_thresholds(self, passes: GroupPasses, trimming: Trimming) -> Floats:
        """Find the thresholds again if the published set is not the one that was fitted last."""
        if (trimming.published == trimming.fitted).all():
            return trimming.thresholds
        return passes.calibrate(trimming.published)

    def holdout_thresholds(self, passes: GroupPasses, fitted: Mask, config: TrimConfig, *, smoothing: int) -> Floats:
        """Find the thresholds by the slopes of the sorted distances beyond the fitted images."""
        return passes.calibrate(fitted)


def trim(
    measure: Callable[[Mask, int], PassResult],
    measured: Mask,
    config: TrimConfig,
    *,
    iterates: bool = True,
    name: str = "",
) -> Trimming:
    """Iterate over the images that take part, ``measured`` (images,), until their clean set settles.

    It settles when a pass leaves it unchanged, when more than ``stop_fraction`` of the images are clean (the paper's
    stop), when an earlier set comes back, or after ``max_iterations``. ``measure`` runs one pass: it takes the images
    to fit on and the number of the pass, from 1.
    """
    log = PassLog(measured, name)
    while True:
        result = measure(log.clean, log.number)
        selection = select(result.margin, measured, config)
        was_seen = log.record(
            selection.clean,
            positions_trimmed=int(np.isfinite(result.thresholds).sum()),
            floor_applied=selection.floor_applied,
        )
        reason = _stop_reason(log, was_seen, config, iterates=iterates)
        if reason:
            return log.result(result.thresholds, reason)


def _stop_reason(log: PassLog, was_seen: bool, config: TrimConfig, *, iterates: bool) -> str | None:
    if not log.last.n_added and not log.last.n_removed:
        return UNCHANGED
    if not iterates:
        return SINGLE
    if log.last.n_clean > config.stop_fraction * int(log.measured.sum()):
        return MAJORITY
    if was_seen:
        return CYCLE
    if log.last.iteration >= config.max_iterations:
        return MAX_ITERATIONS
    return None
