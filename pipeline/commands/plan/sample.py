"""What to rehearse for a plan: which images of the archive, which sizes of groups, and how many positions.

Times are those of the machine that plans, in a temporary directory (`pipeline.commands.plan.rehearsal`).
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.cluster.cluster import Cluster, workers_of
from pipeline.commands.plan.forecast import Measured, mean_block
from pipeline.commands.plan.rehearsal import Extraction, Rehearsal, extract_sample, judge_groups
from pipeline.costs.footprint import (
    GUARD_FITS,
    USUAL_PASSES,
    Layout,
    by_products,
    is_small,
    pass_flop,
    products_flop,
    publish_flop,
)
from pipeline.judging.strategies.ablations import KeepAll
from pipeline.judging.strategies.registry import strategy_of
from schemas.config import Config
from schemas.errors import ConfigError, UnreadableBudgetError
from schemas.records.image import ImageOutcome
from workers.features.extractor import PatchExtractor
from workers.passes.by_products import SMALL_GROUP
from workers.storage.directory import Directory
from workers.verdict.selection import MIN_FITTED

# Images of the sample, unless the archive has fewer.
SAMPLE = 64

# Operations of one core in a rehearsal of one group, which set its number of positions: some seconds.
_REHEARSED_FLOP = 6e10

# A group beyond the dual form is rehearsed with this many times the channels, so that half of it is beyond it as well.
_PRIMAL_SIZE = 2.3

# And with this many times that size, to separate what grows with the images from what does not.
_SECOND_SIZE = 3

# A group of at least this share of the largest size is close enough to it, and needs no rehearsal of its own.
_OTHER_SIZE = 0.8

# Small groups that each worker rehearses one after another, to pay once for what they share.
_SMALL_GROUPS = 3


@dataclass(frozen=True)
class Sampled:
    """What trying a sample found.

    Attributes
    ----------
    outcomes
        What reading each image established.
    workers, threads
        Of the cluster that tried the sample.
    idle_bytes, extraction_bytes, peak_bytes
        Memory of a worker between tasks, its peak while it extracted the sample, and its peak over everything; 0 where
        the system does not tell.
    limit
        The memory limit of the smallest worker in bytes; 0 for none.
    """

    outcomes: tuple[ImageOutcome, ...]
    measured: Measured
    workers: int
    threads: int
    idle_bytes: int
    extraction_bytes: int
    peak_bytes: int
    limit: int


def draw(candidates: pd.DataFrame, sample: int | None, seed: int) -> pd.DataFrame:
    """Return a sample of a catalog's images, spread evenly over the archive from a random start.

    Raises
    ------
    ConfigError
        When the archive has fewer images than ``sample``.
    """
    count = min(SAMPLE, len(candidates)) if sample is None else sample
    if count > len(candidates):
        raise ConfigError(
            f"--sample {count} is more than the {len(candidates)} images of the archive. Give {len(candidates)} or "
            "fewer, or leave the option out."
        )
    offset = np.random.default_rng(seed).random()
    return candidates.iloc[((np.arange(count) + offset) * len(candidates) / max(count, 1)).astype(np.int64)]


def try_sample(
    cluster: Cluster,
    chosen: pd.DataFrame,
    sizes: list[int],
    extractor: PatchExtractor,
    layout: Layout,
    config: Config,
    *,
    start: float,
) -> Sampled:
    """Extract a sample and judge groups made of it, in a temporary directory.

    Parameters
    ----------
    cluster
        Its workers have built their extractors.
    chosen
        The sample: rows of the catalog.
    sizes
        Images of each of the archive's groups.
    extractor
        The extractor of this process, for the grid and the digest of the weights.
    start
        Seconds since the command started.

    Raises
    ------
    UnreadableBudgetError
        When fewer images can be read than a fit needs.
    """
    with tempfile.TemporaryDirectory(prefix="paire-plan-") as folder:
        directory = Directory.at(folder)
        digest = extractor.weights_digest
        block = mean_block(sizes)
        extraction = extract_sample(
            cluster, chosen, extractor.geometry, config, digest, directory / "extraction", block_images=block
        )
        _check_readable(extraction, chosen)
        extracting = max(cluster.client.run(_peak_bytes).values())
        features = _about_one_mean(extraction, chosen)
        rehearse = _Rehearsing(cluster, features, layout, config, directory)
        cold, warm = rehearse.smallest(), rehearse.smallest()
        idle = max(cluster.client.run(_resident_bytes).values())  # includes all that judging loads
        rehearsals = tuple(rehearse.size(size) for size in _sizes_to_rehearse(sizes, layout, rehearse.position_flop))
        most = max(cluster.client.run(_peak_bytes).values())
    measured = Measured(
        start=start,
        first_tasks=max(cold.seconds - warm.seconds, 0.0),
        group=warm.rest,
        images_per_second=extraction.images_per_second,
        rehearsals=rehearsals,
    )
    return Sampled(
        outcomes=extraction.outcomes,
        measured=measured,
        workers=cluster.workers,
        threads=cluster.threads,
        idle_bytes=idle,
        extraction_bytes=extracting,
        peak_bytes=most,
        limit=min(int(worker["memory_limit"] or 0) for worker in workers_of(cluster.client).values()),
    )


@dataclass
class _Rehearsing:
    """Rehearses groups of different sizes, each in its own directory."""

    cluster: Cluster
    features: Any
    layout: Layout
    config: Config
    directory: Directory
    done: int = 0

    def smallest(self) -> Rehearsal:
        """Judge one position of the smallest group that is judged by several tasks."""
        return self._judge(self.features[:, :1, :1], SMALL_GROUP + 1, 1)

    def size(self, images: int) -> Rehearsal:
        """Judge groups of a size, on enough positions for some seconds of work."""
        geometry, workers = self.layout.geometry, self.cluster.workers
        if is_small(images):
            return self._judge(self.features, images, _SMALL_GROUPS * workers)
        positions = _REHEARSED_FLOP * workers * self.cluster.threads / self.position_flop(images)
        rows = min(geometry.rows, workers * max(1, round(positions / geometry.columns / workers)))
        columns = min(geometry.columns, max(self.cluster.threads, round(positions / rows)))
        part = self.features[:, _spread(rows, geometry.rows)][:, :, _spread(columns, geometry.columns)]
        return self._judge(part, images, 1)

    def position_flop(self, images: int) -> float:
        """Return the operations of judging one position in the usual passes of `paire`."""
        kind = strategy_of(self.config).forecast.first
        products = products_flop(self.layout, images) if by_products(self.layout, images) else 0.0
        passes = (USUAL_PASSES + GUARD_FITS) * pass_flop(self.layout, images, images, kind)
        return (products + passes + publish_flop(self.layout, images)) / self.layout.positions

    def _judge(self, features: Any, images: int, groups: int) -> Rehearsal:
        self.done += 1
        config = self.config
        if not by_products(self.layout, images) and strategy_of(config).keeps_fitted:
            # The threshold may keep few of the drawn images, but a large group's fits are in primal form.
            config = config.model_copy(update={"trim": config.trim.model_copy(update={"strategy": KeepAll.name})})
        return judge_groups(
            self.cluster,
            features,
            self.layout.geometry,
            config,
            self.directory / f"rehearsal-{self.done}",
            images=images,
            groups=groups,
            seed=self.done,
        )


def _sizes_to_rehearse(sizes: list[int], layout: Layout, position_flop: Callable[[int], float]) -> list[int]:
    """Return sizes that stand for all: the mean of small groups, the ends of those by products, one or two beyond.

    Beyond the dual form, a second size is rehearsed where tasks are quick, as their fixed cost must not be scaled.
    """
    small = [size for size in sizes if is_small(size)]
    dual = sorted(size for size in sizes if not is_small(size) and by_products(layout, size))
    primal = [size for size in sizes if not is_small(size) and not by_products(layout, size)]
    wanted = [max(MIN_FITTED, round(sum(small) / len(small)))] if small else []
    if dual:
        wanted += [dual[-1], *dual[:1]] if dual[0] < _OTHER_SIZE * dual[-1] else dual[-1:]
    if primal:
        first = min(max(primal), math.ceil(_PRIMAL_SIZE * layout.geometry.channels))
        second = min(max(primal), _SECOND_SIZE * first)
        wanted += [second, first] if first < second and position_flop(second) <= _REHEARSED_FLOP else [first]
    return wanted


def _spread(count: int, of: int) -> Any:
    """Return ``count`` of ``of`` indices, evenly spread."""
    return ((np.arange(count) + 0.5) * of / count).astype(np.int64)


def _check_readable(extraction: Extraction, chosen: pd.DataFrame) -> None:
    named = zip(chosen["file_name"], extraction.outcomes, strict=True)
    faults = [f"{name!r}: {outcome.reason}" for name, outcome in named if outcome.reason]
    if len(chosen) - len(faults) >= MIN_FITTED:
        return
    first = f" (the first: {faults[0]})" if faults else ""
    raise UnreadableBudgetError(
        f"{len(chosen) - len(faults)} of the {len(chosen)} images of the sample can be read{first}; judging needs "
        f"{MIN_FITTED}. Check the source, give a larger --sample, or --sample 0 to measure nothing."
    )


def _about_one_mean(extraction: Extraction, chosen: pd.DataFrame) -> Any:
    """Return the sample's features with each group's mean moved to the common mean, as of one group."""
    is_readable = [outcome.is_readable for outcome in extraction.outcomes]
    groups = chosen["group"].to_numpy()[is_readable]
    features = extraction.features.astype(np.float32)
    mean = features.mean(axis=0)
    for group in np.unique(groups):
        own = groups == group
        features[own] += mean - features[own].mean(axis=0) if own.sum() > 1 else 0.0
    return features.astype(extraction.features.dtype)


def _peak_bytes() -> int:
    """Return the peak of this process's resident memory."""
    return _status("VmHWM")


def _resident_bytes() -> int:
    """Return the resident memory of this process."""
    return _status("VmRSS")


def _status(name: str) -> int:
    """Return a figure of this process in bytes; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    lines = [
        line for line in status.read_text(encoding="ascii", errors="replace").splitlines() if line.startswith(name)
    ]
    return int(lines[0].split()[1]) * 1024 if lines else 0
