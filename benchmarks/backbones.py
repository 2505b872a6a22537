"""Patch features of images in memory, by backbone: images/s, side by side in one process."""

import argparse
import os
import time

import numpy as np

from benchmarks.results import Record, record, spread
from schemas.config import FeaturesConfig, parse_config
from workers.compute import keep_freed_memory, set_compute_threads
from workers.features.extractor import PatchExtractor

_EXPLANATION = """Images/s from decoded pixels (256 px) to patch features, at each backbone's default nodes, with random
weights, which do not change the time. The backbones take turns in one process, so that other load meets all of them;
the ratios are of one turn each, over the first backbone's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--names", nargs="+", default=["squeezenet1_1", "mobilenet_v2", "tf_efficientnet_lite0"])
    parser.add_argument("--images", type=int, default=64, help="of each backbone in a round")
    parser.add_argument("--rounds", type=int, default=5)


def measure(arguments: argparse.Namespace, command: str) -> Record:
    """Measure every backbone in turn, round by round; the first round only warms up."""
    keep_freed_memory()
    set_compute_threads(os.cpu_count() or 1)
    extractors = {name: PatchExtractor(_features(name)) for name in arguments.names}
    pixels = np.random.default_rng(0).random((arguments.images, 256, 256, 3), dtype=np.float32)
    speeds: dict[str, list[float]] = {name: [] for name in extractors}
    for number in range(1 + arguments.rounds):
        for name, extractor in extractors.items():
            started = time.perf_counter()
            extractor.extract(pixels)
            if number:
                speeds[name].append(arguments.images / (time.perf_counter() - started))
    first = speeds[arguments.names[0]]
    rows = [
        {
            "backbone": name,
            "channels": str(extractors[name].geometry.channels),
            "images/s": spread(found),
            f"over {arguments.names[0]}": spread([one / other for one, other in zip(found, first, strict=True)]),
        }
        for name, found in speeds.items()
    ]
    return record("Backbones", _EXPLANATION, rows, command=command)


def _features(backbone: str) -> FeaturesConfig:
    return parse_config(None, (f"features.backbone={backbone}", "features.weights=random")).features
