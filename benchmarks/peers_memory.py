"""The memory of anomalib's PaDiM and of this package as an archive grows, each run in its own processes.

It reads a process and its descendants from /proc, so it needs Linux.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import peers_sides as sides
from benchmarks.images import write_images
from benchmarks.results import Record, record

INTERVAL_S = 0.05

_EXPLANATION = f"""Peak resident memory of all processes of a run, with the same images, backbone (`{sides.BACKBONE}`),
channels and positions. anomalib: `Engine.fit` in one process, without loader processes. paire: `paire clean` with
`trim.strategy=none`, in the command's process and a worker's, each of which has loaded torch. What an image more takes
is what grows with an archive: anomalib holds all embeddings, and once more when it fits; this package writes features
to disk and holds a row of positions."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--images", type=int, nargs="+", default=[200, 800], help="of each run")
    parser.add_argument("--size", type=int, default=sides.SIZE, help="pixels of the images")


def measure(arguments: argparse.Namespace, command: str) -> Record:
    """Run both sides on each number of images.

    Raises
    ------
    ConfigError
        When anomalib is not installed here.
    """
    version, rows = sides.anomalib_version(), []
    peaks: list[tuple[int, int]] = []
    numbers = sorted(arguments.images)
    with tempfile.TemporaryDirectory() as folder:
        for images in numbers:
            peaks.append(_peaks(Path(folder) / str(images), images, arguments.size))
            fewest = peaks[0]
            more = [
                f"{(peak - first) / (images - numbers[0]) / 1e6:.2f}" if images > numbers[0] else ""
                for peak, first in zip(peaks[-1], fewest, strict=True)
            ]
            row = {
                "images": str(images),
                "anomalib over paire": f"{peaks[-1][0] / peaks[-1][1]:.2f}",
                "anomalib's over its first": f"{peaks[-1][0] / fewest[0]:.2f}",
                "paire's over its first": f"{peaks[-1][1] / fewest[1]:.2f}",
                "anomalib, MB an image more": more[0],
                "paire, MB an image more": more[1],
            }
            rows.append(row)
            print(row, flush=True)
    return record(f"Peers: memory of PaDiM of anomalib {version}", _EXPLANATION, rows, command=command)


def _peaks(folder: Path, images: int, size: int) -> tuple[int, int]:
    """Return the peak bytes of anomalib and of paire."""
    archive, run = folder / "images", folder / "run"
    write_images(archive, images, size, "PNG")
    options = (*sides.settings(size), *sides.ITS_GRID, "trim.strategy=none")
    theirs = [sys.executable, "-m", "benchmarks.peers_sides", str(archive), *options]
    ours = [
        sys.executable,
        "-c",
        "from pipeline.cli.main import main; main()",
        "clean",
        str(archive),
        "--out",
        str(run),
    ]
    ours += ["--accept-untrustworthy", *(part for option in options for part in ("--set", option))]
    return _peak(theirs), _peak(ours)


def _peak(command: list[str]) -> int:
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors) as process:
            peak = peak_bytes(process.pid, lambda: process.poll() is None)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {errors.read()[-2000:]}")
    return peak


def peak_bytes(process: int, is_running: Callable[[], bool]) -> int:
    """Watch a process and its descendants until it ends.

    Returns
    -------
    int
        The largest sum of their resident sizes in bytes; each process counts the pages that it shares.
    """
    peak = 0
    while is_running():
        peak = max(peak, sum(_resident_bytes(member) for member in _family(process)))
        time.sleep(INTERVAL_S)
    return peak


def _family(root: int) -> list[int]:
    """Return a process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            children.setdefault(_parent(entry), []).append(int(entry.name))
    family = [root]
    for member in family:  # grows meanwhile
        family.extend(children.get(member, []))
    return family


def _parent(entry: Path) -> int:
    """Return a process's parent; 0 when it has ended."""
    try:
        # Behind the name, which is in parentheses and may hold anything: state, parent, ...
        return int((entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _resident_bytes(process: int) -> int:
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
