"""How tasks share the workers."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.costs.footprint import Layout
from pipeline.costs.schedule import apart_up_to, schedule_seconds
from schemas.stores.features import FeatureGeometry
from workers.passes.by_products import SMALL_GROUP

# As of images of 256 pixels.
LAYOUT = Layout(FeatureGeometry(14, 14, 896, 64, 64, 10, 4), itemsize=2, segment_images=4096)


@given(st.integers(1, 200), st.floats(0.01, 10), st.integers(1, 64))
@settings(max_examples=50)
def test_a_schedule_is_bounded_by_the_work_and_by_one_worker(tasks: int, seconds: float, workers: int) -> None:
    taken = schedule_seconds(tasks, seconds, workers)
    assert taken >= tasks * seconds / workers * (1 - 1e-9)
    assert seconds <= taken * (1 + 1e-9)
    assert taken <= tasks * seconds * (1 + 1e-9)


def test_a_schedule_is_no_faster_than_its_submission() -> None:
    assert schedule_seconds(0, 1.0, 4) == 0.0
    assert schedule_seconds(10, 1.0, 4) == 3.0
    assert schedule_seconds(1000, 0.001, 64, submit_seconds=0.01) == pytest.approx(10.0, rel=0.01)


@pytest.mark.parametrize("images", [200, 896, 1000, 4096])
def test_groups_are_judged_side_by_side_where_rows_keep_too_few_workers_busy(images: int) -> None:
    assert apart_up_to([images] * 1000, LAYOUT, 256) == images
    assert apart_up_to([images] * 100, LAYOUT, 16) == images
    assert apart_up_to([images] * 20, LAYOUT, 4) == images


@pytest.mark.parametrize("images", [200, 896, 1000, 4096])
def test_few_groups_are_judged_in_turn(images: int) -> None:
    assert apart_up_to([images] * 1000, LAYOUT, 1) == 0
    assert apart_up_to([images] * 3, LAYOUT, 4) == 0
    assert apart_up_to([images], LAYOUT, 256) == 0


def test_a_group_that_all_others_would_wait_for_is_judged_in_turn() -> None:
    assert apart_up_to([70] * 100 + [4000], LAYOUT, 16) == 70
    assert apart_up_to([3990] * 100 + [4000], LAYOUT, 16) == 4000


def test_groups_of_several_segments_have_tasks_enough() -> None:
    assert apart_up_to([4097] * 1000, LAYOUT, 256) == 0
    assert apart_up_to([300] * 1000 + [4097], LAYOUT, 256) == 300


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=30), st.integers(1, 300))
def test_small_groups_are_always_judged_side_by_side(sizes: list[int], workers: int) -> None:
    largest = apart_up_to(sizes, LAYOUT, workers)
    assert largest in {0, *sizes}
    assert max((size for size in sizes if size <= SMALL_GROUP), default=0) <= largest <= LAYOUT.segment_images


def test_small_groups_may_have_several_segments() -> None:
    assert apart_up_to([SMALL_GROUP, 70], replace(LAYOUT, segment_images=16), 1) == SMALL_GROUP
