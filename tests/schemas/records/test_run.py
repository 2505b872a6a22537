"""The run record: what distinguishes two runs, in words."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import Config, flatten, parse_config
from schemas.records.run import RUNNING, UNTRUSTWORTHY, RunRecord, version_name, version_number

RECORD = RunRecord(
    run_id="20220313T000000-abcd",
    state=RUNNING,
    source="archive",
    options=flatten(Config().decisive()),
    config_digest=Config().digest(),
    catalog_digest="c" * 64,
    weights_digest="w" * 64,
    versions={"torch": "2.3"},
    hosts={"laptop": 2},
)


def test_the_same_job_has_no_differences_whoever_runs_it() -> None:
    later = dataclasses.replace(RECORD, run_id="another", state="done", versions={}, hosts={"cluster": 64})
    assert RECORD.differences(later) == []


def test_differences_name_the_options_with_both_values_sorted() -> None:
    other = parse_config(None, ["trim.eta=2.6", "features.nodes=layer1"])
    theirs = dataclasses.replace(RECORD, options=flatten(other.decisive()), config_digest=other.digest())
    assert RECORD.differences(theirs) == [
        "features.nodes: ['layer1', 'layer2', 'layer3'] -> ['layer1']",
        "trim.eta: 2.3 -> 2.6",
    ]


def test_differences_name_the_source() -> None:
    assert RECORD.differences(dataclasses.replace(RECORD, source="other")) == ["source: 'archive' -> 'other'"]


def test_differences_name_archive_and_weights_by_the_beginnings_of_their_digests() -> None:
    theirs = dataclasses.replace(RECORD, catalog_digest="d" * 64, weights_digest="x" * 64)
    assert RECORD.differences(theirs) == [
        "archive: cccccccccccc -> dddddddddddd",
        "backbone weights: wwwwwwwwwwww -> xxxxxxxxxxxx",
    ]


def test_an_option_that_one_of_them_lacks_is_a_difference() -> None:
    theirs = dataclasses.replace(RECORD, options={**RECORD.options, "trim.new": 1})
    assert RECORD.differences(theirs) == ["trim.new: None -> 1"]
    assert theirs.differences(RECORD) == ["trim.new: 1 -> None"]


def test_a_record_read_back_from_json_is_equal() -> None:
    assert RunRecord(**json.loads(json.dumps(RECORD.to_json()))) == RECORD


def test_a_record_of_before_there_were_recuts_is_that_of_a_whole_run() -> None:
    written = RECORD.to_json()
    del written["base"]
    assert RunRecord(**written) == RECORD
    assert RECORD.base == ""


def test_a_record_of_before_there_was_a_guard_accepted_nothing() -> None:
    written = RECORD.to_json()
    del written["accepted_untrustworthy"]
    assert RunRecord(**written) == RECORD


def test_an_accepted_run_is_the_same_job() -> None:
    assert RECORD.differences(dataclasses.replace(RECORD, state=UNTRUSTWORTHY, accepted_untrustworthy=True)) == []


def test_a_version_cut_from_a_run_is_not_the_run() -> None:
    version = dataclasses.replace(RECORD, base="20220313T000000-abcd")
    assert RECORD.differences(version) == ["cut from the features of run: '' -> '20220313T000000-abcd'"]


@given(st.integers(1, 10**9))
@settings(max_examples=50, deadline=None)
def test_a_version_is_found_again_by_its_name(number: int) -> None:
    assert version_number(version_name(number)) == number
    assert len(version_name(number)) >= 4


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0",
        "0000",
        "1",
        "00001",
        "-001",
        "+001",
        "1.5",
        "0001 ",
        "\u0660\u0660\u0660\u0661",
        "\u00b2\u00b3\u00b9\u00b9",
        "run",
    ],
)
def test_what_is_no_version_s_name_is_no_version(name: str) -> None:
    assert version_number(name) is None
