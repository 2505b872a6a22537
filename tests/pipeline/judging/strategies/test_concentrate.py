"""Concentration on the better half, and growth by robust deviations."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.judging.strategies.concentrate import concentrate, robust_limit
from schemas.config import TrimConfig
from tests.pipeline.judging.strategies.test_grow import GRID, Synthetic


def test_concentration_settles_and_grows() -> None:
    group = Synthetic(150, 20, 0.1)
    trimming = concentrate(
        group.deviate,
        lambda value: np.full(GRID, value),
        np.ones(150, bool),
        TrimConfig(deviations=3.0),
        grid=GRID,
    )
    assert trimming.history[0].sum() == 75
    assert trimming.clean[~group.is_bad].mean() > 0.6
    assert not trimming.clean[group.is_bad].any()


@given(
    scores=st.lists(st.integers(-100, 100), min_size=3, max_size=50),
    shift=st.integers(-50, 50),
    deviations=st.floats(0, 5),
)
def test_the_limit_moves_with_the_scores_and_is_not_below_their_median(
    scores: list[int], shift: int, deviations: float
) -> None:
    values = np.array(scores, float)  # whole numbers: adding a shift rounds nothing
    limit = robust_limit(values, deviations)
    assert limit >= np.median(values)
    assert np.isclose(robust_limit(values + shift, deviations), limit + shift, atol=1e-9)


def test_scores_above_the_median_do_not_move_the_limit() -> None:
    scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert robust_limit(scores, 2.0) == robust_limit(np.array([1.0, 2.0, 3.0, 40.0, 5000.0]), 2.0)
