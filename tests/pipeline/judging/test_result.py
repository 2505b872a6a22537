"""Results of groups: made into arrays and back, or not believed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.judging.examination import Examination
from pipeline.judging.result import GroupResult, digest_outcomes, take_census
from pipeline.judging.strategies.base import UNCHANGED, Trimming
from pipeline.run_directory.journal import StaleJournalError
from schemas.records.image import ImageOutcome
from workers.guard.contamination import Contamination
from workers.guard.findings import Finding
from workers.verdict.calibration import ScoreLaw
from workers.verdict.purity import Purity
from workers.verdict.selection import Evidence

OUTCOMES = [ImageOutcome(0, "ab", 10, 30, 20), ImageOutcome(1, reason="it is empty")]
FOUND = Examination(
    Contamination(np.float64(0.1), 0.0, 0.2, 2, ScoreLaw(1.5, 0.1)), (Finding("images", "Too few.", bool(np.True_)),)
)
NOT_JUDGED = GroupResult(OUTCOMES, take_census(OUTCOMES), FOUND, near_duplicates=3, not_judged="too few images")


def test_a_group_that_was_not_judged_is_read_back() -> None:
    again = GroupResult.from_arrays(NOT_JUDGED.to_arrays(), OUTCOMES)
    assert again.not_judged == "too few images"
    assert again.trimming is None
    assert again.examination == FOUND
    assert again.near_duplicates == 3
    np.testing.assert_array_equal(again.census.measured, [True, False])


@pytest.mark.parametrize("purity", [None, Purity(0.995, 0.97)])
def test_a_trimming_is_read_back_with_its_purity(purity: Purity | None) -> None:
    clean, row = np.array([True, False]), np.zeros(2, np.int16)
    trimming = Trimming(
        clean, clean, clean, row, np.ones((1, 1)), clean[np.newaxis], (), UNCHANGED, smoothing=3, purity=purity
    )
    evidence = Evidence.empty(np.ones(2))
    result = replace(NOT_JUDGED, not_judged="", trimming=trimming, evidence=evidence, fitted_for=np.arange(2))
    again = GroupResult.from_arrays(result.to_arrays(), OUTCOMES).trimming
    assert again is not None
    assert (again.purity, again.smoothing, again.stop_reason) == (purity, 3, UNCHANGED)
    np.testing.assert_array_equal(again.published, clean)


@pytest.mark.parametrize("facts", [b"", b"[]", b"{}", b'{"trimming": {}}', json.dumps({"not_judged": ""}).encode()])
def test_other_arrays_are_not_a_result(facts: bytes) -> None:
    with pytest.raises(StaleJournalError, match="not the result of a group"):
        GroupResult.from_arrays({"facts": np.frombuffer(facts, np.uint8)}, OUTCOMES)
    with pytest.raises(StaleJournalError, match="not the result of a group"):
        GroupResult.from_arrays({}, OUTCOMES)


def test_other_outcomes_have_another_digest() -> None:
    assert digest_outcomes(OUTCOMES) == digest_outcomes(list(OUTCOMES))
    assert digest_outcomes(OUTCOMES) != digest_outcomes(OUTCOMES[:1])
    assert digest_outcomes(OUTCOMES) != digest_outcomes([OUTCOMES[0], ImageOutcome(1, "cd", 5, 1, 1)])
