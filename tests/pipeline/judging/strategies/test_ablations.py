"""The ablations: one pass of the paper's rule, and a pass that excludes nothing."""

from typing import cast

import numpy as np
import pytest

from pipeline.judging.strategies.ablations import TRIM_ONCE, KeepAll
from pipeline.judging.strategies.base import NO_TRIMMING, SINGLE, GroupPasses, Search
from schemas.config import TrimConfig
from tests.pipeline.judging.strategies.test_paire import Script, keeping


class Passes:
    """Plays scripted passes."""

    def __init__(self, script: Script) -> None:
        self.run_pass = script


def test_a_single_pass_decides() -> None:
    script = Script([keeping(0, 1, 2, images=10), keeping(0, 1, images=10)])
    passes, everything = cast("GroupPasses", Passes(script)), np.ones(10, bool)
    trimming = TRIM_ONCE.find(passes, Search(everything, TrimConfig(), (1, 2), np.arange(10)))
    assert trimming.stop_reason == SINGLE
    assert script.fitted == [list(range(10))]
    assert np.flatnonzero(trimming.clean).tolist() == [0, 1, 2]


def test_nothing_is_trimmed_whatever_the_pass_finds() -> None:
    script, measured = Script([keeping(0, images=6)]), np.arange(6) != 3
    passes = cast("GroupPasses", Passes(script))
    trimming = KeepAll().find(passes, Search(measured, TrimConfig(), (1, 2), np.arange(6)))
    assert trimming.stop_reason == NO_TRIMMING
    assert (trimming.clean == measured).all()
    assert (trimming.thresholds == np.inf).all()
    assert trimming.thresholds.shape == (1, 2)
    assert script.fitted == [np.flatnonzero(measured).tolist()]


def test_there_is_no_rule_to_try_where_nothing_is_rejected() -> None:
    passes = cast("GroupPasses", Passes(Script([])))
    with pytest.raises(NotImplementedError, match="no rule"):
        KeepAll().holdout_thresholds(passes, np.ones(3, bool), TrimConfig(), smoothing=1)
    assert not KeepAll().rejects
