"""All strategies by name."""

from pipeline.judging.strategies.ablations import TRIM_ONCE, KeepAll
from pipeline.judging.strategies.base import Strategy
from pipeline.judging.strategies.concentrate import Concentrate
from pipeline.judging.strategies.grow import Grow
from pipeline.judging.strategies.paire import Paire
from schemas.config import Config

_ALL: tuple[Strategy, ...] = (Paire(), TRIM_ONCE, KeepAll(), Concentrate(), Grow())
STRATEGIES = {strategy.name: strategy for strategy in _ALL}


def strategy_of(config: Config) -> Strategy:
    """Return the configured strategy."""
    return STRATEGIES[config.trim.strategy]


def estimator_of(config: Config) -> str:
    """Return the covariance estimator; ``auto`` means the strategy's own."""
    chosen: str = config.gaussian.estimator
    return strategy_of(config).estimator if chosen == "auto" else chosen
