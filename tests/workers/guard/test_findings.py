"""The breakdown guard: every condition on a constructed case, silence on groups that can be trusted."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.config import TrimConfig
from workers.features.arrays import ArrayRef, Segment
from workers.guard.contamination import Contamination, estimate_contamination
from workers.guard.findings import (
    Exclusions,
    Finding,
    count_exclusions,
    count_segment,
    examine,
    excuse_small_groups,
    false_reject_range,
    is_blind,
    misses_defects,
    near_half,
    not_judged,
    positions_disagree,
    several_kinds,
    too_few,
    unaligned,
    with_finding,
)
from workers.guard.structure import Structure, describe_structure, gram
from workers.storage.directory import Directory
from workers.trust.recall import Share
from workers.verdict.calibration import ScoreLaw, laws_of_quartiles
from workers.verdict.threshold import position_threshold

NO_EXCLUSIONS = Exclusions(200, np.zeros((4, 4), np.int64), 0)


def contaminated(share: float, lower: float, upper: float) -> Contamination:
    return Contamination(share, lower, upper, 200, ScoreLaw(0.0, 1.0))


def structured(**changes: float) -> Structure:
    """Return an unsuspicious structure with some figures changed."""
    usual = {"images": 200, "leading": 3, "share": 0.3, "kurtosis": 1.0, "tightness": 0.64, "between": 0.1}
    return Structure(**{**usual, "minority": 0.5, "kept_minority": 0.5, **changes})  # type: ignore[arg-type]


def conditions(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.condition for finding in findings]


def judge(scores: NDArray[np.float64], clean: NDArray[np.bool_], structure: Structure | None = None) -> list[str]:
    found = examine(
        estimate_contamination(scores, clean),
        Exclusions(len(scores), np.zeros((4, 4), np.int64), int((~clean).sum())),
        structure,
        kept=int(clean.sum()),
        false_reject=0.02,
        min_clean_fraction=0.1,
    )
    return conditions(found)


@pytest.mark.parametrize(("share", "is_found"), [(0.0, False), (0.15, False), (0.3, False), (0.45, True), (0.6, True)])
def test_contamination_near_half_is_found_and_less_is_not(share: float, is_found: bool) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        bad = round(share * 200)
        scores = np.concatenate([rng.gumbel(3, 0.15, 200 - bad), rng.uniform(4, 6, bad)])
        assert judge(scores, np.arange(200) < 200 - bad) == (["contamination"] if is_found else [])


def test_the_sentence_on_contamination_names_estimate_interval_limit_and_remedy() -> None:
    found = near_half(contaminated(0.44, 0.37, 0.53))
    assert found is not None
    assert found.stops
    for part in ("44%", "37% to 53%", "below 40%", "--group-by"):
        assert part in found.sentence


@pytest.mark.parametrize(
    ("share", "upper", "stops"), [(0.39, 0.49, None), (0.39, 0.5, False), (0.4, 0.45, True), (0.4, 0.6, True)]
)
def test_an_estimate_near_half_stops_and_a_wide_interval_warns(share: float, upper: float, stops: bool | None) -> None:
    found = near_half(contaminated(share, 0.3, upper))
    assert (found and found.stops) == stops


def test_an_interval_without_a_law_is_left_to_the_condition_on_the_number_of_images() -> None:
    assert near_half(Contamination(0.0, 0.0, 1.0, 3, None)) is None


def trimmed_positions(distances: NDArray[np.float64]) -> Exclusions:
    """Return what the paper's thresholds exclude at each position."""
    flat = distances.reshape(len(distances), -1)
    thresholds = [position_threshold(column, TrimConfig(), fitted=100, is_first=False) for column in flat.T]
    return count_exclusions(distances, np.array(thresholds).reshape(distances.shape[1:]), smoothing=1)


def spoilt(images: int, per_position: int, *, same: bool) -> NDArray[np.float64]:
    """Return distances (images, 10, 10) where each position has some far ones, of the same images or of any."""
    rng = np.random.default_rng(0)
    distances = rng.normal(15, 0.5, (images, 10, 10))
    for row, column in np.ndindex(10, 10):
        chosen = np.arange(per_position) if same else rng.choice(images, per_position, replace=False)
        distances[chosen, row, column] = rng.uniform(100, 400, per_position)
    return distances


