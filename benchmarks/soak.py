"""Whether the memory of a worker grows during a long extraction."""

import argparse
import itertools
import os
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.extraction import BACKBONES
from benchmarks.images import catalog_of, write_images
from benchmarks.results import Record, record
from pipeline.cluster.cluster import open_cluster
from pipeline.cluster.progress import Reporter
from pipeline.intake.extract import check_extractor, extract_features
from schemas.config import parse_config
from workers.features.extractor import PatchExtractor
from workers.storage.directory import Directory

BACKBONE, SIZE, FILES = "squeezenet1_1", 128, 64
INTERVAL_S = 0.05

_EXPLANATION = f"""Peak resident memory of a worker process in the last quarter of an extraction over that in the second
quarter, and that of the command. `{BACKBONE}` at {SIZE} px; {FILES} files are read again and again. A peak that does
not grow gives 1."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--images", type=int, default=5000)


def measure(arguments: argparse.Namespace, command: str) -> Record:
    """Extract once, and sample memory meanwhile."""
    settings = (
        f"features.backbone={BACKBONE}",
        f"features.nodes={','.join(BACKBONES[BACKBONE])}",
        f"features.image_size={SIZE}",
        "features.weights=random",
        "cluster.workers=1",
    )
    config = parse_config(None, settings)
    extractor = PatchExtractor(config.features)
    with tempfile.TemporaryDirectory() as folder, open_cluster(config.cluster) as cluster:
        catalog = catalog_of(write_images(Path(folder) / "images", FILES, SIZE, "PNG"), arguments.images)
        check_extractor(cluster, config, extractor.weights_digest)
        watch = _Watch(next(iter(cluster.client.run(os.getpid).values())), os.getpid())
        with watch, Reporter().phase("extract", arguments.images) as phase:
            extract_features(
                cluster,
                catalog,
                Directory.at(Path(folder) / "features"),
                extractor.geometry,
                config,
                extractor.weights_digest,
                phase,
            )
    worker, command_itself = (_quarters(series) for series in zip(*watch.megabytes, strict=True))
    row = {
        "images": str(arguments.images),
        "worker, last over second quarter": f"{worker[3] / worker[1]:.3f}",
        "worker's peaks by quarter, MB": ", ".join(f"{peak:.0f}" for peak in worker),
        "command, last over second quarter": f"{command_itself[3] / command_itself[1]:.3f}",
    }
    return record("Memory during extraction", _EXPLANATION, [row], command=command)


class _Watch(threading.Thread):
    """Samples the resident memory of some processes until its block ends."""

    def __init__(self, *processes: int) -> None:
        super().__init__(daemon=True)
        self.megabytes: list[list[float]] = []
        self._processes = processes
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.is_set():
            self.megabytes.append([_resident_megabytes(process) for process in self._processes])
            time.sleep(INTERVAL_S)

    def __enter__(self) -> "_Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()


def _resident_megabytes(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _quarters(series: tuple[float, ...]) -> list[float]:
    """Return the peak in each quarter."""
    bounds = [len(series) * quarter // 4 for quarter in range(5)]
    return [max(series[start:end]) for start, end in itertools.pairwise(bounds)]
