"""Whose run directory it is: the same job's, another's, or nobody's."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline.commands.clean
from pipeline.commands.clean import clean
from pipeline.intake.catalog import build_catalog
from pipeline.run_directory.processes import ProcessId
from pipeline.run_directory.record import claim, new_record
from schemas.errors import RunConflictError
from schemas.records.lease import LeaseRecord
from schemas.records.run import RunRecord
from tests.support.archives import write_parts
from tests.support.runs import Run, config, digests, quick_run_on
from workers.storage.directory import Directory


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """Return the record of a job of four images."""
    source = tmp_path_factory.mktemp("archive")
    write_parts(source, 4)
    return new_record(str(source), build_catalog(str(source), config().input), config(), "weights")


def test_the_same_command_again_computes_nothing(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digests(finished.path)
    monkeypatch.setattr(pipeline.commands.clean, "open_cluster", None)  # not to be called
    again = clean(str(finished.source), str(finished.path), config())
    assert again.was_done
    assert (again.run_id, again.ledger) == (finished.result.run_id, finished.result.ledger)
    assert digests(finished.path) == before
    assert not finished.result.was_done


def test_what_does_not_change_the_result_does_not_make_another_run(finished: Run) -> None:
    settings = ("cluster.threads_per_worker=2", "features.device=cpu", "input.max_unreadable_fraction=0.5")
    assert clean(str(finished.source), str(finished.path), config(*settings)).was_done


def test_another_configuration_is_refused_by_naming_all_that_differs(finished: Run) -> None:
    before = digests(finished.path)
    settings = ("trim.eta=2.6", "gaussian.ridge=1", "features.seed=1", "input.group_by={part}_*.png")
    with pytest.raises(RunConflictError) as caught:
        clean(str(finished.source), str(finished.path), config(*settings))
    for named in ("trim.eta: 2.3 -> 2.6", "gaussian.ridge: ", "features.seed: 0 -> 1", "weights: ", "input.group_by: "):
        assert named in str(caught.value)
    assert "trim.tau" not in str(caught.value)
    assert digests(finished.path) == before


def test_another_archive_is_refused_by_naming_both(finished: Run, tmp_path: Path) -> None:
    write_parts(tmp_path, 4)
    with pytest.raises(RunConflictError, match=f"source: '{finished.source}' -> '{tmp_path}'") as caught:
        clean(str(tmp_path), str(finished.path), config())
    assert "archive:" in str(caught.value)


def test_an_archive_that_has_changed_is_refused(record: RunRecord, tmp_path: Path) -> None:
    run = Directory.at(tmp_path / "run")
    assert claim(run, record) is record
    (Path(record.source) / "new.png").write_bytes(b"")
    try:
        changed = new_record(record.source, build_catalog(record.source, config().input), config(), "weights")
    finally:
        (Path(record.source) / "new.png").unlink()
    with pytest.raises(RunConflictError, match="archive:") as caught:
        claim(run, changed)
    assert "source:" not in str(caught.value)
    same = new_record(record.source, build_catalog(record.source, config().input), config(), "weights")
    assert claim(run, same) == record


def file_of_mine(out: Path) -> None:
    out.mkdir()
    (out / "mine.txt").write_text("mine")


def broken_record(out: Path) -> None:
    out.mkdir()
    (out / "run.json").write_text("{")


def foreign_record(out: Path) -> None:
    out.mkdir()
    (out / "run.json").write_text('{"name": "another program\'s"}')


def a_file(out: Path) -> None:
    out.write_text("mine")


@pytest.mark.parametrize("make", [file_of_mine, broken_record, foreign_record, a_file])
def test_a_directory_that_is_no_run_is_refused_and_left_as_it_is(
    record: RunRecord, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "out")
    before = digests(tmp_path)
    with pytest.raises(RunConflictError, match=r"Give --out"):
        claim(Directory.at(tmp_path / "out"), record)
    assert digests(tmp_path) == before


@pytest.mark.parametrize("make", [file_of_mine, a_file])
def test_the_whole_job_leaves_a_directory_that_is_no_run_as_it_is(
    full_archive: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "out")
    before = digests(tmp_path)
    with pytest.raises(RunConflictError, match=r"Give --out"):
        quick_run_on(full_archive, tmp_path / "out")
    assert digests(tmp_path) == before


@pytest.mark.parametrize("left", ["lease/0001.json", "receipts/all/000000000.json", "journal/begun"])
def test_what_a_run_killed_after_its_success_left_is_removed_by_its_repetition(
    finished: Run, tmp_path: Path, left: str
) -> None:
    run = Path(shutil.copytree(finished.path, tmp_path / "run"))
    before = digests(run)
    for name in {left, "lease/0001.json"}:
        (run / name).parent.mkdir(parents=True)
        (run / name).write_bytes(LeaseRecord("gone", **dataclasses.asdict(ProcessId.own()), released=True).to_bytes())
    assert clean(str(finished.source), str(run), config()).was_done
    assert digests(run) == before
