"""The paper's ablations: a single pass of its rule, and no trimming at all, which is PaDiM."""

from dataclasses import dataclass

import numpy as np

from pipeline.judging.strategies.base import NO_TRIMMING, Forecast, GroupPasses, PassLog, Search, Trimming
from pipeline.judging.strategies.paire import Paire
from schemas.arrays import Floats, Mask
from schemas.config import TrimConfig

TRIM_ONCE = Paire("trim-once", Forecast(usual=1, fewest=1, most=1, kept=0.1), iterates=False)
_KEEPS_ALL = Forecast(usual=1, fewest=1, most=1, kept=1.0)


@dataclass(frozen=True)
class KeepAll:
    """Keeps every image."""

    name: str = "none"
    forecast: Forecast = _KEEPS_ALL
    estimator: str = "ridge"
    fits_distinct_images: bool = False
    keeps_fitted: bool = False
    measures_neighbours: bool = False
    rejects: bool = False

    def find(self, passes: GroupPasses, group: Search) -> Trimming:
        """Measure all images once."""
        log = PassLog(group.measured, group.name)
        passes.run_pass(log.clean, log.number)
        log.record(group.measured, positions_trimmed=0)
        return log.result(np.full(group.grid, np.inf), NO_TRIMMING)

    def map_thresholds(self, passes: GroupPasses, trimming: Trimming) -> Floats:
        """Return thresholds that nothing exceeds."""
        return trimming.thresholds

    def holdout_thresholds(self, passes: GroupPasses, fitted: Mask, config: TrimConfig, *, smoothing: int) -> Floats:
        """Refuse: this strategy has no rule to try."""
        raise NotImplementedError(f"trim.strategy = {self.name!r} has no rule that rejects images")
