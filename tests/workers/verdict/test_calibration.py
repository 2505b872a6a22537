"""The threshold on image scores: calibrated on clean scores, blind to the upper tail."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.verdict.calibration import ScoreLaw, count_borderline, fit_score_law, gumbel_quantile, laws_of_quartiles


def test_the_law_of_gumbel_scores_is_recovered() -> None:
    law = fit_score_law(np.random.default_rng(0).gumbel(5.0, 0.3, 200_000))
    assert law.location == pytest.approx(5.0, abs=0.01)
    assert law.scale == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("false_reject", [0.2, 0.02, 0.005])
def test_clean_scores_exceed_the_threshold_at_the_chosen_rate(false_reject: float) -> None:
    scores = np.random.default_rng(1).gumbel(0.0, 1.0, 400_000)
    assert np.mean(scores >= fit_score_law(scores).threshold(false_reject)) == pytest.approx(false_reject, rel=0.1)


def test_the_largest_of_many_normal_values_are_rejected_no_more_often_than_asked() -> None:
    scores = np.random.default_rng(2).normal(size=(20_000, 196)).max(axis=1)
    assert np.mean(scores >= fit_score_law(scores).threshold(0.02)) < 0.025


def test_scores_above_the_median_do_not_move_the_threshold() -> None:
    scores = np.sort(np.random.default_rng(3).gumbel(size=101))
    moved = np.where(np.arange(101) > 50, scores + 100, scores)
    assert fit_score_law(moved) == fit_score_law(scores)


@pytest.mark.parametrize("images", [20, 50, 200])
def test_the_threshold_is_unbiased_and_varies_less_than_that_of_the_quartiles(images: int) -> None:
    scores = np.random.default_rng(7).gumbel(size=(2000, images))
    thresholds = np.array([fit_score_law(row).threshold(0.02) for row in scores])
    of_quartiles = laws_of_quartiles(*np.quantile(scores, [0.5, 0.25], axis=1)).threshold(0.02)
    assert thresholds.mean() == pytest.approx(gumbel_quantile(0.98), rel=0.03)
    assert thresholds.var() < 0.75 * of_quartiles.var()


@given(st.floats(0.001, 0.49), st.floats(0.001, 0.49))
def test_a_smaller_rate_is_a_higher_threshold(one: float, other: float) -> None:
    law = fit_score_law(np.arange(20.0))
    low, high = sorted((one, other))
    assert law.threshold(low) >= law.threshold(high)


def test_the_median_of_the_standard_law() -> None:
    assert gumbel_quantile(0.5) == pytest.approx(0.36651292)


@pytest.mark.parametrize("score", [-1.0, 0.0, 2.5])
def test_exceedance_is_the_inverse_of_the_threshold(score: float) -> None:
    law = ScoreLaw(0.3, 0.7)
    assert law.threshold(law.exceedance(score)) == pytest.approx(score)


def test_a_law_without_spread_exceeds_only_what_lies_below_it() -> None:
    law = fit_score_law(np.full(9, 2.0))
    assert (law.exceedance(1.9), law.exceedance(2.0), law.exceedance(2.1)) == (1.0, 0.0, 0.0)


def test_clean_scores_alone_have_no_borderline_images_too_many() -> None:
    scores = np.random.default_rng(5).gumbel(size=100_000)
    assert abs(count_borderline(ScoreLaw(0.0, 1.0), scores, 0.02)) < 200


def test_anomalies_just_above_the_threshold_are_counted_and_far_ones_are_not() -> None:
    scores, law = np.random.default_rng(6).gumbel(size=10_000), ScoreLaw(0.0, 1.0)
    threshold = law.threshold(0.02)
    alone = count_borderline(law, scores, 0.02)
    near, far = np.full(300, threshold + 0.5), np.full(300, 3 * threshold)
    assert count_borderline(law, np.concatenate([scores, near]), 0.02) == pytest.approx(alone + 300)
    assert count_borderline(law, np.concatenate([scores, far]), 0.02) == pytest.approx(alone)


def test_several_laws_at_once_have_the_quartiles_they_were_made_of() -> None:
    median, quartile = np.array([0.0, 5.0, -3.0]), np.array([-1.0, 4.5, -3.0])
    laws = laws_of_quartiles(median, quartile)
    np.testing.assert_allclose(laws.threshold(0.5), median, atol=1e-12)
    np.testing.assert_allclose(laws.threshold(0.75), quartile, atol=1e-8)
    assert (laws.scale > 0).all()  # of equal scores, too


def test_several_laws_at_once_have_the_thresholds_of_each() -> None:
    laws = laws_of_quartiles(np.array([0.0, 5.0]), np.array([-1.0, 4.5]))
    each = [ScoreLaw(*pair).threshold(0.02) for pair in zip(laws.location.tolist(), laws.scale.tolist(), strict=True)]
    assert laws.threshold(0.02).tolist() == each
