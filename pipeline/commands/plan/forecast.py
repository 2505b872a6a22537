"""How long a run takes: the times of rehearsals, scaled to the archive's groups and to any number of workers.

A group's phase is a number of tasks, which the workers share in rounds; a small group is one task. Times of another
group size, or of fewer positions, are scaled by their operations.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.commands.plan.rehearsal import Rehearsal
from pipeline.costs.footprint import (
    GUARD_FITS,
    GUARD_PASS,
    Layout,
    by_products,
    chunks,
    is_small,
    pass_flop,
    products_flop,
    publish_flop,
    row_chunks,
)
from pipeline.costs.schedule import apart_up_to, schedule_seconds
from pipeline.judging.power import VIEWS, measures_power, share_out
from pipeline.judging.strategies.registry import strategy_of
from schemas.config import Config
from schemas.stores.features import CHUNK_IMAGES
from workers.trust.power import TASK_IMAGES

# What one task costs the driver and the scheduler, measured by benchmarks.scaling. It matters only where tasks are
# quick or workers are many.
SUBMIT_SECONDS = 0.005


@dataclass(frozen=True)
class PassCounts:
    """How many passes a strategy makes over a group: usually, and the range of nine cases in ten."""

    usual: int
    fewest: int
    most: int


@dataclass(frozen=True)
class Seconds:
    """How long each phase takes.

    ``rest`` is publishing and examining groups; ``power`` is planting defects into kept images, to measure how many are
    seen; ``small_groups`` is all judging of groups that are one task each.
    """

    start: float
    extract: float
    passes: float
    rest: float
    small_groups: float
    power: float

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return self.start + self.extract + self.passes + self.rest + self.small_groups + self.power


@dataclass(frozen=True)
class Measured:
    """What the sample measured.

    Attributes
    ----------
    start
        Seconds until the first image, with new processes.
    first_tasks
        Seconds by which the first tasks of judging took longer than later ones.
    group
        Seconds of judging a group, besides the passes, that do not depend on its positions.
    images_per_second
        How many images one worker extracts.
    """

    start: float
    first_tasks: float
    group: float
    images_per_second: float
    rehearsals: tuple[Rehearsal, ...]


def expected_passes(config: Config) -> PassCounts:
    """Return how many passes the configured strategy makes."""
    known, most = strategy_of(config).forecast, config.trim.max_iterations
    bound = known.iterates * most + known.besides
    return PassCounts(*(min(number, bound) for number in (known.usual, known.fewest, known.most)))


def kept_images(images: int, config: Config) -> int:
    """Return how many of a group's images the configured strategy usually keeps."""
    return max(1, round(strategy_of(config).forecast.kept * images))


def count_power_tasks(sizes: Sequence[int], config: Config) -> int:
    """Return how many tasks plant defects into kept images of groups of these sizes."""
    if not measures_power(config):
        return 0
    kept = {str(number): kept_images(size, config) for number, size in enumerate(sizes)}
    return sum(-(-count // TASK_IMAGES) for count in share_out(kept, sum(sizes), config).values())


def mean_block(sizes: Sequence[int]) -> int:
    """Return the mean number of images of a block, over all blocks of groups of these sizes."""
    return max(1, round(sum(sizes) / sum(map(chunks, sizes))))


def extraction_seconds(sizes: Sequence[int], images_per_second: float, workers: int) -> float:
    """Return how long the workers extract groups of these sizes, in blocks of whole chunks."""
    blocks, full_block = sum(map(chunks, sizes)), min(CHUNK_IMAGES, max(sizes))
    fill = sum(sizes) / sum(chunks(size) * full_block for size in sizes)
    # The last round of blocks keeps some workers idle.
    rounds = math.ceil(blocks / workers) * full_block * fill
    return max(sum(sizes) / min(workers, blocks), rounds) / images_per_second


def forecast(
    sizes: Sequence[int], measured: Measured, layout: Layout, config: Config, *, workers: int, passes: int
) -> Seconds:
    """Return how long a run takes.

    Parameters
    ----------
    sizes
        Images of each group.
    measured
        Holds at least one rehearsal of each way that groups go: small, by products, by features.
    workers
        Each is as fast as a worker that was measured.
    passes
        Over each group that is not small. The rehearsals of small groups include their passes.
    """
    passing = rest = alone = 0.0
    large, largest = [size for size in sizes if not is_small(size)], apart_up_to(sizes, layout, workers)
    for size, count in Counter(large).items():
        together = 1 if size <= largest else workers  # how many workers share a group
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
    planting = schedule_seconds(
        count_power_tasks(sizes, config), TASK_IMAGES * VIEWS / measured.images_per_second, workers
    )
    return Seconds(measured.start, extracting, passing + measured.first_tasks, rest, alone, planting)


def _group_seconds(
    size: int, rehearsals: Sequence[Rehearsal], layout: Layout, config: Config, workers: int, fixed: float
) -> tuple[float, float, float]:
    """Return the seconds of a group's first pass, a later pass and all else, from rehearsals of groups like it."""
    same = [
        one
        for one in rehearsals
        if not is_small(one.images) and by_products(layout, one.images) == by_products(layout, size)
    ]
    # Tasks of a pass that can run at once.
    tasks = row_chunks(layout, size) * (1 if by_products(layout, size) else layout.segments(size))
    wanted = _operations(layout, config, size)
    operations = np.array([_operations(layout, config, one.images) for one in same])
    work = np.array([_whole_work(one, layout, fixed) for one in same])
    first, later, other = (
        schedule_seconds(tasks, seconds / tasks, workers, submit_seconds=SUBMIT_SECONDS)
        for seconds in (_by_operations(wanted[part], operations[:, part], work[:, part]) for part in range(len(wanted)))
    )
    return first, later, other + fixed


def _whole_work(rehearsal: Rehearsal, layout: Layout, fixed: float) -> tuple[float, float, float]:
    """Return the seconds that one worker takes at all positions: first pass, a later pass, all else."""
    share = rehearsal.rows * rehearsal.columns / layout.positions
    scale = min(rehearsal.workers, rehearsal.rows) / share
    return rehearsal.first_pass * scale, rehearsal.next_pass * scale, max(rehearsal.rest - fixed, 0.0) * scale


def _by_operations(wanted: float, operations: NDArray[np.float64], seconds: NDArray[np.float64]) -> float:
    """Return the seconds of ``wanted`` operations, on a line through two rehearsals, so with the fixed cost of tasks.

    Beyond the rehearsals the line is at most as steep as a line through zero, and at least half as steep.
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


def _operations(layout: Layout, config: Config, images: int) -> tuple[float, float, float]:
    """Return the operations of a group's first pass, of a later pass, and of publishing and examining the group."""
    kept, usual = kept_images(images, config), strategy_of(config).forecast
    first, later = usual.first, usual.later
    products = products_flop(layout, images) if by_products(layout, images) else 0.0
    fitted = kept if by_products(layout, images) else images
    return (
        products + pass_flop(layout, images, images, first),
        pass_flop(layout, images, fitted, later),
        publish_flop(layout, fitted)
        + sum(pass_flop(layout, images, fitted, kind) for kind in usual.publishing)
        + GUARD_FITS * pass_flop(layout, images, fitted, GUARD_PASS),
    )
