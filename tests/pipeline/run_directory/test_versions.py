"""The versions of a run: numbers that nobody shares, and jobs that find their own."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pipeline.run_directory.versions
from pipeline.run_directory.versions import claim_version, find_version, list_versions, run_of_version, version_of
from schemas.errors import RunConflictError
from schemas.records.run import RUNNING, RunRecord
from workers.storage.directory import Directory

RECORD = RunRecord("20220313T000000Z-aaaaaa", RUNNING, "archive", {"trim.eta": 2.3}, "c", "a", "w", base="base-run")


def job(eta: float) -> RunRecord:
    return dataclasses.replace(RECORD, run_id=f"run-{eta}", options={"trim.eta": eta})


@pytest.fixture
def run(tmp_path: Path) -> Directory:
    return Directory.at(tmp_path / "run")


def test_a_run_without_versions_has_none(run: Directory) -> None:
    assert list_versions(run) == {}
    assert find_version(run, RECORD) is None


def test_versions_are_numbered_from_one_in_the_order_of_their_claims(run: Directory) -> None:
    assert [claim_version(run, job(eta)) for eta in (2.4, 2.5, 2.6)] == [1, 2, 3]
    assert list_versions(run) == {1: job(2.4), 2: job(2.5), 3: job(2.6)}
    assert version_of(run, 2).url == f"{run.url}/recuts/0002"
    assert version_of(run, 0) == run


def test_a_job_finds_its_own_version_made_by_any_command(run: Directory) -> None:
    for eta in (2.4, 2.5):
        claim_version(run, job(eta))
    assert find_version(run, dataclasses.replace(job(2.5), run_id="later", state="done", hosts={"host": 1})) == 2
    assert find_version(run, dataclasses.replace(job(2.5), base="another-run")) is None


def test_a_number_is_not_given_again_after_an_earlier_one_was_deleted(run: Directory) -> None:
    for eta in (2.4, 2.5):
        claim_version(run, job(eta))
    run.remove("recuts/0001")
    assert claim_version(run, job(2.6)) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "mine"}'])
def test_a_directory_without_a_readable_record_keeps_its_number_and_is_left_alone(
    run: Directory, content: bytes
) -> None:
    run.write("recuts/0001/run.json", content)
    assert list_versions(run) == {1: None}
    assert claim_version(run, RECORD) == 2
    assert run.read("recuts/0001/run.json") == content


@pytest.mark.parametrize("name", ["notes", "1", "00001", "0000", "-001", "0001.bak", "\u0660\u0660\u0660\u0661"])
def test_other_names_are_no_versions(run: Directory, name: str) -> None:
    run.write(f"recuts/{name}/run.json", b"{}")
    assert list_versions(run) == {}


def test_versions_beyond_four_digits_are_found(run: Directory) -> None:
    run.write("recuts/9999/run.json", b"{}")
    assert claim_version(run, RECORD) == 10_000
    assert find_version(run, RECORD) == 10_000


def test_commands_at_once_take_different_numbers(run: Directory) -> None:
    jobs = [job(2 + number / 10) for number in range(16)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        numbers = list(pool.map(lambda record: claim_version(run, record), jobs))
    assert sorted(numbers) == list(range(1, 17))
    assert [list_versions(run)[number] for number in numbers] == jobs


def test_the_second_command_takes_the_next_number(run: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    claim_version(run, job(2.4))
    monkeypatch.setattr(pipeline.run_directory.versions, "list_versions", lambda _: {})  # as it was a moment before
    assert claim_version(run, job(2.5)) == 2


def test_the_second_command_with_the_same_settings_is_told_to_wait(
    run: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_version(run, RECORD)
    monkeypatch.setattr(pipeline.run_directory.versions, "list_versions", lambda _: {})
    with pytest.raises(RunConflictError, match=r"recuts/0001 with the same settings\. Wait"):
        claim_version(run, RECORD)
    assert not (Path(run.url) / "recuts" / "0002").exists()


def test_a_version_knows_its_run_while_it_lies_in_it(run: Directory, tmp_path: Path) -> None:
    found = run_of_version(version_of(run, 12))
    assert found is not None
    assert found.url == run.url
    assert run_of_version(Directory.at(tmp_path / "moved")) is None
    assert run_of_version(run) is None
