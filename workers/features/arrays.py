"""A run's Zarr arrays as recipes, and what is read from them: features by rows of positions, distances.

Chunks have checksums, so that nothing is judged by what was torn or altered.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple, Self

import numpy as np
import zarr
from numpy.typing import NDArray

from schemas.errors import DamagedArrayError, SourceError
from schemas.stores.features import CHUNK_IMAGES
from workers.storage.directory import Directory

# What Zarr raises of a chunk of another length or checksum, or of one that zstd refuses.
_DAMAGED = (ValueError, RuntimeError)

# A row of positions of so many images can be one task: its features are 200 MB at 14 columns of 1792 channels.
WHOLE_ROW_IMAGES = 4096


@dataclass(frozen=True)
class ArrayRef:
    """A Zarr array as a recipe: pickles as names, opens where it is used."""

    directory: Directory
    group: str
    name: str

    def open(self, mode: str = "r") -> zarr.Array[Any]:
        """Open the array for reading ("r") or writing ("r+")."""
        array = self.directory.zarr_group(self.group, "r" if mode == "r" else "r+")[self.name]
        assert isinstance(array, zarr.Array)
        return array

    def reader(self) -> Callable[[int, int, int], NDArray[Any]]:
        """Return what reads features from the array: of which images (start, stop), and of which row of positions."""
        return partial(read_features, self.open())


class OpenedFeatures(ArrayRef):
    """Features that a task opens once, whatever it reads of them."""

    @classmethod
    def of(cls, features: ArrayRef) -> Self:
        """Return the same features, opened when they are first read."""
        return cls(features.directory, features.group, features.name)

    def open(self, mode: str = "r") -> zarr.Array[Any]:
        """Open the array, which is only read."""
        assert mode == "r"
        return self._opened

    @cached_property
    def _opened(self) -> zarr.Array[Any]:
        return super().open()


class HeldFeatures(OpenedFeatures):
    """Features of which a task needs a row of positions several times: a chunk that was read stays in memory."""

    def reader(self) -> Callable[[int, int, int], NDArray[Any]]:
        """Return what reads features from the array, once each."""
        return self._read

    @cached_property
    def _read(self) -> Callable[[int, int, int], NDArray[Any]]:
        return lru_cache(maxsize=None)(super().reader())


class Segment(NamedTuple):
    """Images ``start`` to ``stop`` of a group's arrays; ``mask`` (stop - start,) says which of them take part."""

    start: int
    stop: int
    mask: NDArray[np.bool_]


def cut_segments(mask: NDArray[np.bool_], size: int) -> Iterator[Segment]:
    """Yield the segments of at most ``size`` images, in order, of a group's mask (images,)."""
    for start in range(0, len(mask), size):
        stop = min(start + size, len(mask))
        yield Segment(start, stop, mask[start:stop])


def is_whole_row(images: int, segment_images: int) -> bool:
    """Tell whether a row of positions of a group of so many images is one task: one segment, and not a large one."""
    return images <= min(segment_images, WHOLE_ROW_IMAGES)


def read_row(features: ArrayRef, row: int, segment: Segment) -> NDArray[Any]:
    """Return the features (taking part, columns, channels) of a segment's masked images at one row of positions."""
    parts = [
        values[segment.mask[start - segment.start : start - segment.start + len(values)]]
        for start, values in read_chunks(features, row, segment)
    ]
    return np.concatenate(parts)


def read_chunks(
    features: ArrayRef, row: int, segment: Segment, wanted: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (first image, values (images, columns, channels)) for each chunk of a segment at one row of positions.

    Those without an image of ``wanted`` (segment's images,) or (segment's images, columns) are not read.
    """
    read = features.reader()
    for start in range(segment.start, segment.stop, CHUNK_IMAGES):
        stop = min(start + CHUNK_IMAGES, segment.stop)
        if wanted is None or wanted[start - segment.start : stop - segment.start].any():
            yield start, read(start, stop, row)


def read_features(array: zarr.Array[Any], start: int, stop: int, row: int) -> NDArray[Any]:
    """Return the stored features (images, columns, channels) of some images at one row of positions.

    Raises
    ------
    SourceError
        When a chunk is torn or altered.
    """
    try:
        return np.asarray(array[start:stop, row])
    except _DAMAGED as error:
        raise SourceError(
            f"the stored features of images {start} to {stop - 1} of {array.store_path} at row {row} are damaged "
            f"({' '.join(str(error).split())}). Restore them, or clean the archive anew; an unfinished run extracts "
            "them anew when the same command is run again."
        ) from error


def read_distances(distances: ArrayRef, segment: Segment, row: int | None = None) -> NDArray[np.float64]:
    """Return the stored distances (taking part, rows, columns) of a segment's masked images.

    Parameters
    ----------
    distances
        The array (images, rows, columns).
    segment
        The images.
    row
        The row of positions, for distances (taking part, columns) there; None for all.

    Raises
    ------
    DamagedArrayError
        When a chunk is torn, altered or missing.
    """
    rows = slice(None) if row is None else row
    values = read_stored(distances.open(), (slice(segment.start, segment.stop), rows))[segment.mask]
    if np.isnan(values).any():
        raise DamagedArrayError(_damaged(distances.open(), "some were never written"))
    return values


def read_stored(array: zarr.Array[Any], selection: Any = ...) -> NDArray[Any]:
    """Return a part of a stored array of distances, or of what is kept beside them.

    Raises
    ------
    DamagedArrayError
        When a chunk is torn or altered.
    """
    try:
        return np.asarray(array[selection])
    except _DAMAGED as error:
        raise DamagedArrayError(_damaged(array, " ".join(str(error).split()))) from error


def _damaged(array: zarr.Array[Any], why: str) -> str:
    return (
        f"{array.store_path} is damaged ({why}). Restore it, or make it anew: `paire recut` judges the features of a "
        "finished run again, `paire score --anomaly-maps` scores again; an unfinished run makes its own anew when the "
        "same command is run again."
    )
