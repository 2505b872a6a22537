"""What a trust test counts: caught defects by kind, size and contrast, and rejected images that were left as they are.

Margins go in and shares with intervals come out. In one cell of the table every image counts once, so its interval is
that of independent trials; cells share images, so figures of several cells together have no interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
from scipy.stats import binomtest

from workers.trust.planting import KINDS, Defect
from workers.trust.trial import Trials

# Lengths of defects as shares of the image's shorter side: from a speck to what nobody overlooks.
SIZES: Final = (0.01, 0.02, 0.04, 0.08, 0.16)
# Root mean square change of the grey level, as a share of the image's span from dark to light.
CONTRASTS: Final = {"faint": 0.1, "medium": 0.2, "strong": 0.4}
DEFECTS: Final = tuple(Defect(*parts) for parts in product(KINDS, SIZES, CONTRASTS.values()))
_CONTRAST_NAMES: Final = {value: name for name, value in CONTRASTS.items()}

# Of the intervals, which are Wilson's: they hold their level for few images and for shares near 0 and 1.
CONFIDENCE: Final = 0.95

OVERALL: Final = "overall"


@dataclass(frozen=True)
class Share:
    """How many of how many, with the interval; ``value`` is None of nothing, whose interval is 0 to 1."""

    count: int
    of: int
    value: float | None
    low: float
    high: float

    @classmethod
    def counted(cls, count: int, of: int) -> "Share":
        """Return the share of a count."""
        if not of:
            return cls(0, 0, None, 0.0, 1.0)
        interval = binomtest(count, of).proportion_ci(CONFIDENCE, method="wilson")
        return cls(count, of, count / of, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class GroupTrust:
    """What a group's rule caught.

    Attributes
    ----------
    group
        Product group, or ``overall``.
    fitted
        Kept images of the fit without those that were held out.
    untouched
        Of the held-out images as they are: those beyond a threshold.
    recall
        Of each of ``DEFECTS``: planted images that are beyond a threshold.
    contrast
        The mean contrast that each of them reached.
    notes
        What makes the figures mean less.
    """

    group: str
    fitted: int
    untouched: Share
    recall: tuple[Share, ...]
    contrast: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, group: str, fitted: int, trials: Trials) -> "GroupTrust":
        """Count a group's trials: an image is rejected when its margin is 1 or more, as by a run."""
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
        """Return the counts of several groups together."""

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
