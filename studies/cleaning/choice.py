"""Leave one set out: choose a constant on some sets, and see what it does on a set that took no part in the choice."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from studies.cleaning.dirty_sets import NO_OVERLAP
from studies.cleaning.methods import SWEPT_NOISES, SWEPT_SEED, Sweep
from studies.cleaning.panel import origins_of

Outcome = tuple[int, int, float]  # silent failures, failures, mean kept share


class Choice(NamedTuple):
    """A constant chosen without one set, and the outcomes on that set."""

    left_out: str
    chosen: str  # value
    own: Outcome  # of the chosen value
    default: Outcome  # of the default
    best_value: str  # what this set alone would have chosen
    best: Outcome


def leave_one_out(rows: pd.DataFrame, sweep: Sweep, archives: Sequence[str]) -> Iterator[Choice]:
    """Yield the choice without each set; none if no other set shares no image with it.

    Parameters
    ----------
    rows
        The results.
    archives
        The sets, in order of appearance.
    """
    swept = _swept(rows, sweep)
    for left_out in archives:
        own = swept[swept["archive"] == left_out]
        apart = [name for name in archives if not origins_of(name) & origins_of(left_out)]
        others = swept[swept["archive"].isin(apart)]
        if own.empty or others.empty:
            continue
        chosen, best = choose(others), choose(own)
        yield Choice(
            left_out,
            sweep.value_of(chosen),
            outcome(own[own["setting"] == chosen]),
            outcome(own[own["setting"] == ""]),
            sweep.value_of(best),
            outcome(own[own["setting"] == best]),
        )


def choose(rows: pd.DataFrame) -> str:
    """Return the setting with the best outcome: fewest silent failures, then failures, then the largest kept share."""

    def badness(setting: str) -> tuple[int, int, float]:
        silent, failed, kept = outcome(rows[rows["setting"] == setting])
        return silent, failed, -kept

    # The default comes first among equals.
    settings: list[str] = sorted(set(rows["setting"]))
    return min(settings, key=badness)


def outcome(rows: pd.DataFrame) -> Outcome:
    """Return the silent failures, the failures and the mean kept share."""
    return int(rows["silent"].sum()), int(rows["failed"].sum()), float(rows["kept_share"].mean())


def _swept(rows: pd.DataFrame, sweep: Sweep) -> pd.DataFrame:
    """Return the rows of a sweep: one backbone, the swept noises and seed."""
    settings = [method.setting for method in sweep.methods]
    own = rows[(rows["method"] == sweep.strategy) & rows["setting"].isin(settings)]
    own = own[own["backbone"].isin(own.loc[own["setting"] != "", "backbone"])]
    return own[(own["protocol"] == NO_OVERLAP) & own["noise"].isin(SWEPT_NOISES) & (own["seed"] == SWEPT_SEED)]
