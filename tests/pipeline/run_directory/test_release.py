"""Whether a judged run is published: by its findings and by what is accepted, with nothing computed again."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.run_directory.record import read_record, write_record
from pipeline.run_directory.release import conclude, reconsider, release
from schemas.config import GuardConfig
from schemas.errors import UntrustworthyError
from schemas.records.run import DONE, LEDGER, RUN_RECORD, RUNNING, SUCCESS, UNTRUSTWORTHY, RunRecord
from workers.storage.directory import Directory

RECORD = RunRecord("20220313T000000-abcd", RUNNING, "archive", {}, "c", "d", "w")
NOTHING, ACCEPTED = GuardConfig(), GuardConfig(accept_untrustworthy=True)
KINDS = GuardConfig(accept_conditions=("kinds",))


def ledger(**findings: list[tuple[str, bool]]) -> dict[str, Any]:
    """Return books with findings of some groups, as (condition, stops)."""
    counts = {"inputs": 1, "clean": 1, "anomalous": 0, "duplicate": 0, "unreadable": 0, "skipped": 0}
    return {
        "total": {name: len(findings) * count for name, count in counts.items()},
        "groups": {
            group: {
                **counts,
                "findings": [
                    {"condition": condition, "sentence": f"{condition} of {group}.", "stops": stops}
                    for condition, stops in found
                ],
            }
            for group, found in findings.items()
        },
    }


def contents(run: Path) -> dict[str, bytes]:
    """Return every file."""
    return {path.name: path.read_bytes() for path in run.iterdir()}


def finish(run: Path, books: dict[str, Any], guard: GuardConfig) -> Directory:
    """Go through the end of a job; leaves the directory as an error would."""
    directory = Directory.at(run)
    directory.write(LEDGER, json.dumps(books).encode())
    conclude(directory, RECORD, books, guard)
    release(directory, books, guard)
    return directory


def refusal(run: Path, books: dict[str, Any], guard: GuardConfig = NOTHING) -> str:
    with pytest.raises(UntrustworthyError) as caught:
        finish(run, books, guard)
    return str(caught.value)


def state(run: Path) -> tuple[str, bool]:
    record = read_record(Directory.at(run))
    return record.state, record.accepted_untrustworthy


@pytest.mark.parametrize(
    ("found", "guard", "accepted"),
    [
        pytest.param([], NOTHING, False, id="nothing found"),
        pytest.param([("images", False)], NOTHING, False, id="a warning"),
        pytest.param([], ACCEPTED, False, id="nothing found, nothing to accept"),
        pytest.param([("kinds", True)], ACCEPTED, True, id="everything accepted"),
        pytest.param([("kinds", True)], KINDS, True, id="the condition accepted"),
    ],
)
def test_a_result_that_is_trusted_or_accepted_is_published(
    tmp_path: Path, found: list[tuple[str, bool]], guard: GuardConfig, accepted: bool
) -> None:
    finish(tmp_path, ledger(a=found), guard)
    assert (tmp_path / SUCCESS).read_bytes() == b""
    assert state(tmp_path) == (DONE, accepted)


@pytest.mark.parametrize("guard", [NOTHING, KINDS])
def test_any_other_result_is_not(tmp_path: Path, guard: GuardConfig) -> None:
    refusal(tmp_path, ledger(a=[("kinds", True), ("poses", True)], b=[]), guard)
    assert not (tmp_path / SUCCESS).exists()
    assert state(tmp_path) == (UNTRUSTWORTHY, False)


def test_the_refusal_says_where_what_was_found_and_what_to_do(tmp_path: Path) -> None:
    message = refusal(tmp_path, ledger(a=[("kinds", True), ("poses", False)], b=[("images", False)]))
    for part in (str(tmp_path), "1 of 2 groups", "group 'a': kinds of a.", "manifest.parquet", "--group-by"):
        assert part in message
    assert "--accept-untrustworthy" in message
    assert "images of b" not in message
    assert "more" not in message
    assert "\n" not in message


def test_the_refusal_names_the_first_groups_and_counts_the_others(tmp_path: Path) -> None:
    message = refusal(tmp_path, ledger(**{name: [("kinds", True)] for name in "abcde"}))
    assert "5 of 5 groups" in message
    assert [name for name in "abcde" if f"group '{name}'" in message] == ["a", "b", "c"]
    assert "And 2 more; see ledger.json." in message


def test_the_same_job_again_is_refused_again_and_writes_nothing(tmp_path: Path) -> None:
    first = refusal(tmp_path, ledger(a=[("kinds", True)]))
    before = contents(tmp_path)
    directory = Directory.at(tmp_path)
    with pytest.raises(UntrustworthyError) as caught:
        reconsider(directory, read_record(directory), NOTHING)
    assert str(caught.value) == first
    assert contents(tmp_path) == before


@pytest.mark.parametrize("guard", [ACCEPTED, KINDS])
def test_accepting_it_later_writes_the_record_and_success_and_nothing_else(tmp_path: Path, guard: GuardConfig) -> None:
    books = ledger(a=[("kinds", True)])
    refusal(tmp_path, books)
    before, directory = contents(tmp_path), Directory.at(tmp_path)
    assert reconsider(directory, read_record(directory), guard) == books
    after = contents(tmp_path)
    assert {name for name in after if after[name] != before.get(name)} == {RUN_RECORD, SUCCESS}
    assert state(tmp_path) == (DONE, True)


@pytest.mark.parametrize("unfinished", [RUNNING, DONE])
def test_a_run_that_was_not_found_untrustworthy_is_not_reconsidered(tmp_path: Path, unfinished: str) -> None:
    directory = Directory.at(tmp_path)
    write_record(directory, RunRecord("id", unfinished, "archive", {}, "c", "d", "w"))
    assert reconsider(directory, read_record(directory), ACCEPTED) is None
    assert not (tmp_path / SUCCESS).exists()


def test_a_ledger_of_before_there_was_a_guard_has_no_findings(tmp_path: Path) -> None:
    finish(tmp_path, {"groups": {"a": {"warnings": []}}}, NOTHING)
    assert state(tmp_path) == (DONE, False)
