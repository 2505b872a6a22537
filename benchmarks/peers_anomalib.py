"""anomalib's PaDiM and this package side by side: embedding, fit, distances, and whether the distances agree.

Both have the same backbone and weights, the same images, and all cores. Run it in the environment that
`make bench-peers` sets up.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers_sides as sides
from benchmarks.images import catalog_of, write_images
from benchmarks.peers_sides import BACKBONE, CHANNELS, SIZE, FitResult, Spent, side_process
from benchmarks.results import Record, record, spread
from pipeline.cluster.cluster import Cluster, open_cluster
from pipeline.cluster.progress import Reporter
from pipeline.intake.extract import check_extractor, extract_features
from schemas.config import Config
from workers.features.extractor import PatchExtractor
from workers.storage.directory import Directory

# What our side computes: the positions that anomalib has, or those after pooling with all channels.
GRIDS = {
    "its grid, 64 x 64 of 100 channels": sides.ITS_GRID,
    "our grid, 14 x 14 of 448 channels": ("features.channels=none",),
}
# Positions at which both sides' distances are compared with float64.
CHECKED = 49

_EXPLANATION = f"""What it costs anomalib over what it costs this package; above 1 this package is ahead. `{BACKBONE}`
with the same random weights and images of {SIZE} px for both, all cores. Embedding: PNG files to features, for anomalib
by its data loader (with as many processes as cores, and with none) and engine into memory, here by the stage that
`paire clean` runs, onto disk; anomalib always has its own grid. Forward: tensors in memory to features. Fit: mean and
inverse covariance or factor at all positions of one embedding in memory; and all distances. Error: the largest relative
one of all distances at {CHECKED} positions against NumPy in float64, with anomalib's ridge. By CPU time: of all cores
and processes, which other load changes little."""

Row = dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--images", type=int, default=64, help="of each side in a round, a whole number of batches")
    parser.add_argument("--rounds", type=int, default=3, help="times that each side is measured, after one that is not")
    parser.add_argument("--fitted", type=int, default=200, help="images of the embedding that is fitted")
    parser.add_argument("--grid", type=int, default=56, help="rows and columns of that embedding")
    parser.add_argument("--limit-s", type=float, default=1500, help="start nothing more after this many seconds")


def measure(arguments: argparse.Namespace, command: str) -> Record:
    """Compare embedding, fits and distances.

    Raises
    ------
    ConfigError
        When anomalib is not installed here.
    """
    version = sides.anomalib_version()
    until = time.monotonic() + arguments.limit_s
    rows: list[Row] = []
    parts: Sequence[Callable[[], Iterator[Row]]] = (
        lambda: _embedding(arguments.images, arguments.rounds, until),
        lambda: _fit(arguments.fitted, arguments.grid, arguments.rounds, until),
    )
    for part in parts:
        if rows and time.monotonic() > until:
            break
        for row in part():
            rows.append(row)
            print(row, flush=True)
    return record(f"Peers: PaDiM of anomalib {version}", _EXPLANATION, rows, command=command)


def _rounds(count: int, until: float) -> Iterator[int]:
    """Yield round 0, which warms both sides up, and the rounds to measure: at least one, more while time is left."""
    for number in range(1 + count):
        if number < 2 or time.monotonic() < until:
            yield number


class _Ratios:
    """Their time over ours, by the clock and by CPU time, in the measured rounds."""

    def __init__(self) -> None:
        self._wall: dict[str, list[float]] = {}
        self._cpu: dict[str, list[float]] = {}

    def add(self, name: str, theirs: Spent, ours: Spent) -> None:
        self._wall.setdefault(name, []).append(theirs.wall / ours.wall)
        self._cpu.setdefault(name, []).append(theirs.cpu / ours.cpu)

    def rows(self) -> Iterator[Row]:
        for name, values in self._wall.items():
            yield _row(name, spread(values), spread(self._cpu[name]))


def _row(name: str, ratio: str, by_cpu_time: str = "") -> Row:
    return {"cost": name, "anomalib over paire": ratio, "by CPU time": by_cpu_time}


def _embedding(images: int, rounds: int, until: float) -> Iterator[Row]:
    """Compare embedding from files, and the forward pass alone."""
    configs = {name: sides.configuration(*settings) for name, settings in GRIDS.items()}
    features, ratios = sides.configuration().features, _Ratios()
    with tempfile.TemporaryDirectory() as folder, side_process() as their_process, side_process() as our_process:
        paths = write_images(Path(folder) / "images", images, SIZE, "PNG")
        with open_cluster(sides.configuration().cluster) as cluster:
            ours = {
                name: _Extraction(cluster, config, paths, Directory.at(Path(folder) / "features"))
                for name, config in configs.items()
            }
            for number in _rounds(rounds, until):
                theirs = {
                    f"loaders {loaders}": _in(
                        their_process, sides.embed_with_anomalib, features, paths[0].parent, loaders
                    )
                    for loaders in (0, sides.cores())
                }
                forward = _in(their_process, sides.forward_with_anomalib, features, images)
                for name, extraction in ours.items():
                    extracted = extraction()
                    passed = _in(our_process, sides.forward_with_paire, configs[name].features, images)
                    if number:
                        for loaders, spent in theirs.items():
                            ratios.add(f"embedding, {name}, {loaders}", spent, extracted)
                        ratios.add(f"forward, {name}", forward, passed)
    yield from ratios.rows()


class _Extraction:
    """The stage of `paire clean` that turns files into stored features."""

    def __init__(self, cluster: Cluster, config: Config, paths: Sequence[Path], store: Directory) -> None:
        self._cluster, self._config, self._store = cluster, config, store
        self._catalog = catalog_of(paths, len(paths))
        self._extractor = PatchExtractor(config.features)

    def __call__(self) -> Spent:
        """Extract once."""
        digest, geometry = self._extractor.weights_digest, self._extractor.geometry
        check_extractor(self._cluster, self._config, digest)
        with Reporter().phase("extract", len(self._catalog)) as phase:
            wall, cpu = time.perf_counter(), self._cpu_seconds()
            extract_features(self._cluster, self._catalog, self._store, geometry, self._config, digest, phase)
            return Spent(time.perf_counter() - wall, self._cpu_seconds() - cpu)

    def _cpu_seconds(self) -> float:
        """Return the CPU time of the workers and of this process, which runs the scheduler."""
        workers: dict[str, float] = self._cluster.client.run(time.process_time)
        return time.process_time() + sum(workers.values())


def _fit(images: int, side: int, rounds: int, until: float) -> Iterator[Row]:
    """Compare fits, distances, and their errors."""
    ratios, shape = _Ratios(), (images, CHANNELS, side)
    with side_process() as their_process, side_process() as our_process:
        for number in _rounds(rounds, until):
            theirs = _in(their_process, sides.fit_with_anomalib, *shape)
            ours = _in(our_process, sides.fit_with_paire, *shape)
            if number:
                ratios.add(f"fit, {images} images, {side} x {side} positions of {CHANNELS}", theirs.fit, ours.fit)
                ratios.add("the same, and all distances", _both(theirs), _both(ours))
    yield from ratios.rows()
    positions = np.linspace(0, side**2 - 1, min(CHECKED, side**2)).astype(np.int64)
    exact = sides.exact_distances(*shape, positions)
    errors = [float(np.abs(found.distances[:, positions] / exact - 1.0).max()) for found in (theirs, ours)]
    yield _row(f"error of distances ({errors[0]:.0e} and {errors[1]:.0e})", f"{errors[0] / errors[1]:.0e}")


def _both(result: FitResult) -> Spent:
    return Spent(result.fit.wall + result.measure.wall, result.fit.cpu + result.measure.cpu)


def _in(process: ProcessPoolExecutor, function: Callable[..., Any], *arguments: Any) -> Any:
    return process.submit(function, *arguments).result()
