"""What `paire plan` predicts over what `paire clean` then takes: bytes, tasks, requests, memory, seconds.

Each command runs in its own process, one after the other. The three archives go the three ways that groups go: small
groups in one task each, one group by inner products, one by moments.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.extraction import BACKBONES
from benchmarks.images import write_images
from benchmarks.results import Record, record
from schemas.records.run import DISTANCES, FEATURES, ITERATIONS, LOG, MODEL
from workers.passes.by_products import SMALL_GROUP

BACKBONE = "squeezenet1_1"
LIMIT_S = 1200


@dataclass(frozen=True)
class Case:
    """An archive of equal groups."""

    name: str
    groups: int
    images: int
    pixels: int
    channels: int | None = None

    def settings(self) -> tuple[str, ...]:
        """Return the settings of the configuration."""
        chosen = () if self.channels is None else (f"features.channels={self.channels}",)
        nodes = ",".join(BACKBONES[BACKBONE])
        size = f"features.image_size={self.pixels}"
        return (f"features.backbone={BACKBONE}", f"features.nodes={nodes}", "features.weights=random", size, *chosen)


CASES = (
    Case("40 groups of 20", 40, 20, 128),
    Case("a group of 500, by products", 1, 500, 256),
    Case("a group of 2500, by moments", 1, 2500, 128, channels=256),
)

_EXPLANATION = f"""What `paire plan` says, over what `paire clean` takes. `{BACKBONE}`; images differ by their noise
alone. Tasks, requests and seconds follow from the passes, of which a plan supposes the usual number; seconds are also
given for as many passes as the run made. `map` is planned as the most that it can be. Memory: of a worker, which is
to be enough. Extraction and passes: as the run's log has them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--cases", nargs="+", type=int, choices=range(len(CASES)), default=list(range(len(CASES))))
    parser.add_argument("--share", type=float, default=1.0, help="share of the images of each group of more than 64")


def measure(arguments: argparse.Namespace, command: str) -> Record:
    """Plan and clean every archive."""
    rows: list[dict[str, str]] = []
    for case in (CASES[number] for number in arguments.cases):
        images = case.images if case.images <= SMALL_GROUP else round(arguments.share * case.images)
        with tempfile.TemporaryDirectory() as folder:
            found = list(_compare(Path(folder), case, images))
        rows += found
        print(*found, sep="\n", flush=True)
    return record("The plan of a run", _EXPLANATION, rows, command=command)


def _compare(folder: Path, case: Case, images: int) -> Iterator[dict[str, str]]:
    archive, run = folder / "archive", folder / "run"
    paths = write_images(folder / "written", case.groups * images, case.pixels, "PNG")
    for number, path in enumerate(paths):
        group = archive / f"group-{number // images:03d}"
        group.mkdir(parents=True, exist_ok=True)
        path.rename(group / path.name)
    options = [part for setting in case.settings() for part in ("--set", setting)]
    common = (str(archive), "--group-by", "{group}/**", "--quiet", "--json", *options)
    planned = json.loads(_run("-c", "from pipeline.cli.main import main; main()", "plan", *common)[0])
    seen = folder / "seen.json"
    watched = ("-m", "benchmarks.observed", str(seen), "clean")
    _, seconds = _run(*watched, *common, "--out", str(run), "--accept-untrustworthy")
    real = json.loads(seen.read_text(encoding="utf-8"))
    passes = pd.read_parquet(run / ITERATIONS)
    made = float(passes.groupby("group").size().mean())

    def row(what: str, plan: float, run: float) -> dict[str, str]:
        return {"archive": case.name, "what": what, "planned over real": f"{plan / run:.2f}"}

    yield {
        "archive": case.name,
        "what": "passes, planned and real",
        "planned over real": f"{planned['passes']['usual']} / {made:.1f}",
    }
    for name, place in (("features", FEATURES), ("distances", f"{DISTANCES}/*/distance"), ("map", MODEL)):
        yield row(f"bytes of {name}", planned["bytes"][name], _chunk_bytes(run, place))
    yield row("tasks", sum(planned["tasks"].values()), real["tasks"])
    yield row("chunks read", planned["requests"]["get"], real["get"])
    yield row("chunks written", planned["requests"]["put"], real["set"])
    yield row("memory", planned["memory"]["needed"], real["memory"])
    yield row("seconds of extraction", planned["seconds"]["extract"], _extraction_seconds(run))
    if images > SMALL_GROUP:
        yield row("seconds of a pass", _pass_seconds(planned), float(passes["seconds"].mean()))
        yield row("seconds in all, for the passes made", seconds_of(planned, made), seconds)
    yield row("seconds in all", planned["seconds"]["total"], seconds)


def _run(*arguments: str) -> tuple[str, float]:
    """Run Python; return its output and its seconds."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    seconds = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with exit code {done.returncode}:\n{done.stderr}")
    return done.stdout, seconds


def _chunk_bytes(run: Path, place: str) -> int:
    """Return the bytes of all chunks below some folders of a run."""
    return sum(path.stat().st_size for folder in run.glob(place) for path in folder.rglob("c/**/*") if path.is_file())


def _extraction_seconds(run: Path) -> float:
    found = re.search(r"extract: \d+ images in ([\d.]+) s", (run / LOG).read_text(encoding="utf-8"))
    assert found is not None
    return float(found[1])


def _pass_seconds(planned: dict[str, Any]) -> float:
    """Return the planned seconds of a mean pass."""
    return float(planned["seconds"]["passes"] / planned["passes"]["usual"])


def seconds_of(planned: dict[str, Any], passes: float) -> float:
    """Return the planned seconds of ``passes``, on a line through those of the fewest and of the most passes."""
    few, many = planned["passes"]["fewest"], planned["passes"]["most"]
    low, high = planned["range_s"]
    return float(low + (passes - few) * (high - low) / (many - few)) if many > few else float(np.mean((low, high)))
