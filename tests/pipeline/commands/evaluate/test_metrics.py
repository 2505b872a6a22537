"""Metrics against literal versions of their definitions, on arrays small enough to count by hand."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.commands.evaluate.metrics import (
    AUPRO_LIMIT,
    CleanCounts,
    Curve,
    PixelCounts,
    aupro,
    average_precision,
    count_pixels,
    image_auroc,
    merge_pixels,
    pixel_auroc,
    precision_recall,
    pro_curve,
    quantile_thresholds,
    roc,
)

Floats = NDArray[np.float64]
Maps = NDArray[np.float32]
Mask = NDArray[np.bool_]

seeds = st.integers(0, 2**32 - 1)


def frozen(values: NDArray[Any]) -> NDArray[Any]:
    values.flags.writeable = False
    return values


@st.composite
def rankings(draw: st.DrawFn) -> tuple[Mask, Floats]:
    """Draw truth and scores (images,) with ties, both classes present."""
    truth = np.array(draw(st.lists(st.booleans(), min_size=2, max_size=30)))
    assume(truth.any() and not truth.all())
    rng = np.random.default_rng(draw(seeds))
    return frozen(truth), frozen(rng.integers(0, draw(st.sampled_from([2, 5, 1000])), len(truth)).astype(float))


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Maps, Mask]:
    """Draw scores and masks (images, height, width), with ties and with regions that touch only at corners."""
    rng = np.random.default_rng(draw(seeds))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    masks = rng.random(shape) < draw(st.sampled_from([0.1, 0.3, 0.6]))
    assume(masks.any() and not masks.all())
    levels = draw(st.sampled_from([1, 3, 10, 10_000]))
    scores = (rng.integers(0, levels, shape) + draw(st.sampled_from([0, 1, 3])) * masks).astype(np.float32)
    return frozen(scores), frozen(masks)


def counted(scores: Maps, masks: Mask, thresholds: NDArray[np.float32] | None = None) -> PixelCounts:
    """Count all images; at every different score unless thresholds are given."""
    levels = frozen(np.unique(scores) if thresholds is None else thresholds)
    counts = PixelCounts.empty(levels)
    for image, mask in zip(scores, masks, strict=True):
        counts = merge_pixels(counts, count_pixels(image, mask, levels))
    return counts


def literal_regions(mask: Mask) -> list[list[tuple[int, int]]]:
    """Return the pixels of each region, found by walking from pixel to pixel in all eight directions."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    regions = []
    while left:
        region, edge = [], [left.pop()]
        while edge:
            row, column = edge.pop()
            region.append((row, column))
            near = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= near
            edge += near
        regions.append(region)
    return regions


def literal_aupro(scores: Maps, masks: Mask, limit: float) -> float:
    """Return AUPRO by its definition: every threshold, every region, one trapezoid after another."""
    regions = [(image, region) for image, mask in zip(scores, masks, strict=True) for region in literal_regions(mask)]
    points = [(0.0, 0.0)]
    for threshold in sorted({float(score) for score in scores.ravel()}, reverse=True):
        shares = [sum(image[place] >= threshold for place in region) / len(region) for image, region in regions]
        points.append((float((scores[~masks] >= threshold).mean()), float(np.mean(shares))))
    area = 0.0
    for (x, y), (next_x, next_y) in pairwise(points):
        if x >= limit or next_x == x:
            continue
        end = min(next_x, limit)
        end_y = y + (next_y - y) * (end - x) / (next_x - x)
        area += (end - x) * (y + end_y) / 2
    return area / limit


@given(ranking=rankings())
@settings(deadline=None)
def test_auroc_is_the_chance_that_an_anomalous_image_scores_higher_with_ties_as_halves(
    ranking: tuple[Mask, Floats],
) -> None:
    truth, scores = ranking
    differences = scores[truth][:, np.newaxis] - scores[~truth]
    assert image_auroc(truth, scores) == pytest.approx(float(((np.sign(differences) + 1) / 2).mean()))


@given(ranking=rankings())
@settings(deadline=None)
def test_average_precision_is_scikit_learns(ranking: tuple[Mask, Floats]) -> None:
    assert average_precision(*ranking) == pytest.approx(average_precision_score(*ranking))


@given(ranking=rankings())
@settings(deadline=None)
def test_ranking_metrics_see_the_order_of_scores_only(ranking: tuple[Mask, Floats]) -> None:
    truth, scores = ranking
    stretched = np.exp(scores / 10)
    stretched[scores == scores.max()] = np.inf
    assert image_auroc(truth, stretched) == image_auroc(truth, scores)
    assert average_precision(truth, stretched) == average_precision(truth, scores)


@given(ranking=rankings())
@settings(deadline=None)
def test_the_area_under_the_roc_curve_is_the_auroc(ranking: tuple[Mask, Floats]) -> None:
    curve = roc(*ranking)
    assert curve is not None
    assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
    area = sum((b - a) * (c + d) / 2 for (a, b), (c, d) in zip(pairwise(curve.x), pairwise(curve.y), strict=True))
    assert area == pytest.approx(image_auroc(*ranking))


