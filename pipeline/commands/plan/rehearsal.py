"""A run in miniature, timed: the workers extract a sample of images, and judge groups that are drawn from its features.

A plan times the job's own stages on the machine that it will run on, at the sizes of the archive's groups where
possible, and on few positions. It models nothing that it can try. A drawn image takes each block of channels from one
image of the sample, so a group has the sample's variances, and as many directions as images.
"""

import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.cluster.cluster import Cluster
from pipeline.cluster.progress import Phase, Reporter
from pipeline.costs.footprint import is_small
from pipeline.intake.extract import extract_features
from pipeline.judging.judge import Judge
from schemas.config import Config
from schemas.names import storage_name
from schemas.records.image import ImageOutcome
from schemas.records.run import FEATURES, RUNNING, RunRecord
from schemas.stores.features import CHUNK_IMAGES, FeatureGeometry
from schemas.tables.catalog import COLUMNS
from workers.storage.directory import Directory

logger = logging.getLogger("paire")

Features = NDArray[np.floating]

# Channels that a drawn image takes from one image of the sample.
BLOCK_CHANNELS = 8

# Images that each worker extracts first: once untimed, to start threads and memory, and once timed, for the fixed cost
# of a block.
FIRST_IMAGES = 4

# A sample that takes less than this is extracted several times over, as chance decides too much of so short a time.
QUICK_S = 3.0
REPEATS = 3

# Passes of each loop of a strategy over a group that is not small: later passes cost as much as the second.
REHEARSED_PASSES = 2


