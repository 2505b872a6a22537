"""How tasks share the workers: how long equal tasks take, and which groups of an archive are judged side by side."""

import math
from collections import Counter
from collections.abc import Sequence

from pipeline.costs.footprint import (
    GUARD_FITS,
    USUAL_PASSES,
    Layout,
    PassKind,
    by_products,
    is_small,
    pass_flop,
    products_flop,
)

# The share of the workers' time that is lost where every pass waits for its last row.
WAITING = 0.1


def schedule_seconds(tasks: int, task_seconds: float, workers: int, *, submit_seconds: float = 0.0) -> float:
    """Return how long equal, independent tasks take: their rounds, unless submitting them takes longer.

    Parameters
    ----------
    task_seconds
        How long one worker takes for one task.
    submit_seconds
        How long the driver and the scheduler take to submit one task. They submit one after another.
    """
    if not tasks:
        return 0.0
    computing = math.ceil(tasks / workers) * task_seconds + submit_seconds
    return max(computing, tasks * submit_seconds + task_seconds)


def apart_up_to(sizes: Sequence[int], layout: Layout, workers: int) -> int:
    """Return the size of the largest groups that are judged side by side, each in one task; 0 for no groups.

    Small groups are always judged side by side. Other groups are judged one after another, with a task for each row of
    positions: no more workers than rows are busy then, and fewer in the last round. Where it saves time, all groups up
    to some size are judged side by side instead, but never groups of several segments, which have enough tasks. No
    result depends on this choice.

    Parameters
    ----------
    sizes
        Images of each group.
    """
    small = Counter(size for size in sizes if is_small(size))
    best = max(small, default=0)
    if workers == 1:
        return best
    rows = layout.geometry.rows
    in_turn = (1.0 + WAITING) * math.ceil(rows / workers) / rows  # of a group's work
    together = sum(count * _work(layout, size) for size, count in small.items())
    others = Counter(size for size in sizes if not is_small(size) and layout.segments(size) == 1)
    work = {size: _work(layout, size) for size in sorted(others)}
    left = sum(others[size] * each for size, each in work.items())
    least = together / workers + in_turn * left
    for size, each in work.items():
        together, left = together + others[size] * each, left - others[size] * each
        # The last group starts after all others have started (Graham 1969).
        seconds = together / workers + (1.0 - 1.0 / workers) * each + in_turn * left
        if seconds < least:
            best, least = size, seconds
    return best


def _work(layout: Layout, images: int) -> float:
    """Return the operations of judging a group, roughly: the passes of `paire` and of the breakdown guard."""
    products = products_flop(layout, images) if by_products(layout, images) else 0.0
    return products + (USUAL_PASSES + GUARD_FITS) * pass_flop(layout, images, images, PassKind())
