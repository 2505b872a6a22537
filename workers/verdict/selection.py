"""Choose the clean set from distances and thresholds, by pure functions (Eqs. 12 and 13)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import Floats, Indices, Mask
from schemas.config import TrimConfig
from workers.verdict.smoothing import smooth

# A covariance of fewer samples estimates nothing.
MIN_FITTED = 3


@dataclass(frozen=True)
class Selection:
    """A clean set."""

    clean: Mask  # (images,)
    floor_applied: bool  # fewer images than the floor passed, so those with the smallest margins are clean


def margins(distances: Floats, thresholds: Floats) -> Floats:
    """Return distances (images, positions) / thresholds (positions,): below 1 exactly where a distance is below.

    An infinite threshold gives a margin of 0.
    """
    ratios: Floats = distances / thresholds
    return ratios


def select(margin: Floats, measured: Mask, trim: TrimConfig) -> Selection:
    """Choose the clean set: every image below the threshold at every position (Eq. 12).

    Floor: the union over all positions can exclude nearly everything. If fewer than ``min_clean_fraction`` of the
    images pass (or fewer than 3), that many with the smallest margins are clean, earlier rows first among equals.

    Parameters
    ----------
    margin
        (images,) float64: the largest margin of each image over all positions.
    measured
        (images,) bool: the images that take part.
    """
    clean = measured & (margin < 1.0)
    count = int(measured.sum())
    # Rounded first: 0.1 * 70 is a little more than 7 in floating point.
    floor = min(count, max(MIN_FITTED, math.ceil(round(trim.min_clean_fraction * count, 9))))
    if int(clean.sum()) >= floor:
        return Selection(clean, floor_applied=False)
    return Selection(smallest(margin, measured, floor), floor_applied=True)


def smallest(values: Floats, candidates: Mask, count: int) -> Mask:
    """Return which ``count`` of the candidates (images,) have the smallest values, earlier rows first among equals.

    If there are fewer candidates, return them all.
    """
    rows = np.flatnonzero(candidates)
    chosen = np.zeros_like(candidates)
    chosen[rows[np.argsort(values[rows], kind="stable")[:count]]] = True
    return chosen


@dataclass(frozen=True)
class Evidence:
    """The reasons for each image's verdict, collected row by row of positions.

    All arrays are (images,). ``score`` is the largest distance as measured (paper, section 3.4), before distances are
    averaged to compare them with thresholds. ``row`` and ``column`` name the position with the largest margin, or with
    the largest distance if no position has a threshold; the first in row-major order among equals.
    """

    score: Floats
    margin: Floats
    row: NDArray[np.int16]
    column: NDArray[np.int16]
    distance: Floats
    threshold: Floats

    @classmethod
    def empty(cls, score: Floats) -> "Evidence":
        """Return the evidence of images with these scores (images,) before the first row of positions."""
        images = len(score)
        nothing = np.full(images, -np.inf)
        nowhere = np.full(images, -1, np.int16)
        return cls(score, nothing, nowhere, nowhere, nothing, np.full(images, np.inf))

    def with_row(self, row: int, distances: Floats, thresholds: Floats) -> "Evidence":
        """Return the evidence with one more row of positions: distances (images, columns), thresholds (columns,)."""
        images = np.arange(len(distances))
        ratio = margins(distances, thresholds)
        # The margin decides; the distance only where no position has a margin.
        column = np.where(ratio.max(axis=1) > 0, ratio.argmax(axis=1), distances.argmax(axis=1))
        margin, distance = ratio[images, column], distances[images, column]
        no_margin = np.maximum(margin, self.margin) <= 0
        worse = (margin > self.margin) | (no_margin & (distance > self.distance))
        return Evidence(
            score=self.score,
            margin=np.where(worse, margin, self.margin),
            row=np.where(worse, np.int16(row), self.row),
            column=np.where(worse, column.astype(np.int16), self.column),
            distance=np.where(worse, distance, self.distance),
            threshold=np.where(worse, thresholds[column], self.threshold),
        )

    def shared(self, representative: Indices) -> "Evidence":
        """Return evidence that makes no image better than its representative (images,), an index into the evidence."""
        source = np.where(self.margin[representative] > self.margin, representative, np.arange(len(representative)))
        shared = {field.name: getattr(self, field.name)[source] for field in fields(self)}
        return Evidence(**shared | {"score": np.maximum(self.score, self.score[representative])})

    @classmethod
    def concatenate(cls, parts: Sequence["Evidence"]) -> "Evidence":
        """Join the evidence of several sets of images, in order."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def gather_evidence(distances: Floats, thresholds: Floats, *, smoothing: int = 1) -> Evidence:
    """Return the evidence of whole distance maps.

    Parameters
    ----------
    distances
        (images, rows, columns) float64.
    thresholds
        (rows, columns) float64.
    smoothing
        Side of the square of positions that distances are averaged over to compare them with the thresholds.
    """
    smoothed = smooth(distances, smoothing)
    evidence = Evidence.empty(distances.max(axis=(1, 2)))
    for row in range(thresholds.shape[0]):
        evidence = evidence.with_row(row, smoothed[:, row], thresholds[row])
    return evidence
