"""The threshold at one position: worked examples, a literal reading of the paper, and the laws it obeys."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.config import TrimConfig
from tests.support import reference
from workers.verdict.threshold import NO_TRIMMING, RESOLUTION, position_threshold

Array = NDArray[np.float64]

seeds = st.integers(0, 2**32 - 1)
trims = st.builds(
    TrimConfig,
    alpha=st.floats(0.01, 0.4),
    beta=st.floats(0.5, 6),
    tau=st.floats(0.8, 2),
    eta=st.floats(1.01, 6),
)


def literal_threshold(values: Array, trim: TrimConfig, *, fitted: int, is_first: bool) -> float:
    parameters = reference.Parameters(alpha=trim.alpha, beta=trim.beta, tau=trim.tau, eta=trim.eta)
    return reference.threshold(values, fitted_count=fitted, first_pass=is_first, parameters=parameters)


def frozen(values: Array) -> Array:
    values.flags.writeable = False
    return values


def distances(seed: int, good: int, bad: int, *, distance: float = 5.0) -> Array:
    """Return shuffled distances of good samples about 1 and of bad ones some way off."""
    rng = np.random.default_rng(seed)
    far = distance * rng.lognormal(0, 0.3, bad)
    return frozen(rng.permutation(np.concatenate([rng.lognormal(0, 0.1, good), far])))


@st.composite
def situations(draw: st.DrawFn) -> tuple[Array, int, bool]:
    """Draw distances, how many of them were fitted, and whether it is the first pass."""
    good, bad = draw(st.integers(1, 80)), draw(st.integers(0, 40))
    values = distances(draw(seeds), good, bad, distance=draw(st.floats(0.5, 100)))
    is_first = draw(st.booleans())
    return values, len(values) if is_first else draw(st.integers(1, len(values))), is_first


# N = 12: L = 3, S = 1, U = 4.
WORKED = TrimConfig(alpha=0.25, beta=3, tau=1.15, eta=2.3)
STEEP_END = frozen(np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 100, 200, 300]))


def test_worked_example_of_a_first_pass() -> None:
    # Start 12 // 3 = 4. Segments 4-6, 6-8, 8-11: slopes 1, 1, 292 / 3 (times 1 / 300), so R = 97.33 and
    # v = (97.33 - 1.15) / 2.3 + 1.15 = 42.97. Windows at 4, 5, 6 have slope 1, those at 7, 8, 9 have 46.5, 96, 100:
    # three targets, still open at the end. The threshold is the mean of 7, 8, 100.
    assert position_threshold(STEEP_END, WORKED, fitted=12, is_first=True) == pytest.approx(115 / 3, rel=1e-15)


def test_worked_example_of_a_later_pass() -> None:
    # Start min(6 + 1, 12 - 3 - 2) = 7. Segments 7-8, 8-9, 9-11: slopes 1, 92, 100, so R = 2.151, v = 1.585. The first
    # window, 46.5, cannot be a target; those at 8 and 9, 96 and 100, are. The threshold is the mean of 8, 100, 200.
    assert position_threshold(STEEP_END, WORKED, fitted=6, is_first=False) == pytest.approx(308 / 3, rel=1e-15)


def test_worked_example_of_a_run_that_breaks_off() -> None:
    # L = 2, S = 1, U = 3, start 4. Steps of 1 but for one of 30 in the middle and 60 at the end: the lone
    # target at the 30 is followed by a step of 1, which ends its run, and only the end is an open run.
    values = np.cumsum([0.0, 1, 1, 1, 1, 1, 30, 1, 1, 1, 1, 60])
    trim = TrimConfig(alpha=0.1, beta=2, tau=1.15, eta=2.3)
    # Segments 4-6, 6-8, 8-11: slopes 31 / 2, 1, 62 / 3; R = 2.5051, v = 1.7392.
    assert position_threshold(values, trim, fitted=12, is_first=True) == pytest.approx((values[10] + values[11]) / 2)


def test_worked_example_of_a_run_long_enough_before_the_end() -> None:
    # L = 2, S = 1, U = 3, start 4: steps of 1, then three of 50, which is enough whatever follows.
    values = np.cumsum([0.0, 1, 1, 1, 1, 1, 1, 1, 50, 50, 50, 1])
    trim = TrimConfig(alpha=0.1, beta=2, tau=1.15, eta=2.3)
    assert position_threshold(values, trim, fitted=12, is_first=True) == pytest.approx((values[7] + values[8]) / 2)


def test_target_windows_do_not_enter_the_background() -> None:
    values = np.cumsum([0.0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 8, 10, 10])
    trim = TrimConfig(alpha=0.1, beta=2, tau=1.15, eta=2.3)
    # L = 2, S = 1, U = 3, start 13 // 3 = 4. Segments 4-6, 6-9, 9-12: slopes 1, 1, 28 / 3, v = 4.708. Saved, 8 would
    # lift the background to 13 / 6, the limit to 10.2, and 10 would be no target: the threshold would be infinite.
    assert position_threshold(values, trim, fitted=13, is_first=True) == pytest.approx((values[9] + values[10]) / 2)


@given(situation=situations(), trim=trims)
@settings(max_examples=100, deadline=None)
def test_thresholds_equal_a_literal_reading_of_the_paper(situation: tuple[Array, int, bool], trim: TrimConfig) -> None:
    values, fitted, is_first = situation
    expected = literal_threshold(values, trim, fitted=fitted, is_first=is_first)
    assert position_threshold(values, trim, fitted=fitted, is_first=is_first) == pytest.approx(expected, rel=1e-12)


@given(situation=situations())
@settings(max_examples=50, deadline=None)
def test_thresholds_with_the_papers_parameters_equal_the_literal_reading(situation: tuple[Array, int, bool]) -> None:
    values, fitted, is_first = situation
    expected = literal_threshold(values, TrimConfig(), fitted=fitted, is_first=is_first)
    found = position_threshold(values, TrimConfig(), fitted=fitted, is_first=is_first)
    assert found == pytest.approx(expected, rel=1e-12)


@given(situation=situations(), trim=trims, exponent=st.integers(-60, 60))
@settings(max_examples=50, deadline=None)
def test_thresholds_scale_with_the_distances(
    situation: tuple[Array, int, bool], trim: TrimConfig, exponent: int
) -> None:
    values, fitted, is_first = situation
    factor = 2.0**exponent  # scaling by a power of two rounds nothing
    threshold = position_threshold(values, trim, fitted=fitted, is_first=is_first)
    assert position_threshold(values * factor, trim, fitted=fitted, is_first=is_first) == threshold * factor


@given(situation=situations(), trim=trims, shift=st.floats(0, 100))
@settings(max_examples=50, deadline=None)
def test_thresholds_shift_with_the_distances(
    situation: tuple[Array, int, bool], trim: TrimConfig, shift: float
) -> None:
    values, fitted, is_first = situation
    threshold = position_threshold(values, trim, fitted=fitted, is_first=is_first)
    shifted = position_threshold(values + shift, trim, fitted=fitted, is_first=is_first)
    assert shifted == pytest.approx(threshold + shift, rel=1e-12)


@given(situation=situations(), trim=trims, seed=seeds)
@settings(max_examples=50, deadline=None)
def test_thresholds_do_not_depend_on_the_order_of_samples(
    situation: tuple[Array, int, bool], trim: TrimConfig, seed: int
) -> None:
    values, fitted, is_first = situation
    shuffled = np.random.default_rng(seed).permutation(values)
    threshold = position_threshold(values, trim, fitted=fitted, is_first=is_first)
    assert position_threshold(shuffled, trim, fitted=fitted, is_first=is_first) == threshold


@given(situation=situations(), trim=trims)
@settings(max_examples=50, deadline=None)
def test_a_threshold_is_infinite_or_lies_within_the_distances(
    situation: tuple[Array, int, bool], trim: TrimConfig
) -> None:
    values, fitted, is_first = situation
    threshold = position_threshold(values, trim, fitted=fitted, is_first=is_first)
    assert threshold == NO_TRIMMING or values.min() < threshold < values.max()


@given(seed=seeds, good=st.integers(40, 100), bad=st.integers(0, 10), taus=st.tuples(*[st.floats(0.8, 3)] * 2))
@settings(max_examples=50, deadline=None)
def test_a_larger_tau_never_trims_a_position_that_a_smaller_one_leaves(
    seed: int, good: int, bad: int, taus: tuple[float, float]
) -> None:
    # With eta = 1, v = R for any tau: tau alone decides whether there is a threshold.
    values = distances(seed, good, bad)
    low, high = (
        position_threshold(values, TrimConfig(tau=tau, eta=1), fitted=len(values), is_first=True)
        for tau in sorted(taus)
    )
    assert high in {NO_TRIMMING, low}


def line(seed: int, low: float, high: float, count: int) -> Array:
    """Return distances that rise evenly but for some jitter, as those of good samples do."""
    jitter = np.random.default_rng(seed).uniform(-0.1, 0.1, count)
    values: Array = np.linspace(low, high, count) + jitter * (high - low) / count
    return values


def steep(seed: int, start: float, step: float, count: int) -> Array:
    """Return distances that rise ever farther beyond ``start``, as those of bad samples do."""
    values: Array = start + step * np.cumsum(np.random.default_rng(seed).uniform(0.9, 1.1, count))
    return values


@given(seed=seeds, good=st.integers(60, 150), exponent=st.floats(1, 6))
@settings(max_examples=50, deadline=None)
def test_a_group_of_far_outliers_lies_beyond_a_finite_threshold(seed: int, good: int, exponent: float) -> None:
    clean = line(seed, 1.0, 1.5, good)
    assert position_threshold(clean, TrimConfig(), fitted=good, is_first=True) == NO_TRIMMING
    outliers = steep(seed, 1.5, 10**exponent, good // 50 + 2)  # more than the window's step, so that one sees them
    values = np.concatenate([outliers, clean])
    threshold = position_threshold(values, TrimConfig(), fitted=len(values), is_first=True)
    assert clean.max() < threshold < outliers.min()


@given(seed=seeds, good=st.integers(60, 120), exponent=st.floats(2, 6))
@settings(max_examples=50, deadline=None)
def test_a_later_pass_excludes_far_outliers_but_not_all_unfitted_samples(seed: int, good: int, exponent: float) -> None:
    # Fitted samples lie close together, good unfitted ones beyond a jump, bad ones beyond another.
    fitted, unfitted = line(seed, 15.0, 15.001, good), line(seed, 100, 150, good)
    outliers = steep(seed, 150, 50 * 10**exponent, good // 30 + 2)
    values = np.concatenate([fitted, outliers, unfitted])
    threshold = position_threshold(values, TrimConfig(), fitted=good, is_first=False)
    assert unfitted.max() < threshold < np.sort(outliers)[1]


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("count", [2, 3, 10, 57, 200, 1000])
def test_distances_on_a_straight_line_are_not_trimmed(count: int, is_first: bool) -> None:
    values = frozen(np.linspace(1, 2, count))
    assert position_threshold(values, TrimConfig(), fitted=count // 2, is_first=is_first) == NO_TRIMMING


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("value", [0.0, 1e-12, 15.4, 1e9])
def test_equal_distances_are_not_trimmed(value: float, is_first: bool) -> None:
    values = frozen(np.full(100, value))
    assert position_threshold(values, TrimConfig(), fitted=60, is_first=is_first) == NO_TRIMMING


@given(seed=seeds, level=st.floats(1e-3, 1e6), share=st.floats(0, 0.99))
@settings(max_examples=50, deadline=None)
def test_a_spread_below_the_resolution_of_distances_is_not_trimmed(seed: int, level: float, share: float) -> None:
    noise = np.random.default_rng(seed).lognormal(0, 2, 100)  # with a long tail, that would be trimmed at any scale
    values = level * (1 + share * RESOLUTION * noise / noise.max())
    assert position_threshold(values, TrimConfig(), fitted=100, is_first=True) == NO_TRIMMING


def test_a_spread_of_the_size_seen_on_real_features_is_trimmed() -> None:
    values = 15.4 * (1 + 2e-6 * np.concatenate([np.linspace(0, 0.1, 96), np.linspace(0.25, 1, 4)]))
    threshold = position_threshold(values, TrimConfig(), fitted=100, is_first=True)
    assert values[95] < threshold < values[96]


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("count", range(2, 7))
def test_few_distances_give_a_number_or_no_trimming(count: int, is_first: bool) -> None:
    values = frozen(np.geomspace(1, 1000, count))
    threshold = position_threshold(values, TrimConfig(), fitted=count, is_first=is_first)
    assert threshold == literal_threshold(values, TrimConfig(), fitted=count, is_first=is_first)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_distances_are_not_trimmed(count: int) -> None:
    assert position_threshold(np.ones(count), TrimConfig(), fitted=count, is_first=True) == NO_TRIMMING


@given(situation=situations(), trim=trims)
@settings(max_examples=50, deadline=None)
def test_a_first_pass_does_not_depend_on_how_many_were_fitted(
    situation: tuple[Array, int, bool], trim: TrimConfig
) -> None:
    values, fitted, _ = situation
    assume(fitted != len(values))
    assert position_threshold(values, trim, fitted=fitted, is_first=True) == position_threshold(
        values, trim, fitted=len(values), is_first=True
    )
