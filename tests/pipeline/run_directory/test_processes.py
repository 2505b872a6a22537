"""Whether a process lives, told by more than its id."""

import dataclasses
import os
import subprocess
import sys

import pytest

from pipeline.run_directory.processes import ProcessId


def test_this_process_lives_and_is_where_it_says() -> None:
    own = ProcessId.own()
    assert own.pid == os.getpid()
    assert own == ProcessId.own()
    assert not own.is_dead


def test_a_process_that_has_ended_is_dead() -> None:
    load = "import dataclasses; from pipeline.run_directory.processes import ProcessId"
    ask = f"{load}; print(dataclasses.astuple(ProcessId.own()))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    host, place, pid, started = eval(done.stdout)
    ended = ProcessId(host, place, pid, started)
    assert (ended.host, ended.place) == (ProcessId.own().host, ProcessId.own().place)
    assert ended.is_dead


@pytest.mark.parametrize("place", ["", "another boot, or another namespace"])
def test_of_a_process_elsewhere_nothing_is_known(place: str) -> None:
    assert not dataclasses.replace(ProcessId.own(), place=place, started="1").is_dead


def test_a_later_process_of_the_same_id_is_another() -> None:
    assert dataclasses.replace(ProcessId.own(), started="1").is_dead
