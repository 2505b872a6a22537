"""How long a run takes, from rehearsals: their times scaled by the formulas to an archive's groups and to any cluster.

A group's phase takes so many tasks, which the workers share in rounds; small groups are one task each. What was
rehearsed at another size, or on fewer positions, is scaled by its operations.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.commands.plan.rehearsal import Rehearsal
from pipeline.costs.footprint import (
    Layout,
    PassKind,
    by_products,
    chunks,
    is_small,
    pass_flop,
    products_flop,
    publish_flop,
)
from pipeline.costs.schedule import apart_up_to, schedule_seconds
from schemas.config import Config
from workers.passes.by_products import band_rows

# What one task costs the driver and the scheduler, measured by benchmarks.scaling: only where tasks are quick or
# workers are many does it show.
SUBMIT_SECONDS = 0.005


@dataclass(frozen=True)
class Passes:
    """How many passes a strategy makes over a group: usually, and from how many to how many in nine of ten cases."""

    usual: int
    fewest: int
    most: int


# Of the runs behind docs/study.md (docs/study/results.csv): median, smallest, and 90th percentile.
_PASSES = {
    "paire": Passes(3, 2, 12),
    "grow": Passes(10, 6, 15),
    "concentrate": Passes(32, 6, 40),
    "trim-once": Passes(1, 1, 1),
    "none": Passes(1, 1, 1),
}

# The share of the images that a strategy keeps, of the same runs: where operations depend on it.
_KEPT = {"paire": 0.55, "grow": 0.75, "concentrate": 0.65, "trim-once": 0.1, "none": 1.0}

# The breakdown guard fits twice, unless the first fit has found the images that the second one would have.
GUARD_FITS = 2

# Strategies that score images, the fitted ones without themselves.
_SCORING = {"grow", "concentrate"}


@dataclass(frozen=True)
class Seconds:
    """How long each phase takes.

    ``rest``: publishing and examining groups, ``small_groups``: all of judging those that are judged in one task each.
    """

    start: float
    extract: float
    passes: float
    rest: float
    small_groups: float

    @property
    def total(self) -> float:
        """Of all phases."""
        return self.start + self.extract + self.passes + self.rest + self.small_groups


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes
    ----------
    start
        Seconds until the first image, all processes being new.
    first_tasks
        Seconds by which the first tasks of judging took longer than later ones.
    group
        Seconds of judging a group, beside the passes, that do not depend on its positions.
    images_per_second
        Extracted by one worker.
    rehearsals
        Of judging groups.
    """

    start: float
    first_tasks: float
    group: float
    images_per_second: float
    rehearsals: tuple[Rehearsal, ...]


def expected_passes(config: Config) -> Passes:
    """Return how many passes the configured strategy makes."""
    known, most = _PASSES[config.trim.strategy], config.trim.max_iterations
    # grow and concentrate iterate twice.
    bound = 2 * most + 2 if config.trim.strategy in _SCORING else most
    return Passes(*(min(number, bound) for number in (known.usual, known.fewest, known.most)))


def kept_images(images: int, config: Config) -> int:
    """Return how many of a group's images the configured strategy usually keeps."""
    return max(1, round(_KEPT[config.trim.strategy] * images))


def pass_kinds(config: Config) -> tuple[PassKind, PassKind]:
    """Return what the first pass computes, and the later ones."""
    strategy = config.trim.strategy
    if strategy == "grow":
        return PassKind(scores=True, nearest=True), PassKind(scores=True)
    if strategy == "concentrate":
        return (PassKind(scores=True, by_rows=True),) * 2
    return (PassKind(),) * 2


def publishing_kinds(config: Config) -> tuple[PassKind, ...]:
    """Return what publishing computes besides the map: where it is fitted on the images nearest there, two passes more.

    One finds the law of the distances under such a fit, and one which images are nearest.
    """
    return (PassKind(scores=True, nearest=True), PassKind(scores=True)) if config.trim.strategy == "grow" else ()


def mean_block(sizes: Sequence[int]) -> int:
    """Return the images of a block, as a mean over all blocks of groups of some sizes."""
    return max(1, round(sum(sizes) / sum(map(chunks, sizes))))


def extraction_seconds(sizes: Sequence[int], images_per_second: float, workers: int) -> float:
    """Return how long the workers extract groups of some sizes, in blocks of whole chunks."""
    blocks = sum(map(chunks, sizes))
    busy = min(workers, blocks)
    # Blocks are taken one after another, so the last round is not full.
    return max(sum(sizes) / busy, min(256, max(sizes)) * math.ceil(blocks / workers) * _fill(sizes)) / images_per_second


def _fill(sizes: Sequence[int]) -> float:
    """Return how full the blocks are on average."""
    return sum(sizes) / sum(chunks(size) * min(256, max(sizes)) for size in sizes)


