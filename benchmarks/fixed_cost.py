"""What `paire clean` costs beyond its forward pass on an archive of 100 small images.

One side is the whole command. The other side is a process that imports the same packages, builds the backbone once, and
takes as many tensors through it: no implementation can do with less.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.extraction import BACKBONES
from benchmarks.images import write_images
from benchmarks.results import Record, record, spread

IMAGES, SIZE = 100, 256
BACKBONE = "squeezenet1_1"
TARGET_S = 10.0

_WHOLE = "from pipeline.cli.main import main; main()"
_BARE = """
import atexit
import gc
import os
import pipeline.cli.main
import pipeline.commands.clean
from schemas.config import parse_config
from benchmarks.forward import forward_speed
atexit.register(gc.freeze)
config = parse_config(None, {settings!r})
forward_speed(config.features, {images}, os.cpu_count(), by_slices=True)
"""

_EXPLANATION = f"""`paire clean` on {IMAGES} images of {SIZE} px with `{BACKBONE}`, in a process of its own, against one
that imports the same packages, builds the backbone and takes {IMAGES} tensors through it. The difference is what the
cluster, decoding, the statistics and publishing cost."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--rounds", type=int, default=3)


def measure(arguments: argparse.Namespace, command: str) -> Record:
    """Measure both sides in turns."""
    settings = (
        f"features.backbone={BACKBONE}",
        f"features.nodes={','.join(BACKBONES[BACKBONE])}",
        "features.weights=random",
    )
    ratios, differences, cpu_differences = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "images"
        write_images(archive, IMAGES, SIZE, "PNG")
        for number in range(arguments.rounds):
            options = [part for setting in settings for part in ("--set", setting)]
            out = str(Path(folder) / f"run-{number}")
            command_line = ("clean", str(archive), "--out", out, "--accept-untrustworthy", *options)
            whole, whole_cpu = _seconds("-c", _WHOLE, *command_line)
            bare, bare_cpu = _seconds("-c", _BARE.format(settings=settings, images=IMAGES))
            ratios.append(whole / bare)
            differences.append(whole - bare)
            cpu_differences.append(whole_cpu - bare_cpu)
    row = {
        "images": str(IMAGES),
        "command over bare process": spread(ratios),
        "difference in seconds": spread(differences),
        "in CPU seconds of all processes": spread(cpu_differences),
        f"median at most {TARGET_S:g} s": "yes" if median(differences) <= TARGET_S else "no",
    }
    return record("Fixed cost", _EXPLANATION, [row], command=command)


def _seconds(*arguments: str) -> tuple[float, float]:
    """Run Python; return its seconds, and the CPU seconds of all its processes."""
    started, before = time.perf_counter(), _cpu_of_children()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, timeout=600)
    return time.perf_counter() - started, _cpu_of_children() - before


def _cpu_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system
