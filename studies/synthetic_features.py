"""Synthetic features of archives of any size, with known truth, written straight into a feature store.

The real archives at hand have a few hundred images. Features drawn from a seed show what happens with 50 000, or when
one part was photographed twenty times. An image is white noise at each position, partly shared between all
positions (lighting, pose) and, as with overlapping patches, partly between neighbours. Every position mixes it into
correlated channels in its own way. A defect shifts a square of positions in one direction of the white noise, so that
its size is a Mahalanobis distance to the true Gaussian.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from schemas.names import DEFAULT_GROUP, sample_id, storage_name
from schemas.records.image import ImageOutcome
from schemas.stores.features import CHUNK_IMAGES, FeatureGeometry
from workers.storage.directory import Directory

Array = NDArray[np.float32]

# Mahalanobis shifts in units of sqrt(D), the distance of a typical good image. A shifted image is at sqrt(1 + shift^2).
SHIFTS = (0.75, 1.0, 1.5, 2.0, 3.0)

# Patches of 10 cells every 4 cells overlap their neighbours in each direction: a 3 x 3 mean of white noise.
OVERLAP = 3
# Share of the variance that all positions of an image share.
IMAGE_EFFECT = 0.3
# Difference between two photographs of one part, in standard deviations.
COPY_NOISE = 0.02


class _Stream(IntEnum):
    """Independent random numbers of one seed."""

    PLAN = 0
    MIXING = 1
    IMAGE = 2
    COPY = 3
    DEFECT = 4


@dataclass(frozen=True)
class Archive:
    """Which archive to draw.

    Attributes
    ----------
    images, channels, side
        N, D, and the number of rows and of columns of positions.
    planted
        Share of the images that are defective.
    extent
        Side of a defect in positions; 3 is a speck, which every overlapping patch sees.
    repeats
        How many images show the same defect at the same place.
    recurring
        These images show different parts, as after a tool broke; otherwise they are near-duplicates of one image.
    copies
        Share of the good images that are near-duplicates of another good one.
    tails
        Degrees of freedom of Student's t, one factor for each image; 0 for the normal law.
    represented
        Near-duplicates have the content hash of their original, as if they were byte-identical. This shows what finding
        them could achieve.
    seed
        Seeds all random numbers.
    """

    images: int = 1000
    channels: int = 64
    side: int = 7
    planted: float = 0.1
    extent: int = 3
    repeats: int = 1
    recurring: bool = False
    copies: float = 0.0
    tails: int = 0
    represented: bool = False
    seed: int = 0

    @property
    def positions(self) -> int:
        """Rows times columns."""
        return self.side**2

    @property
    def geometry(self) -> FeatureGeometry:
        """The grid of a backbone without pooling."""
        return FeatureGeometry(self.side, self.side, self.channels, self.side, self.side, 1, 1)

    def stored_bytes(self, dtype: str) -> int:
        """Return the size of the features in a store."""
        return self.images * self.positions * self.channels * np.dtype(dtype).itemsize


@dataclass(frozen=True)
class Truth:
    """What each image of an archive is; all arrays (images,).

    Attributes
    ----------
    source
        int64: the part that was photographed.
    is_copy
        bool: a near-duplicate of an image with the same source.
    defect
        int64: number of the defect; -1 for a good image.
    shift
        float64: size of the defect in units of sqrt(D); 0 for a good image.
    """

    source: NDArray[np.int64]
    is_copy: NDArray[np.bool_]
    defect: NDArray[np.int64]
    shift: NDArray[np.float64]

    @property
    def is_defective(self) -> NDArray[np.bool_]:
        """Whether each image shows a defect."""
        return self.defect >= 0


def plan(archive: Archive) -> Truth:
    """Decide what each image shows, in shuffled order."""
    rng = _rng(archive, _Stream.PLAN)
    bad = round(archive.planted * archive.images)
    good = archive.images - bad
    copies = round(archive.copies * good)
    originals = np.arange(good - copies)
    shown = np.arange(bad) // archive.repeats
    repeated = np.arange(bad) % archive.repeats > 0
    parts = good + (np.arange(bad) if archive.recurring else shown)
    order = rng.permutation(archive.images)
    return Truth(
        source=np.concatenate([originals, rng.choice(originals, copies), parts])[order],
        is_copy=np.concatenate([np.arange(good) >= len(originals), repeated & (not archive.recurring)])[order],
        defect=np.concatenate([np.full(good, -1), shown])[order],
        shift=np.concatenate([np.zeros(good), np.take(SHIFTS, shown % len(SHIFTS))])[order],
    )


class Features:
    """Draws the features of any images of an archive, each from its own random numbers."""

    def __init__(self, archive: Archive, truth: Truth) -> None:
        """Draw the means (positions, channels) and mixing matrices (positions, channels, channels)."""
        self._archive, self._truth = archive, truth
        rng, channels = _rng(archive, _Stream.MIXING), archive.channels
        self._mean = rng.standard_normal((archive.positions, 1, channels), np.float32)
        # Variances fall as 1 / k, like those of real features; the mean variance of a channel is 1.
        variances = 1.0 / np.arange(1, channels + 1)
        deviations = np.sqrt(variances / variances.mean()).astype(np.float32)
        rotations = [np.linalg.qr(rng.standard_normal((channels, channels), np.float32))[0] for _ in self._mean]
        self._mixing = deviations[:, np.newaxis] * np.stack(rotations)

    def block(self, start: int, stop: int) -> Array:
        """Return the features (stop - start, rows, columns, channels) float32 of some images."""
        white = np.stack([self._white(row) for row in range(start, stop)])
        by_position = white.reshape(len(white), self._archive.positions, -1).swapaxes(0, 1)
        mixed: Array = (by_position @ self._mixing + self._mean).swapaxes(0, 1)
        return mixed.reshape(white.shape)

    def _white(self, row: int) -> Array:
        """Return one image's white noise (rows, columns, channels), with its defect."""
        archive, truth = self._archive, self._truth
        rng = _rng(archive, _Stream.IMAGE, int(truth.source[row]))
        shared = rng.standard_normal(archive.channels, np.float32)
        padded = archive.side + OVERLAP - 1
        cells = rng.standard_normal((padded, padded, archive.channels), np.float32)
        # The sum of 9 cells over 3 has unit variance again.
        windows = np.lib.stride_tricks.sliding_window_view(cells, (OVERLAP, OVERLAP), axis=(0, 1))
        local = windows.sum(axis=(-2, -1)) / OVERLAP
        white: Array = math.sqrt(IMAGE_EFFECT) * shared + math.sqrt(1 - IMAGE_EFFECT) * local
        if archive.tails:
            white *= np.float32(math.sqrt((archive.tails - 2) / rng.chisquare(archive.tails)))
        if truth.is_copy[row]:
            noise = _rng(archive, _Stream.COPY, row).standard_normal(white.shape, np.float32)
            white += np.float32(COPY_NOISE) * noise
        if truth.is_defective[row]:
            self._add_defect(white, row)
        return white

    def _add_defect(self, white: Array, row: int) -> None:
        """Shift the defect's positions of an image's own array."""
        extent = self._archive.extent
        rng = _rng(self._archive, _Stream.DEFECT, int(self._truth.defect[row]))
        top, left = rng.integers(self._archive.side - extent + 1, size=2)
        direction = rng.standard_normal(self._archive.channels, np.float32)
        length = self._truth.shift[row] * math.sqrt(self._archive.channels)
        shift = np.float32(length) * direction / np.linalg.norm(direction)
        white[top : top + extent, left : left + extent] += shift


