"""Wall clocks may say what they want: nothing that a run decides depends on one."""

import ast
import itertools
import time
from pathlib import Path

import pytest

import pipeline.run_directory.lease
from pipeline.run_directory.lease import Lease
from schemas.errors import RunConflictError
from tests.pipeline.run_directory.test_lease import ELSEWHERE, leased_by
from tests.test_layers import FILES, ROOT
from workers.storage.directory import Directory

WALL_CLOCK = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
# The time of a line in the log, and the name of a run.
SHOWN = {"pipeline/run_directory/log.py", "pipeline/run_directory/record.py"}
DAY_S = 86_400


def reads(path: Path) -> set[str]:
    """Return the wall clocks that a file names."""
    names = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    modified = {name for name in names if name.rpartition(".")[2] in {"st_mtime", "st_ctime", "st_mtime_ns"}}
    return ((names | imported) & WALL_CLOCK) | modified


def test_only_what_people_read_is_taken_from_a_wall_clock() -> None:
    assert {path.relative_to(ROOT).as_posix() for path in FILES if reads(path)} == SHOWN


def test_a_lease_is_waited_for_as_long_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"BEAT_S": 0.05, "GLANCE_S": 0.02, "TAKEOVER_S": 0.8}.items():
        monkeypatch.setattr(pipeline.run_directory.lease, name, seconds)
    looks, real, run = itertools.count(), time.time, Directory.at(tmp_path)
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(looks) * DAY_S)
    leased_by(ELSEWHERE, run)
    begun = time.monotonic()
    with Lease(run):
        assert time.monotonic() - begun >= 0.8
        with pytest.raises(RunConflictError, match="another command is at work"), Lease(run):
            pass
        time.sleep(1)
    assert run.read("lease/0002.json")
    assert not run.exists("lease/0003.json")
