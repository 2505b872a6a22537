"""What strategies share: the log of the passes, and the better half."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.judging.strategies.base import MIN_START, UNCHANGED, PassLog, better_half


@given(scores=st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=2 * MIN_START, max_size=40))
def test_the_better_half_is_no_worse_than_the_rest_and_takes_earlier_rows_first(scores: list[float]) -> None:
    values, measured = np.array(scores), np.ones(len(scores), bool)
    half = better_half(values, measured)
    assert half.sum() == max(MIN_START, len(scores) // 2)
    worst = values[half].max()
    assert worst <= values[~half].min()
    equal = np.flatnonzero(values == worst)
    assert half[equal].tolist() == sorted(half[equal].tolist(), reverse=True)


def test_a_set_that_comes_back_was_seen_before() -> None:
    log = PassLog(np.ones(6, bool), "group")
    some, other = np.arange(6) < 4, np.arange(6) < 3
    assert not log.record(some, positions_trimmed=1)
    assert not log.record(other, positions_trimmed=1)
    assert log.record(some, positions_trimmed=1)
    result = log.result(np.ones((1, 1)), UNCHANGED)
    assert result.history.tolist() == [some.tolist(), other.tolist(), some.tolist()]
    assert result.last_changed.tolist() == [0, 0, 0, 3, 1, 1]


def test_the_floor_chose_the_clean_set_even_if_a_later_pass_only_confirms_it() -> None:
    log = PassLog(np.ones(10, bool), "group")
    half = np.arange(10) < 5
    log.record(half, positions_trimmed=4, floor_applied=True)
    log.record(half, positions_trimmed=4, floor_applied=False)
    assert log.result(np.ones((2, 2)), UNCHANGED).floor_applied
    log.record(np.arange(10) < 7, positions_trimmed=4, floor_applied=False)
    assert not log.result(np.ones((2, 2)), UNCHANGED).floor_applied
