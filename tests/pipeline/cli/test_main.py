"""The command line: exit codes, one line of error, JSON alone on stdout. As a process where a process matters."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from distributed import LocalCluster

import pipeline.commands.clean
from schemas.errors import (
    EXIT_CONFLICT,
    EXIT_INTERRUPTED,
    EXIT_UNEXPECTED,
    EXIT_UNREADABLE,
    EXIT_UNTRUSTWORTHY,
    EXIT_USAGE,
)
from tests.pipeline.cli.conftest import LINES
from tests.support.archives import write_parts
from tests.support.commands import Ended, Here, environment, paire


@pytest.fixture(scope="module")
def run(archive: Path, config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """Return a finished run of a real process with a worker process, and how that ended."""
    out = tmp_path_factory.mktemp("runs") / "run"
    processes = "cluster.processes=true"
    return out, paire("clean", archive, "--out", out, "--config", config_file, "--set", processes, "--json")


# --- a run that goes well


def test_a_run_ends_with_0_and_its_result_alone_on_stdout(run: tuple[Path, Ended]) -> None:
    out, ended = run
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert result["run"] == str(out)
    assert result["was_done"] is False
    assert result["ledger"]["total"]["inputs"] == 11
    assert result["ledger"] == json.loads((out / "ledger.json").read_text())
    assert ended.out.count("\n") == 1


def test_without_a_terminal_progress_is_plain_lines(run: tuple[Path, Ended]) -> None:
    _, ended = run
    assert "\x1b" not in ended.err
    assert "\r" not in ended.err
    lines = ended.err.splitlines()
    assert "catalog: 11 inputs, 10 to read, in 1 groups" in lines
    assert any(line.startswith("extract: 10 images in ") for line in lines)
    assert any(line.startswith("warning: features.weights = 'random'") for line in lines)
    assert any(line.startswith("all: pass 1: ") for line in lines)


def test_people_see_the_ledger_as_a_table(run: tuple[Path, Ended]) -> None:
    _, ended = run
    header = next(line for line in ended.err.splitlines() if "inputs" in line and "clean" in line)
    assert header.split() == ["group", "inputs", "clean", "anomalous", "duplicate", "unreadable", "skipped"]


def test_a_file_name_with_a_newline_is_one_row(run: tuple[Path, Ended]) -> None:
    out, _ = run
    manifest = pd.read_parquet(out / "manifest.parquet").set_index("file_name")
    assert manifest.loc[LINES, "decision"] in {"clean", "anomalous"}
    assert len(manifest) == 11


def test_the_same_command_again_says_that_it_was_done(
    run: tuple[Path, Ended], archive: Path, config_file: Path, here: Here
) -> None:
    out, _ = run
    ended = here("clean", archive, "--out", out, "--config", config_file, "--json", "--quiet")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["was_done"] is True


def test_quiet_without_json_says_nothing_at_all(
    run: tuple[Path, Ended], archive: Path, config_file: Path, here: Here
) -> None:
    out, _ = run
    assert here("clean", archive, "--out", out, "--config", config_file, "--quiet") == Ended(0, "", "")


def test_a_quiet_run_keeps_its_log(archive: Path, config_file: Path, tmp_path: Path, here: Here) -> None:
    ended = here("clean", archive, "--out", tmp_path / "run", "--config", config_file, "--quiet")
    assert ended == Ended(0, "", "")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("published" in line["message"] for line in lines)


def test_runs_and_groups_may_have_any_name(config_file: Path, tmp_path: Path, here: Here) -> None:
    write_parts(tmp_path / "archive" / "[red]" / "[x", 3)
    out, group_by = tmp_path / "[red] run [/x] größe\nzwei", ("--group-by", "{line}/{camera}/*")
    ended = here("clean", tmp_path / "archive", "--out", out, "--config", config_file, *group_by, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["run"] == str(out)
    assert "[red] run [/x] größe" in ended.err
    assert "[red]/[x" in ended.err


def test_scores_are_counted_in_the_result(
    run: tuple[Path, Ended], archive: Path, config_file: Path, tmp_path: Path, here: Here
) -> None:
    out, _ = run
    ended = here(
        "score", out / "model", archive, "--out", tmp_path / "scores", "--config", config_file, "--maps", "--json"
    )
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert (result["inputs"], result["scored"]) == (11, 9)
    scores = pd.read_parquet(tmp_path / "scores" / "scores.parquet")
    assert result["scores"] == str(tmp_path / "scores" / "scores.parquet")
    assert result["anomalous"] == int(scores["is_anomalous"].sum())
    assert len(list((tmp_path / "scores" / "maps").iterdir())) == 9


@pytest.mark.parametrize("arguments", [("--help",), ("clean", "-h"), ("score", "--help"), ("demo", "--help")])
def test_help_is_on_stdout(here: Here, arguments: tuple[str, ...]) -> None:
    ended = here(*arguments)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Usage: ")


def test_the_version_is_that_of_the_package(here: Here) -> None:
    ended = here("--version")
    assert ended.code == 0
    assert "0.1.0" in ended.out


# --- bad input


def test_a_wrong_option_ends_with_2_before_anything_is_touched(archive: Path, tmp_path: Path) -> None:
    ended = paire("clean", archive, "--out", tmp_path / "run", "--set", "trim.etta=2")
    assert ended.code == EXIT_USAGE == 2
    assert "'trim.etta'. Did you mean 'trim.eta'?" in ended.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        pytest.param("features.batch_size=many", "features.batch_size = 'many'", id="wrong type"),
        pytest.param("trim.eta", "section.key=value", id="no value"),
    ],
)
def test_a_setting_that_is_none_ends_with_2(
    archive: Path, tmp_path: Path, here: Here, setting: str, named: str
) -> None:
    ended = here("clean", archive, "--out", tmp_path / "run", "--set", setting)
    assert ended.code == EXIT_USAGE
    assert named in ended.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        pytest.param(None, "cannot be read", id="missing"),
        pytest.param(b"trim: {eta: [", "not valid YAML", id="not YAML"),
        pytest.param(b"\xff\xfe\x00", "cannot be read", id="not UTF-8"),
        pytest.param(b"trim: 3", "must map sections to options", id="no sections"),
        pytest.param(b"trimm: {eta: 2}", "unknown option 'trimm'", id="unknown section"),
    ],
)
def test_a_wrong_configuration_file_ends_with_2(
    archive: Path, tmp_path: Path, here: Here, content: bytes | None, named: str
) -> None:
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    ended = here("clean", archive, "--out", tmp_path / "run", "--config", path)
    assert ended.code == EXIT_USAGE
    assert named in ended.error
    assert not (tmp_path / "run").exists()


def test_a_missing_source_ends_with_2(config_file: Path, tmp_path: Path, here: Here) -> None:
    ended = here("clean", tmp_path / "no\nwhere", "--out", tmp_path / "run", "--config", config_file, "--quiet")
    assert ended.code == EXIT_USAGE
    assert "does not exist" in ended.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("empty", id="plain"),
        pytest.param("two\nlines", id="newline"),
        pytest.param("carriage\rreturn", id="carriage return"),
        pytest.param("\x1b[2Jscreen", id="terminal escape"),
        pytest.param(os.fsdecode(b"\xff"), id="not UTF-8"),
        pytest.param("\u2028line\u0085", id="unicode line ends"),
    ],
)
def test_an_empty_folder_of_any_name_ends_with_2_and_one_line(
    config_file: Path, tmp_path: Path, here: Here, name: str
) -> None:
    (tmp_path / name).mkdir()
    ended = here("clean", tmp_path / name, "--out", tmp_path / "run", "--config", config_file, "--quiet")
    assert ended.code == EXIT_USAGE
    assert "holds no files" in ended.error


def test_a_directory_of_another_configuration_ends_with_5(
    run: tuple[Path, Ended], archive: Path, config_file: Path, here: Here
) -> None:
    out, _ = run
    ended = here("clean", archive, "--out", out, "--config", config_file, "--set", "trim.eta=2.6", "--json", "--quiet")
    assert ended.code == EXIT_CONFLICT == 5
    assert "trim.eta: 2.3 -> 2.6" in ended.error
    assert "Give --out a new directory" in ended.error


@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_a_bad_weights_file_ends_with_2(
    archive: Path, config_file: Path, tmp_path: Path, here: Here, content: bytes | None
) -> None:
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    setting = f"features.weights={path}"
    ended = here("clean", archive, "--out", tmp_path / "run", "--config", config_file, "--set", setting, "--quiet")
    assert ended.code == EXIT_USAGE
    assert str(path) in ended.error
    assert not (tmp_path / "run").exists()


def test_weights_that_cannot_be_downloaded_end_with_2_and_what_to_do(
    archive: Path, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(TORCH_HOME=str(tmp_path / "torch")).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("urllib.request._opener", None)  # made of the proxies of its time
    settings = ["features.backbone=squeezenet1_1", "features.nodes=features.1", "cluster.processes=false"]
    options = [part for setting in settings for part in ("--set", setting)]
    ended = here("clean", archive, "--out", tmp_path / "run", *options, "--quiet")
    assert ended.code == EXIT_USAGE
    for advice in ("could not be downloaded", "features.weights=PATH", str(tmp_path / "torch"), "weights=random"):
        assert advice in ended.error
    assert not (tmp_path / "run").exists()


def test_too_many_unreadable_files_end_with_3(config_file: Path, tmp_path: Path, here: Here) -> None:
    write_parts(tmp_path / "archive", 3)
    (tmp_path / "archive" / LINES).write_bytes(b"torn")
    ended = here("clean", tmp_path / "archive", "--out", tmp_path / "run", "--config", config_file, "--quiet")
    assert ended.code == EXIT_UNREADABLE == 3
    assert "'two\\nlines.png'" in ended.error


def test_a_result_that_is_not_to_be_trusted_ends_with_4_until_it_is_accepted(
    archive: Path, config_file: Path, tmp_path: Path, here: Here
) -> None:
    command = ("clean", archive, "--out", tmp_path / "run", "--config", config_file, "--quiet")
    guarded = (*command, "--set", "guard.accept_untrustworthy=false")
    for _ in range(2):
        ended = here(*guarded)
        assert ended.code == EXIT_UNTRUSTWORTHY == 4
        assert "group 'all': " in ended.error
        assert "--accept-untrustworthy" in ended.error
        assert not (tmp_path / "run" / "_SUCCESS").exists()
    accepted = here(*guarded, "--accept-untrustworthy", "--json")
    assert (accepted.code, accepted.err) == (0, "")
    assert json.loads(accepted.out)["was_done"]
    assert json.loads(accepted.out)["ledger"]["groups"]["all"]["findings"]
    assert (tmp_path / "run" / "_SUCCESS").exists()
    recut = ("recut", tmp_path / "run", "--set", "trim.strategy=none", "--quiet")
    assert here(*recut).code == EXIT_UNTRUSTWORTHY
    assert here(*recut, "--accept-untrustworthy").code == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param(("clean",), "SOURCE", id="no source"),
        pytest.param(("clean", "x"), "--out", id="no output"),
        pytest.param(("scrub",), "scrub", id="unknown command"),
        pytest.param(("clean", "x", "--out", "y", "--fast"), "--fast", id="unknown option"),
    ],
)
def test_a_malformed_command_ends_with_2_and_says_what_is_wrong(
    here: Here, arguments: tuple[str, ...], named: str
) -> None:
    ended = here(*arguments)
    assert (ended.code, ended.out) == (EXIT_USAGE, "")
    assert named in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("model", ["nowhere", "run", "archive"])
def test_a_model_that_is_none_ends_with_2(archive: Path, tmp_path: Path, here: Here, model: str) -> None:
    (tmp_path / "run").mkdir()
    path = archive if model == "archive" else tmp_path / model
    ended = here("score", path, archive, "--out", tmp_path / "scores", "--quiet")
    assert ended.code == EXIT_USAGE
    assert "is not a Gaussian map" in ended.error


def test_a_scheduler_that_is_not_there_ends_with_2(
    archive: Path, config_file: Path, tmp_path: Path, here: Here
) -> None:
    nobody = ("--scheduler", "tcp://127.0.0.1:9", "--set", "cluster.timeout_s=0.5")
    ended = here("clean", archive, "--out", tmp_path / "run", "--config", config_file, *nobody, "--quiet")
    assert ended.code == EXIT_USAGE
    assert "tcp://127.0.0.1:9" in ended.error


# --- endings nobody planned


@pytest.mark.parametrize("debug", [False, True])
def test_an_unexpected_error_is_one_line_unless_debugging(
    archive: Path, config_file: Path, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch, debug: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(pipeline.commands.clean, "clean", fail)
    monkeypatch.setenv("PAIRE_DEBUG", "1" if debug else "")
    ended = here("clean", archive, "--out", tmp_path / "run", "--config", config_file, "--quiet")
    assert ended.code == EXIT_UNEXPECTED == 1
    assert ("Traceback" in ended.err) == debug
    assert "unexpected RuntimeError: first second" in ended.err.splitlines()[-1]
    assert len(ended.err.splitlines()) == 1 or debug


def test_an_interrupted_command_ends_with_75_and_its_repetition_finishes(
    archive: Path, config_file: Path, tmp_path: Path, here: Here
) -> None:
    out = tmp_path / "run"
    command = ["clean", str(archive), "--out", str(out), "--config", str(config_file)]
    with LocalCluster(
        n_workers=0, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as nobody_works:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "paire"), *command, "--scheduler", nobody_works.scheduler_address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        # Written just before the wait for a worker, which never comes.
        while process.poll() is None and not (out / "catalog.parquet").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == EXIT_INTERRUPTED == 75, stderr
    assert stderr.splitlines()[-1] == "paire: error: interrupted; run the same command again to finish."
    assert "Traceback" not in stderr
    assert stdout == ""
    begun = json.loads((out / "run.json").read_text())["run_id"]
    assert not (out / "_SUCCESS").exists()
    ended = here(*command, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["run_id"] == begun


@pytest.mark.parametrize(
    "arguments", [("clean",), ("clen", "x"), ("clean", "x", "--out"), ("score", "a", "b", "--sett")]
)
def test_a_wrong_use_ends_with_2_and_one_line(here: Here, arguments: tuple[str, ...]) -> None:
    ended = here(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert len(ended.err.splitlines()) == 1
    assert "--help" in ended.err
