"""What judging costs as an archive grows: CPU time of an image, memory of a worker, and groups of twenty images.

Features are synthetic and written straight into a store. Only judging is measured, from the first pass to the published
map. Each size has its own cluster, so that a worker's peak memory belongs to that size.

Costs are CPU seconds of the command and its worker together, which other work on the machine does not change. A pass
has a fixed cost, of its tasks and of factorising, so the table also gives the cost of further images.
"""

import argparse
import dataclasses
import gc
import resource
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from distributed import Client

import pipeline.costs.footprint
from benchmarks import results
from pipeline.cluster.cluster import Cluster, opening_cluster
from pipeline.cluster.progress import Phase, Reporter
from pipeline.judging.judge import Judge
from pipeline.run_directory.record import new_record
from schemas.config import Config, parse_config
from schemas.names import sample_id, storage_name
from schemas.records.image import ImageOutcome
from schemas.records.run import FEATURES
from schemas.stores.features import FeatureGeometry
from studies.synthetic_features import Archive, catalog_and_outcomes, plan, write_features
from workers.passes.kept_moments import STORAGE_IMAGES
from workers.storage.directory import Directory

# The second size only serves to compare memory.
SIZES = (1000, 2000, 5000, 20_000)
# Fewer channels than half of the smallest group, so that every fit is in primal form, and the largest takes minutes.
CHANNELS, SIDE = 256, 14
# The kinds of phases that are told apart; everything else is the rest.
PHASES = ("pass", "publish", "examine")
REST = "rest"
# Fits all images, so that the passes of all sizes do the same.
GROWING = "none"
# Groups of as many images as small product lines have, on the grid of an image of 256 pixels.
GROUPS, GROUP_IMAGES, GROUP_GRID, GROUP_CHANNELS = 200, 20, 14, 448
# How often a size is judged, as a machine's speed changes by a tenth within minutes. The largest: once, in the middle.
ROUNDS = 3
MANY = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--strategy", default="paire", help="trim.strategy for small groups")
    parser.add_argument("--groups", type=int, default=GROUPS, help="small groups that are judged")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="times that each size but the largest is judged")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, help="images of large groups; memory: of the 2nd"
    )


def measure(arguments: argparse.Namespace, command: str) -> results.Record:
    """Run the benchmark."""
    sizes = sorted(arguments.sizes)
    if len(sizes) < 3:
        raise SystemExit("--sizes needs three or more: memory is compared with the second, costs with the others.")
    rows = [*_growth(sizes, arguments.rounds), *_small_groups(arguments.strategy, arguments.groups)]
    return results.record(
        "Scale: judging",
        f"One worker of one thread. Large groups: {SIDE} x {SIDE} positions of {CHANNELS} channels, strategy "
        f"`{GROWING}`, which fits all images of all sizes. Peak memory of worker and command, over that at {sizes[1]} "
        f"images. CPU seconds of both for each image, over those of a further image at the most images: of a pass, of "
        f"publishing, of a fit of the breakdown guard, and of the rest, which compares all pairs of images to find "
        f"near-duplicates; medians of {arguments.rounds} runs, of the most images one run. 1 everywhere is flat; "
        f"images in a smaller group also bear the fixed cost of tasks, factors, the map's bytes and the sample whose "
        f"structure is looked at, and below {2 * STORAGE_IMAGES} images the guard's fit accumulates moments that are "
        f"updated above. Small groups, `{arguments.strategy}`: {GROUP_IMAGES} images of {GROUP_GRID} x {GROUP_GRID} "
        f"positions of {GROUP_CHANNELS} channels each, judged in one task each, over the same groups by several tasks "
        f"each; {MANY} groups are extrapolated. In flight: the most tasks that were "
        f"submitted and not done, which is what a scheduler holds.",
        rows,
        command=command,
    )


@dataclass(frozen=True)
class _Run:
    """The costs of judging once.

    Tasks, and how many were in flight; seconds; CPU seconds of a mean phase of each kind, and of everything; peak bytes
    of the worker and of the command.
    """

    tasks: int
    in_flight: int
    seconds: float
    cpu: Mapping[str, float]
    all_cpu: float
    worker_peak: int
    command_peak: int


def _growth(sizes: Sequence[int], rounds: int) -> Iterator[dict[str, str]]:
    """Yield a row for each size of a large group, and one for the cost of further images from each size to the next."""
    found: defaultdict[int, list[_Run]] = defaultdict(list)
    for number in range(rounds):
        for images in sizes if number == rounds // 2 else sizes[:-1]:
            found[images].append(_judge_images(images))
    runs = {images: _median(found[images]) for images in sizes}
    compared = [size for size in sizes if size != sizes[1]]
    steps = list(pairwise(compared))
    further = {(few, many): _further(runs[few], runs[many], many - few) for few, many in steps}
    unit = further[steps[-1]]
    for images, run in runs.items():
        costs = {phase: run.cpu[phase] / images / unit[phase] for phase in unit}
        yield _row(f"{images} images", _peaks(run, runs[sizes[1]]), costs, f"{run.tasks}, {run.in_flight} in flight")
    for (few, many), added in further.items():
        yield _row(f"a further image, {few} to {many}", "", {phase: added[phase] / unit[phase] for phase in unit}, "")


def _judge_images(images: int) -> _Run:
    """Judge a synthetic group."""
    archive = Archive(images=images, channels=CHANNELS, side=SIDE, planted=0.05)
    truth = plan(archive)
    catalog, outcomes = catalog_and_outcomes(archive, truth)

    def store(directory: Directory) -> None:
        write_features(archive, truth, directory, "float16")

    return _judge(GROWING, archive.geometry, catalog, outcomes, store)


