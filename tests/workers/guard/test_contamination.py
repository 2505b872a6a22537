"""The share of contamination and its interval: true, wide enough, and blind to how cautious the clean set was."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.arrays import Mask
from workers.guard.contamination import Contamination, estimate_contamination, fit_and_estimate

REPEATS = 10


def planted(
    rng: np.random.Generator, images: int, share: float, *, gap: float = 4.0
) -> tuple[NDArray[np.float64], int]:
    """Return scores of good images (Gumbel) followed by bad ones, and how many are good."""
    bad = round(share * images)
    good = rng.gumbel(3.0, 0.15, images - bad)
    return np.concatenate([good, 3.0 + 0.15 * rng.uniform(gap, 12.0, bad)]), images - bad


def clean_set(scores: NDArray[np.float64], good: int, kind: str, rng: np.random.Generator) -> NDArray[np.bool_]:
    clean = np.arange(len(scores)) < good
    if kind == "better half":
        return clean & (scores < np.median(scores[:good]))
    if kind == "random half":
        return clean & (rng.random(len(scores)) < 0.5)
    return clean


@pytest.mark.parametrize("kind", ["all good", "better half", "random half"])
@pytest.mark.parametrize(("images", "share"), [(50, 0.0), (100, 0.1), (200, 0.3), (400, 0.45), (1500, 0.2)])
def test_the_interval_covers_the_planted_share(kind: str, images: int, share: float) -> None:
    covered = 0
    for seed in range(REPEATS):
        rng = np.random.default_rng(seed)
        scores, good = planted(rng, images, share)
        found = estimate_contamination(scores, clean_set(scores, good, kind, rng))
        covered += found.lower <= share <= found.upper
    assert covered >= REPEATS - 1


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.45])
def test_a_thousand_images_estimate_the_share_to_a_few_per_cent(share: float) -> None:
    scores, good = planted(np.random.default_rng(1), 1000, share)
    found = estimate_contamination(scores, np.arange(1000) < good)
    assert found.share == pytest.approx(share, abs=0.03)
    assert found.upper - found.lower < 0.2


def test_a_cautious_clean_set_gives_the_estimate_of_a_complete_one() -> None:
    rng = np.random.default_rng(2)
    scores, good = planted(rng, 500, 0.2)
    complete, cautious = (
        estimate_contamination(scores, clean_set(scores, good, kind, rng)) for kind in ("all good", "better half")
    )
    assert cautious.share == pytest.approx(complete.share, abs=0.01)


def test_a_law_that_is_not_gumbels_is_covered() -> None:
    rng = np.random.default_rng(3)
    good = (rng.normal(size=(3600, 196)) + rng.normal(size=(3600, 1))).max(axis=1)
    scores = np.concatenate([good, rng.uniform(12, 30, 400)])
    found = estimate_contamination(scores, np.arange(4000) < 3600)
    assert found.lower <= 0.1 <= found.upper


def test_more_images_give_a_narrower_interval() -> None:
    widths = []
    for images in (60, 600):
        found = [
            estimate_contamination(scores, np.arange(images) < good)
            for scores, good in (planted(np.random.default_rng(seed), images, 0.2) for seed in range(REPEATS))
        ]
        widths.append(np.mean([one.upper - one.lower for one in found]))
    assert widths[0] > 2 * widths[1]


def test_images_that_take_no_part_change_nothing() -> None:
    scores, good = planted(np.random.default_rng(5), 120, 0.1)
    clean = np.arange(120) < good
    absent = np.concatenate([[np.nan], scores, [np.nan]])
    assert estimate_contamination(absent, np.concatenate([[False], clean, [True]])) == estimate_contamination(
        scores, clean
    )


def test_the_order_of_images_and_a_second_call_change_nothing() -> None:
    scores, good = planted(np.random.default_rng(6), 120, 0.1)
    clean = np.arange(120) < good
    order = np.random.default_rng(7).permutation(120)
    assert estimate_contamination(scores, clean) == estimate_contamination(scores[order], clean[order])


def test_equal_scores_have_no_contamination() -> None:
    found = estimate_contamination(np.full(50, 2.0), np.ones(50, bool))
    assert (found.share, found.lower, found.upper) == (0.0, 0.0, 0.0)


def test_one_image_off_equal_scores_is_counted() -> None:
    found = estimate_contamination(np.array([2.0] * 49 + [3.0]), np.arange(50) < 49)
    assert found.lower <= 0.02 <= found.upper < 0.15


@pytest.mark.parametrize("images", [0, 1, 3])
def test_too_few_clean_images_leave_everything_open(images: int) -> None:
    found = estimate_contamination(np.arange(float(images)), np.ones(images, bool))
    assert found == Contamination(0.0, 0.0, 1.0, images, None)


def test_arguments_are_left_as_they_are() -> None:
    scores, good = planted(np.random.default_rng(8), 60, 0.1)
    clean = np.arange(60) < good
    scores.flags.writeable = clean.flags.writeable = False
    assert estimate_contamination(scores, clean).images == 60


@pytest.mark.parametrize("false_reject", [0.0, 0.25, 1.0])
def test_a_rate_that_leaves_nothing_to_fit_is_refused(false_reject: float) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 0\.25"):
        estimate_contamination(np.arange(9.0), np.ones(9, bool), false_reject=false_reject)


def test_scores_and_clean_set_of_different_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        estimate_contamination(np.arange(9.0), np.ones(8, bool))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=40), st.integers(0, 2**31))
def test_any_scores_give_an_interval_around_the_share(values: list[float], seed: int) -> None:
    scores = np.array(values)
    found = estimate_contamination(scores, np.random.default_rng(seed).random(len(scores)) < 0.7)
    assert 0.0 <= found.lower <= found.share <= found.upper <= 1.0


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 100), st.floats(-50, 50))
def test_the_scale_of_scores_does_not_matter(scale: float, shift: float) -> None:
    scores, good = planted(np.random.default_rng(9), 80, 0.2)
    clean = np.arange(80) < good
    moved, found = estimate_contamination(scores * scale + shift, clean), estimate_contamination(scores, clean)
    assert (moved.share, moved.lower, moved.upper) == pytest.approx((found.share, found.lower, found.upper), abs=0.02)


class Fits:
    """Scores of images that are far off a fit that lacks their kind; remembers what was fitted."""

    def __init__(self, good: int, bad: int) -> None:
        rng = np.random.default_rng(10)
        self._scores, self._is_variant = rng.gumbel(3.0, 0.15, good + bad), np.zeros(good + bad, bool)
        self._scores[good:] += 2.0
        # Rare good variants: a fit on too few of them leaves them off, though not far.
        self._is_variant[good // 2 : good] = True
        self.fitted: list[Mask] = []

    def __call__(self, fitted: Mask) -> NDArray[np.float64]:
        self.fitted.append(fitted)
        return self._scores + np.where(self._is_variant & (fitted & self._is_variant).sum() < 5, 0.2, 0.0)


def test_the_estimate_from_a_cautious_clean_set_is_that_from_all_that_follows_its_law() -> None:
    cautious, complete = Fits(160, 40), Fits(160, 40)
    found = fit_and_estimate(cautious, np.arange(200) < 80)
    assert found == fit_and_estimate(complete, cautious.fitted[1])
    assert found is not None
    assert found.lower <= 0.2 <= found.upper
    assert found.upper < fit_upper(np.arange(200) < 80)
    assert len(cautious.fitted) == 2


def fit_upper(clean: Mask) -> float:
    """Return the upper end of the interval under the fit on the clean set alone."""
    return estimate_contamination(Fits(160, 40)(clean), clean).upper


def test_a_clean_set_that_is_all_that_follows_its_law_is_fitted_once() -> None:
    settled = Fits(100, 0)
    scores = settled(np.ones(100, bool))
    law = estimate_contamination(scores, np.ones(100, bool)).law
    assert law is not None
    settled.fitted.clear()
    below = scores < law.threshold(0.02)
    assert fit_and_estimate(settled, below) == estimate_contamination(scores, below)
    assert len(settled.fitted) == 1


def test_a_clean_set_that_leaves_all_others_beyond_its_law_is_replaced_by_the_better_half() -> None:
    scores, few = np.random.default_rng(12).gumbel(3.0, 0.15, 200), np.arange(200) < 10
    fitted: list[Mask] = []

    def score(images: Mask) -> NDArray[np.float64]:
        fitted.append(images)
        # A fit on a few knows nothing but these.
        return scores + np.where(images, 0.0, 5.0 if images.sum() < 20 else 0.0)

    found = fit_and_estimate(score, few)
    assert found is not None
    assert found.lower <= 0.0 <= found.upper < 0.5
    assert estimate_contamination(score(few), few).share > 0.9
    assert fitted[1].sum() == 100
    assert (fitted[1] & few).sum() == 10


def test_hardly_any_clean_images_are_not_fitted() -> None:
    fits = Fits(20, 0)
    assert fit_and_estimate(fits, np.arange(20) < 3) is None
    assert fits.fitted == []
