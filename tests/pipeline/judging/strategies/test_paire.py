"""The iteration as a pure loop: what each pass measures is scripted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.judging.strategies.base import CYCLE, MAJORITY, MAX_ITERATIONS, UNCHANGED, PassResult, Trimming
from pipeline.judging.strategies.paire import trim
from schemas.config import TrimConfig

Mask = NDArray[np.bool_]


@dataclass
class Script:
    """Plays the passes in order, and remembers which images each was fitted on."""

    passes: Sequence[PassResult]
    fitted: list[list[int]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def __call__(self, fitted: Mask, number: int) -> PassResult:
        self.fitted.append(np.flatnonzero(fitted).tolist())
        self.numbers.append(number)
        return self.passes[number - 1]


def keeping(*clean: int, images: int, thresholds: Sequence[float] = (5.0, np.inf)) -> PassResult:
    """Return a pass after which exactly these images are below every threshold."""
    margin = np.full(images, 1.5)
    margin[list(clean)] = 0.5
    return PassResult(np.array([thresholds]), margin)


def run(
    script: Script,
    *,
    images: int,
    stop_fraction: float = 1.0,
    max_iterations: int = 20,
    min_clean_fraction: float = 0.0,
) -> Trimming:
    """Run a script over images that all take part."""
    config = TrimConfig(
        stop_fraction=stop_fraction, max_iterations=max_iterations, min_clean_fraction=min_clean_fraction
    )
    return trim(script, np.ones(images, dtype=bool), config)


def test_the_first_pass_is_fitted_on_everything_and_each_other_on_what_was_clean() -> None:
    script = Script([keeping(*kept, images=10) for kept in ((0, 1, 2, 3), (1, 2, 3, 4, 5), (1, 2, 3, 4, 5))])
    run(script, images=10)
    assert script.fitted == [list(range(10)), [0, 1, 2, 3], [1, 2, 3, 4, 5]]
    assert script.numbers == [1, 2, 3]


def test_an_unchanged_set_ends_the_iteration() -> None:
    trimming = run(Script([keeping(0, 1, 2, images=10), keeping(0, 1, 2, images=10)]), images=10)
    assert trimming.stop_reason == UNCHANGED
    assert np.flatnonzero(trimming.clean).tolist() == [0, 1, 2]
    assert len(trimming.iterations) == 2


def test_a_first_pass_that_trims_nothing_is_unchanged_although_it_is_a_majority() -> None:
    nothing = PassResult(np.full((2, 2), np.inf), np.zeros(10))
    trimming = run(Script([nothing]), images=10, stop_fraction=0.5)
    assert trimming.stop_reason == UNCHANGED
    assert trimming.clean.all()
    assert trimming.iterations[0].n_positions_trimmed == 0


@pytest.mark.parametrize(
    ("kept", "passes"),
    [pytest.param(6, 1, id="more than half stops at once"), pytest.param(5, 2, id="exactly half goes on")],
)
def test_the_paper_stops_when_more_than_half_are_clean(kept: int, passes: int) -> None:
    script = Script([keeping(*range(kept), images=10), keeping(*range(1, 8), images=10)])
    trimming = run(script, images=10, stop_fraction=0.5)
    assert trimming.stop_reason == MAJORITY
    assert len(trimming.iterations) == passes


def test_the_majority_is_one_of_the_images_that_take_part() -> None:
    measured = np.arange(20) % 2 == 0
    script = Script([keeping(0, 2, 4, 6, 8, 10, images=20)])
    trimming = trim(script, measured, TrimConfig(stop_fraction=0.5))
    assert trimming.stop_reason == MAJORITY
    assert script.fitted == [list(range(0, 20, 2))]


def test_a_set_seen_before_ends_the_iteration_as_a_cycle() -> None:
    one, other = keeping(0, 1, 2, images=10), keeping(2, 3, 4, images=10)
    trimming = run(Script([one, other, one, other]), images=10)
    assert trimming.stop_reason == CYCLE
    assert len(trimming.iterations) == 3
    assert np.flatnonzero(trimming.clean).tolist() == [0, 1, 2]


def test_coming_back_to_all_images_is_a_cycle_when_no_majority_stops() -> None:
    everything = keeping(*range(10), images=10)
    trimming = run(Script([keeping(0, 1, 2, images=10), everything]), images=10, stop_fraction=1.0)
    assert trimming.stop_reason == CYCLE
    assert trimming.clean.all()


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_the_maximum_of_iterations_ends_it(limit: int) -> None:
    script = Script([keeping(number, number + 1, number + 2, images=10) for number in range(8)])
    trimming = run(script, images=10, max_iterations=limit)
    assert trimming.stop_reason == MAX_ITERATIONS
    assert len(trimming.iterations) == limit
    assert script.numbers == list(range(1, limit + 1))


def test_unchanged_wins_over_the_maximum() -> None:
    same = keeping(0, 1, 2, images=10)
    assert run(Script([same, same]), images=10, max_iterations=2).stop_reason == UNCHANGED


def test_majority_wins_over_cycle_and_maximum() -> None:
    everything = keeping(*range(10), images=10)
    script = Script([keeping(0, 1, 2, images=10), everything])
    assert run(script, images=10, max_iterations=2, stop_fraction=0.5).stop_reason == MAJORITY


def test_every_pass_is_counted_in_the_table() -> None:
    script = Script(
        [
            keeping(0, 1, 2, 3, images=10, thresholds=(1.0, 2.0, np.inf)),
            keeping(2, 3, 4, images=10, thresholds=(1.0, np.inf, np.inf)),
            keeping(2, 3, 4, images=10, thresholds=(np.inf, 4.0, 3.0)),
        ]
    )
    trimming = run(script, images=10)
    table = [
        (step.iteration, step.n_fitted, step.n_clean, step.n_added, step.n_removed, step.n_positions_trimmed)
        for step in trimming.iterations
    ]
    assert table == [(1, 10, 4, 0, 6, 2), (2, 4, 3, 1, 2, 1), (3, 3, 3, 0, 0, 2)]
    assert trimming.thresholds.tolist() == [[np.inf, 4.0, 3.0]]


def test_last_changed_is_the_last_pass_that_moved_an_image() -> None:
    script = Script([keeping(*kept, images=8) for kept in ((0, 1, 2), (0, 1, 3), (0, 2, 3), (0, 2, 3))])
    trimming = run(script, images=8)
    assert trimming.last_changed.tolist() == [0, 3, 3, 2, 1, 1, 1, 1]


def test_the_history_holds_the_clean_set_after_each_pass() -> None:
    kept = [(0, 1, 2), (1, 2, 3, 4), (1, 2, 3, 4)]
    trimming = run(Script([keeping(*images, images=6) for images in kept]), images=6)
    assert [tuple(np.flatnonzero(row).tolist()) for row in trimming.history] == kept
    assert trimming.history[-1].tolist() == trimming.clean.tolist()


def test_images_that_take_no_part_are_never_clean_and_never_change() -> None:
    measured = np.array([True, False, True, True, False, True, True])
    measured.flags.writeable = False
    margin = np.array([0.5, np.nan, 0.5, 0.5, np.nan, 2.0, 2.0])
    script = Script([PassResult(np.array([[1.0]]), margin)] * 2)
    trimming = trim(script, measured, TrimConfig(stop_fraction=1.0))
    assert trimming.clean.tolist() == [True, False, True, True, False, False, False]
    assert trimming.last_changed.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert trimming.iterations[0].n_fitted == 5


@pytest.mark.parametrize(
    ("images", "fraction", "floor"),
    [
        pytest.param(30, 0.1, 3, id="a share of all"),
        pytest.param(31, 0.1, 4, id="rounded up"),
        pytest.param(10, 0.0, 3, id="never fewer than three"),
        pytest.param(100, 0.55, 55, id="not rounded up by a binary fraction"),
        pytest.param(3, 1.0, 3, id="all of three"),
    ],
)
def test_the_floor_keeps_that_many_with_the_smallest_margins(images: int, fraction: float, floor: int) -> None:
    margin = np.linspace(3.0, 1.0, images)
    script = Script([PassResult(np.array([[1.0]]), margin)] * 2)
    trimming = run(script, images=images, min_clean_fraction=fraction)
    assert np.flatnonzero(trimming.clean).tolist() == list(range(images - floor, images))
    assert trimming.iterations[0].floor_applied


def test_a_distance_at_the_threshold_is_not_below_it() -> None:
    margin = np.array([0.5, 0.5, np.nextafter(1.0, 0.0), 1.0, np.nextafter(1.0, 2.0)])
    trimming = run(Script([PassResult(np.array([[1.0]]), margin)] * 2), images=5)
    assert trimming.clean.tolist() == [True, True, True, False, False]
    assert not trimming.iterations[0].floor_applied


def test_the_floor_takes_earlier_rows_first_among_equal_margins() -> None:
    margin = np.array([2.0, 1.5, 1.5, 1.0, 1.5, 1.5])
    trimming = run(Script([PassResult(np.array([[1.0]]), margin)] * 2), images=6)
    assert np.flatnonzero(trimming.clean).tolist() == [1, 2, 3]


def test_as_many_as_the_floor_pass_without_it() -> None:
    trimming = run(Script([keeping(0, 1, 2, images=30)] * 2), images=30, min_clean_fraction=0.1)
    assert not trimming.iterations[0].floor_applied


def test_a_floor_that_chooses_the_same_again_is_unchanged() -> None:
    margin = np.linspace(1.0, 3.0, 20)
    trimming = run(Script([PassResult(np.array([[1.0]]), margin)] * 2), images=20, min_clean_fraction=0.2)
    assert trimming.stop_reason == UNCHANGED
    assert [step.floor_applied for step in trimming.iterations] == [True, True]


@given(
    sets=st.lists(st.sets(st.integers(0, 7), min_size=3), min_size=1, max_size=12),
    stop_fraction=st.sampled_from([0.5, 0.75, 1.0]),
)
@settings(max_examples=50)
def test_any_script_ends_with_books_that_balance(sets: list[set[int]], stop_fraction: float) -> None:
    script = Script([keeping(*kept, images=8) for kept in sets])
    trimming = run(script, images=8, stop_fraction=stop_fraction, max_iterations=len(sets))
    counts = [8, *(step.n_clean for step in trimming.iterations)]
    assert [step.n_fitted for step in trimming.iterations] == counts[:-1]
    changes = [step.n_added - step.n_removed for step in trimming.iterations]
    assert changes == [after - before for before, after in pairwise(counts)]
    assert np.flatnonzero(trimming.clean).tolist() == sorted(sets[len(trimming.iterations) - 1])
    assert trimming.last_changed.max() <= len(trimming.iterations)
