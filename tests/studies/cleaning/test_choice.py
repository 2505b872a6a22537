"""A constant is chosen on other images than those that it is tried on."""

import pandas as pd
import pytest

from studies.cleaning.choice import choose, leave_one_out
from studies.cleaning.dirty_sets import NO_OVERLAP
from studies.cleaning.methods import Sweep

SWEEP = Sweep("paire", "trim.eta", ("4",))
FOUR = "trim.eta=4"


def rows(**silent: tuple[bool, bool]) -> pd.DataFrame:
    """Return a row for each set at the default and at 4, which keeps more; says whether each fails silently."""
    return pd.DataFrame(
        [
            {
                "archive": archive.replace("_", "-"),
                "backbone": "squeezenet1_1",
                "protocol": NO_OVERLAP,
                "noise": 0.1,
                "seed": 0,
                "method": "paire",
                "setting": setting,
                "silent": fails,
                "failed": fails,
                "kept_share": 0.9 if setting else 0.5,
            }
            for archive, both in silent.items()
            for setting, fails in zip(("", FOUR), both, strict=True)
        ]
    )


@pytest.mark.parametrize(("fails", "chosen"), [((False, False), FOUR), ((False, True), ""), ((True, False), FOUR)])
def test_no_silent_failure_comes_before_keeping_more(fails: tuple[bool, bool], chosen: str) -> None:
    assert choose(rows(casting=fails)) == chosen


def test_the_left_out_set_takes_no_part_in_the_choice() -> None:
    found = leave_one_out(rows(casting=(False, True), magtile=(False, False)), SWEEP, ["casting", "magtile"])
    casting, magtile = found
    assert (casting.left_out, casting.chosen, casting.own) == ("casting", "4", (1, 1, 0.9))
    assert (casting.best_value, casting.best, casting.default) == ("2.3", (0, 0, 0.5), (0, 0, 0.5))
    assert (magtile.chosen, magtile.own) == ("2.3", (0, 0, 0.5))


def test_a_set_does_not_choose_for_what_is_made_from_it() -> None:
    table = rows(bottle=(False, True), bottle_turned=(False, False), casting=(False, False))
    (turned,) = [
        one for one in leave_one_out(table, SWEEP, ["bottle", "bottle-turned", "casting"]) if "turned" in one.left_out
    ]
    assert turned.chosen == "4"


def test_one_set_alone_gives_no_choice() -> None:
    assert list(leave_one_out(rows(bottle=(False, False)), SWEEP, ["bottle"])) == []
