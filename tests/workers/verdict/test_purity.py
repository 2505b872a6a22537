"""How many anomalies pass for clean, on scores drawn from the two laws assumed, and where these do not hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtr

from workers.verdict.calibration import ScoreLaw, fit_score_law
from workers.verdict.purity import Anomalies, estimate_purity, fit_anomalies, is_pure, pure_threshold

Array = NDArray[np.float64]

LAW = ScoreLaw(0.0, 1.0)
RATE = 0.02
THRESHOLD = LAW.threshold(RATE)


def drawn(clean: int, bad: int, centre: float, spread: float, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.gumbel(size=clean), rng.normal(centre, spread, bad)])


def test_without_scores_beyond_the_threshold_there_are_no_anomalies() -> None:
    scores = np.linspace(-1.5, THRESHOLD - 0.01, 200)
    anomalies = fit_anomalies(LAW, scores, THRESHOLD)
    assert anomalies.number == 0
    assert anomalies.below(THRESHOLD) == 0
    assert pure_threshold(anomalies, scores, THRESHOLD) == THRESHOLD
    purity = estimate_purity(LAW, anomalies, scores, THRESHOLD, RATE)
    assert (purity.estimate, purity.lower) == (1.0, 1.0)


@pytest.mark.parametrize("centre", [12.0, 100.0])
def test_anomalies_far_beyond_the_threshold_let_none_pass(centre: float) -> None:
    for seed in range(5):
        scores = drawn(1000, 200, centre, 0.5, seed)
        anomalies = fit_anomalies(LAW, scores, THRESHOLD)
        assert pure_threshold(anomalies, scores, THRESHOLD) == THRESHOLD
        assert estimate_purity(LAW, anomalies, scores, THRESHOLD, RATE).estimate >= 0.99


def test_the_scores_that_clean_images_exceed_the_threshold_by_are_not_anomalies() -> None:
    numbers = [fit_anomalies(LAW, drawn(2000, 0, 0, 1, seed), THRESHOLD).number for seed in range(30)]
    # Of 2000 clean scores 40 lie beyond the threshold.
    assert np.mean(numbers) < 10


@pytest.mark.parametrize(("centre", "spread"), [(5.0, 0.8), (5.0, 1.5), (6.0, 1.0), (7.0, 1.5)])
def test_a_mixture_of_the_two_laws_is_estimated_within_its_sampling_error(centre: float, spread: float) -> None:
    found, planted = [], 200
    for seed in range(25):
        anomalies = fit_anomalies(LAW, drawn(2000, planted, centre, spread, seed), THRESHOLD)
        found.append((anomalies.number, anomalies.centre, anomalies.spread, anomalies.below(THRESHOLD)))
    number, middle, width, below = np.mean(found, axis=0)
    passing = planted * float(ndtr((THRESHOLD - centre) / spread))
    assert number == pytest.approx(planted, rel=0.15)
    assert middle == pytest.approx(centre, abs=0.25)
    assert width == pytest.approx(spread, rel=0.2)
    assert below == pytest.approx(passing, abs=max(5.0, 0.35 * passing))
    # From one sample to the next the number of anomalies varies as a count does, and as the overlap adds.
    assert np.std([one[0] for one in found]) < 3 * np.sqrt(planted)


@pytest.mark.parametrize("seed", range(5))
def test_anomalies_right_at_the_threshold_lower_the_pure_one(seed: int) -> None:
    scores = drawn(1000, 100, THRESHOLD + 0.3, 0.8, seed)
    anomalies = fit_anomalies(LAW, scores, THRESHOLD)
    pure = pure_threshold(anomalies, scores, THRESHOLD)
    assert 0.5 < pure < THRESHOLD
    is_bad = np.arange(1100) >= 1000
    assert (is_bad & (scores < pure)).sum() < (is_bad & (scores < THRESHOLD)).sum()
    assert (is_bad & (scores < pure)).sum() <= 0.03 * (scores < pure).sum()
    assert (
        estimate_purity(LAW, anomalies, scores, pure, RATE).estimate
        > estimate_purity(LAW, anomalies, scores, THRESHOLD, RATE).estimate
    )


def test_where_nothing_is_pure_there_is_no_threshold() -> None:
    scores = drawn(20, 0, 0, 1, 0)
    assert pure_threshold(Anomalies(1000.0, 0.0, 1.0), scores, THRESHOLD) == -np.inf
    purity = estimate_purity(LAW, Anomalies(1000.0, 0.0, 1.0), scores, -np.inf, RATE)
    assert 0 <= purity.lower <= purity.estimate <= 1


@given(
    number=st.floats(0.0, 200.0),
    centre=st.floats(-1.0, 10.0),
    spread=st.floats(0.1, 5.0),
    count=st.integers(1, 300),
    seed=st.integers(0, 100),
)
@settings(max_examples=100, deadline=None)
def test_the_pure_threshold_is_the_largest_that_keeps_few_enough_anomalies(
    number: float, centre: float, spread: float, count: int, seed: int
) -> None:
    scores, anomalies = drawn(count, 0, 0, 1, seed), Anomalies(number, centre, spread)
    pure = pure_threshold(anomalies, scores, THRESHOLD)
    assert pure <= THRESHOLD

    def keeps_few(threshold: float) -> bool:
        return bool(is_pure(anomalies.below(threshold), int((scores < threshold).sum())))

    if np.isfinite(pure):
        assert keeps_few(pure)
    above = np.append(scores[(scores > pure) & (scores < THRESHOLD)], THRESHOLD if pure < THRESHOLD else [])
    # The least of the scores keeps nothing.
    assert not any(keeps_few(score) for score in above if (scores < score).any())


def test_less_than_one_anomaly_is_chance_and_a_hundredth_of_many_images_is_not() -> None:
    assert is_pure(1.0, 30)
    assert not is_pure(1.01, 30)
    assert is_pure(4.0, 400)
    assert not is_pure(4.1, 400)


@given(
    clean=st.integers(10, 300),
    bad=st.integers(0, 100),
    centre=st.floats(-1.0, 20.0),
    spread=st.floats(0.1, 5.0),
    seed=st.integers(0, 100),
)
@settings(max_examples=100, deadline=None)
def test_the_lower_bound_is_a_bound_and_both_are_shares(
    clean: int, bad: int, centre: float, spread: float, seed: int
) -> None:
    scores = drawn(clean, bad, centre, spread, seed)
    law = fit_score_law(scores[:clean])
    threshold = law.threshold(RATE)
    anomalies = fit_anomalies(law, scores, threshold)
    assert 0 <= anomalies.number <= len(scores)
    assert anomalies.centre >= threshold or anomalies.number == 0
    assert anomalies.spread > 0
    pure = pure_threshold(anomalies, scores, threshold)
    for each in (threshold, pure):
        purity = estimate_purity(law, anomalies, scores, each, RATE)
        assert 0 <= purity.lower <= purity.estimate <= 1


@pytest.mark.parametrize("scores", [np.zeros(20), np.zeros(0), np.array([1.0])], ids=["equal", "none", "one"])
def test_scores_without_a_law_have_no_anomalies(scores: Array) -> None:
    law = ScoreLaw(0.0, 0.0)
    anomalies = fit_anomalies(law, scores, 0.0)
    assert anomalies.number == 0
    # Nothing lies below the threshold, so nothing is pure.
    assert pure_threshold(anomalies, scores, 0.0) == -np.inf


def test_scale_and_place_of_the_scores_do_not_matter() -> None:
    scores = drawn(500, 60, 4.5, 1.0, 3)
    one = fit_anomalies(LAW, scores, THRESHOLD)
    law = ScoreLaw(7.0, 0.05)
    other = fit_anomalies(law, 7.0 + 0.05 * scores, law.threshold(RATE))
    np.testing.assert_allclose(other.number, one.number, rtol=1e-6)
    np.testing.assert_allclose((other.centre - 7.0) / 0.05, one.centre, rtol=1e-6)
    np.testing.assert_allclose(other.spread / 0.05, one.spread, rtol=1e-6)


def test_scores_are_left_as_they_are_and_need_no_order() -> None:
    scores = drawn(300, 30, 4.5, 1.0, 5)
    kept, shuffled = scores.copy(), np.random.default_rng(0).permutation(scores)
    one, other = (fit_anomalies(LAW, each, THRESHOLD) for each in (scores, shuffled))
    assert other.number == pytest.approx(one.number)
    assert pure_threshold(one, scores, THRESHOLD) == pure_threshold(one, shuffled, THRESHOLD)
    np.testing.assert_array_equal(scores, kept)
