"""Runs that the breakdown guard refused, looked into and judged by other options before anybody accepts them."""

import json
import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

import pipeline.commands.recut
from pipeline.cli.main import cli
from pipeline.commands.evaluate.evaluate import evaluate
from pipeline.commands.recut import recut
from pipeline.commands.score import score
from pipeline.commands.trust.trust import trust
from pipeline.run_directory.finished import is_untrustworthy
from schemas.config import parse_config
from schemas.errors import GaussianMapError, UntrustworthyError
from tests.support.archives import other_pixels, png, write_parts
from tests.support.runs import ALL_OF_A_RUN, ALL_OF_A_VERSION, CLUSTER, config, digests, run_on, state_of
from workers.storage.directory import Directory

GUARDED = "guard.accept_untrustworthy=false"
ACCEPT = "guard.accept_untrustworthy=true"
GOOD, OTHERS = 60, 12

# Keeps both kinds of images, which the guard refuses; the other one rejects the smaller kind, which is a warning.
KEEPS_BOTH, KEEPS_ONE = "trim.strategy=none", "trim.strategy=grow"
WARNING = "is not published: 1 of 1 groups are untrustworthy; group 'all': "


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run over two kinds of images, both kept and so refused; not to be changed."""
    folder = tmp_path_factory.mktemp("refused")
    write_parts(folder / "archive", GOOD)
    for number in range(OTHERS):
        (folder / "archive" / f"other_{number:02d}.png").write_bytes(png(other_pixels(number)))
    with pytest.raises(UntrustworthyError, match="two kinds"):
        run_on(folder / "archive", folder / "run", GUARDED, KEEPS_BOTH)
    return folder / "run"


@pytest.fixture
def run(refused: Path, tmp_path: Path) -> Path:
    """Return such a run of one's own."""
    return Path(shutil.copytree(refused, tmp_path / "run"))


@pytest.fixture(scope="module")
def labels(refused: Path) -> str:
    """Return a file with the truth about the archive."""
    names = sorted(path.name for path in (refused.parent / "archive").glob("*.png"))
    truth = pd.DataFrame({"image_path": names, "label_index": [int("other" in name) for name in names]})
    truth.to_csv(refused.parent / "labels.csv", index=False)
    return str(refused.parent / "labels.csv")


# --- judged anew


def test_another_strategy_that_is_to_be_trusted_is_published_beside_it(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = digests(run)
    with caplog.at_level(logging.WARNING, logger="paire"):
        result = recut(str(run), parse_config(None, [KEEPS_ONE]))
    assert f"{run} {WARNING}" in caplog.text
    version = Path(result.run)
    assert {path.name for path in version.iterdir()} == ALL_OF_A_VERSION
    assert state_of(version) == ("done", False)
    assert {name: digest for name, digest in digests(run).items() if not name.startswith("recuts/")} == before
    assert state_of(run) == ("untrustworthy", False)
    changes = pd.read_csv(version / "changes.csv")
    removed = changes.loc[changes["decision_before"].eq("clean") & changes["decision_after"].ne("clean"), "file_name"]
    assert removed.str.startswith("other").sum() == OTHERS
    write_parts(run.parent / "new", 2)
    scores = score(
        str(version / "model"), str(run.parent / "new"), str(run.parent / "out"), parse_config(None, CLUSTER)
    )
    assert scores["reason"].eq("").all()


def test_another_result_that_is_not_to_be_trusted_is_refused_as_any(run: Path) -> None:
    with pytest.raises(UntrustworthyError, match=r"recuts/0001 is not published"):
        recut(str(run), parse_config(None, [KEEPS_BOTH, "gaussian.ridge=0.01"]))
    version = run / "recuts" / "0001"
    assert state_of(version) == state_of(run) == ("untrustworthy", False)
    assert {path.name for path in version.iterdir()} == ALL_OF_A_VERSION - {"_SUCCESS"}
    accepted = recut(str(run), parse_config(None, [KEEPS_BOTH, "gaussian.ridge=0.01", ACCEPT]))
    assert accepted.was_done
    assert state_of(version) == ("done", True)
    assert state_of(run) == ("untrustworthy", False)


def test_its_own_options_are_refused_again_or_accepted_without_judging(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.commands.recut, "Judge", None)  # not to be called
    before = digests(run)
    with pytest.raises(UntrustworthyError, match=f"{run} is not published"):
        recut(str(run), parse_config(None, [KEEPS_BOTH]))
    assert digests(run) == before
    result = recut(str(run), parse_config(None, [KEEPS_BOTH, ACCEPT]))
    assert (result.run, result.version, result.was_done) == (str(run), 0, True)
    assert result.changes["total"]["flipped"] == 0
    assert {name for name, digest in digests(run).items() if before.get(name) != digest} == {"run.json", "_SUCCESS"}
    assert state_of(run) == ("done", True)
    assert {path.name for path in run.iterdir()} == ALL_OF_A_RUN


def test_the_command_recuts_it_and_says_on_stderr_why_it_is_not_published(run: Path) -> None:
    settings = [part for setting in (*CLUSTER, KEEPS_ONE) for part in ("--set", setting)]
    ended = CliRunner().invoke(cli, ["recut", str(run), "--json", *settings])
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["version"] == 1
    assert WARNING in " ".join(ended.stderr.split())


# --- looked into


def test_it_is_evaluated_with_a_warning_and_as_it_is_once_accepted(
    run: Path, labels: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="paire"):
        found = evaluate(str(run), labels)
    assert f"{run} {WARNING}" in caplog.text
    assert (found.overall.n_clean, found.overall.n_clean_anomalous) == (GOOD + OTHERS, OTHERS)
    recut(str(run), parse_config(None, [KEEPS_BOTH, ACCEPT]))
    caplog.clear()
    assert evaluate(str(run), labels).to_json() == found.to_json()
    assert "not published" not in caplog.text


def test_the_command_that_evaluates_it_warns_on_stderr_and_ends_with_0(refused: Path, labels: str) -> None:
    ended = CliRunner().invoke(cli, ["evaluate", str(refused), "--labels", labels, "--json"])
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["overall"]["n_clean_anomalous"] == OTHERS
    assert WARNING in " ".join(ended.stderr.split())


def test_a_refused_version_is_tried_with_a_warning(
    run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("draw_recall", "draw_examples"):  # which take as long as all the rest
        monkeypatch.setattr("pipeline.commands.trust.trust." + name, lambda *_: b"")
    with pytest.raises(UntrustworthyError):
        recut(str(run), parse_config(None, ["trim.strategy=trim-once", "trim.tau=1e9"]))
    version = run / "recuts" / "0001"
    before = digests(run)
    with caplog.at_level(logging.WARNING, logger="paire"):
        result = trust(str(version), parse_config(None, CLUSTER), out=str(run.parent / "out"), images=5)
    assert f"{version} {WARNING}" in caplog.text
    assert result.overall.untouched.of == 5
    assert digests(run) == before


def test_its_map_scores_nothing(refused: Path, tmp_path: Path) -> None:
    write_parts(tmp_path / "new", 2)
    for model in (refused, refused / "model"):
        with pytest.raises(GaussianMapError, match="not finished or not trustworthy"):
            score(str(model), str(tmp_path / "new"), str(tmp_path / "scores"), config())
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize("state", ["running", "done", "?"])
def test_no_other_run_without_success_is_taken_for_one(run: Path, state: str) -> None:
    assert is_untrustworthy(Directory.at(run))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"state": state}))
    assert not is_untrustworthy(Directory.at(run))
    (run / "run.json").write_text("{")
    assert not is_untrustworthy(Directory.at(run))
