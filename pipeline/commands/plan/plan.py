"""What a run would cost: ``paire plan``.

The plan lists the archive as ``clean`` does, and takes the grid of positions from the backbone. The formulas of
`pipeline.costs.footprint` then give bytes, tasks, requests and memory. Times come from rehearsals on a sample
(`pipeline.commands.plan.rehearsal`), in a temporary directory of this machine. A plan changes neither the archive nor
any run directory.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from pipeline.cluster.cluster import CORES_PER_WORKER, Cluster, open_cluster
from pipeline.commands.plan.forecast import (
    PassCounts,
    Seconds,
    count_power_tasks,
    expected_passes,
    forecast,
    kept_images,
    mean_block,
)
from pipeline.commands.plan.sample import Sampled, draw, try_sample
from pipeline.costs.footprint import (
    Layout,
    Requests,
    chunks,
    distance_bytes,
    examine_requests,
    examine_tasks,
    extraction_requests,
    feature_bytes,
    map_bytes,
    moments_bytes,
    near_duplicate_requests,
    near_duplicate_tasks,
    pass_requests,
    pass_tasks,
    products_bytes,
    publish_requests,
    publish_tasks,
    verdict_requests,
)
from pipeline.costs.schedule import apart_up_to
from pipeline.costs.working_memory import USABLE_MEMORY, extraction_memory, judging_memory
from pipeline.intake.catalog import build_catalog
from pipeline.intake.extract import check_extractor
from pipeline.intake.locations import absolute_source, with_absolute_weights
from pipeline.judging.strategies.registry import strategy_of
from schemas.config import Config
from schemas.errors import ConfigError
from schemas.stores.features import CHUNK_IMAGES
from workers.features.extractor import PatchExtractor
from workers.storage.directory import is_url
from workers.trust.recall import Share
from workers.verdict.selection import MIN_FITTED


@dataclass(frozen=True)
class Plan:
    """What a run would cost.

    Attributes
    ----------
    source
        The archive.
    inputs, images
        Everything listed, and how much of it a run would read.
    groups
        ``number``, and images of the ``smallest``, ``median`` and ``largest``.
    sample
        Images that were tried; 0 for none.
    unreadable
        Share of the sample that cannot be read, with its interval; None without a sample.
    archive_bytes
        Bytes of the images; None where neither the listing nor the sample tells.
    bytes
        ``features`` and ``distances`` as stored, uncompressed; ``map`` if all images are kept, which is the most;
        ``scratch``: needed besides, while the largest groups are judged.
    tasks
        By stage, for the usual number of passes. ``small groups`` are all groups that are judged in one task each.
    requests
        ``get`` and ``put`` of chunks, which matter when the run directory is in an object store; ``archive_get``.
    passes
        The number of passes over each group that the plan assumes.
    memory
        Bytes ``needed`` by each worker, its ``limit``, and whether that is ``enough``. Without a sample the last two
        are None.
    workers, threads
        The workers that the times are for, and the compute threads of each.
    seconds
        By phase; None without a sample.
    range_s
        Seconds of the whole run with the fewest and with the most passes; None without a sample.
    """

    source: str
    inputs: int
    images: int
    groups: dict[str, float]
    sample: int
    unreadable: Share | None
    archive_bytes: int | None
    bytes: dict[str, int]
    tasks: dict[str, int]
    requests: dict[str, int]
    passes: PassCounts
    memory: dict[str, Any]
    workers: int | None
    threads: int | None
    seconds: Seconds | None
    range_s: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        data = dataclasses.asdict(self)
        if self.seconds is not None:
            data["seconds"]["total"] = self.seconds.total
        return data


def plan(
    source: str,
    config: Config,
    *,
    sample: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    opened: Callable[[], Cluster] | None = None,
    started: float | None = None,
) -> Plan:
    """Plan what cleaning an archive would cost.

    Parameters
    ----------
    source, config
        As for ``clean``.
    sample
        Images to try; 0 measures nothing; None tries 64, or all of a smaller archive.
    workers
        How many workers the run would have; by default those of the local cluster.
    seed
        Draws the sample.
    opened
        From `pipeline.cluster.cluster.opening_cluster`: returns a cluster that the caller is opening and will close.
    started
        When the command started, by `time.monotonic`. None leaves the time of loading out of the plan.

    Raises
    ------
    ConfigError
        When the archive has fewer images than ``sample``, or when ``workers`` is below 1.
    UnreadableBudgetError
        When too few images of the sample can be read to try anything.
    PaireError
        When ``clean`` would refuse to start.
    """
    started = time.monotonic() if started is None else started
    _check_counts(sample, workers)
    source, config = absolute_source(source), with_absolute_weights(config)
    catalog = build_catalog(source, config.input)
    candidates = catalog[catalog["row"].notna()].reset_index(drop=True)
    chosen = draw(candidates, sample, seed)
    extractor = PatchExtractor(config.features.model_copy(update={"device": "cpu"}))
    near = strategy_of(config).measures_neighbours
    layout = Layout.of(extractor.geometry, config, has_references=near)
    sizes = [int(size) for size in candidates.groupby("group").size()]
    tried = None
    if len(chosen):
        with nullcontext(opened()) if opened else open_cluster(config.cluster) as cluster:
            check_extractor(cluster, config, extractor.weights_digest)
            start = time.monotonic() - started
            tried = try_sample(cluster, chosen, sizes, extractor, layout, config, start=start)
    passes = expected_passes(config)
    count = workers or (tried.workers if tried else config.cluster.workers)
    seconds, bounds = None, None
    if tried is not None:
        assert count is not None
        times = {
            number: forecast(sizes, tried.measured, layout, config, workers=count, passes=number)
            for number in (passes.fewest, passes.usual, passes.most)
        }
        seconds, bounds = times[passes.usual], (times[passes.fewest].total, times[passes.most].total)
    return Plan(
        source=source,
        inputs=len(catalog),
        images=len(candidates),
        groups={"number": len(sizes), "smallest": min(sizes), "median": median(sizes), "largest": max(sizes)},
        sample=len(chosen),
        unreadable=_unreadable(tried),
        archive_bytes=_archive_bytes(candidates, tried),
        bytes=_bytes(sizes, layout, count or 1),
        tasks=_tasks(sizes, layout, config, passes.usual, count or 1),
        requests=_requests(sizes, layout, config, passes.usual, from_url=is_url(str(candidates["image_path"].iloc[0]))),
        passes=passes,
        memory=_memory(sizes, layout, config, tried),
        workers=count,
        threads=tried.threads if tried else config.cluster.threads_per_worker,
        seconds=seconds,
        range_s=bounds,
    )


def _check_counts(sample: int | None, workers: int | None) -> None:
    if sample is not None and sample < 0:
        raise ConfigError(f"--sample {sample} is negative. Give a number of images to try, or 0 to measure nothing.")
    if workers is not None and workers < 1:
        raise ConfigError(
            f"--workers {workers} is too few: a run needs 1. Leave the option out for the local cluster's."
        )


def _unreadable(tried: Sampled | None) -> Share | None:
    if tried is None:
        return None
    outcomes = tried.outcomes
    return Share.counted(sum(not outcome.is_readable for outcome in outcomes), len(outcomes))


def _archive_bytes(candidates: pd.DataFrame, tried: Sampled | None) -> int | None:
    """Return the bytes of the images: counted on disk, or estimated from the sample."""
    paths = candidates["image_path"].tolist()
    if not any(map(is_url, paths)):
        return sum(path.stat().st_size for path in map(Path, paths) if path.is_file())
    if tried is None:
        return None
    counts = [outcome.byte_count for outcome in tried.outcomes if outcome.byte_count is not None]
    return round(sum(counts) / len(counts) * len(paths)) if counts else None


def _bytes(sizes: list[int], layout: Layout, workers: int) -> dict[str, int]:
    largest = apart_up_to(sizes, layout, workers)
    scratch = {size: products_bytes(layout, size) + moments_bytes(layout, size) for size in set(sizes)}
    side_by_side = sorted((scratch[size] for size in sizes if size <= largest), reverse=True)[:workers]
    return {
        "features": sum(feature_bytes(layout, size) for size in sizes),
        "distances": sum(distance_bytes(layout, size) for size in sizes),
        "map": sum(map_bytes(layout, size, size) for size in sizes if size >= MIN_FITTED),
        "scratch": max(sum(side_by_side), *scratch.values()),
    }


def _tasks(sizes: list[int], layout: Layout, config: Config, passes: int, workers: int) -> dict[str, int]:
    """Return the tasks of each stage, for a number of passes over every group."""
    usual, largest = strategy_of(config).forecast, apart_up_to(sizes, layout, workers)
    first, later = usual.first, usual.later
    stages = ("extract", "near-duplicates", "passes", "publish", "examine", "small groups", "power")
    counts: Counter[str] = Counter(dict.fromkeys(stages, 0))
    counts["power"] = count_power_tasks(sizes, config)
    for size, number in Counter(sizes).items():
        counts["extract"] += number * chunks(size)
        if size <= largest:
            counts["small groups"] += number
            continue
        kept = kept_images(size, config)
        counts["near-duplicates"] += number * near_duplicate_tasks(layout, size)
        counts["passes"] += number * (
            pass_tasks(layout, size, size, first, is_first=True) + (passes - 1) * pass_tasks(layout, size, kept, later)
        )
        besides = (pass_tasks(layout, size, kept, kind) for kind in usual.publishing)
        counts["publish"] += number * (publish_tasks(layout, size, kept) + sum(besides))
        counts["examine"] += number * examine_tasks(layout, size, kept)
    return dict(counts)


def _requests(sizes: list[int], layout: Layout, config: Config, passes: int, *, from_url: bool) -> dict[str, int]:
    """Return the reads and writes of chunks, and the reads of an archive in an object store."""
    usual = strategy_of(config).forecast
    first, later = usual.first, usual.later
    total = Requests()
    for size, number in Counter(sizes).items():
        kept = kept_images(size, config)
        one = extraction_requests(layout, size) + near_duplicate_requests(layout, size)
        one += pass_requests(layout, size, size, first, is_first=True)
        one += pass_requests(layout, size, kept, later).times(passes - 1)
        one += verdict_requests(layout, size) + publish_requests(layout, size, kept)
        one = sum((pass_requests(layout, size, kept, kind) for kind in usual.publishing), one)
        total += (one + examine_requests(layout, size, kept)).times(number)
    return {"get": total.get, "put": total.put, "archive_get": sum(sizes) if from_url else 0}


def _memory(sizes: list[int], layout: Layout, config: Config, tried: Sampled | None) -> dict[str, Any]:
    """Return what each worker needs, and whether the local workers have it."""
    threads = tried.threads if tried else config.cluster.threads_per_worker or CORES_PER_WORKER
    judging = max(judging_memory(layout, size, kept_images(size, config), threads=threads) for size in sizes)
    features = config.features
    blocks = extraction_memory(layout, batch_size=features.batch_size, image_size=features.image_size)
    if tried is None:
        return {"needed": max(judging, blocks), "limit": None, "enough": None}
    # The measured peak includes the sample's blocks, but not the full blocks of a run.
    sampled = min(-(-len(tried.outcomes) // tried.workers), 2 * mean_block(sizes))
    missing = max(0, 2 * min(CHUNK_IMAGES, max(sizes)) - sampled) * layout.positions * layout.position_bytes
    needed = max(tried.peak_bytes, tried.extraction_bytes + missing, tried.idle_bytes + judging)
    limit = tried.limit or None
    return {"needed": needed, "limit": limit, "enough": limit is None or needed <= USABLE_MEMORY * limit}
