"""The methods that are compared on dirty sets: the strategies, and sweeps of the constants that they rest on."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.judging.strategies.registry import STRATEGIES
from schemas.config import Config, parse_config
from schemas.errors import ConfigError
from studies.cleaning.dirty_sets import NO_OVERLAP, Case

NONE = "none"
COMPARED = ("paire", "concentrate", "grow")
"""The strategies that are compared, unless others are asked for. `NONE`, which cleans nothing, always is."""

# Where constants are swept: no overlap, one seed, a low and a high noise.
SWEPT_NOISES, SWEPT_SEED = (0.1, 0.3), 0


@dataclass(frozen=True)
class Method:
    """A strategy, and an option that differs from its default, as ``section.key=value``; empty for none."""

    name: str
    setting: str = ""

    def config(self, base: Sequence[str] = ()) -> Config:
        """Return the configuration, on top of some settings."""
        return parse_config(None, [*base, f"trim.strategy={self.name}", *([self.setting] if self.setting else [])])


@dataclass(frozen=True)
class Sweep:
    """A constant of a strategy, and values for it besides its default."""

    strategy: str
    option: str  # section.key
    values: tuple[str, ...]

    @property
    def methods(self) -> tuple[Method, ...]:
        """The default, then the other values."""
        return (Method(self.strategy), *(Method(self.strategy, f"{self.option}={value}") for value in self.values))

    def value_of(self, setting: str) -> str:
        """Return the value that a setting gives the constant: its default if the setting is empty."""
        section, _, key = self.option.partition(".")
        default = getattr(getattr(Method(self.strategy).config(), section), key)
        return setting.partition("=")[2] or f"{default:g}"


SWEEPS = (
    Sweep("paire", "trim.eta", ("1.5", "4")),
    Sweep("grow", "trim.target_false_reject", ("0.01", "0.05")),
    Sweep("grow", "trim.smoothing", ("3", "5")),
    Sweep("grow", "trim.near_duplicates", ("0", "0.5")),
)
"""The constants that are swept, unless others are asked for."""


def parse_sweep(text: str) -> Sweep:
    """Parse a sweep, as ``grow:trim.smoothing=3,7``.

    Raises
    ------
    argparse.ArgumentTypeError
        When it has another form, or names a strategy, an option or a value that does not exist.
    """
    strategy, _, rest = text.partition(":")
    option, _, values = rest.partition("=")
    sweep = Sweep(strategy, option, tuple(values.split(",")))
    if strategy not in STRATEGIES or not values:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a sweep. Give STRATEGY:trim.OPTION=VALUE,VALUE; strategies: {', '.join(STRATEGIES)}."
        )
    try:
        for method in sweep.methods:
            method.config()
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    return sweep


def methods_for(case: Case, strategies: Sequence[str], sweeps: Sequence[Sweep]) -> list[Method]:
    """Return the methods to compare on a dirty set; ``sweeps`` are limited to some sets, as they double the cost."""
    compared = [Method(name) for name in (NONE, *strategies)]
    if case.protocol == NO_OVERLAP and case.noise in SWEPT_NOISES and case.seed == SWEPT_SEED:
        compared += [method for sweep in sweeps for method in sweep.methods]
    return list(dict.fromkeys(compared))
