"""What judging costs as an archive grows: per image, in worker memory, and in groups of twenty images.

Features are synthetic and written straight into a store; only the judging is measured, from the first pass to the
published map. Each size has a cluster of its own, so that a worker's peak memory is that size's.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

import pipeline.judge
from pipeline.cluster import Cluster, open_cluster
from pipeline.judge import Judge
from pipeline.progress import Reporter
from pipeline.record import new_record
from schemas.config import Config, parse_config
from schemas.features import FeatureGeometry
from schemas.image import ImageOutcome
from schemas.names import sample_id, storage_name
from schemas.run import FEATURES, ITERATIONS
from tests.benchmarks import results
from tests.studies.synthetic_features import Archive, catalog_and_outcomes, plan, write_features
from workers.storage import Directory

SIZES = (1000, 5000, 20_000)
CHANNELS, SIDE = 64, 5
# Groups of as many images as small product lines have, on the grid of an image of 256 pixels.
GROUPS, GROUP_IMAGES, GROUP_GRID, GROUP_CHANNELS = 200, 20, 14, 448
MANY = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--strategy", default="paire", help="trim.strategy of the runs")
    parser.add_argument("--groups", type=int, default=GROUPS, help="small groups that are judged")


def measure(arguments: argparse.Namespace, command: str) -> results.Record:
    """Run the benchmark."""
    rows = [*_growth(arguments.strategy), *_small_groups(arguments.strategy, arguments.groups)]
    return results.record(
        "Scale: judging",
        f"`{arguments.strategy}` on one worker of one thread. Large groups: {SIDE} x {SIDE} positions of {CHANNELS} "
        f"channels; peak memory of the worker and of the command, and seconds for each image, over those of the "
        f"smallest group. Small groups: {GROUP_IMAGES} images of {GROUP_GRID} x {GROUP_GRID} positions of "
        f"{GROUP_CHANNELS} channels each, judged in one task each, over the same groups by a task for each row of "
        f"positions; {MANY} groups are extrapolated.",
        rows,
        command=command,
    )


@dataclass(frozen=True)
class _Run:
    """What one judging took: tasks, seconds of all and of the passes alone, peak bytes of the worker."""

    tasks: int
    seconds: float
    seconds_by_pass: float
    peak: int


def _growth(strategy: str) -> Iterator[dict[str, str]]:
    """Yield a row for each size of a large group."""
    runs = {}
    for images in (SIZES[0], 2000, *SIZES[1:]):
        archive = Archive(images=images, channels=CHANNELS, side=SIDE, planted=0.05)
        truth = plan(archive)

        def store(directory: Directory, archive: Archive = archive, truth: Any = truth) -> None:
            write_features(archive, truth, directory, "float16")

        catalog, outcomes = catalog_and_outcomes(archive, truth)
        runs[images] = _judge(strategy, archive.geometry, catalog, outcomes, store)
    first = runs[SIZES[0]]
    for images, run in runs.items():
        per_pass = run.seconds_by_pass / images / (first.seconds_by_pass / SIZES[0])
        yield {
            "case": f"{images} images",
            "peak memory": f"{run.peak / first.peak:.2f}",
            "seconds of a pass per image": f"{per_pass:.2f}",
            "all seconds per image": f"{run.seconds / images / (first.seconds / SIZES[0]):.2f}",
            "tasks": str(run.tasks),
        }


def _small_groups(strategy: str, count: int) -> Iterator[dict[str, str]]:
    """Yield a row for small groups by many tasks, and one for one task each."""
    few = max(2, count // 10)
    with mock.patch.object(pipeline.judge, "SMALL_GROUP", 0):
        runs = {("many tasks", few): _judge(strategy, *_groups(few))}
    runs["one task", count] = _judge(strategy, *_groups(count))
    first = runs["many tasks", few]
    for (name, groups), run in runs.items():
        hours = run.seconds / groups * MANY / 3600
        yield {
            "case": f"{groups} groups of {GROUP_IMAGES}, {name} each ({MANY}: {hours:.1f} h)",
            "peak memory": f"{run.peak / first.peak:.2f}",
            "seconds of a pass per image": f"{run.seconds_by_pass / groups / (first.seconds_by_pass / few):.2f}",
            "all seconds per image": f"{run.seconds / groups / (first.seconds / few):.2f}",
            "tasks": f"{run.tasks / groups:.1f} per group",
        }


def _groups(count: int) -> tuple[FeatureGeometry, pd.DataFrame, dict[str, list[ImageOutcome]], Callable[..., None]]:
    """Return geometry, catalog, outcomes of small groups, and what writes their features."""
    geometry = FeatureGeometry(GROUP_GRID, GROUP_GRID, GROUP_CHANNELS, GROUP_GRID, GROUP_GRID, 1, 1)
    names = [f"group {number:05d}" for number in range(count)]
    rows = [(f"{group}/{row:03d}.png", group, row) for group in names for row in range(GROUP_IMAGES)]
    frame = pd.DataFrame(rows, columns=["file_name", "group", "row"]).astype({"row": "Int64"})
    ids = [sample_id(name) for name in frame["file_name"]]
    catalog = frame.assign(sample_id=ids, image_path=frame["file_name"], reason="")
    outcomes = {group: [ImageOutcome(row, f"{group} {row}", 1, 1, 1) for row in range(GROUP_IMAGES)] for group in names}

    def store(directory: Directory) -> None:
        root, rng = directory.zarr_group("", "w"), np.random.default_rng(0)
        for group in names:
            values = rng.standard_normal(geometry.array_shape(GROUP_IMAGES), np.float32).astype(np.float16)
            root.create_array(
                storage_name(group), data=values, chunks=geometry.chunk_shape(GROUP_IMAGES), compressors=None
            )

    return geometry, catalog, outcomes, store


def _judge(
    strategy: str,
    geometry: FeatureGeometry,
    catalog: pd.DataFrame,
    outcomes: dict[str, list[ImageOutcome]],
    store: Callable[[Directory], None],
) -> _Run:
    """Judge an archive whose features are written first, on a cluster of its own."""
    config = parse_config(
        None,
        [
            f"trim.strategy={strategy}",
            "cluster.workers=1",
            "cluster.threads_per_worker=1",
            "guard.accept_untrustworthy=true",
        ],
    )
    with tempfile.TemporaryDirectory() as folder, open_cluster(config.cluster) as cluster:
        run = Directory.at(Path(folder) / "run")
        store(run / FEATURES)
        tasks = _Count()
        with mock.patch.object(cluster.client, "submit", tasks.counting(cluster.client.submit)):
            started = time.monotonic()
            _judged(run, geometry, config, cluster, catalog, outcomes)
            seconds = time.monotonic() - started
        passes = pd.read_parquet(Path(folder) / "run" / ITERATIONS)
        (peak,) = cluster.client.run(_peak_bytes).values()
    by_pass = passes.groupby("group")["seconds"].mean().sum()
    return _Run(tasks.number, seconds, float(by_pass), peak)


def _judged(
    run: Directory,
    geometry: FeatureGeometry,
    config: Config,
    cluster: Cluster,
    catalog: pd.DataFrame,
    outcomes: dict[str, list[ImageOutcome]],
) -> None:
    record = new_record("benchmark", catalog, config, "weights")
    Judge(run, run / FEATURES, geometry, config, record, cluster, Reporter()).judge(catalog, outcomes)


class _Count:
    """Counts the calls of a function."""

    def __init__(self) -> None:
        self.number = 0

    def counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.number += 1
            return function(*args, **kwargs)

        return counted


def _peak_bytes() -> int:
    """Return the largest resident size that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
