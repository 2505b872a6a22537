"""Counting what was caught: shares with their intervals, cell by cell, group by group."""

from dataclasses import replace

import numpy as np
import pytest

from workers.trust.planting import KINDS, Defect
from workers.trust.recall import CONTRASTS, DEFECTS, OVERALL, SIZES, GroupTrust, Share
from workers.trust.trial import Trials


def trials(untouched: list[float], planted: list[float]) -> Trials:
    """Return trials in which every defect has the same margin in an image."""
    shape = len(untouched), len(DEFECTS)
    margins = np.broadcast_to(np.array(planted)[:, np.newaxis], shape)
    missing = np.isnan(untouched)
    contrast = np.where(missing[:, np.newaxis], np.nan, np.full(shape, 0.2))
    return Trials(np.array(untouched), margins, contrast, tuple("gone" if gone else "" for gone in missing))


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    # Wilson's interval, from its formula (Wilson 1927) with z = 1.959964.
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (1, 32, 0.0055, 0.1575)],
)
def test_a_share_has_wilsons_interval(count: int, of: int, low: float, high: float) -> None:
    share = Share.counted(count, of)
    assert share.value == count / of
    assert (share.low, share.high) == pytest.approx((low, high), abs=1e-4)


def test_of_nothing_nothing_is_known() -> None:
    assert Share.counted(0, 0) == Share(0, 0, None, 0.0, 1.0)


def test_every_kind_size_and_contrast_is_planted_once() -> None:
    assert len(set(DEFECTS)) == len(DEFECTS) == len(KINDS) * len(SIZES) * len(CONTRASTS)


def test_an_image_is_rejected_from_a_margin_of_one_on() -> None:
    counted = GroupTrust.of("a", 100, trials([0.5, 1.0, 0.999, 0.2], [0.999, 1.0, 7.0, np.inf]))
    assert (counted.untouched.count, counted.untouched.of) == (1, 4)
    assert {(share.count, share.of) for share in counted.recall} == {(3, 4)}


def test_images_that_took_no_part_do_not_count() -> None:
    counted = GroupTrust.of("a", 100, trials([0.5, np.nan, 1.5], [2.0, np.nan, 0.5]))
    assert (counted.untouched.count, counted.untouched.of) == (1, 2)
    assert {(share.count, share.of) for share in counted.recall} == {(1, 2)}
    assert counted.contrast == pytest.approx([0.2] * len(DEFECTS))


def test_each_cell_counts_its_own_defect() -> None:
    planted = np.zeros((2, len(DEFECTS)))
    chosen = DEFECTS.index(Defect(KINDS[1], SIZES[2], CONTRASTS["medium"]))
    planted[:, chosen] = 2.0
    counted = GroupTrust.of("a", 10, Trials(np.zeros(2), planted, np.full(planted.shape, 0.2), ("", "")))
    assert counted.share(KINDS[1], SIZES[2], "medium").count == 2
    assert sum(share.count for share in counted.recall) == 2
    caught = [row for row in counted.rows() if row["caught"]]
    assert [(row["kind"], row["size"], row["contrast"]) for row in caught] == [(KINDS[1], SIZES[2], "medium")]


def test_groups_together_have_the_sums_of_their_counts() -> None:
    first = GroupTrust.of("a", 100, trials([0.5] * 6, [2.0] * 6))
    second = GroupTrust.of("b", 50, trials([1.5, 0.5], [0.5, 0.5]))
    both = GroupTrust.together([replace(first, notes=("x", "y")), replace(second, notes=("y",))])
    assert both.notes == ("x", "y")
    assert both.group == OVERALL
    assert both.fitted == 150
    assert both.untouched == Share.counted(1, 8)
    assert set(both.recall) == {Share.counted(6, 8)}
    assert both.contrast == pytest.approx([0.2] * len(DEFECTS))


def test_the_json_has_a_row_for_each_cell_and_the_false_rejects() -> None:
    counted = replace(GroupTrust.of("a", 100, trials([0.5, 1.5], [2.0, 0.5])), notes=("beware",)).to_json()
    assert counted["group"] == "a"
    assert (counted["images"], counted["false_rejects"], counted["false_reject_rate"]) == (2, 1, 0.5)
    assert counted["false_reject_low"] < 0.5 < counted["false_reject_high"]
    assert counted["notes"] == ["beware"]
    assert len(counted["recall"]) == len(DEFECTS)
    assert set(counted["recall"][0]) == {
        "kind",
        "size",
        "contrast",
        "planted",
        "caught",
        "recall",
        "low",
        "high",
        "mean_contrast",
    }