class Stopwatch(Reporter):
    """Shows nothing, and keeps how long the phases of each kind took, or of each name where they have no kind."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def phase(
        self,
        name: str,
        total: int,
        unit: str = "images",
        *,
        kind: str = "",
        brief: bool = False,  # noqa: ARG002
    ) -> Iterator[Phase]:
        """Time a phase while the block runs."""
        started = time.monotonic()
        yield Phase(name, total, unit, None)
        self.seconds[kind or name].append(time.monotonic() - started)


@dataclass(frozen=True)
class Extraction:
    """How a sample was extracted.

    Attributes
    ----------
    outcomes
        What reading each image established, in the order of the sample.
    features
        (readable images, rows, columns, channels).
    images_per_second
        How many images one worker extracts, after its start.
    """

    outcomes: tuple[ImageOutcome, ...]
    features: Features
    images_per_second: float


@dataclass(frozen=True)
class Rehearsal:
    """How long judging groups of one size took.

    Attributes
    ----------
    images
        Of each group.
    groups
        How many groups were judged together.
    rows, columns
        The grid of positions of each group.
    first_pass, next_pass
        Seconds of the first pass, and the mean of the later passes. For groups that are judged in one task each, both
        are the seconds of judging all of them.
    rest, seconds
        Seconds of everything else, and of everything.
    """

    images: int
    groups: int
    rows: int
    columns: int
    first_pass: float
    next_pass: float
    rest: float
    seconds: float
    workers: int


def extract_sample(
    cluster: Cluster,
    sample: pd.DataFrame,
    geometry: FeatureGeometry,
    config: Config,
    weights_digest: str,
    directory: Directory,
    *,
    block_images: int,
) -> Extraction:
    """Extract a sample of images, shared equally by the workers, and time it.

    Parameters
    ----------
    cluster
        Its workers have built their extractors.
    sample
        Rows of the catalog.
    geometry, config, weights_digest
        As for `pipeline.intake.extract.extract_features`.
    directory
        An empty directory.
    block_images
        The most images of a block: as many as the archive's blocks have, as each block has a fixed cost.
    """

    def extract(images: pd.DataFrame, into: str) -> tuple[dict[str, list[ImageOutcome]], float]:
        started, phase = time.monotonic(), Phase("", len(images), "images", None)
        found = extract_features(cluster, images, directory / into, geometry, config, weights_digest, phase)
        return found, time.monotonic() - started

    first, shared, repeated = (
        blocks_of(images, cluster.workers, block_images)
        for images in (sample[: FIRST_IMAGES * cluster.workers], sample, pd.concat([sample] * REPEATS))
    )
    busiest = -(-len(sample) // cluster.workers)
    with _silent():
        extract(first, "first")
        _, few_seconds = extract(first, "first")
        found, seconds = extract(shared, "sample")
        rate = _rate(busiest, seconds, min(FIRST_IMAGES, busiest), few_seconds)
        if seconds < QUICK_S:
            _, longer = extract(repeated, "repeated")
            rate = _rate(REPEATS * busiest, longer, busiest, seconds)
    outcomes = tuple(
        found[group][row] for group, row in zip(shared["group"].tolist(), shared["row"].tolist(), strict=True)
    )
    stored = directory.zarr_group("sample")
    arrays = {group: np.asarray(stored[storage_name(group)]) for group in found}
    readable = [
        arrays[group][row]
        for group, row, outcome in zip(shared["group"].tolist(), shared["row"].tolist(), outcomes, strict=True)
        if outcome.is_readable
    ]
    features = np.stack(readable) if readable else np.empty(geometry.array_shape(0), config.features.dtype)
    return Extraction(outcomes, features, rate)


def blocks_of(sample: pd.DataFrame, workers: int, most: int) -> pd.DataFrame:
    """Return a sample in equal groups, each a block of at most ``most`` images, and equally many for each worker."""
    groups, place = workers * -(-len(sample) // (workers * most)), np.arange(len(sample))
    return sample.assign(group=[f"{number:06d}" for number in place % groups], row=place // groups)


def _rate(images: int, seconds: float, few: int, few_seconds: float) -> float:
    """Return the images per second beyond a few, without the fixed cost of a block, which the next block hides."""
    if images < 2 * few:
        return images / seconds
    # Where a few images take as long as all, something else kept them waiting.
    return (images - few) / max(seconds - few_seconds, seconds / 2)


def judge_groups(
    cluster: Cluster,
    features: Features,
    geometry: FeatureGeometry,
    config: Config,
    directory: Directory,
    *,
    images: int,
    groups: int = 1,
    seed: int = 0,
) -> Rehearsal:
    """Judge groups of drawn features, and time it.

    Parameters
    ----------
    features
        (sample, rows, columns, channels): the sample's features at the positions to judge.
    geometry
        The whole grid; the grid of ``features`` may be a part of it.
    directory
        An empty directory.
    images, groups
        How many images each group has, and how many groups there are.
    seed
        Seeds the draw.
    """
    _, rows, columns, _ = features.shape
    part = dataclasses.replace(geometry, rows=rows, columns=columns)
    names = [f"{number:06d}" for number in range(groups)]
    catalog = _catalog(names, images)
    outcomes = {
        name: [ImageOutcome(row, f"{name}-{row}", 1, width=1, height=1) for row in range(images)] for name in names
    }
    for number, name in enumerate(names):
        _write_drawn(directory / FEATURES, name, features, images, np.random.default_rng((seed, number)))
    # The images do not exist, so nothing can be planted into them.
    bounded = config.model_copy(update={"guard": config.guard.model_copy(update={"power_images": 0})})
    if not is_small(images):
        bounded = bounded.model_copy(
            update={"trim": config.trim.model_copy(update={"max_iterations": REHEARSED_PASSES})}
        )
    record = RunRecord("", RUNNING, "", {}, "", "", "")
    stopwatch = Stopwatch()
    judge = Judge(directory, directory / FEATURES, part, bounded, record, cluster, stopwatch)
    with _silent():
        started = time.monotonic()
        judge.judge(catalog, outcomes)
        seconds = time.monotonic() - started
    passes = stopwatch.seconds["pass"] or stopwatch.seconds["judge"]
    later = passes[1:] or passes
    return Rehearsal(
        images=images,
        groups=groups,
        rows=rows,
        columns=columns,
        first_pass=passes[0],
        next_pass=sum(later) / len(later),
        rest=seconds - sum(passes),
        seconds=seconds,
        workers=cluster.workers,
    )


def _catalog(groups: list[str], images: int) -> pd.DataFrame:
    """Return the catalog of groups with ``images`` images each."""
    rows = [(f"{group}-{row}", group, row) for group in groups for row in range(images)]
    frame = pd.DataFrame(rows, columns=["file_name", "group", "row"]).astype({"row": "Int64"})
    frame = frame.assign(sample_id=frame["file_name"], image_path=frame["file_name"], reason="")
    return frame[[column.name for column in COLUMNS]]


def _write_drawn(store: Directory, name: str, features: Features, images: int, random: np.random.Generator) -> None:
    """Draw features (images, rows, columns, channels) from a sample's, and write them chunk by chunk."""
    sample, rows, columns, channels = features.shape
    array = store.zarr_group("", "a").create_array(
        storage_name(name),
        shape=(images, rows, columns, channels),
        chunks=(min(CHUNK_IMAGES, images), 1, columns, channels),
        dtype=features.dtype,
        compressors=None,
    )
    blocks = -(-channels // BLOCK_CHANNELS)
    for start in range(0, images, CHUNK_IMAGES):
        count = min(CHUNK_IMAGES, images - start)
        donors = np.repeat(random.integers(sample, size=(count, blocks)), BLOCK_CHANNELS, axis=1)[:, :channels]
        for row in range(rows):
            drawn = features[donors, row, :, np.arange(channels)]  # (images, channels, columns)
            array[start : start + count, row] = drawn.swapaxes(1, 2)


@contextmanager
def _silent() -> Iterator[None]:
    """Log nothing while the block runs, as the images of a rehearsal do not exist."""
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
