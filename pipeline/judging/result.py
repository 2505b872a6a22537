"""How the judging of a group ended, kept until all groups are judged, so that none is judged twice."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.judging.examination import Examination
from pipeline.judging.manifest import GroupVerdict, Judgement, take_census
from pipeline.judging.strategies.paire import Iteration, Trimming
from pipeline.run_directory.journal import StaleJournalError
from schemas.records.image import ImageOutcome
from workers.guard.contamination import Contamination
from workers.guard.findings import Finding
from workers.verdict.calibration import ScoreLaw
from workers.verdict.selection import Evidence

# The array that holds, as JSON, whatever is no array.
_FACTS = "facts"
_EVIDENCE, _TRIMMING = "evidence.", "trimming."


@dataclass(frozen=True)
class Ending:
    """How the judging of one group ended.

    Attributes
    ----------
    verdict, examination
        What was found.
    trimming
        How the clean set came out; None where the group could not be judged.
    near_duplicates
        Images that are near-duplicates of earlier ones.
    """

    verdict: GroupVerdict
    trimming: Trimming | None
    examination: Examination
    near_duplicates: int = 0

    def iterations(self, group: str) -> list[dict[str, Any]]:
        """Return the group's rows of ``iterations.parquet``."""
        steps = self.trimming.iterations if self.trimming else ()
        return [{"group": group, **dataclasses.asdict(step)} for step in steps]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return all but the outcomes of the images, which extraction knows, as arrays."""
        facts: dict[str, Any] = {
            "not_judged": self.verdict.not_judged,
            "near_duplicates": self.near_duplicates,
            "examination": dataclasses.asdict(self.examination),
        }
        arrays: dict[str, NDArray[Any]] = {}
        judgement, trimming = self.verdict.judgement, self.trimming
        if judgement is not None and trimming is not None:
            arrays["representative"] = judgement.representative
            arrays |= _arrays_of(judgement.evidence, _EVIDENCE) | _arrays_of(trimming, _TRIMMING)
            facts["trimming"] = {
                "iterations": [dataclasses.asdict(step) for step in trimming.iterations],
                "stop_reason": trimming.stop_reason,
                "smoothing": trimming.smoothing,
                "nearest": trimming.nearest,
            }
        return arrays | {_FACTS: np.frombuffer(json.dumps(facts, default=_plain).encode(), np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], outcomes: Sequence[ImageOutcome]) -> "Ending":
        """Return the ending that was made into arrays, of the same outcomes.

        Raises
        ------
        StaleJournalError
            When they are no ending's.
        """
        try:
            facts = json.loads(arrays[_FACTS].tobytes())
            judgement, trimming = None, None
            if "trimming" in facts:
                said = facts["trimming"]
                steps = tuple(Iteration(**step) for step in said.pop("iterations"))
                trimming = Trimming(**_named(arrays, _TRIMMING), **said, iterations=steps)
                evidence = Evidence(**_named(arrays, _EVIDENCE))
                judgement = Judgement(trimming.clean, trimming.last_changed, evidence, arrays["representative"])
            verdict = GroupVerdict(outcomes, take_census(outcomes), judgement, facts["not_judged"])
            return cls(verdict, trimming, _examination(**facts["examination"]), facts["near_duplicates"])
        except (KeyError, TypeError, ValueError) as error:
            raise StaleJournalError(f"it is no ending of a group ({type(error).__name__}: {error})") from error


def digest_outcomes(outcomes: Sequence[ImageOutcome]) -> str:
    """Return the sha256 of what reading a group's images established."""
    facts = json.dumps([dataclasses.astuple(outcome) for outcome in outcomes])
    return hashlib.sha256(facts.encode()).hexdigest()


def _plain(number: np.generic) -> Any:
    return number.item()


def _arrays_of(record: Any, prefix: str) -> dict[str, NDArray[Any]]:
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {prefix + name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _named(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _examination(contamination: dict[str, Any] | None, findings: list[dict[str, Any]]) -> Examination:
    found = None
    if contamination is not None:
        law = contamination.pop("law")
        found = Contamination(**contamination, law=None if law is None else ScoreLaw(**law))
    return Examination(found, tuple(Finding(**finding) for finding in findings))