def test_positions_that_exclude_other_images_each_disagree() -> None:
    exclusions = trimmed_positions(spoilt(200, 10, same=False))
    found = positions_disagree(exclusions, min_clean_fraction=0.1)
    assert found is not None
    assert found.stops
    assert "median position excludes 5%" in found.sentence
    assert "--set trim.strategy=grow" in found.sentence


def test_positions_that_exclude_the_same_images_agree() -> None:
    exclusions = trimmed_positions(spoilt(200, 10, same=True))
    assert exclusions.by_any == 10
    assert positions_disagree(exclusions, min_clean_fraction=0.1) is None


def test_images_that_every_position_excludes_are_contamination_and_no_disagreement() -> None:
    everywhere = Exclusions(100, np.full((4, 4), 95), 95)
    assert positions_disagree(everywhere, min_clean_fraction=0.1) is None


def test_exclusions_of_segments_add_up() -> None:
    distances = np.random.default_rng(1).gamma(3, size=(50, 6, 6))
    thresholds = np.full((6, 6), 3.5)
    thresholds[0, 0] = np.inf
    whole = count_exclusions(distances, thresholds, smoothing=3)
    parts = count_exclusions(distances[:20], thresholds, smoothing=3) + count_exclusions(
        distances[20:], thresholds, smoothing=3
    )
    np.testing.assert_array_equal(parts.by_position, whole.by_position)
    assert (parts.images, parts.by_any) == (whole.images, whole.by_any)
    assert whole.by_any > 0
    assert whole.by_position[0, 0] == 0


def test_a_segment_counts_its_images_that_take_part(tmp_path: Path) -> None:
    distances = np.random.default_rng(1).gamma(3, size=(20, 4, 4))
    distances[3] = np.nan
    zarr.open_group(str(tmp_path), mode="w").create_array("distance", data=distances, chunks=(5, 1, 4))
    stored, thresholds = ArrayRef(Directory.at(tmp_path), "", "distance"), np.full((4, 4), 3.5)
    mask = np.arange(2, 12) != 3
    found = count_segment(stored, Segment(2, 12, mask), thresholds, smoothing=3)
    expected = count_exclusions(distances[2:12][mask], thresholds, smoothing=3)
    assert (found.images, found.by_any) == (9, expected.by_any)
    np.testing.assert_array_equal(found.by_position, expected.by_position)


def test_no_images_exclude_nothing() -> None:
    assert positions_disagree(Exclusions(0, np.zeros((2, 2), np.int64), 0), min_clean_fraction=0.1) is None


@pytest.mark.parametrize(
    ("minority", "kept_minority", "stops"),
    [(0.4, 0.4, True), (0.2, 0.0, True), (0.15, 0.0, False), (0.15, 0.1, True), (0.05, 0.0, None)],
)
def test_a_second_kind_stops_when_it_is_large_or_kept(
    minority: float, kept_minority: float, stops: bool | None
) -> None:
    found = several_kinds(
        structured(leading=1, share=0.9, tightness=0.98, between=0.88, minority=minority, kept_minority=kept_minority)
    )
    assert (found and found.stops) == stops


@pytest.mark.parametrize("changes", [{"tightness": 0.76, "between": 0.6}, {"tightness": 0.98, "between": 0.4}])
def test_drift_and_a_small_difference_are_no_two_kinds(changes: dict[str, float]) -> None:
    assert several_kinds(structured(leading=1, share=0.8, **changes)) is None


@pytest.mark.parametrize(
    ("share", "kurtosis", "is_found"), [(0.7, 0.05, True), (0.7, 0.4, False), (0.3, 0.05, False), (0.7, 1.0, False)]
)
def test_a_ring_that_carries_the_variance_is_found(share: float, kurtosis: float, is_found: bool) -> None:
    found = unaligned(structured(leading=2, share=share, kurtosis=kurtosis))
    assert (found is not None) == is_found


