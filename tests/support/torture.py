"""Runs of the real command in processes of their own, to be killed, and what they published, to be compared.

Every wait is bounded, and nothing that a test has started outlives it: a command and its workers are one process group,
which is killed at the end of the block, and they write into files, so that no orphan keeps a pipe open.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from schemas.records.run import CLEAN_LIST, ITERATIONS, LEDGER, LOG, MANIFEST, RUN_RECORD, SUCCESS
from tests.support.archives import tiny_config, write_parts
from workers.sources.listing import list_files
from workers.storage.directory import Directory

ROOT = Path(__file__).parents[2]

# Between two looks at a run directory.
GLANCE_S = 0.02

# Long enough for a command on a machine with much other work.
TIMEOUT_S = 240.0

# For a process that was killed to be gone, or one that was asked for its stacks to have written them.
GONE_S = 10.0


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
    path.write_text(config.to_yaml())
    return path


@dataclass(frozen=True)
class Started:
    """A command that was started, as the leader of a process group of its own.

    Attributes
    ----------
    process
        The command.
    out, error
        The files that it and its workers write into.
    """

    process: "subprocess.Popen[bytes]"
    out: Path
    error: Path

    def wait(self) -> int:
        """Return the exit code; a command that does not end says in the failure where its threads are."""
        try:
            return self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.kill(self.process.pid, signal.SIGABRT)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GONE_S)
        raise AssertionError(f"the command was still running after {TIMEOUT_S:g} s:\n{self.error.read_text()}")


@dataclass(frozen=True)
class Command:
    """``paire clean`` of an archive.

    Attributes
    ----------
    archive, config
        What it cleans, and its configuration file.
    folder
        Where its output goes.
    variables
        Added to its environment.
    """

    archive: str
    config: Path
    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def start(self, run: Directory) -> Iterator[Started]:
        """Start the command; it and all its workers are dead when the block ends."""
        arguments = ("clean", self.archive, "--out", run.url, "--config", str(self.config), "--json")
        environment = {name: value for name, value in os.environ.items() if name != "DASK_SCHEDULER_ADDRESS"}
        out, error = self.folder / "stdout", self.folder / "stderr"
        with out.open("wb") as stdout, error.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-c", "from pipeline.cli.main import main; main()", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=ROOT,
                env={**environment, **self.variables},
                start_new_session=True,
            )
        try:
            yield Started(process, out, error)
        finally:
            with suppress(ProcessLookupError):  # all of them have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(GONE_S)

    def finish(self, run: Directory) -> dict[str, Any]:
        """Run the command to its end; returns its result."""
        with self.start(run) as started:
            code = started.wait()
            said = started.error.read_text()
            assert code == 0, said
            assert "Traceback" not in said
            # Its predecessor is seen to be dead; no lease has to run out.
            assert "waiting at most" not in said
            result: dict[str, Any] = json.loads(started.out.read_text())
        return result


def wait_for_claim(started: Started, run: Directory) -> float:
    """Wait until a command has claimed its run directory, or ended; returns the time of `time.monotonic`."""
    deadline = time.monotonic() + TIMEOUT_S
    while started.process.poll() is None and not run.exists(RUN_RECORD):
        assert time.monotonic() < deadline, f"nothing was claimed: {started.error.read_text()}"
        time.sleep(GLANCE_S)
    return time.monotonic()


def kill(started: Started, whom: str) -> int:
    """Kill a command's driver, one of its workers, all of them, or all with the driver; returns how many."""
    workers = _workers(started.process.pid)
    victims = {"worker": workers[:1], "workers": workers, "driver": [], "all": workers}[whom]
    if whom in {"driver", "all"}:
        victims = [started.process.pid, *victims]
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
        try:
            listed = children.read_text().split()
        except OSError:
            continue  # the thread has ended
        for child in listed:
            try:
                said = Path(f"/proc/{child}/cmdline").read_text()
            except OSError:
                continue
            # The other child of multiprocessing tracks what these leave behind.
            if "spawn_main" in said and "resource_tracker" not in said:
                found.append(int(child))
    return found


def published(run: Directory) -> dict[str, Any]:
    """Return what a run decided, without its id and times, as text and bytes that are exact."""
    assert run.exists(SUCCESS)
    names = [file.name for file in list_files(run.url)]
    manifest = pd.read_parquet(BytesIO(run.read(MANIFEST))).drop(columns="run_id")
    iterations = pd.read_parquet(BytesIO(run.read(ITERATIONS))).drop(columns="seconds")
    return {
        "ledger": json.loads(run.read(LEDGER)),
        "manifest": {name: values.map(repr).tolist() for name, values in manifest.items()},
        "iterations": {name: values.map(repr).tolist() for name, values in iterations.items()},
        "clean.csv": run.read(CLEAN_LIST),
        "files": sorted(name for name in names if name != LOG),
        "arrays": {
            name: run.read(name)
            for name in names
            if name.split("/")[0] in {"features", "distances", "model"} and "/c/" in name
        },
    }