def test_precision_recall_runs_from_finding_all_to_finding_none() -> None:
    curve = precision_recall(np.array([False, True, False, True]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert curve is not None
    assert curve.x.tolist() == [1.0, 1.0, 0.5, 0.5, 0.0]
    assert curve.y.tolist() == [0.5, 2 / 3, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("truth", [[], [True], [False, False], [True, True, True]])
def test_ranking_metrics_are_undefined_with_one_class(truth: list[bool]) -> None:
    of_one_class, scores = np.array(truth, dtype=bool), np.arange(len(truth), dtype=float)
    for metric in (image_auroc, average_precision, roc, precision_recall):
        assert metric(of_one_class, scores) is None


def test_purity_kept_share_and_recall_of_a_clean_set() -> None:
    is_anomalous = np.array([True] * 4 + [False] * 10)
    is_clean = np.array([True, False, False, False] + [True] * 7 + [False] * 3)
    counts = CleanCounts.of(frozen(is_anomalous), frozen(is_clean))
    assert counts == CleanCounts(normal=10, anomalous=4, clean_normal=7, clean_anomalous=1)
    assert (counts.purity, counts.kept_share, counts.recall) == (7 / 8, 0.7, 0.75)


@pytest.mark.parametrize(
    ("counts", "purity", "kept_share", "recall"),
    [
        (CleanCounts(normal=5, anomalous=2), None, 0.0, 1.0),
        (CleanCounts(normal=5, clean_normal=5), 1.0, 1.0, None),
        (CleanCounts(anomalous=3, clean_anomalous=3), 0.0, None, 0.0),
        (CleanCounts(), None, None, None),
    ],
)
def test_a_share_of_nothing_is_undefined(
    counts: CleanCounts, purity: float | None, kept_share: float | None, recall: float | None
) -> None:
    assert (counts.purity, counts.kept_share, counts.recall) == (purity, kept_share, recall)


@given(truth=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40), cut=st.integers(0, 40))
def test_counts_of_parts_add_up_to_the_counts_of_the_whole(truth: list[tuple[bool, bool]], cut: int) -> None:
    values = np.array(truth, dtype=bool).reshape(-1, 2)
    parts = (CleanCounts.of(part[:, 0], part[:, 1]) for part in (values[:cut], values[cut:]))
    assert sum(parts, CleanCounts()) == CleanCounts.of(values[:, 0], values[:, 1])


@given(picture=pictures(), limit=st.sampled_from([0.05, AUPRO_LIMIT, 0.7, 1.0]))
@settings(max_examples=50, deadline=None)
def test_aupro_is_its_literal_definition_when_every_score_is_a_threshold(
    picture: tuple[Maps, Mask], limit: float
) -> None:
    assert aupro(counted(*picture), limit) == pytest.approx(literal_aupro(*picture, limit), abs=1e-9)


@given(picture=pictures())
@settings(deadline=None)
def test_pixel_auroc_is_scikit_learns_when_every_score_is_a_threshold(picture: tuple[Maps, Mask]) -> None:
    scores, masks = picture
    assert pixel_auroc(counted(scores, masks)) == pytest.approx(roc_auc_score(masks.ravel(), scores.ravel()))


@given(picture=pictures(), thresholds=st.integers(1, 12))
@settings(deadline=None)
def test_few_thresholds_cost_no_more_than_the_pairs_between_two_of_them(
    picture: tuple[Maps, Mask], thresholds: int
) -> None:
    scores, masks = picture
    counts = counted(scores, masks, quantile_thresholds(scores, thresholds))
    exact = roc_auc_score(masks.ravel(), scores.ravel())
    place = np.searchsorted(counts.thresholds, scores.ravel(), side="right")
    normal, anomalous = (
        np.bincount(place[of_class], minlength=place.max() + 1) / of_class.sum()
        for of_class in (~masks.ravel(), masks.ravel())
    )
    found = pixel_auroc(counts)
    assert found is not None
    assert abs(found - exact) <= (normal * anomalous).sum() / 2 + 1e-9


def test_quantiles_of_many_pixels_give_the_exact_figures_to_three_digits() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 80, 80), dtype=bool)
    masks[0, 10:30, 20:25], masks[2, 50:60, 50:70], masks[2, 5:9, 5:9] = True, True, True
    # Half of the images near 15 and the others thousands of times farther, as fitted and unfitted ones are.
    scales = np.array([1, 1, 1, 3000, 3000, 3000]).reshape(-1, 1, 1)
    scores = (scales * (15 + rng.normal(0, 0.01, masks.shape) + 0.02 * masks)).astype(np.float32)
    rough, exact = counted(scores, masks, quantile_thresholds(scores)), counted(scores, masks)
    assert len(rough.thresholds) < len(exact.thresholds)
    assert pixel_auroc(rough) == pytest.approx(pixel_auroc(exact), abs=1e-3)
    assert aupro(rough) == pytest.approx(aupro(exact), abs=1e-3)