def _median(runs: Sequence[_Run]) -> _Run:
    """Return one of the runs of a size, with the medians of all their CPU seconds and peaks."""
    return dataclasses.replace(
        runs[0],
        cpu={phase: float(np.median([run.cpu[phase] for run in runs])) for phase in runs[0].cpu},
        worker_peak=int(np.median([run.worker_peak for run in runs])),
        command_peak=int(np.median([run.command_peak for run in runs])),
    )


def _further(few: _Run, many: _Run, images: int) -> dict[str, float]:
    """Return the CPU seconds that one more image adds to each phase."""
    return {phase: (many.cpu[phase] - few.cpu[phase]) / images for phase in (*PHASES, REST)}


def _peaks(run: _Run, reference: _Run) -> str:
    """Return the peaks of worker and command over those of another run."""
    return f"{run.worker_peak / reference.worker_peak:.2f}, {run.command_peak / reference.command_peak:.2f}"


def _row(case: str, peaks: str, costs: Mapping[str, float], tasks: str) -> dict[str, str]:
    return {
        "case": case,
        "peak memory, worker and command": peaks,
        **{f"CPU, {phase}": f"{costs[phase]:.2f}" if phase in costs else "" for phase in (*PHASES, REST)},
        "tasks": tasks,
    }


def _small_groups(strategy: str, count: int) -> Iterator[dict[str, str]]:
    """Yield a row for small groups in many tasks, and one for small groups in one task each."""
    few = max(2, count // 10)
    with mock.patch.object(pipeline.costs.footprint, "SMALL_GROUP", 0):
        runs = {("many tasks", few): _judge(strategy, *_groups(few))}
    runs["one task", count] = _judge(strategy, *_groups(count))
    first = runs["many tasks", few]
    for (name, groups), run in runs.items():
        hours = run.seconds / groups * MANY / 3600
        cost = run.all_cpu / groups / (first.all_cpu / few)
        yield _row(
            f"{groups} groups of {GROUP_IMAGES}, {name} each ({MANY}: {hours:.1f} h)",
            _peaks(run, first),
            {REST: cost},
            f"{run.tasks / groups:.1f} per group, {run.in_flight} in flight",
        )


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
    """Write the features of an archive, then judge it on its own cluster."""
    config = parse_config(
        None,
        [
            f"trim.strategy={strategy}",
            "cluster.workers=1",
            "cluster.threads_per_worker=1",
            "guard.accept_untrustworthy=true",
            "guard.power_images=0",  # there are features only, no images to plant defects into
        ],
    )
    # As `paire clean` opens it: workers load the code that judges before judging starts.
    with tempfile.TemporaryDirectory() as folder, opening_cluster(config.cluster) as opened:
        cluster, run = opened(), Directory.at(Path(folder) / "run")
        store(run / FEATURES)
        tasks = _Count()
        with mock.patch.object(cluster.client, "submit", tasks.counting(cluster.client.submit)):
            _forget_peak()
            started, before = time.monotonic(), results.cpu_seconds(cluster.client)
            phases = _judged(run, geometry, config, cluster, catalog, outcomes)
            seconds, all_cpu = time.monotonic() - started, results.cpu_seconds(cluster.client) - before
        (worker_peak,) = cluster.client.run(_peak_bytes).values()
        command_peak = _peak_bytes()
    cpu = {phase: float(np.mean(phases[phase])) if phase in phases else 0.0 for phase in PHASES}
    cpu[REST] = all_cpu - sum(sum(spent) for spent in phases.values())
    return _Run(tasks.number, tasks.most_in_flight, seconds, cpu, all_cpu, worker_peak, command_peak)


def _judged(
    run: Directory,
    geometry: FeatureGeometry,
    config: Config,
    cluster: Cluster,
    catalog: pd.DataFrame,
    outcomes: dict[str, list[ImageOutcome]],
) -> Mapping[str, list[float]]:
    """Judge, and return the CPU seconds of the phases of each kind."""
    record, reporter = new_record("benchmark", catalog, config, "weights"), _Metered(cluster.client)
    Judge(run, run / FEATURES, geometry, config, record, cluster, reporter).judge(catalog, outcomes)
    return reporter.spent


class _Metered(Reporter):
    """Shows nothing, and measures the CPU seconds of the phases of each kind."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client
        self.spent: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def phase(
        self, name: str, total: int, unit: str = "images", *, kind: str = "", brief: bool = False
    ) -> Iterator[Phase]:
        """Measure a phase while the block runs."""
        before = results.cpu_seconds(self._client)
        with super().phase(name, total, unit, kind=kind, brief=brief) as phase:
            yield phase
        if kind:
            self.spent[kind].append(results.cpu_seconds(self._client) - before)


class _Count:
    """Counts the calls of a function that returns futures, and the futures that are not done yet."""

    def __init__(self) -> None:
        self.number = self.most_in_flight = self._in_flight = 0
        self._lock = threading.Lock()

    def counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.number, self._in_flight = self.number + 1, self._in_flight + 1
                self.most_in_flight = max(self.most_in_flight, self._in_flight)
            future = function(*args, **kwargs)
            future.add_done_callback(self._done)
            return future

        return counted

    def _done(self, _: object) -> None:
        with self._lock:
            self._in_flight -= 1


def _forget_peak() -> None:
    """Reset the peak memory of this process, where the system can."""
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_bytes() -> int:
    """Return the peak of this process's resident memory."""
    status = Path("/proc/self/status")
    if status.exists():
        (kilobytes,) = (line.split()[1] for line in status.read_text("ascii").splitlines() if line.startswith("VmHWM"))
        return int(kilobytes) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
