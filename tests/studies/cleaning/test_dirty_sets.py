"""Dirty sets by content: what is drawn, what is a copy, what makes two of them the same."""

from pathlib import Path

import numpy as np
import pytest

from schemas.errors import SourceError
from studies.cleaning.archives import TEST_BAD, TEST_GOOD, TRAIN_GOOD, write_category
from studies.cleaning.dirty_sets import (
    NO_OVERLAP,
    OVERLAP,
    Case,
    LabelledImages,
    draw,
    list_cases,
    source_of,
)


@pytest.fixture
def category(tmp_path: Path) -> Path:
    return write_category(tmp_path / "part")


def test_without_noise_there_is_one_protocol_and_seeds_come_last() -> None:
    cases = list(list_cases(["part"], [0.0, 0.1], 2, made=()))
    assert cases == [
        Case("part", protocol, noise, seed)
        for seed in (0, 1)
        for protocol, noise in ((NO_OVERLAP, 0.0), (NO_OVERLAP, 0.1), (OVERLAP, 0.1))
    ]


def test_overlap_is_not_studied_again_on_sets_that_are_made() -> None:
    cases = list_cases(["part", "part-turned"], [0.1], 1, made={"part-turned"})
    assert {case.archive for case in cases if case.protocol == OVERLAP} == {"part"}


@pytest.mark.parametrize(("protocol", "tested"), [(OVERLAP, TEST_BAD), (NO_OVERLAP, TEST_BAD - 5)])
def test_planted_anomalies_are_tested_again_only_with_overlap(
    category: Path, tmp_path: Path, protocol: str, tested: int
) -> None:
    dirty = draw(Case("part", protocol, 0.2, 0), category, tmp_path / "dirty")
    assert (len(dirty.train.digests), int(dirty.train.is_anomalous.sum())) == (TRAIN_GOOD + 1, 5)
    assert (int((~dirty.test.is_anomalous).sum()), int(dirty.test.is_anomalous.sum())) == (TEST_GOOD, tested)
    planted = {digest for digest, bad in zip(dirty.train.digests, dirty.train.is_anomalous, strict=True) if bad}
    assert len(planted & set(dirty.test.digests)) == (5 if protocol == OVERLAP else 0)
    assert all(Path(path).is_file() for path in dirty.paths.values())
    assert set(dirty.paths) == {*dirty.train.digests, *dirty.test.digests}


def test_copies_that_were_turned_are_there_where_anomalies_run_short(category: Path, tmp_path: Path) -> None:
    dirty = draw(Case("part", OVERLAP, 0.6, 0), category, tmp_path / "dirty")
    originals = {str(path) for path in category.rglob("*.png")}
    assert int(dirty.train.is_anomalous.sum()) == 15
    assert len([path for path in dirty.paths.values() if path not in originals]) == 15 - TEST_BAD


def test_byte_identical_images_count_once(category: Path, tmp_path: Path) -> None:
    dirty = draw(Case("part", OVERLAP, 0.0, 0), category, tmp_path / "dirty")
    distinct = dirty.train.distinct()
    assert (len(dirty.train.digests), len(distinct.digests)) == (TRAIN_GOOD + 1, TRAIN_GOOD)


def test_the_first_of_identical_images_stays() -> None:
    images = LabelledImages(("a", "b", "a", "c"), np.array([False, True, True, False]))
    distinct = images.distinct()
    assert (distinct.digests, distinct.is_anomalous.tolist()) == (("a", "b", "c"), [False, True, False])


def test_the_order_of_the_digests_does_not_depend_on_the_draw() -> None:
    one = LabelledImages(("c", "a", "b"), np.array([True, False, False])).in_order()
    other = LabelledImages(("b", "c", "a"), np.array([False, True, False])).in_order()
    assert one.digests == other.digests == ("a", "b", "c")
    assert one.is_anomalous.tolist() == other.is_anomalous.tolist() == [False, False, True]


def test_a_set_is_drawn_again_as_it_was_and_another_seed_draws_another(category: Path, tmp_path: Path) -> None:
    first, again, other = (
        draw(Case("part", OVERLAP, 0.2, seed), category, tmp_path / "dirty").digest() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_folder_with_labels_is_read_by_them(tmp_path: Path) -> None:
    assert source_of(tmp_path) == tmp_path
    (tmp_path / "labels.csv").touch()
    assert source_of(tmp_path) == tmp_path / "labels.csv"


def test_a_missing_archive_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        draw(Case("part", OVERLAP, 0.1, 0), tmp_path / "nothing", tmp_path / "dirty")
