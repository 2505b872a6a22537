"""How long archives of any size take on any number of workers, in closed form, and what they wait for.

The scarcest resource decides how long a phase takes: cores, the network of the workers, requests to the object store,
or the driver. Its tasks also wait for one another, which `benchmarks.simulation` checks.
"""

import dataclasses
import math
from dataclasses import dataclass

from benchmarks.scaling_constants import Backbone, Constants
from benchmarks.simulation import PassCosts
from pipeline.cluster.tasks import TASKS_PER_WORKER
from pipeline.commands.plan.forecast import kept_images
from pipeline.costs.footprint import (
    FLOAT64_BYTES,
    GUARD_FITS,
    USUAL_PASSES,
    Layout,
    PassKind,
    by_products,
    chunks,
    extraction_requests,
    feature_bytes,
    has_whole_rows,
    measure_flop,
    pass_flop,
    pass_requests,
    pass_tasks,
    products_flop,
    publish_flop,
    publish_tasks,
)
from pipeline.costs.schedule import apart_up_to, schedule_seconds
from schemas.config import Config
from schemas.stores.features import FeatureGeometry

FORWARD, ARITHMETIC, NETWORK = "forward pass", "arithmetic", "network"
REQUESTS, DRIVER, TURNS, MERGES = "requests", "scheduler", "groups in turn", "merges in order"

# Rows and columns of positions at 256 pixels.
GRID = 14

# Unfinished tasks of a row for each segment of its chain: the merge, and half of the tasks around it.
UNFINISHED = 1.5

# A phase that keeps a smaller share of the workers busy waits for the order of its own tasks, not for workers.
BUSY = 0.6


@dataclass(frozen=True)
class Phase:
    """How long a phase takes, and what it waits for."""

    seconds: float
    waits_for: str

    def times(self, count: float) -> "Phase":
        """Return ``count`` of these phases, one after another."""
        return Phase(self.seconds * count, self.waits_for)


def layout_of(backbone: Backbone) -> Layout:
    """Return the layout of a backbone at 256 pixels."""
    return Layout(FeatureGeometry(GRID, GRID, backbone.channels, 64, 64, 10, 4), itemsize=2, segment_images=4096)


def extraction(images: int, workers: int, backbone: Backbone, constants: Constants) -> Phase:
    """Return how long extraction takes."""
    layout = layout_of(backbone)
    requests = extraction_requests(layout, images)
    # Blocks are the pieces that workers share.
    busy = min(workers, chunks(images))
    bytes_moved = images * constants.image_bytes + feature_bytes(layout, images)
    return _scarcest(
        {
            FORWARD: images / (busy * constants.cores * backbone.images_per_second),
            NETWORK: bytes_moved / (busy * constants.network_bytes_per_second),
            REQUESTS: images / constants.get_per_second + requests.put / constants.put_per_second,
            DRIVER: chunks(images) * constants.submit_seconds,
        }
    )


def judging(images: int, groups: int, workers: int, backbone: Backbone, constants: Constants) -> list[Phase]:
    """Return the phases of judging groups of ``images`` each: one after another, or side by side in one task each."""
    layout, kept = layout_of(backbone), kept_images(images, Config())
    is_apart = images <= apart_up_to([images] * groups, layout, workers)
    if not by_products(layout, images):
        together = 1 if is_apart else workers
        one, fit = (work(images, together, backbone, constants) for work in (large_pass, publish_large))
        phases = [one.times(USUAL_PASSES + GUARD_FITS), fit]
        if is_apart:
            return [_apart(groups, images, total(phases).seconds, 0.0, workers, backbone, constants)]
        return [phase.times(groups) for phase in phases]
    later = pass_flop(layout, images, kept, PassKind()) / backbone.passes
    first = products_flop(layout, images) / backbone.products
    first += pass_flop(layout, images, images, PassKind()) / backbone.passes
    publish = publish_flop(layout, kept) / backbone.publish
    scores = pass_flop(layout, images, kept, PassKind(scores=True)) / backbone.passes
    row_products = layout.geometry.columns * images**2 * FLOAT64_BYTES
    row_features = images * layout.geometry.columns * layout.position_bytes
    row_map = layout.geometry.columns * kept * layout.geometry.channels * FLOAT64_BYTES
    steps = (
        (1, first, row_features + 2 * row_products),
        (USUAL_PASSES - 1, later, row_products),
        (1, publish, row_features + row_map),
        (GUARD_FITS, scores, row_products),
    )
    if is_apart:
        computing = sum(repeats * work for repeats, work, _ in steps) / constants.cores
        moving = sum(repeats * moved for repeats, _, moved in steps) * GRID / constants.network_bytes_per_second
        return [_apart(groups, images, computing, moving, workers, backbone, constants)]
    return [
        _rows(work / (layout.geometry.rows * constants.cores), moved, workers, constants).times(groups * repeats)
        for repeats, work, moved in steps
    ]


def _rows(seconds: float, moved: float, workers: int, constants: Constants) -> Phase:
    """Return a step of one task for each row of positions; each computes for some seconds and moves some bytes."""
    network = moved / constants.network_bytes_per_second
    taken = schedule_seconds(GRID, seconds + network, workers, submit_seconds=constants.submit_seconds)
    if GRID * (seconds + network) / workers < BUSY * taken:
        return Phase(taken, TURNS)
    return Phase(taken, ARITHMETIC if seconds > network else NETWORK)


