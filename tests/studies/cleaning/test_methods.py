"""What is compared: every strategy on every set, and swept constants where it was said."""

import argparse

import pytest

from studies.cleaning.dirty_sets import NO_OVERLAP, OVERLAP, Case
from studies.cleaning.methods import COMPARED, NONE, SWEEPS, Method, Sweep, methods_for, parse_sweep


@pytest.mark.parametrize(
    ("case", "is_swept"),
    [
        (Case("part", NO_OVERLAP, 0.1, 0), True),
        (Case("part", NO_OVERLAP, 0.2, 0), False),
        (Case("part", OVERLAP, 0.1, 0), False),
        (Case("part", NO_OVERLAP, 0.1, 1), False),
    ],
)
def test_constants_are_swept_on_some_sets_and_no_method_comes_twice(case: Case, is_swept: bool) -> None:
    methods = methods_for(case, COMPARED, SWEEPS)
    assert methods[: len(COMPARED) + 1] == [Method(name) for name in (NONE, *COMPARED)]
    assert len(methods) == len(set(methods))
    assert len(methods) == 1 + len(COMPARED) + is_swept * sum(len(sweep.values) for sweep in SWEEPS)


def test_swept_values_reach_the_configuration_and_are_not_the_default() -> None:
    assert Method("paire", "trim.eta=4").config().trim.eta == 4
    for sweep in SWEEPS:
        values = [sweep.value_of(method.setting) for method in sweep.methods]
        assert len({float(value) for value in values}) == len(values) == 1 + len(sweep.values)


def test_a_sweep_is_parsed() -> None:
    assert parse_sweep("grow:trim.smoothing=3,7") == Sweep("grow", "trim.smoothing", ("3", "7"))


@pytest.mark.parametrize("text", ["grow", "wilt:trim.eta=2", "paire:trim.nothing=2", "paire:trim.eta=x"])
def test_an_impossible_sweep_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=text.partition(":")[0]):
        parse_sweep(text)
