"""The run record: what distinguishes two runs, in words."""

import dataclasses
import json

from schemas.config import Config, flatten, parse_config
from schemas.run import RUNNING, RunRecord

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
