"""Extraction, from files on disk to stored features, against the bare forward pass.

One side is the extraction stage of `paire clean`, on a local cluster with one worker process: reading, hashing,
decoding, resizing, forward pass, pooling, writing. The other side is the same backbone on tensors in memory.
"""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

from benchmarks.forward import Speed, forward_process, forward_speed
from benchmarks.images import catalog_of, write_images
from benchmarks.results import Record, cpu_seconds, record, spread
from pipeline.cluster.cluster import open_cluster
from pipeline.cluster.progress import Reporter
from pipeline.intake.extract import check_extractor, extract_features
from schemas.config import Config, parse_config
from workers.features.extractor import PatchExtractor
from workers.storage.directory import Directory

BACKBONES = {
    "wide_resnet50_2": ("layer1", "layer2", "layer3"),
    "squeezenet1_1": ("features.4", "features.7", "features.12"),
}
# Distinct files: more would not matter, as the page cache holds all of them.
FILES = 64

_EXPLANATION = """Images/s of extraction over images/s of the bare forward pass of the same backbone, data type, size
(256 px) and cores. The bare pass is done in two ways: a batch of 32 on all of torch's threads, and a slice of 4 on each
core, which is how extraction does it; the second is usually the faster and so the harder one. On a GPU: batches there,
and its mean utilisation while workers on all cores extract. By CPU time: images for each CPU second of all cores and
processes, which other load changes little; it is what the clock could give at best."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--files", nargs="+", default=["256:PNG", "256:JPEG", "1024:PNG", "1024:JPEG"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--images", type=int, default=128, help="of each side in a round; squeezenet takes four times as many"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--limit-s", type=float, default=1200, help="start no other kind of file after this many seconds"
    )


def measure(arguments: argparse.Namespace, command: str) -> Record:
    """Measure every backbone with every kind of file."""
    rows: list[dict[str, str]] = []
    started = time.monotonic()
    for backbone in arguments.backbones:
        images = arguments.images * (4 if backbone == "squeezenet1_1" else 1)
        for kind in arguments.files:
            if rows and time.monotonic() - started > arguments.limit_s:
                continue
            size, _, image_format = kind.partition(":")
            with tempfile.TemporaryDirectory() as folder:
                config = _config(backbone, arguments.device)
                row = _compare(Path(folder), config, int(size), image_format, images, arguments.rounds)
            rows.append(row)
            print(row, flush=True)
    return record("Extraction", _EXPLANATION, rows, command=command)


def _compare(folder: Path, config: Config, size: int, image_format: str, images: int, rounds: int) -> dict[str, str]:
    is_on_gpu = config.features.device == "cuda"
    paths = write_images(folder / "images", FILES, size, image_format)
    kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1000
    extractor = PatchExtractor(config.features)
    catalog, store = catalog_of(paths, images), Directory.at(folder / "features")
    over_batches, over_slices, by_cpu, speeds = [], [], [], []
    utilisation: list[float] = []
    with open_cluster(config.cluster) as cluster, forward_process() as process:
        cores = cluster.threads * cluster.workers
        check_extractor(cluster, config, extractor.weights_digest)

        def extraction() -> Speed:
            with Reporter().phase("extract", images) as phase:
                started, before = time.perf_counter(), cpu_seconds(cluster.client)
                extract_features(cluster, catalog, store, extractor.geometry, config, extractor.weights_digest, phase)
                seconds = time.perf_counter() - started
                return Speed(images / seconds, images / (cpu_seconds(cluster.client) - before))

        def bare(*, by_slices: bool) -> Speed:
            return process.apply(forward_speed, (config.features, images, cores), {"by_slices": by_slices})

        for number in range(1 + rounds):  # the first round warms both sides up
            batches = bare(by_slices=False)
            with _gpu_utilisation(utilisation if is_on_gpu and number else None):
                ours = extraction()
            slices = None if is_on_gpu else bare(by_slices=True)
            if not number:
                continue
            over_batches.append(ours.clock / batches.clock)
            speeds.append(ours.clock)
            if slices is not None:
                over_slices.append(ours.clock / slices.clock)
                by_cpu.append(ours.cpu / slices.cpu)
    row = {
        "backbone": config.features.backbone,
        "files": f"{size} px {image_format}, {kilobytes:.0f} kB",
        "over batches on all threads": spread(over_batches),
    }
    if is_on_gpu:
        return row | {"images/s": spread(speeds), "GPU utilisation, %": spread(utilisation)}
    return row | {"over slices, one a core": spread(over_slices), "the same by CPU time": spread(by_cpu)}


@contextmanager
def _gpu_utilisation(found: list[float] | None) -> Iterator[None]:
    """Append the GPU's mean utilisation in percent while the block runs, as the driver's tool reports it."""
    if found is None:
        yield
        return
    asking = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=200")
    with subprocess.Popen(asking, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield
        finally:
            process.terminate()
        found.append(mean(float(line) for line in process.communicate()[0].split()))


def _config(backbone: str, device: str) -> Config:
    nodes = ",".join(BACKBONES[backbone])
    settings = ("features.weights=random", f"features.device={device}")
    return parse_config(None, (f"features.backbone={backbone}", f"features.nodes={nodes}", *settings))