@given(picture=pictures(), cut=st.integers(0, 4))
@settings(deadline=None)
def test_counts_of_images_do_not_depend_on_how_they_are_grouped(picture: tuple[Maps, Mask], cut: int) -> None:
    scores, masks = picture
    levels = np.unique(scores)
    merged = merge_pixels(counted(scores[:cut], masks[:cut], levels), counted(scores[cut:], masks[cut:], levels))
    whole = counted(scores, masks)
    assert (merged.normal, merged.anomalous, merged.regions, merged.images) == (
        int((~masks).sum()),
        int(masks.sum()),
        sum(len(literal_regions(mask)) for mask in masks),
        len(scores),
    )
    np.testing.assert_array_equal(merged.normal_above, whole.normal_above)
    np.testing.assert_array_equal(merged.anomalous_above, whole.anomalous_above)
    np.testing.assert_allclose(merged.overlap_above, whole.overlap_above)


def test_small_regions_weigh_as_much_as_large_ones() -> None:
    mask = np.zeros((1, 20, 20), dtype=bool)
    mask[0, :10], mask[0, 15, 15] = True, True
    scores = np.zeros(mask.shape, np.float32)
    scores[0, 15, 15] = 1  # only the region of one pixel is found
    assert pixel_auroc(counted(scores, mask)) == pytest.approx(0.5, abs=0.01)
    curve = pro_curve(counted(scores, mask))
    assert curve is not None
    assert curve.y[curve.x == 0].max() == 0.5


def test_a_perfect_map_has_aupro_1_an_inverted_one_0_and_a_constant_one_the_area_of_a_straight_line() -> None:
    mask = np.zeros((2, 8, 8), dtype=bool)
    mask[0, 2:4, 2:4] = mask[1, 6:, 6:] = True
    assert aupro(counted(mask.astype(np.float32), mask)) == pytest.approx(1)
    # The inverted map finds the first region pixel after all normal ones, beyond the limit.
    assert aupro(counted(-mask.astype(np.float32), mask)) == pytest.approx(0)
    assert aupro(counted(np.zeros(mask.shape, np.float32), mask)) == pytest.approx(AUPRO_LIMIT / 2)


@given(picture=pictures(), limit=st.sampled_from([0.1, AUPRO_LIMIT, 1.0]))
@settings(deadline=None)
def test_the_overlap_curve_rises_from_the_origin_to_the_limit(picture: tuple[Maps, Mask], limit: float) -> None:
    curve = pro_curve(counted(*picture), limit)
    assert curve is not None
    assert (curve.x[0], curve.y[0], curve.x[-1]) == (0, 0, limit)
    assert (np.diff(curve.x) >= 0).all()
    assert (np.diff(curve.y) >= -1e-12).all()


@pytest.mark.parametrize("fill", [False, True])
def test_pixel_metrics_are_undefined_with_one_class(fill: bool) -> None:
    counts = counted(np.ones((2, 3, 3), np.float32), np.full((2, 3, 3), fill))
    assert pixel_auroc(counts) is None
    assert aupro(counts) is None
    assert pro_curve(counts) is None


def test_pixel_metrics_of_no_image_are_undefined() -> None:
    counts = PixelCounts.empty(quantile_thresholds(np.empty(0)))
    assert (pixel_auroc(counts), aupro(counts), counts.images) == (None, None, 0)


@given(seed=seeds, count=st.integers(1, 50))
@settings(deadline=None)
def test_quantile_thresholds_ascend_and_span_the_finite_sample(seed: int, count: int) -> None:
    sample = np.random.default_rng(seed).lognormal(3, 5, 40)
    sample[:3] = np.nan, np.inf, sample[4]
    thresholds = quantile_thresholds(frozen(sample), count)
    assert (np.diff(thresholds) > 0).all()
    assert len(thresholds) <= count
    assert thresholds[0] == np.float32(np.nanmin(sample))
    if count > 1:
        assert thresholds[-1] == np.float32(sample[np.isfinite(sample)].max())


@given(seed=seeds, points=st.integers(2, 30))
@settings(deadline=None)
def test_a_thinned_curve_keeps_its_ends_and_has_only_points_of_the_curve(seed: int, points: int) -> None:
    rng = np.random.default_rng(seed)
    curve = Curve(np.sort(rng.random(100)), np.sort(rng.random(100)))
    thinned = curve.thinned(points)
    assert len(thinned.x) <= points
    assert set(zip(thinned.x, thinned.y, strict=True)) <= set(zip(curve.x, curve.y, strict=True))
    assert (thinned.x[0], thinned.x[-1]) == (curve.x[0], curve.x[-1])


def test_thinning_keeps_the_steep_part_of_a_curve() -> None:
    steep = Curve(
        np.r_[np.linspace(0, 0.001, 50), np.linspace(0.01, 1, 950)], np.r_[np.linspace(0, 1, 50), np.ones(950)]
    )
    thinned = steep.thinned(40)
    assert (thinned.y < 1).sum() >= 15


def test_a_short_curve_is_not_thinned() -> None:
    curve = Curve(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert curve.thinned(2) is curve
