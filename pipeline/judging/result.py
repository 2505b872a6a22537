"""What was found about one group, kept until all groups are judged, so that none is judged twice."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.judging.examination import Examination
from pipeline.judging.strategies.base import Iteration, Trimming
from pipeline.run_directory.journal import StaleJournalError
from schemas.arrays import Indices, Mask
from schemas.records.image import ImageOutcome
from workers.guard.contamination import Contamination
from workers.guard.findings import Finding
from workers.verdict.calibration import ScoreLaw
from workers.verdict.purity import Purity
from workers.verdict.selection import Evidence

# The array that holds, as JSON, all that is not an array.
_FACTS = "facts"
_EVIDENCE, _TRIMMING = "evidence.", "trimming."


@dataclass(frozen=True)
class Census:
    """Which of a group's images take part in its statistics."""

    measured: Mask  # (images,): readable, and the first of its byte-identical copies
    first_copy: Indices  # (images,): the row of the first copy, which can be the image's own


def take_census(outcomes: Sequence[ImageOutcome]) -> Census:
    """Find the duplicates and the unreadable among a group's outcomes, which are in row order."""
    first_with: dict[str, int] = {}
    first_copy = np.arange(len(outcomes))
    readable = np.array([outcome.is_readable for outcome in outcomes], dtype=bool)
    for row, outcome in enumerate(outcomes):
        if outcome.is_readable:
            first_copy[row] = first_with.setdefault(outcome.content_sha256, row)
    return Census(readable & (first_copy == np.arange(len(outcomes))), first_copy)


@dataclass(frozen=True)
class GroupResult:
    """All that was found about one group.

    ``trimming``, ``evidence`` and ``fitted_for`` are None if the group could not be judged, for the reason in
    ``not_judged``.
    """

    outcomes: Sequence[ImageOutcome]  # what reading each image established, in row order
    census: Census
    examination: Examination
    trimming: Trimming | None = None
    evidence: Evidence | None = None  # of the images that took part, in row order
    # (images,): the row of the image that a near-duplicate is judged with, and never better than; else its own row
    fitted_for: Indices | None = None
    near_duplicates: int = 0  # images that are near-duplicates of earlier ones, whether or not they count as one
    not_judged: str = ""

    def iterations(self, group: str) -> list[dict[str, Any]]:
        """Return the group's rows of ``iterations.parquet``."""
        steps = self.trimming.iterations if self.trimming else ()
        return [{"group": group, **dataclasses.asdict(step)} for step in steps]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything as arrays, except the outcomes of the images: extraction has those."""
        contamination = self.examination.contamination
        facts: dict[str, Any] = {
            "not_judged": self.not_judged,
            "near_duplicates": self.near_duplicates,
            # Without its power, which is measured once all groups are judged.
            "examination": {
                "contamination": contamination and dataclasses.asdict(contamination),
                "findings": [dataclasses.asdict(finding) for finding in self.examination.findings],
                "purity": self.examination.purity and dataclasses.asdict(self.examination.purity),
            },
        }
        arrays: dict[str, NDArray[Any]] = {}
        trimming = self.trimming
        if trimming is not None and self.evidence is not None and self.fitted_for is not None:
            arrays["fitted_for"] = self.fitted_for
            arrays |= _arrays_of(self.evidence, _EVIDENCE) | _arrays_of(trimming, _TRIMMING)
            facts["trimming"] = {
                "iterations": [dataclasses.asdict(step) for step in trimming.iterations],
                "stop_reason": trimming.stop_reason,
                "smoothing": trimming.smoothing,
                "purity": None if trimming.purity is None else dataclasses.asdict(trimming.purity),
            }
        return arrays | {_FACTS: np.frombuffer(json.dumps(facts, default=_plain).encode(), np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], outcomes: Sequence[ImageOutcome]) -> "GroupResult":
        """Return the result that `to_arrays` wrote, for the same outcomes.

        Raises
        ------
        StaleJournalError
            When the arrays are not those of a result.
        """
        try:
            facts = json.loads(arrays[_FACTS].tobytes())
            found: dict[str, Any] = {}
            if "trimming" in facts:
                said = facts["trimming"]
                steps = tuple(Iteration(**step) for step in said.pop("iterations"))
                purity = said.pop("purity")
                found = {
                    "trimming": Trimming(
                        **_named(arrays, _TRIMMING), **said, iterations=steps, purity=purity and Purity(**purity)
                    ),
                    "evidence": Evidence(**_named(arrays, _EVIDENCE)),
                    "fitted_for": arrays["fitted_for"],
                }
            return cls(
                outcomes,
                take_census(outcomes),
                _examination(**facts["examination"]),
                near_duplicates=facts["near_duplicates"],
                not_judged=facts["not_judged"],
                **found,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StaleJournalError(f"it is not the result of a group ({type(error).__name__}: {error})") from error


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


def _examination(
    contamination: dict[str, Any] | None, findings: list[dict[str, Any]], purity: dict[str, float] | None
) -> Examination:
    found = None
    if contamination is not None:
        law = contamination.pop("law")
        found = Contamination(**contamination, law=None if law is None else ScoreLaw(**law))
    return Examination(
        found, tuple(Finding(**finding) for finding in findings), purity=Purity(**purity) if purity else None
    )
