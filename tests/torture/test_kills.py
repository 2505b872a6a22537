"""SIGKILL of the driver, of workers or of all, at any moment: the same command then finishes the run.

On disk, and with source and run directory in an object store. ``make test`` kills at a few moments, ``make torture``
at many.
"""

import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.storage.servers import NOTHING_ELSE, Server, bucket_on, moto_server
from tests.support.torture import Command, kill, make_archive, published, wait_for_claim, write_config
from workers.storage.directory import Directory

# Moments for commands of one process, of which only the driver can be killed, and of two worker processes; on disk, and
# with all in an object store.
NUMBERS = tuple(int(number) for number in os.environ.get("PAIRE_TORTURE", "1,1,1,0").split(","))
IN_PROCESS, BY_PROCESSES, IN_PROCESS_ON_S3, BY_PROCESSES_ON_S3 = NUMBERS
VICTIMS = ("all", "driver", "worker", "workers")
# Every pass is hundreds of requests, which the server answers in this process.
FEW_PASSES = "trim.max_iterations=2"
TWO_WORKERS = ("cluster.processes=true", "cluster.workers=2")


class Uninterrupted:
    """A command, what it publishes below a place, and how long it takes."""

    def __init__(self, command: Command, place: Directory) -> None:
        self._command, self._place = command, place
        run = self.new_run()
        with command.start(run) as started:
            begun = wait_for_claim(started, run)
            assert started.wait() == 0, started.error.read_text()
            self.seconds = time.monotonic() - begun
        self.killed = 0
        self.published: dict[str, Any] = published(run)

    def new_run(self) -> Directory:
        return self._place / uuid.uuid4().hex

    def assert_survives(self, whom: str, moment: float) -> None:
        """Kill whom at a moment (share of the time that the run takes); the same command finishes the run."""
        run = self.new_run()
        with self._command.start(run) as started:
            wait_for_claim(started, run)
            try:
                started.process.wait(moment * self.seconds)
            except subprocess.TimeoutExpired:
                self.killed += kill(started, whom) > 0
            started.wait()
            # Workers that have not yet noticed that their driver is dead are at work beside the next command.
            self._command.finish(run)
        found = published(run)
        assert found.keys() == self.published.keys()
        for name, values in self.published.items():
            assert found[name] == values, name
        run.remove("")


def on_disk(folder: Path, *settings: str) -> Uninterrupted:
    archive, config = make_archive(folder / "archive"), write_config(folder / "run.yaml", *settings)
    return Uninterrupted(Command(str(archive), config, folder), Directory.at(folder / "runs"))


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uninterrupted]:
    job = on_disk(tmp_path_factory.mktemp("in_process"))
    yield job
    print(f"\nin one process: {job.killed} kills")


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uninterrupted]:
    job = on_disk(tmp_path_factory.mktemp("by_processes"), *TWO_WORKERS)
    yield job
    print(f"\nof several processes: {job.killed} kills")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with moto_server() as endpoint, bucket_on(endpoint) as server:
        yield server


def on_s3(server: Server, folder: Path, *settings: str) -> Uninterrupted:
    archive = server.put_folder(make_archive(folder / "archive"), folder.name)
    config = write_config(folder / "run.yaml", *settings, *server.options(timeout_s=30, retry_seconds=60), FEW_PASSES)
    variables = {**server.environment, **NOTHING_ELSE, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return Uninterrupted(Command(archive, config, folder, variables), Directory.at(server.url("runs")))


@pytest.fixture(scope="module")
def in_process_on_s3(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uninterrupted]:
    job = on_s3(server, tmp_path_factory.mktemp("in_process_on_s3"))
    yield job
    print(f"\nin one process, on S3: {job.killed} kills")


@pytest.fixture(scope="module")
def by_processes_on_s3(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uninterrupted]:
    job = on_s3(server, tmp_path_factory.mktemp("by_processes_on_s3"), *TWO_WORKERS)
    yield job
    print(f"\nof several processes, on S3: {job.killed} kills")


def moments(number: int, seed: int) -> list[float]:
    """Return moments that are spread over a whole run, drawn."""
    return [
        round(float((place + drawn) / number), 3)
        for place, drawn in enumerate(np.random.default_rng(seed).random(number))
    ]


def victims_and_moments(number: int, seed: int) -> list[tuple[str, float]]:
    return [(VICTIMS[place % 4], moment) for place, moment in enumerate(moments(number, seed))]


@pytest.mark.parametrize("moment", moments(IN_PROCESS, seed=1))
def test_a_killed_command_is_finished_by_its_repetition(in_process: Uninterrupted, moment: float) -> None:
    in_process.assert_survives("driver", moment)


@pytest.mark.parametrize(("whom", "moment"), victims_and_moments(BY_PROCESSES, seed=2))
def test_killed_processes_lose_nothing(by_processes: Uninterrupted, whom: str, moment: float) -> None:
    by_processes.assert_survives(whom, moment)


@pytest.mark.parametrize("moment", moments(IN_PROCESS_ON_S3, seed=3))
def test_a_killed_command_is_finished_in_an_object_store(in_process_on_s3: Uninterrupted, moment: float) -> None:
    in_process_on_s3.assert_survives("driver", moment)


@pytest.mark.parametrize(("whom", "moment"), victims_and_moments(BY_PROCESSES_ON_S3, seed=4))
def test_killed_processes_lose_nothing_in_an_object_store(
    by_processes_on_s3: Uninterrupted, whom: str, moment: float
) -> None:
    by_processes_on_s3.assert_survives(whom, moment)
