"""A schedule simulated event by event: tasks in the order of their submission, some of them in flight, on some workers.

It models what the closed formulas of `pipeline.costs.footprint` leave out: which task waits for which, the bound on the
tasks in flight, and that segments are merged one after another. The tasks of a pass are built here as
`pipeline.judging.passes` submits them; `tests.benchmarks.test_simulation` checks their number against it.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cluster.tasks import TASKS_PER_WORKER
from pipeline.costs.footprint import Layout, by_products, has_whole_rows
from workers.gaussian.fit import uses_dual
from workers.passes.by_products import bands


@dataclass(frozen=True)
class Task:
    """One task: the seconds that a worker takes for it, and the numbers of the earlier tasks that it waits for."""

    seconds: float
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """How a simulated schedule went.

    Attributes
    ----------
    seconds
        From the first submission to the last result.
    busy
        Share of the workers' time that was spent on tasks.
    most_in_flight
        Tasks submitted and not done, at most.
    """

    seconds: float
    busy: float
    most_in_flight: int


@dataclass(frozen=True)
class PassCosts:
    """Seconds of the tasks of a pass. A pass by products has only ``multiply`` and ``judge``."""

    accumulate: float = 0.0
    merge: float = 0.0
    fit: float = 0.0
    measure: float = 0.0
    judge: float = 0.0
    multiply: float = 0.0


def simulate(tasks: Sequence[Task], workers: int, *, submit_seconds: float = 0.0) -> Schedule:
    """Simulate the schedule of some tasks.

    The driver submits one task after another and takes ``submit_seconds`` for each, while fewer than the bound of
    `pipeline.cluster.tasks.TaskWindow` are unfinished. An idle worker takes the earliest submitted task whose
    predecessors are done.

    Parameters
    ----------
    tasks
        In the order of submission; each waits for earlier tasks only.
    """
    limit = TASKS_PER_WORKER * workers + 1
    waiting = [len(task.after) for task in tasks]
    followers: list[list[int]] = [[] for _ in tasks]
    for number, task in enumerate(tasks):
        for earlier in task.after:
            assert earlier < number
            followers[earlier].append(number)
    ready: list[int] = []
    running: list[tuple[float, int]] = []
    now, driver_free, submitted, done, most = 0.0, 0.0, 0, 0, 0
    while done < len(tasks):
        while submitted < len(tasks) and submitted - done < limit and driver_free <= now:
            if not waiting[submitted]:
                heapq.heappush(ready, submitted)
            submitted += 1
            driver_free = now + submit_seconds
            most = max(most, submitted - done)
        while ready and len(running) < workers:
            number = heapq.heappop(ready)
            heapq.heappush(running, (now + tasks[number].seconds, number))
        can_submit = submitted < len(tasks) and submitted - done < limit
        if can_submit and (not running or driver_free <= running[0][0]):
            now = driver_free
            continue
        now, number = heapq.heappop(running)
        done += 1
        for follower in followers[number]:
            waiting[follower] -= 1
            if not waiting[follower] and follower < submitted:
                heapq.heappush(ready, follower)
    work = sum(task.seconds for task in tasks)
    return Schedule(now, work / (workers * now) if now else 0.0, most)


def pass_schedule(layout: Layout, images: int, fitted: int, costs: PassCosts, *, is_first: bool = False) -> list[Task]:
    """Return the tasks of a pass that finds thresholds, in the order of their submission."""
    if by_products(layout, images):
        return _by_products(layout, images, costs, is_first=is_first)
    return _by_features(layout, images, fitted, costs)


def _by_products(layout: Layout, images: int, costs: PassCosts, *, is_first: bool) -> list[Task]:
    tasks: list[Task] = []
    for _ in bands(images, layout.geometry.rows, layout.geometry.columns):
        if is_first:
            tasks.append(Task(costs.multiply))
        tasks.append(Task(costs.judge, (len(tasks) - 1,) if is_first else ()))
    return tasks


def _by_features(layout: Layout, images: int, fitted: int, costs: PassCosts) -> list[Task]:
    tasks: list[Task] = []

    def submit(seconds: float, *after: int) -> int:
        tasks.append(Task(seconds, after))
        return len(tasks) - 1

    segments, is_dual = layout.segments(images), uses_dual(fitted, layout.geometry.channels)
    if has_whole_rows(layout, images):
        accumulate = 0.0 if is_dual else costs.accumulate
        return [Task(accumulate + costs.fit + costs.measure + costs.judge)] * layout.geometry.rows
    for _ in range(layout.geometry.rows):
        moments: int | None = None
        if not is_dual:
            for _ in range(segments):
                part = submit(costs.accumulate)
                moments = part if moments is None else submit(costs.merge, moments, part)
        gaussians = submit(costs.fit, *(() if moments is None else (moments,)))
        measured = [submit(costs.measure, gaussians) for _ in range(segments)]
        submit(costs.judge, *measured)
    return tasks
