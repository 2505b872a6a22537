"""The ledger: every input counted once, or an error instead of a publication."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import LedgerError
from schemas.records.ledger import build_ledger, stopping_sentences
from schemas.tables.manifest import DECISIONS


def books(decisions: list[tuple[str, str]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a manifest and a catalog of inputs given as (group, decision)."""
    ids = [f"id{number:03d}" for number in range(len(decisions))]
    groups = [group for group, _ in decisions]
    manifest = pd.DataFrame({"sample_id": ids, "group": groups, "decision": [what for _, what in decisions]})
    return manifest, manifest[["sample_id", "group"]].copy()


MANIFEST, CATALOG = books(
    [("a", "clean"), ("a", "clean"), ("a", "anomalous"), ("b", "duplicate"), ("b", "unreadable"), ("b", "skipped")]
)


def test_the_ledger_counts_each_decision_in_total_and_by_group() -> None:
    assert build_ledger(MANIFEST, CATALOG, {}) == {
        "total": {"inputs": 6, "clean": 2, "anomalous": 1, "duplicate": 1, "unreadable": 1, "skipped": 1},
        "groups": {
            "a": {"inputs": 3, "clean": 2, "anomalous": 1, "duplicate": 0, "unreadable": 0, "skipped": 0},
            "b": {"inputs": 3, "clean": 0, "anomalous": 0, "duplicate": 1, "unreadable": 1, "skipped": 1},
        },
    }


def test_how_a_group_ended_is_copied_into_its_entry() -> None:
    ledger = build_ledger(MANIFEST, CATALOG, {"a": {"iterations": 3, "stop_reason": "unchanged"}})
    assert ledger["groups"]["a"]["iterations"] == 3
    assert ledger["groups"]["a"]["stop_reason"] == "unchanged"
    assert "iterations" not in ledger["groups"]["b"]


def test_only_findings_that_stop_and_are_not_accepted_make_a_group_untrustworthy() -> None:
    def finding(condition: str, *, stops: bool) -> dict[str, object]:
        return {"condition": condition, "sentence": f"{condition}.", "stops": stops}

    ledger = build_ledger(
        MANIFEST,
        CATALOG,
        {
            "a": {"findings": [finding("kinds", stops=True), finding("images", stops=True)]},
            "b": {"findings": [finding("images", stops=False)]},
        },
    )
    assert stopping_sentences(ledger) == {"a": ["kinds.", "images."]}
    assert stopping_sentences(ledger, accepted=("images",)) == {"a": ["kinds."]}
    assert stopping_sentences(ledger, accepted=("images", "kinds")) == {}


def test_the_order_of_rows_does_not_matter() -> None:
    assert build_ledger(MANIFEST[::-1], CATALOG, {}) == build_ledger(MANIFEST, CATALOG, {})


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "Ünï\n"]), st.sampled_from(DECISIONS)), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_inputs_equal_the_sum_of_the_decisions(decisions: list[tuple[str, str]]) -> None:
    ledger = build_ledger(*books(decisions), {})
    for entry in (ledger["total"], *ledger["groups"].values()):
        assert entry["inputs"] == sum(entry[decision] for decision in DECISIONS)
    assert ledger["total"]["inputs"] == sum(entry["inputs"] for entry in ledger["groups"].values()) == len(decisions)


def test_a_lost_row_is_an_error() -> None:
    with pytest.raises(LedgerError, match=r"5 rows for 6 inputs \(1 lost\)"):
        build_ledger(MANIFEST.drop(index=2), CATALOG, {})


def test_a_row_that_appears_twice_is_an_error() -> None:
    with pytest.raises(LedgerError, match="7 rows for 6 inputs"):
        build_ledger(pd.concat([MANIFEST, MANIFEST.tail(1)]), CATALOG, {})


def test_a_row_in_place_of_another_is_an_error() -> None:
    twice = pd.concat([MANIFEST.drop(index=2), MANIFEST.tail(1)])
    assert len(twice) == len(CATALOG)
    with pytest.raises(LedgerError, match="1 lost"):
        build_ledger(twice, CATALOG, {})


def test_an_input_listed_twice_under_one_id_is_an_error() -> None:
    doubled = MANIFEST.assign(sample_id=["id000", *MANIFEST["sample_id"][:-1]])
    with pytest.raises(LedgerError):
        build_ledger(doubled, doubled[["sample_id", "group"]], {})


@pytest.mark.parametrize("decision", ["good", "", None])
def test_an_unknown_decision_is_an_error(decision: str | None) -> None:
    with pytest.raises(LedgerError, match="3 inputs but 2 decisions"):
        build_ledger(MANIFEST.assign(decision=MANIFEST["decision"].where(MANIFEST.index > 0, decision)), CATALOG, {})


@pytest.mark.parametrize("group", ["b", "c"])
def test_a_row_under_another_group_is_an_error(group: str) -> None:
    with pytest.raises(LedgerError):
        build_ledger(MANIFEST.assign(group=[group, *MANIFEST["group"][1:]]), CATALOG, {})


def test_a_renamed_group_is_an_error() -> None:
    with pytest.raises(LedgerError):
        build_ledger(MANIFEST.assign(group=MANIFEST["group"].replace("b", "c")), CATALOG, {})