def write_features(archive: Archive, truth: Truth, store: Directory, dtype: str) -> None:
    """Write an archive's features as extraction does: one array, its chunks, the group's name."""
    features = Features(archive, truth)
    array = store.zarr_group("", "w").create_array(
        storage_name(DEFAULT_GROUP),
        shape=archive.geometry.array_shape(archive.images),
        chunks=archive.geometry.chunk_shape(archive.images),
        dtype=dtype,
        compressors=None,
        attributes={"group": DEFAULT_GROUP},
    )
    for start in range(0, archive.images, CHUNK_IMAGES):
        stop = min(start + CHUNK_IMAGES, archive.images)
        array[start:stop] = features.block(start, stop)


def catalog_and_outcomes(archive: Archive, truth: Truth) -> tuple[pd.DataFrame, dict[str, list[ImageOutcome]]]:
    """Return the catalog of an archive, and the outcomes of reading its images."""
    names = [f"{row:06d}.png" for row in range(archive.images)]
    frame = pd.DataFrame({"file_name": names, "image_path": names, "group": DEFAULT_GROUP, "reason": ""})
    catalog = frame.assign(sample_id=[sample_id(name) for name in names], row=np.arange(archive.images)).astype(
        {"row": "Int64"}
    )
    contents = truth.source if archive.represented else np.arange(archive.images)
    outcomes = [ImageOutcome(row, f"content {content}", 1, 1, 1) for row, content in enumerate(contents)]
    return catalog, {DEFAULT_GROUP: outcomes}


def _rng(archive: Archive, stream: _Stream, number: int = 0) -> np.random.Generator:
    return np.random.default_rng([archive.seed, stream, number])
