"""SIGKILL at any moment, of the driver, a worker, all workers, or all of them: the same command finishes the run.

``make test`` kills at a few moments, ``make torture`` at many.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.torture.runs import TIMEOUT_S, Command, kill, make_archive, published, wait_for_claim, write_config

# Commands of one process, of which only the driver can be killed, and of two worker processes.
IN_PROCESS, BY_PROCESSES = (int(number) for number in os.environ.get("PAIRE_TORTURE", "2,1").split(","))
VICTIMS = ("all", "driver", "worker", "workers")


class Uninterrupted:
    """A command, what it publishes, and how long it takes."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.command = Command(make_archive(folder / "archive"), write_config(folder / "run.yaml", *settings))
        with self.command.start(folder / "run") as process:
            begun = wait_for_claim(process, folder / "run")
            _, error = process.communicate(timeout=TIMEOUT_S)
            self.seconds = time.monotonic() - begun
        assert process.returncode == 0, error
        self.killed = 0
        self.published: dict[str, Any] = published(folder / "run")

    def assert_survives(self, run: Path, whom: str, moment: float) -> None:
        """Kill whom at a moment (share of the time that the run takes); the same command finishes the run."""
        with self.command.start(run) as process:
            wait_for_claim(process, run)
            try:
                process.wait(moment * self.seconds)
            except subprocess.TimeoutExpired:
                self.killed += kill(process, whom) > 0
            process.communicate(timeout=TIMEOUT_S)
        self.command.finish(run)
        found = published(run)
        assert found.keys() == self.published.keys()
        for name, values in self.published.items():
            assert found[name] == values, name


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uninterrupted]:
    job = Uninterrupted(tmp_path_factory.mktemp("in_process"))
    yield job
    print(f"\nin one process: {job.killed} kills")


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uninterrupted]:
    job = Uninterrupted(tmp_path_factory.mktemp("by_processes"), "cluster.processes=true", "cluster.workers=2")
    yield job
    print(f"\nof several processes: {job.killed} kills")


def moments(number: int, seed: int) -> list[float]:
    """Return moments that are spread over a whole run, drawn."""
    return [
        round(float((place + drawn) / number), 3)
        for place, drawn in enumerate(np.random.default_rng(seed).random(number))
    ]


@pytest.mark.parametrize("moment", moments(IN_PROCESS, seed=1))
def test_a_killed_command_is_finished_by_its_repetition(
    in_process: Uninterrupted, tmp_path: Path, moment: float
) -> None:
    in_process.assert_survives(tmp_path / "run", "driver", moment)


@pytest.mark.parametrize(
    ("whom", "moment"), [(VICTIMS[place % 4], moment) for place, moment in enumerate(moments(BY_PROCESSES, seed=2))]
)
def test_killed_processes_lose_nothing(by_processes: Uninterrupted, tmp_path: Path, whom: str, moment: float) -> None:
    by_processes.assert_survives(tmp_path / "run", whom, moment)
