"""The counts of a trust test: caught defects by kind, size and contrast, and rejected images without a defect.

Within one cell of the table every image counts once, so its interval is that of independent trials. Cells share images,
so the intervals of several cells cannot be combined.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
from scipy.stats import binomtest

from workers.trust.planting import KINDS, Defect
from workers.trust.trial import Trials

# Lengths of defects as shares of the image's shorter side, from a speck to the obvious.
SIZES: Final = (0.01, 0.02, 0.04, 0.08, 0.16)
# See `Defect.contrast`.
CONTRASTS: Final = {"faint": 0.1, "medium": 0.2, "strong": 0.4}
DEFECTS: Final = tuple(Defect(*parts) for parts in product(KINDS, SIZES, CONTRASTS.values()))
_CONTRAST_NAMES: Final = {value: name for name, value in CONTRASTS.items()}

# Of Wilson's intervals, which hold their level for few images and for shares near 0 and 1.
CONFIDENCE: Final = 0.95

OVERALL: Final = "overall"


@dataclass(frozen=True)
class Share:
    """A count out of a total, with its interval; of nothing, ``value`` is None and the interval 0 to 1."""

    count: int
    of: int
    value: float | None
    low: float
    high: float

    @classmethod
    def counted(cls, count: int, of: int) -> "Share":
        """Return a count as a share of a total."""
        if not of:
            return cls(0, 0, None, 0.0, 1.0)
        interval = binomtest(count, of).proportion_ci(CONFIDENCE, method="wilson")
        return cls(count, of, count / of, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class GroupTrust:
    """What the thresholds of a group caught."""

    group: str  # product group, or ``overall``
    fitted: int  # images of the fit, which leaves out those held out
    untouched: Share  # held-out images without a defect that are beyond a threshold
    recall: tuple[Share, ...]  # for each of ``DEFECTS``: planted images beyond a threshold
    contrast: tuple[float, ...]  # mean contrast that each of ``DEFECTS`` reached
    notes: tuple[str, ...] = ()  # sentences about what weakens the figures

    @classmethod
    def of(cls, group: str, fitted: int, trials: Trials) -> "GroupTrust":
        """Count a group's trials; an image is rejected if its margin is 1 or more, as in a run."""
        took_part = ~np.isnan(trials.untouched)
        images, caught = int(took_part.sum()), (trials.planted[took_part] >= 1).sum(axis=0)
        return cls(
            group=group,
            fitted=fitted,
            untouched=Share.counted(int((trials.untouched[took_part] >= 1).sum()), images),
            recall=tuple(Share.counted(int(count), images) for count in caught),
            contrast=tuple(trials.contrast[took_part].mean(axis=0).tolist() if images else [0.0] * len(caught)),
        )

    @classmethod
    def together(cls, groups: Sequence["GroupTrust"]) -> "GroupTrust":
        """Return the sum of several groups' counts."""

        def add(shares: Sequence[Share]) -> Share:
            return Share.counted(sum(share.count for share in shares), sum(share.of for share in shares))

        weights = np.array([part.untouched.of for part in groups], np.float64)
        contrasts = np.array([part.contrast for part in groups])
        return cls(
            group=OVERALL,
            fitted=sum(part.fitted for part in groups),
            untouched=add([part.untouched for part in groups]),
            recall=tuple(add(shares) for shares in zip(*(part.recall for part in groups), strict=True)),
            contrast=tuple((weights @ contrasts / max(weights.sum(), 1.0)).tolist()),
            notes=tuple(dict.fromkeys(note for part in groups for note in part.notes)),
        )

    def share(self, kind: str, size: float, contrast: str) -> Share:
        """Return the recall of one cell."""
        return self.recall[DEFECTS.index(Defect(kind, size, CONTRASTS[contrast]))]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each kind, size and contrast."""
        return [
            {
                "group": self.group,
                "kind": defect.kind,
                "size": defect.size,
                "contrast": _CONTRAST_NAMES[defect.contrast],
                "planted": share.of,
                "caught": share.count,
                "recall": share.value,
                "low": share.low,
                "high": share.high,
                "mean_contrast": round(contrast, 4),
            }
            for defect, share, contrast in zip(DEFECTS, self.recall, self.contrast, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "group": self.group,
            "images": self.untouched.of,
            "fitted": self.fitted,
            "false_rejects": self.untouched.count,
            "false_reject_rate": self.untouched.value,
            "false_reject_low": self.untouched.low,
            "false_reject_high": self.untouched.high,
            "notes": list(self.notes),
            "recall": [{name: value for name, value in row.items() if name != "group"} for row in self.rows()],
        }
