"""What is compared: the estimators belong to the strategies, and options are swept where it was said."""

import pytest

from pipeline.judging.strategies.registry import estimator_of
from studies.cleaning.dirty_sets import NO_OVERLAP, OVERLAP, Case
from studies.cleaning.methods import (
    CONCENTRATE,
    ETAS,
    FALSE_REJECTS,
    GROW,
    NONE,
    ORACLE,
    PAIRE,
    Method,
    methods_for,
    with_estimator,
)


def test_no_trimming_and_the_oracle_are_there_with_every_estimator_and_nothing_twice() -> None:
    methods = methods_for(Case("part", OVERLAP, 0.3, 0), "part")
    assert len(set(methods)) == len(methods) == 10
    for name in (NONE, ORACLE):
        estimators = {estimator_of(method.config()) for method in methods if method.name == name}
        assert estimators == {estimator_of(Method(strategy).config()) for strategy in (PAIRE, CONCENTRATE, GROW)}


def test_a_strategy_s_own_estimator_needs_no_setting() -> None:
    assert with_estimator(NONE, "ridge") == Method(NONE)
    assert estimator_of(with_estimator(ORACLE, "oas").config()) == "oas"


@pytest.mark.parametrize(
    ("case", "is_swept"),
    [
        (Case("part", OVERLAP, 0.1, 0), True),
        (Case("part", OVERLAP, 0.3, 0), False),
        (Case("part", NO_OVERLAP, 0.1, 0), False),
        (Case("other", OVERLAP, 0.1, 0), False),
    ],
)
def test_options_are_swept_on_one_archive_at_some_noises(case: Case, is_swept: bool) -> None:
    assert len(methods_for(case, "part")) == 10 + is_swept * (len(ETAS) + len(FALSE_REJECTS))


def test_a_setting_reaches_the_configuration_and_swept_values_are_not_the_default() -> None:
    assert Method(PAIRE, "trim.eta=4").config().trim.eta == 4
    assert Method(PAIRE).config().trim.eta not in ETAS
    assert Method(GROW).config().trim.target_false_reject not in FALSE_REJECTS