def forecast(
    sizes: Sequence[int], measured: Measured, layout: Layout, config: Config, *, workers: int, passes: int
) -> Seconds:
    """Return how long a run takes.

    Parameters
    ----------
    sizes
        Images of each group.
    measured
        With at least one rehearsal of each way that groups go.
    layout, config
        What is computed.
    workers
        How many, each as fast as one of those that were measured.
    passes
        Over each group that is not small; those of small groups are part of what was rehearsed.
    """
    passing = rest = alone = 0.0
    large, largest = [size for size in sizes if not is_small(size)], apart_up_to(sizes, layout, workers)
    for size, count in Counter(large).items():
        together = 1 if size <= largest else workers  # workers that share a group
        first, later, other = _group_seconds(size, measured.rehearsals, layout, config, together, measured.group)
        if size <= largest:
            each = first + (passes - 1) * later + other
            alone += schedule_seconds(count, each, workers, submit_seconds=SUBMIT_SECONDS)
            continue
        passing += count * (first + (passes - 1) * later)
        rest += count * other
    rest = rest or measured.group
    small = [one for one in measured.rehearsals if is_small(one.images)]
    if small:
        each = small[0].first_pass * small[0].workers / small[0].groups
        alone += schedule_seconds(len(sizes) - len(large), each, workers, submit_seconds=SUBMIT_SECONDS)
    extracting = extraction_seconds(sizes, measured.images_per_second, workers)
    return Seconds(measured.start, extracting, passing + measured.first_tasks, rest, alone)


def _group_seconds(
    size: int, rehearsals: Sequence[Rehearsal], layout: Layout, config: Config, workers: int, fixed: float
) -> tuple[float, float, float]:
    """Return how long a group's first pass, a later one, and all else take, by rehearsals of groups that go its way."""
    same = [
        one
        for one in rehearsals
        if not is_small(one.images) and by_products(layout, one.images) == by_products(layout, size)
    ]
    tasks, wanted = _row_tasks(layout, size), _operations(layout, config, size)
    operations = np.array([_operations(layout, config, one.images) for one in same])
    work = np.array([_whole_work(one, layout, fixed) for one in same])
    first, later, other = (
        schedule_seconds(tasks, seconds / tasks, workers, submit_seconds=SUBMIT_SECONDS)
        for seconds in (_by_operations(wanted[part], operations[:, part], work[:, part]) for part in range(len(wanted)))
    )
    return first, later, other + fixed


def _whole_work(rehearsal: Rehearsal, layout: Layout, fixed: float) -> tuple[float, float, float]:
    """Return the seconds of one worker for the first pass, a later one and all else, at all positions."""
    share = rehearsal.rows * rehearsal.columns / layout.positions
    scale = min(rehearsal.workers, rehearsal.rows) / share
    return rehearsal.first_pass * scale, rehearsal.next_pass * scale, max(rehearsal.rest - fixed, 0.0) * scale


def _by_operations(wanted: float, operations: NDArray[np.float64], seconds: NDArray[np.float64]) -> float:
    """Return the seconds of some operations, on a line through two rehearsals: so with what tasks cost in any case.

    Beyond the rehearsals the line is at most as steep as one through zero, and at least half as steep.
    """
    order = np.argsort(operations)
    operations, seconds = operations[order], seconds[order]
    most, longest = float(operations[-1]), float(seconds[-1])
    if wanted <= most and len(order) > 1:
        return float(np.interp(wanted, operations, seconds))
    steepest = slope = longest / most
    if wanted > most > operations[0]:
        slope = float(np.clip((longest - seconds[0]) / (most - operations[0]), steepest / 2, steepest))
    return longest + slope * (wanted - most)


def _row_tasks(layout: Layout, images: int) -> int:
    """Return how many tasks of a pass can run at once."""
    if by_products(layout, images):
        return -(-layout.geometry.rows // band_rows(images, layout.geometry.rows, layout.geometry.columns))
    return layout.geometry.rows * layout.segments(images)


def _operations(layout: Layout, config: Config, images: int) -> tuple[float, float, float]:
    """Return the operations of a group's first pass, of a later one, and of publishing and examining it."""
    kept, (first, later) = kept_images(images, config), pass_kinds(config)
    products = products_flop(layout, images) if by_products(layout, images) else 0.0
    fitted = kept if by_products(layout, images) else images
    return (
        products + pass_flop(layout, images, images, first),
        pass_flop(layout, images, fitted, later),
        publish_flop(layout, fitted)
        + sum(pass_flop(layout, images, fitted, kind) for kind in publishing_kinds(config))
        + GUARD_FITS * pass_flop(layout, images, fitted, PassKind(scores=True)),
    )
