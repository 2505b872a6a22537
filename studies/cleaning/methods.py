"""The methods that are compared on dirty sets: the strategies, the oracle, and sweeps of one option."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.judging.strategies.registry import estimator_of
from schemas.config import Config, parse_config
from studies.cleaning.dirty_sets import OVERLAP, Case

NONE, TRIM_ONCE, PAIRE, CONCENTRATE, GROW, ORACLE = "none", "trim-once", "paire", "concentrate", "grow", "oracle"
STRATEGIES = (NONE, TRIM_ONCE, PAIRE, CONCENTRATE, GROW)

# Fig. 15 of the paper. The strategies cover the default, 2.3.
ETA, ETAS = "trim.eta", (1.5, 2.0, 2.6, 3.0, 4.0, 6.0)
# The counterpart in `grow`. The strategies cover the default, 0.02.
FALSE_REJECT, FALSE_REJECTS = "trim.target_false_reject", (0.005, 0.01, 0.05, 0.1)
SWEPT_NOISES = (0.1, 0.2)

SQUEEZENET = (
    "features.backbone=squeezenet1_1",
    "features.nodes=features.4,features.7,features.12",
)


@dataclass(frozen=True)
class Method:
    """How to choose the images that a map is fitted on.

    Attributes
    ----------
    name
        A strategy, or ``oracle``: all true normals, by the labels.
    setting
        An option that differs from its default, as ``section.key=value``; empty for none.
    """

    name: str
    setting: str = ""

    def config(self, base: Sequence[str] = ()) -> Config:
        """Return the configuration, on top of some settings. The oracle fits as ``none`` does, with other images."""
        strategy = NONE if self.name == ORACLE else self.name
        return parse_config(None, [*base, f"trim.strategy={strategy}", *([self.setting] if self.setting else [])])


def estimator(name: str) -> str:
    """Return the covariance estimator of a strategy."""
    return estimator_of(Method(name).config())


def with_estimator(name: str, estimator: str) -> Method:
    """Return no trimming, or the oracle, with another strategy's estimator."""
    is_own = estimator == estimator_of(Method(name).config())
    return Method(name, "" if is_own else f"gaussian.estimator={estimator}")


ESTIMATORS = tuple(dict.fromkeys(estimator(name) for name in STRATEGIES))
"""The estimators that the strategies use."""


def methods_for(case: Case, swept_archive: str) -> list[Method]:
    """Return the methods to compare on a dirty set; sweeps are limited to one archive, as they double the cost."""
    compared = [Method(name) for name in STRATEGIES if name != NONE]
    compared += [with_estimator(name, one) for name in (NONE, ORACLE) for one in ESTIMATORS]
    if case.archive == swept_archive and case.protocol == OVERLAP and case.noise in SWEPT_NOISES:
        compared += [Method(PAIRE, f"{ETA}={value:g}") for value in ETAS]
        compared += [Method(GROW, f"{FALSE_REJECT}={value:g}") for value in FALSE_REJECTS]
    return compared
