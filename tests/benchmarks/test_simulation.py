"""The simulated schedule against what must hold of any, against the closed formulas, and against the real tasks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scaling_constants import Backbone, Constants
from benchmarks.scaling_model import judging, large_costs, large_pass, layout_of, total
from benchmarks.simulation import PassCosts, Task, pass_schedule, simulate
from pipeline.cluster.progress import Reporter
from pipeline.cluster.tasks import TASKS_PER_WORKER
from pipeline.costs.footprint import Layout, PassKind, pass_tasks
from pipeline.costs.schedule import schedule_seconds
from pipeline.judging.group import Group
from pipeline.judging.statistics import GroupStatistics
from schemas.stores.features import CHUNK_IMAGES, FeatureGeometry
from tests.support.archives import tiny_config
from tests.support.watched import tasks_submitted
from workers.storage.directory import Directory

GEOMETRY = FeatureGeometry(rows=3, columns=2, channels=20, grid_rows=12, grid_columns=8, pool_kernel=4, pool_stride=4)
LAYOUT = Layout(GEOMETRY, 2, CHUNK_IMAGES)
COSTS = PassCosts(accumulate=2.0, merge=0.5, fit=1.0, measure=1.5, judge=0.1, multiply=3.0)


@st.composite
def graphs(draw: st.DrawFn) -> list[Task]:
    """Draw tasks that wait for some of the two before them."""
    seconds = draw(st.lists(st.floats(0.01, 5.0), min_size=1, max_size=40))
    tasks = []
    for number, taken in enumerate(seconds):
        before = st.sampled_from(range(max(0, number - 2), number)) if number else st.nothing()
        tasks.append(Task(taken, tuple(draw(st.sets(before, max_size=2))) if number else ()))
    return tasks


def longest_chain(tasks: list[Task]) -> float:
    ends: list[float] = []
    for task in tasks:
        ends.append(task.seconds + max((ends[earlier] for earlier in task.after), default=0.0))
    return max(ends)


@given(graphs(), st.integers(1, 8))
@settings(max_examples=50)
def test_no_schedule_beats_the_work_or_the_longest_chain(tasks: list[Task], workers: int) -> None:
    found = simulate(tasks, workers)
    work = sum(task.seconds for task in tasks)
    assert found.seconds >= max(work / workers, longest_chain(tasks)) * (1 - 1e-9)
    assert found.seconds <= work * (1 + 1e-9)
    assert found.most_in_flight <= TASKS_PER_WORKER * workers + 1
    assert 0 < found.busy <= 1 + 1e-9


@given(graphs())
@settings(max_examples=20)
def test_one_worker_takes_the_work(tasks: list[Task]) -> None:
    assert simulate(tasks, 1).seconds == pytest.approx(sum(task.seconds for task in tasks))


@given(st.integers(1, 300), st.floats(0.01, 5.0), st.integers(1, 64))
@settings(max_examples=50)
def test_equal_independent_tasks_take_what_the_closed_formula_says(tasks: int, seconds: float, workers: int) -> None:
    found = simulate([Task(seconds)] * tasks, workers)
    assert found.seconds == pytest.approx(schedule_seconds(tasks, seconds, workers))


@given(st.integers(1, 300), st.floats(0.01, 5.0), st.integers(1, 64), st.floats(0.001, 0.1))
@settings(max_examples=50)
def test_submission_bounds_the_schedule_as_the_closed_formula_says(
    tasks: int, seconds: float, workers: int, submit: float
) -> None:
    found = simulate([Task(seconds)] * tasks, workers, submit_seconds=submit).seconds
    formula = schedule_seconds(tasks, seconds, workers, submit_seconds=submit)
    # The last of the workers starts when it has been given a task.
    assert formula * (1 - 1e-9) - submit <= found <= formula + min(workers, tasks) * submit * (1 + 1e-9)


@pytest.mark.parametrize("workers", [1, 2, 5, 14])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_pass_by_products_takes_what_the_closed_formula_says(workers: int, is_first: bool) -> None:
    wide = Layout(FeatureGeometry(14, 14, 200, 64, 64, 10, 4), 2, 4096)
    tasks = pass_schedule(wide, 100, 100, COSTS, is_first=is_first)
    taken = COSTS.judge + (COSTS.multiply if is_first else 0.0)
    rounds = schedule_seconds(14, taken, workers)
    found = simulate(tasks, workers).seconds
    assert rounds * 0.5 <= found <= rounds * (1 + 1e-9)
    assert workers not in {1, 2, 14} or found == pytest.approx(rounds)


def test_the_merges_of_a_large_group_are_a_chain() -> None:
    tasks = pass_schedule(LAYOUT, 100 * CHUNK_IMAGES, 100 * CHUNK_IMAGES, COSTS)
    assert longest_chain(tasks) == pytest.approx(2.0 + 99 * 0.5 + 1.0 + 1.5 + 0.1)
    # With any number of workers the bound on the tasks in flight leaves the rows to follow one another.
    assert simulate(tasks, 1000).seconds == pytest.approx(longest_chain(tasks))


@pytest.mark.parametrize("workers", [1, 4, 16, 64, 256])
@pytest.mark.parametrize("images", [10_000, 100_000, 1_000_000])
def test_the_closed_formula_of_a_large_pass_is_about_what_is_simulated(images: int, workers: int) -> None:
    backbone = Backbone("any", 896, 10.0, 3e10, 1e10, 3e10, 2e10, 3e10, 0.002, 0.015)
    constants = Constants({}, (backbone,), 0.002)
    schedule = pass_schedule(layout_of(backbone), images, images, large_costs(images, workers, backbone, constants))
    simulated = simulate(schedule, workers, submit_seconds=constants.submit_seconds).seconds
    # Between the bound by work and the bound by the chains, where neither is tight, it is off by up to a half.
    assert 0.6 <= large_pass(images, workers, backbone, constants).seconds / simulated <= 1.5


@pytest.mark.parametrize("channels", [1792, 896])
@pytest.mark.parametrize("workers", [2, 16, 256])
def test_groups_side_by_side_take_what_is_simulated(workers: int, channels: int) -> None:
    backbone = Backbone("any", channels, 10.0, 3e10, 1e10, 3e10, 2e10, 3e10, 0.002, 0.015)
    constants = Constants({}, (backbone,), 0.002, get_per_second=1e6)
    each = total(judging(1000, 1, 1, backbone, constants)).seconds
    (together,) = judging(1000, 6 * workers, workers, backbone, constants)
    simulated = simulate([Task(each)] * (6 * workers), workers, submit_seconds=constants.submit_seconds).seconds
    assert together.seconds == pytest.approx(simulated, rel=0.02)
    assert len(judging(1000, 2, workers, backbone, constants)) > 1


@pytest.mark.parametrize(("images", "fitted"), [(15, 15), (15, 5), (70, 70), (200, 200), (600, 600), (600, 10)])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_simulated_pass_has_as_many_tasks_as_a_real_one(
    images: int, fitted: int, is_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = FeatureGeometry(3, 2, 100 if images == 70 else 20, 12, 8, 4, 4)
    layout = Layout(geometry, 2, CHUNK_IMAGES)
    submitted = tasks_submitted(monkeypatch)
    directory = Directory.at(tmp_path)
    store = (directory / "features").zarr_group("", "w")
    store.create_array("all", data=np.random.default_rng(0).normal(size=geometry.array_shape(images)))
    (directory / "distances").zarr_group("", "w")
    config = tiny_config(f"gaussian.segment_images={CHUNK_IMAGES}")
    everything, first = np.ones(images, bool), np.arange(images) < fitted
    group = Group("all", everything, directory / "features", geometry, config)
    with GroupStatistics(None, group, directory / "distances", Reporter()) as statistics:
        if not is_first:
            statistics.run_pass(everything, 1)
            submitted.clear()
        statistics.run_pass(first, 1 if is_first else 2)
    assert submitted.total() == len(pass_schedule(layout, images, fitted, COSTS, is_first=is_first))
    assert submitted.total() == pass_tasks(layout, images, fitted, PassKind(), is_first=is_first)