def test_parts_turned_freely_are_found_from_their_features() -> None:
    rng = np.random.default_rng(2)
    angle = rng.uniform(0, 2 * np.pi, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    values = np.einsum("nk,kpc->npc", circle, rng.normal(size=(2, 9, 8))) + 0.2 * rng.normal(size=(100, 9, 8))
    structure = describe_structure(gram(values), np.ones(100, bool))
    assert judge(rng.gumbel(3, 0.1, 100), np.ones(100, bool), structure) == ["poses"]


def test_two_products_are_named_once() -> None:
    values = np.random.default_rng(3).normal(size=(100, 9, 8))
    values[::2] += 5
    structure = describe_structure(gram(values), np.ones(100, bool))
    assert judge(np.random.default_rng(3).gumbel(3, 0.1, 100), np.ones(100, bool), structure) == ["kinds"]


@pytest.mark.parametrize("seed", range(5))
def test_noise_defects_and_drift_are_left_in_peace(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clean = np.arange(150) < 120
    values = rng.normal(size=(150, 16, 8)) + 2.0 * np.linspace(-1, 1, 150)[rng.permutation(150), None, None]
    values[~clean, rng.integers(0, 16, 30)] += 8 * rng.normal(size=(30, 8))
    scores = np.where(clean, rng.gumbel(3, 0.1, 150), rng.uniform(4, 6, 150))
    assert judge(scores, clean, describe_structure(gram(values), clean)) == []


@pytest.mark.parametrize(
    ("images", "stops"), [(5, True), (19, True), (20, False), (38, False), (39, None), (200, None)]
)
def test_few_clean_images_stop_then_warn_then_suffice(images: int, stops: bool | None) -> None:
    found = too_few(images, false_reject=0.02)
    assert (found and found.stops) == stops


def test_the_sentence_on_few_images_says_how_many_are_needed_and_that_many_suffice() -> None:
    found = too_few(12, false_reject=0.02)
    assert found is not None
    needed = int(found.sentence.split("; ")[1].split()[0])
    enough = too_few(needed, false_reject=0.02)
    assert enough is None or not enough.stops


@pytest.mark.parametrize("images", [50, 400])
def test_the_range_of_the_rate_is_that_of_simulated_laws(images: int) -> None:
    rng = np.random.default_rng(4)
    laws = laws_of_quartiles(*np.quantile(rng.gumbel(size=(2000, images)), [0.5, 0.25], axis=1))
    # In the tail the rate falls as exp(-threshold).
    spread = np.std(laws.threshold(0.02))
    assert np.log(false_reject_range(images, 0.02)) == pytest.approx(1.96 * spread, rel=0.15)


def test_nothing_else_is_said_of_too_few_images() -> None:
    few = Exclusions(12, np.zeros((4, 4), np.int64), 12)
    found = examine(contaminated(0.2, 0.0, 0.6), few, None, kept=8, false_reject=0.02, min_clean_fraction=0.1)
    assert [(finding.condition, finding.stops) for finding in found] == [("images", True)]


def test_little_kept_of_a_group_that_is_not_small_is_a_warning_beside_others() -> None:
    found = examine(contaminated(0.2, 0.0, 0.6), NO_EXCLUSIONS, None, kept=8, false_reject=0.02, min_clean_fraction=0.1)
    assert [(finding.condition, finding.stops) for finding in found] == [("images", False), ("contamination", False)]


def test_what_stops_comes_first() -> None:
    found = examine(
        contaminated(0.5, 0.4, 0.6), NO_EXCLUSIONS, None, kept=30, false_reject=0.02, min_clean_fraction=0.1
    )
    assert [(finding.condition, finding.stops) for finding in found] == [("contamination", True), ("images", False)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 10_000), st.integers(1, 10_000), st.floats(0.001, 0.2))
def test_more_images_know_the_rate_better(one: int, other: int, false_reject: float) -> None:
    few, many = sorted((one, other))
    assert false_reject_range(many, false_reject) <= false_reject_range(few, false_reject)


def test_without_an_estimate_the_other_conditions_remain() -> None:
    everywhere = Exclusions(200, np.ones((4, 4), np.int64), 197)
    found = examine(None, everywhere, None, kept=3, false_reject=0.02, min_clean_fraction=0.1)
    assert [(finding.condition, finding.stops) for finding in found] == [("positions", True), ("images", False)]


# --- what is seen of planted defects


def missed(planted: int, seen: int, *, run_is_blind: bool = False) -> bool | None:
    """Return whether missed defects stop the run; None if nothing is found."""
    share = Share.counted(seen, planted)
    found = misses_defects(planted, seen, low=share.low, high=share.high, run_is_blind=run_is_blind)
    return None if found is None else found.stops


@pytest.mark.parametrize(
    ("planted", "seen", "stops"),
    [
        pytest.param(32, 26, None, id="enough are seen"),
        pytest.param(32, 25, False, id="fewer than four of five"),
        pytest.param(32, 11, False, id="a half cannot be ruled out"),
        pytest.param(32, 10, True, id="surely most are missed"),
        pytest.param(16, 4, True, id="sixteen are enough to stop"),
        pytest.param(15, 0, False, id="fewer only warn"),
        pytest.param(8, 5, None, id="of few, chance misses some"),
        pytest.param(5, 0, False, id="five say something"),
        pytest.param(4, 0, None, id="four say nothing"),
        pytest.param(0, 0, None, id="nothing planted"),
    ],
)
def test_missed_defects_warn_and_a_blind_map_stops(planted: int, seen: int, stops: bool | None) -> None:
    assert missed(planted, seen) is stops


def test_few_missed_defects_stop_a_run_that_is_blind_as_a_whole() -> None:
    assert missed(8, 0, run_is_blind=True) is True
    assert missed(8, 7, run_is_blind=True) is None


def test_a_run_is_blind_if_enough_defects_show_it() -> None:
    assert is_blind(16, high=Share.counted(4, 16).high)
    assert not is_blind(16, high=Share.counted(5, 16).high)
    assert not is_blind(15, high=0.1)


def test_a_blind_map_is_described_with_what_to_do() -> None:
    found = misses_defects(32, 3, low=0.03, high=0.24)
    assert found is not None
    assert found.sentence.startswith(
        "of 32 strong defects that were planted into kept images, the published map sees 3 (95 % interval 3% to 24%), "
        "expected at least 80%: "
    )
    assert all(name in found.sentence for name in ("features.image_size", "backbone", "--group-by", "align"))


def test_a_group_too_small_to_judge_has_one_reason() -> None:
    power, few = Finding("power", "blind."), Finding("images", "too few.")
    assert with_finding([few], power) == (few,)
    warned = replace(few, stops=False)
    assert with_finding([warned], power) == (power, warned)
    assert with_finding([warned], None) == (warned,)


# --- small groups of a run

TOO_FEW, KINDS = Finding("images", "too few."), Finding("kinds", "two kinds.")


def stopping(findings: Mapping[str, tuple[Finding, ...]], images: dict[str, int]) -> list[str]:
    """Return which groups still have a finding that stops."""
    weighed = excuse_small_groups(findings, images)
    assert {group: len(found) for group, found in weighed.items()} == {
        group: len(found) for group, found in findings.items()
    }
    return [group for group, found in weighed.items() if any(finding.stops for finding in found)]


@pytest.mark.parametrize(
    ("small", "images", "stops"),
    [
        pytest.param(1, 12, ["0"], id="one small group alone"),
        pytest.param(1, 0, ["0"], id="a group without images alone"),
        pytest.param(3, 12, ["0", "1", "2"], id="nothing but small groups"),
    ],
)
def test_an_archive_of_small_groups_is_too_small(small: int, images: int, stops: list[str]) -> None:
    assert stopping({str(n): (TOO_FEW,) for n in range(small)}, {str(n): images for n in range(small)}) == stops


@pytest.mark.parametrize(("large", "stops"), [(108, []), (107, ["small"])])
def test_small_groups_are_excused_up_to_a_tenth_of_all_images(large: int, stops: list[str]) -> None:
    assert stopping({"small": (TOO_FEW,), "large": ()}, {"small": 12, "large": large}) == stops


def test_small_groups_count_together() -> None:
    findings = {"large": (), **{str(n): (TOO_FEW,) for n in range(5)}}
    images = {"large": 400, **{str(n): 10 for n in range(5)}}
    assert stopping(findings, images) == [str(n) for n in range(5)]


def test_a_warning_of_few_images_is_none_of_a_small_group() -> None:
    warning = Finding("images", "few.", stops=False)
    findings = {"large": (warning,), "small": (TOO_FEW,)}
    assert stopping(findings, {"large": 108, "small": 12}) == []


def test_smallness_excuses_nothing_else_and_what_stops_still_comes_first() -> None:
    found = excuse_small_groups({"small": (TOO_FEW, KINDS), "large": ()}, {"small": 12, "large": 500})
    assert [(one.condition, one.stops) for one in found["small"]] == [("kinds", True), ("images", False)]


def test_a_group_that_was_not_judged_is_too_small_and_told_what_to_do() -> None:
    found = not_judged("group 'a' has 2 images; at least 3 are needed to judge any")
    assert (found.condition, found.stops) == ("images", True)
    assert found.sentence.startswith("group 'a' has 2 images; at least 3 are needed to judge any. Add images")
