"""One command at a time in a run directory: who gets it, who waits, who takes over, who notices."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

import pipeline.run_directory.lease
from pipeline.run_directory.lease import Lease, refuse_if_at_work
from pipeline.run_directory.processes import ProcessId
from schemas.errors import RunConflictError, StorageError
from schemas.records.lease import LeaseRecord
from workers.storage.directory import Directory

SLEEPER = [sys.executable, "-c", "input()"]


@pytest.fixture(params=["disk", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Directory]:
    """Yield a run directory, on disk and in an object store's stand-in."""
    if request.param == "disk":
        yield Directory.at(tmp_path / "run")
        return
    memory, root = fsspec.filesystem("memory"), uuid.uuid4().hex
    yield Directory.at(f"memory://{root}/run")
    if memory.exists(root):
        memory.rm(root, recursive=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let owners beat and watchers give up within a second."""
    monkeypatch.setattr(pipeline.run_directory.lease, "BEAT_S", 0.05)
    monkeypatch.setattr(pipeline.run_directory.lease, "GLANCE_S", 0.02)
    monkeypatch.setattr(pipeline.run_directory.lease, "TAKEOVER_S", 0.8)


def leased_by(owner: ProcessId, run: Directory, number: int = 1) -> bytes:
    """Write a lease that nobody renews."""
    content = LeaseRecord(owner="theirs", **dataclasses.asdict(owner)).to_bytes()
    run.write(f"lease/{number:04d}.json", content)
    return content


ELSEWHERE = ProcessId("factory-7", "another boot and namespace", os.getpid(), "1")
UNKNOWN = ProcessId("laptop", "", os.getpid(), "")


def test_while_one_has_it_another_is_refused_at_once_and_told_who(run: Directory) -> None:
    with Lease(run):
        for attempt in (Lease(run).__enter__, lambda: refuse_if_at_work(run)):
            with pytest.raises(RunConflictError, match=f"process {os.getpid()} on "):
                attempt()
    refuse_if_at_work(run)
    with Lease(run):
        pass


def test_of_many_at_once_one_gets_it(run: Directory) -> None:
    begun, ended = threading.Barrier(6), threading.Barrier(6)

    def attempt(_: int) -> bool:
        begun.wait()
        try:
            with Lease(run):
                ended.wait()
                return True
        except RunConflictError:
            ended.wait()
            return False

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(attempt, range(6))) == [False] * 5 + [True]


@pytest.mark.parametrize("is_zombie", [False, True])
def test_a_dead_process_of_this_machine_has_it_no_more(run: Directory, is_zombie: bool) -> None:
    with subprocess.Popen(SLEEPER, stdin=subprocess.PIPE) as process:
        owner = dataclasses.replace(ProcessId.own(), pid=process.pid, started=started(process.pid))
        leased_by(owner, run)
        with pytest.raises(RunConflictError, match=f"process {process.pid} on "), Lease(run):
            pass
        process.kill()
        if is_zombie:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        else:
            process.wait()
        with Lease(run):
            pass


def started(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def test_another_process_of_the_same_id_is_not_the_owner(run: Directory) -> None:
    leased_by(dataclasses.replace(ProcessId.own(), started="1"), run)
    with Lease(run):
        pass


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("owner", [ELSEWHERE, UNKNOWN], ids=["elsewhere", "unknown"])
def test_an_owner_elsewhere_that_gives_no_sign_of_life_is_taken_over_from(run: Directory, owner: ProcessId) -> None:
    content = leased_by(owner, run)
    refuse_if_at_work(run)
    with Lease(run):
        assert run.read("lease/0001.json") == content
        with pytest.raises(RunConflictError):
            Lease(run).__enter__()


@pytest.mark.usefixtures("quick")
def test_an_owner_elsewhere_that_lives_is_noticed_by_its_beat(run: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.run_directory.lease, "TAKEOVER_S", 3600.0)
    monkeypatch.setattr(ProcessId, "own", lambda: ELSEWHERE)
    with Lease(run):
        monkeypatch.undo()
        monkeypatch.setattr(pipeline.run_directory.lease, "GLANCE_S", 0.02)
        with pytest.raises(RunConflictError, match="on factory-7"), Lease(run):
            pass


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", [b"", b'{"owner": "th', b"[]", b'{"owner": 3}'])
def test_a_lease_torn_as_its_owner_died_runs_out(run: Directory, content: bytes) -> None:
    run.write("lease/0001.json", content)
    with Lease(run):
        pass


@pytest.mark.usefixtures("quick")
def test_an_owner_that_was_taken_over_from_is_interrupted_and_says_so(run: Directory) -> None:
    lease, taken = Lease(run), []

    def work() -> None:
        with lease:
            taken.append(leased_by(ELSEWHERE, run, 2))
            threading.Event().wait(60)  # for the signal

    with pytest.raises(RunConflictError, match="took"):
        work()
    with pytest.raises(RunConflictError, match="took"):
        lease.require()
    assert run.read("lease/0002.json") == taken[0]


@pytest.mark.usefixtures("quick")
def test_an_owner_that_can_not_renew_stops(run: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object) -> None:
        raise OSError("network is unreachable")

    def work() -> None:
        with Lease(run):
            monkeypatch.setattr(Directory, "write", cut_off)
            threading.Event().wait(60)  # for the signal

    with pytest.raises(StorageError, match=r"could not be renewed for .* network is unreachable"):
        work()


@pytest.mark.usefixtures("quick")
def test_a_job_in_another_thread_is_told_where_it_looks(run: Directory) -> None:
    def work() -> None:
        with Lease(run) as lease:
            leased_by(ELSEWHERE, run, 2)
            while True:
                lease.require()

    with ThreadPoolExecutor(1) as pool, pytest.raises(RunConflictError, match="took"):
        pool.submit(work).result(timeout=60)


@pytest.mark.parametrize("is_last", [False, True])
def test_a_lease_that_ends_for_good_leaves_nothing(run: Directory, is_last: bool) -> None:
    run.write("run.json", b"{}")
    with Lease(run) as lease:
        if is_last:
            lease.end_for_good()
    assert run.exists("lease") == (not is_last)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
