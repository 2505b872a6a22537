"""Two manifests compared: what counts as a change, and that the counts sum to the inputs."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import LedgerError
from schemas.tables.changes import COLUMNS, count_changes, find_changes
from schemas.tables.columns import to_arrow
from schemas.tables.manifest import CLEAN, DECISIONS


def manifest(decisions: list[tuple[str, str]]) -> pd.DataFrame:
    """Return a manifest of inputs given as (group, decision)."""
    ids = [f"id{number:03d}" for number in range(len(decisions))]
    return pd.DataFrame(
        {
            "sample_id": ids,
            "file_name": [f"{name}.png" for name in ids],
            "group": [group for group, _ in decisions],
            "decision": [decision for _, decision in decisions],
            "reason": [f"because {decision}" for _, decision in decisions],
        }
    )


BEFORE = manifest([("a", "clean"), ("a", "anomalous"), ("a", "clean"), ("b", "anomalous"), ("b", "unreadable")])
AFTER = manifest([("a", "anomalous"), ("a", "clean"), ("a", "clean"), ("b", "skipped"), ("b", "unreadable")])


def test_only_inputs_whose_decision_changed_are_listed_with_both_sides() -> None:
    changes = find_changes(BEFORE, AFTER)
    assert list(changes.columns) == [column.name for column in COLUMNS]
    assert changes.to_numpy().tolist() == [
        ["id000", "id000.png", "a", "clean", "anomalous", "because clean", "because anomalous", "removed"],
        ["id001", "id001.png", "a", "anomalous", "clean", "because anomalous", "because clean", "added"],
        ["id003", "id003.png", "b", "anomalous", "skipped", "because anomalous", "because skipped", "other"],
    ]


def test_changes_are_counted_in_total_and_by_group() -> None:
    assert count_changes(find_changes(BEFORE, AFTER), BEFORE) == {
        "total": {"added": 1, "removed": 1, "flipped": 2, "other": 1, "unchanged": 2},
        "groups": {
            "a": {"added": 1, "removed": 1, "flipped": 2, "other": 0, "unchanged": 1},
            "b": {"added": 0, "removed": 0, "flipped": 0, "other": 1, "unchanged": 1},
        },
    }


def test_another_reason_alone_is_no_change() -> None:
    assert find_changes(BEFORE, BEFORE.assign(reason="another")).empty


def test_no_changes_are_still_a_table_of_the_documented_types() -> None:
    table = to_arrow(find_changes(BEFORE, BEFORE), COLUMNS)
    assert (table.num_rows, table.schema.names) == (0, [column.name for column in COLUMNS])


def test_the_order_of_the_earlier_manifest_does_not_matter() -> None:
    pd.testing.assert_frame_equal(find_changes(BEFORE[::-1], AFTER), find_changes(BEFORE, AFTER))


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(DECISIONS), st.sampled_from(DECISIONS)),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=50, deadline=None)
def test_the_clean_afterwards_are_the_clean_before_plus_added_minus_removed(inputs: list[tuple[str, str, str]]) -> None:
    before = manifest([(group, was) for group, was, _ in inputs])
    after = manifest([(group, now) for group, _, now in inputs])
    counts = count_changes(find_changes(before, after), before)
    for group, entry in [(None, counts["total"]), *counts["groups"].items()]:
        mine = [(was, now) for name, was, now in inputs if group in {None, name}]
        was_clean, is_clean = (sum(pair[side] == CLEAN for pair in mine) for side in (0, 1))
        assert is_clean == was_clean + entry["added"] - entry["removed"]
        assert entry["flipped"] + entry["other"] + entry["unchanged"] == len(mine)
    backwards = count_changes(find_changes(after, before), before)["total"]
    assert (backwards["added"], backwards["removed"]) == (counts["total"]["removed"], counts["total"]["added"])


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(AFTER.iloc[1:], id="an input lost"),
        pytest.param(pd.concat([AFTER, AFTER.tail(1)]), id="an input twice"),
        pytest.param(AFTER.assign(sample_id=[*AFTER["sample_id"][:-1], "id999"]), id="another input"),
    ],
)
def test_manifests_of_other_inputs_are_not_compared(other: pd.DataFrame) -> None:
    for pair in ((BEFORE, other), (other, BEFORE)):
        with pytest.raises(LedgerError, match="the same archive"):
            find_changes(*pair)
