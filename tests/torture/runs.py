"""Runs of the real command in processes of their own, to be killed, and what they published, to be compared."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from schemas.run import ITERATIONS, LEDGER, MANIFEST, RUN_RECORD, SUCCESS
from tests.archives import tiny_config, write_parts

ROOT = Path(__file__).parents[2]

# Between two looks at a run directory.
GLANCE_S = 0.01

# Long enough for a command on a machine with much other work.
TIMEOUT_S = 300.0


def make_archive(folder: Path) -> Path:
    """Write an archive of two groups, with defects, a copy and a broken file."""
    write_parts(folder / "a", 9, 1)
    write_parts(folder / "b", 7, 1, first_seed=50)
    (folder / "a" / "copy.png").write_bytes((folder / "a" / "good_003.png").read_bytes())
    (folder / "b" / "broken.png").write_bytes(b"no image")
    return folder


def write_config(path: Path, *settings: str) -> Path:
    """Write a configuration of 2 x 2 positions, in this process unless set otherwise."""
    config = tiny_config(
        "features.pool_kernel=16", "features.pool_stride=16", "input.group_by={line}/*", "trim.strategy=grow", *settings
    )
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


@dataclass(frozen=True)
class Command:
    """``paire clean`` of an archive.

    Attributes
    ----------
    archive, config
        What is cleaned, and how.
    """

    archive: Path
    config: Path

    def start(self, run: Path) -> "subprocess.Popen[str]":
        """Start the command in a process group of its own."""
        arguments = ("clean", self.archive, "--out", run, "--config", self.config, "--json")
        environment = {name: value for name, value in os.environ.items() if name != "DASK_SCHEDULER_ADDRESS"}
        return subprocess.Popen(
            [sys.executable, "-c", "from pipeline.cli import main; main()", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )

    def finish(self, run: Path) -> dict[str, Any]:
        """Run the command to its end; returns its result."""
        with self.start(run) as process:
            out, error = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, error
        assert "Traceback" not in error
        result: dict[str, Any] = json.loads(out)
        return result


def wait_for_claim(process: "subprocess.Popen[str]", run: Path) -> float:
    """Wait until a command has claimed its run directory, or ended; returns when."""
    while process.poll() is None and not (run / RUN_RECORD).exists():
        time.sleep(GLANCE_S)
    return time.monotonic()


def kill(process: "subprocess.Popen[str]", whom: str) -> int:
    """Kill a command's driver, one of its workers, all of them, or all with the driver; returns how many."""
    workers = _workers(process.pid)
    victims = {"worker": workers[:1], "workers": workers, "driver": [], "all": workers}[whom]
    if whom in {"driver", "all"}:
        victims = [process.pid, *victims]
    killed = 0
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
        killed += 1
    return killed


def _workers(pid: int) -> list[int]:
    """Return the worker processes of a command."""
    found = []
    for children in Path("/proc").glob(f"{pid}/task/*/children"):
        for child in children.read_text().split():
            try:
                said = Path(f"/proc/{child}/cmdline").read_text()
            except OSError:
                continue
            # The other child of multiprocessing tracks what these leave behind.
            if "spawn_main" in said and "resource_tracker" not in said:
                found.append(int(child))
    return found


def published(run: Path) -> dict[str, Any]:
    """Return what a run decided, without its id and times, as text that is exact."""
    assert (run / SUCCESS).exists()
    manifest = pd.read_parquet(run / MANIFEST).drop(columns="run_id")
    iterations = pd.read_parquet(run / ITERATIONS).drop(columns="seconds")
    return {
        "ledger": json.loads((run / LEDGER).read_text()),
        "manifest": {name: values.map(repr).tolist() for name, values in manifest.items()},
        "iterations": {name: values.map(repr).tolist() for name, values in iterations.items()},
        "clean.csv": (run / "clean.csv").read_text(),
        "files": sorted(
            path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file() and path.name != "log.jsonl"
        ),
        "arrays": {
            path.relative_to(run).as_posix(): path.read_bytes()
            for folder in ("features", "distances", "model")
            for path in sorted((run / folder).rglob("c/**/*"))
            if path.is_file()
        },
    }
