"""Whole runs whose result cannot be trusted, and runs that end early because too many files cannot be read."""

import json
import shutil
from pathlib import Path

import pytest

import pipeline.commands.clean
import pipeline.intake.extract
from pipeline.commands.recut import recut
from schemas.config import parse_config
from schemas.errors import EXIT_UNREADABLE, UnreadableBudgetError, UntrustworthyError
from tests.support.archives import other_pixels, part_pixels, png, write_parts
from tests.support.runs import (
    ALL_OF_A_RUN,
    ALL_OF_A_VERSION,
    Run,
    assert_balanced,
    digests,
    quick_run_on,
    run_on,
    state_of,
)

GUARDED = "guard.accept_untrustworthy=false"


# --- what is trusted


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run over a large group with a few defects, a small one and one too small to be judged."""
    folder = tmp_path_factory.mktemp("trusted")
    write_parts(folder / "archive" / "large", 110, 5)
    write_parts(folder / "archive" / "small", 8, first_seed=500)
    write_parts(folder / "archive" / "tiny", 2, first_seed=600)
    return run_on(folder / "archive", folder / "run", GUARDED, "trim.strategy=grow", "input.group_by={line}/*")


@pytest.mark.parametrize("strategy", ["grow", "paire", "concentrate", "none"])
def test_a_good_archive_is_published_and_a_small_group_beside_a_large_one_is_a_warning(
    trusted: Run, tmp_path: Path, strategy: str
) -> None:
    if strategy == "grow":
        path, ledger, everything = trusted.path, trusted.result.ledger, ALL_OF_A_RUN
    else:
        # Decides what a whole run decides, to the last bit: see test_recut.
        run = shutil.copytree(trusted.path, tmp_path / "run")
        version = recut(str(run), parse_config(None, [f"trim.strategy={strategy}"]))
        path, ledger, everything = Path(version.run), version.ledger, ALL_OF_A_VERSION
    assert state_of(path) == ("done", False)
    assert {entry.name for entry in path.iterdir()} == everything
    groups = ledger["groups"]
    # The untrained backbone misses medium defects in so small images; nothing else is found.
    found = groups["large"]["findings"]
    assert all(" medium defects " in one["sentence"] and not one["stops"] for one in found)
    assert len(found) == (strategy != "none")
    assert groups["large"]["contamination"]["lower"] <= 5 / 115 <= groups["large"]["contamination"]["upper"]
    for name in ("small", "tiny"):
        assert [(found["condition"], found["stops"]) for found in groups[name]["findings"]] == [("images", False)]
    assert groups["tiny"]["contamination"] is None


# --- what is not


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of two products in one group."""
    source = tmp_path_factory.mktemp("mixed") / "archive"
    write_parts(source, 30)
    for number in range(30):
        (source / f"other_{number:02d}.png").write_bytes(png(other_pixels(number)))
    return source


@pytest.fixture(scope="module")
def refused(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the directory of a run that was not published, not to be changed, and the error it ended with."""
    out = tmp_path_factory.mktemp("refused") / "run"
    with pytest.raises(UntrustworthyError) as caught:
        quick_run_on(mixed, out, GUARDED)
    return out, str(caught.value)


def test_two_products_in_a_group_are_judged_and_written_but_not_published(refused: tuple[Path, str]) -> None:
    out, message = refused
    assert {path.name for path in out.iterdir()} == ALL_OF_A_RUN - {"_SUCCESS"}
    assert state_of(out) == ("untrustworthy", False)
    entry = json.loads((out / "ledger.json").read_text())["groups"]["all"]
    found = next(finding for finding in entry["findings"] if finding["condition"] == "kinds")
    assert found["stops"]
    assert found["sentence"] in entry["warnings"]
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert any(line["level"] == "warning" and found["sentence"] in line["message"] for line in lines)
    assert "group 'all': " in message
    assert "--accept-untrustworthy" in message


def test_the_same_command_again_is_refused_at_once(
    refused: tuple[Path, str], mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, message = refused
    before = digests(out)
    monkeypatch.setattr(pipeline.commands.clean, "open_cluster", None)  # not to be called
    with pytest.raises(UntrustworthyError) as caught:
        quick_run_on(mixed, out, GUARDED)
    assert str(caught.value) == message
    assert digests(out) == before


def test_accepting_it_later_publishes_what_is_there_and_computes_nothing(
    refused: tuple[Path, str], mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(refused[0], tmp_path / "run"))
    before = digests(out)
    monkeypatch.setattr(pipeline.commands.clean, "open_cluster", None)  # not to be called
    with pytest.raises(UntrustworthyError):  # other conditions than those it was stopped by
        quick_run_on(mixed, out, GUARDED, "guard.accept_conditions=images,positions")
    assert digests(out) == before
    accepted = quick_run_on(mixed, out)
    assert accepted.result.was_done
    assert accepted.result.ledger == json.loads((out / "ledger.json").read_text())
    assert {name for name, digest in digests(out).items() if before.get(name) != digest} == {"run.json", "_SUCCESS"}
    assert state_of(out) == ("done", True)
    assert quick_run_on(mixed, out, GUARDED).result.was_done


def test_conditions_may_be_accepted_beforehand(mixed: Path, refused: tuple[Path, str], tmp_path: Path) -> None:
    finished = quick_run_on(mixed, tmp_path / "run", GUARDED, "guard.accept_conditions=kinds,contamination")
    assert {path.name for path in finished.path.iterdir()} == ALL_OF_A_RUN
    assert state_of(finished.path) == ("done", True)
    assert finished.result.ledger == json.loads((refused[0] / "ledger.json").read_text())


def test_everything_may_be_accepted_beforehand(finished: Run) -> None:
    assert any(found["stops"] for found in finished.result.ledger["groups"]["all"]["findings"])
    assert {path.name for path in finished.path.iterdir()} == ALL_OF_A_RUN
    assert state_of(finished.path) == ("done", True)


def test_an_archive_too_small_to_judge_is_not_to_be_trusted(tmp_path: Path) -> None:
    write_parts(tmp_path / "archive", 2)
    with pytest.raises(UntrustworthyError, match="2 different readable images; at least 3 are needed"):
        quick_run_on(tmp_path / "archive", tmp_path / "run", GUARDED)
    assert (tmp_path / "run" / "manifest.parquet").exists()


# --- the failure budget


def test_more_unreadable_files_than_the_budget_end_the_run_and_a_larger_budget_finishes_it_without_extracting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "archive", tmp_path / "run"
    write_parts(source, 6)
    for number in range(4):
        (source / f"torn_{number}.png").write_bytes(png(part_pixels(number))[:100])
    with pytest.raises(
        UnreadableBudgetError, match=r"4 of 10 images.*'torn_0\.png'.*max_unreadable_fraction"
    ) as caught:
        quick_run_on(source, out, "input.max_unreadable_fraction=0.39")
    assert caught.value.exit_code == EXIT_UNREADABLE == 3
    last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    assert last["level"] == "error"
    assert "UnreadableBudgetError" in last["traceback"]
    assert not (out / "_SUCCESS").exists()
    kept = digests(out / "features")
    with monkeypatch.context() as patched:
        patched.setattr(pipeline.intake.extract, "extract_block", None)  # would fail
        finished = quick_run_on(source, out, "input.max_unreadable_fraction=0.4")
    assert digests(out / "features") == kept
    assert finished.result.ledger["total"]["unreadable"] == 4
    assert_balanced(finished)
