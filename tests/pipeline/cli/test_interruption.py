"""Signals, two commands at once, and starting over: the command as a process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemas.errors import EXIT_CONFLICT, EXIT_INTERRUPTED
from tests.support.commands import Ended, Here, environment

# Who takes a machine back gives so much notice.
NOTICE_S = 10.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_workers_work_ends_the_command_in_time_and_in_order(
    archive: Path, config_file: Path, tmp_path: Path, here: Here, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    command = ["clean", str(archive), "--out", str(out), "--config", str(config_file)]
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "paire"), *command, "--set", "cluster.processes=true"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    while process.poll() is None and not (out / "receipts").exists():
        time.sleep(0.02)
    # To the workers too, as a terminal or a batch system does.
    os.killpg(process.pid, number)
    stdout, stderr = process.communicate(timeout=NOTICE_S)
    assert process.returncode == EXIT_INTERRUPTED, stderr
    assert stderr.splitlines()[-1] == "paire: error: interrupted; run the same command again to finish."
    assert "Traceback" not in stderr
    assert stdout == ""
    assert json.loads((out / "run.json").read_text())["state"] == "interrupted"
    assert json.loads((out / "lease" / "0001.json").read_text())["released"]
    ended = here(*command, "--json")
    assert ended.code == 0, ended.err
    assert not {"lease", "receipts", "journal"} & {path.name for path in out.iterdir()}


def test_a_second_signal_ends_a_command_that_hangs_at_once(tmp_path: Path) -> None:
    hangs = """
import sys, threading
import pipeline.cli.interruption
from pipeline.cli.interruption import interruptible
pipeline.cli.interruption.GRACE_S = 3600
with interruptible():
    try:
        print("begun", flush=True)
        threading.Event().wait(3600)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        threading.Event().wait(3600)
"""
    process = subprocess.Popen([sys.executable, "-c", hangs], stdout=subprocess.PIPE, text=True, env=environment())
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "interrupted\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=NOTICE_S) == EXIT_INTERRUPTED


def test_a_command_that_hangs_while_it_closes_is_ended_by_itself(tmp_path: Path) -> None:
    hangs = """
import threading
import pipeline.cli.interruption
from pipeline.cli.interruption import interruptible
pipeline.cli.interruption.GRACE_S = 0.1
with interruptible():
    try:
        print("begun", flush=True)
        threading.Event().wait(3600)
    finally:
        threading.Event().wait(3600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", hangs], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED
    assert stderr == "paire: error: interrupted; run the same command again to finish.\n"


def test_two_commands_on_one_run_directory_give_one_run(archive: Path, config_file: Path, tmp_path: Path) -> None:
    command = ["clean", str(archive), "--out", str(tmp_path / "run"), "--config", str(config_file), "--json"]
    started = [
        subprocess.Popen(
            [str(Path(sys.executable).parent / "paire"), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for _ in range(2)
    ]
    ended = []
    for process in started:
        out, error = process.communicate(timeout=240)
        ended.append(Ended(process.returncode, out, error))
    ended.sort(key=lambda one: one.code)
    assert ended[0].code == 0, ended[0].err
    ledger = json.loads(ended[0].out)["ledger"]
    if ended[1].code == 0:  # one came when the other had finished
        assert sorted(json.loads(one.out)["was_done"] for one in ended) == [False, True]
    else:
        assert ended[1].code == EXIT_CONFLICT == 5
        assert "another" in ended[1].err, ended[1].err
    assert json.loads((tmp_path / "run" / "ledger.json").read_text()) == ledger


def test_fresh_starts_over_and_leaves_what_is_not_the_runs(
    archive: Path, config_file: Path, tmp_path: Path, here: Here
) -> None:
    out = tmp_path / "run"
    command = ["clean", str(archive), "--out", str(out), "--config", str(config_file), "--json"]
    first = json.loads(here(*command).out)
    (out / "notes.txt").write_text("mine")
    other = [*command, "--set", "trim.eta=2.6"]
    refused = here(*other)
    assert refused.code == EXIT_CONFLICT
    assert "trim.eta: 2.3 -> 2.6" in refused.err
    assert "--fresh" in refused.err
    second = json.loads(here(*other, "--fresh").out)
    assert second["run_id"] != first["run_id"]
    assert not second["was_done"]
    assert (out / "notes.txt").read_text() == "mine"
    assert json.loads(here(*other).out)["was_done"]


def test_fresh_removes_nothing_of_a_directory_that_is_no_run(
    archive: Path, config_file: Path, tmp_path: Path, here: Here
) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "mine.txt").write_text("mine")
    ended = here("clean", str(archive), "--out", str(tmp_path), "--config", str(config_file), "--fresh")
    assert ended.code == EXIT_CONFLICT
    assert (tmp_path / "features" / "mine.txt").read_text() == "mine"