def _apart(
    groups: int,
    images: int,
    computing: float,
    moving: float,
    workers: int,
    backbone: Backbone,
    constants: Constants,
) -> Phase:
    """Return the phase of judging groups in one task each, which computes and moves bytes for some seconds."""
    each, passes = computing + moving, USUAL_PASSES + GUARD_FITS
    requests = pass_requests(layout_of(backbone), images, images, PassKind()).times(groups * passes)
    asking = requests.get / constants.get_per_second + requests.put / constants.put_per_second
    taken = schedule_seconds(groups, each, workers, submit_seconds=constants.submit_seconds)
    if asking > taken:
        return Phase(asking, REQUESTS)
    if groups * constants.submit_seconds > groups * each / workers:
        return Phase(taken, DRIVER)
    return Phase(taken, ARITHMETIC if computing > moving else NETWORK)


def large_costs(images: int, workers: int, backbone: Backbone, constants: Constants) -> PassCosts:
    """Return the costs of the tasks of a pass over a large group, each of one row of positions and one segment."""
    layout = layout_of(backbone)
    D, columns, segment = backbone.channels, layout.geometry.columns, min(images, layout.segment_images)
    read = segment * columns * layout.position_bytes / constants.network_bytes_per_second
    is_whole = has_whole_rows(layout, images)  # then nothing travels, and features are read once
    moments = (
        columns * D**2 * FLOAT64_BYTES / constants.network_bytes_per_second if workers > 1 and not is_whole else 0.0
    )
    per_core = columns / constants.cores
    return PassCosts(
        accumulate=read + per_core * (segment * D**2 / backbone.accumulate + chunks(segment) * backbone.merge),
        merge=0.0 if is_whole else moments + per_core * backbone.merge,
        fit=moments + per_core * backbone.factor,
        # Every worker fetches the Gaussians once.
        measure=(0.0 if is_whole else read) + per_core * measure_flop(D, segment, D + 1) / backbone.measure,
        judge=0.0,
    )


def large_pass(images: int, workers: int, backbone: Backbone, constants: Constants) -> Phase:
    """Return one pass over a group beyond the dual form."""
    layout, costs = layout_of(backbone), large_costs(images, workers, backbone, constants)
    requests = pass_requests(layout, images, images, PassKind())
    segments, rows = layout.segments(images), layout.geometry.rows
    work = rows * (segments * (costs.accumulate + costs.merge + costs.measure) + costs.fit)
    driver = pass_tasks(layout, images, images, PassKind()) * constants.submit_seconds
    needs = {
        TURNS if rows * segments < BUSY * workers else ARITHMETIC: work / min(workers, rows * segments),
        # The last row starts after all rows before it are submitted.
        MERGES: merge_chain(segments, rows, workers, costs) + driver if segments > 1 else 0.0,
        REQUESTS: requests.get / constants.get_per_second + requests.put / constants.put_per_second,
        DRIVER: driver,
    }
    found = _scarcest(needs)
    alone = large_costs(images, workers, backbone, dataclasses.replace(constants, network_bytes_per_second=math.inf))
    computing = segments * (alone.accumulate + alone.merge + alone.measure) + alone.fit
    is_network = found.waits_for == ARITHMETIC and rows * computing < work / 2
    return Phase(found.seconds, NETWORK) if is_network else found


def merge_chain(segments: int, rows: int, workers: int, costs: PassCosts) -> float:
    """Return how long the rows' chains of merges take, side by side as far as the bound on tasks in flight allows."""
    chain = costs.accumulate + (segments - 1) * costs.merge + costs.fit + costs.measure + costs.judge
    in_flight = TASKS_PER_WORKER * workers + 1
    together = min(rows, max(1.0, in_flight / (UNFINISHED * segments)))
    return rows / together * chain


def publish_large(images: int, workers: int, backbone: Backbone, constants: Constants) -> Phase:
    """Return the published fit of a group beyond the dual form."""
    layout, costs = layout_of(backbone), large_costs(images, workers, backbone, constants)
    segments, rows = layout.segments(images), layout.geometry.rows
    return _scarcest(
        {
            ARITHMETIC: rows
            * (segments * (costs.accumulate + costs.merge) + costs.fit)
            / min(workers, rows * segments),
            MERGES: merge_chain(segments, rows, workers, costs),
            DRIVER: publish_tasks(layout, images, images) * constants.submit_seconds,
        }
    )


def total(phases: list[Phase]) -> Phase:
    """Return the sum of all phases, and what most of its time waits for."""
    by_cause: dict[str, float] = {}
    for phase in phases:
        by_cause[phase.waits_for] = by_cause.get(phase.waits_for, 0.0) + phase.seconds
    return Phase(sum(by_cause.values()), max(by_cause, key=lambda cause: by_cause[cause]))


def _scarcest(needs: dict[str, float]) -> Phase:
    cause = max(needs, key=lambda name: needs[name])
    return Phase(needs[cause], cause)
