"""A run's Zarr arrays as recipes, and how to read them: features by rows of positions, and distances.

Chunks have checksums, so torn or altered values are never judged.
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

# Zarr raises these for a chunk with a wrong length or checksum, or if zstd refuses it.
_DAMAGED = (ValueError, RuntimeError)

# One task can process a row of positions of this many images: 200 MB of features at 14 columns and 1792 channels.
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
        """Return a function that reads features, given the images (start, stop) and the row of positions."""
        return partial(read_features, self.open())


class OpenedFeatures(ArrayRef):
    """Features that a task opens only once."""

    @classmethod
    def of(cls, features: ArrayRef) -> Self:
        """Return the same features, opened at their first read."""
        return cls(features.directory, features.group, features.name)

    def open(self, mode: str = "r") -> zarr.Array[Any]:
        """Open the array for reading."""
        assert mode == "r"
        return self._opened

    @cached_property
    def _opened(self) -> zarr.Array[Any]:
        return super().open()


class HeldFeatures(OpenedFeatures):
    """Features of a row of positions that a task reads several times: chunks stay in memory."""

    def reader(self) -> Callable[[int, int, int], NDArray[Any]]:
        """Return a function that reads each part of the array once and then remembers it."""
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
    """Yield a group's images, with their mask (images,), in segments of at most ``size``, in order."""
    for start in range(0, len(mask), size):
        stop = min(start + size, len(mask))
        yield Segment(start, stop, mask[start:stop])


def is_whole_row(images: int, segment_images: int) -> bool:
    """Tell whether one task can process a row of positions of a group: it is one segment, and not too large."""
    return images <= min(segment_images, WHOLE_ROW_IMAGES)


def read_row(features: ArrayRef, row: int, segment: Segment) -> NDArray[Any]:
    """Return the features (taking part, columns, channels) of a segment's masked images at one row of positions."""
    parts = [
        values[segment.mask[start - segment.start : start - segment.start + len(values)]]
        for start, values in read_chunks(features, row, segment, segment.mask)
    ]
    return np.concatenate(parts)


def read_chunks(
    features: ArrayRef, row: int, segment: Segment, wanted: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (first image, values (images, columns, channels)) for each chunk of a segment at one row of positions.

    Skips the chunks without an image of ``wanted``, a mask (images,) over the segment.
    """
    read = features.reader()
    for start in range(segment.start, segment.stop, CHUNK_IMAGES):
        stop = min(start + CHUNK_IMAGES, segment.stop)
        if wanted is None or wanted[start - segment.start : stop - segment.start].any():
            yield start, read(start, stop, row)


def read_features(array: zarr.Array[Any], start: int, stop: int, row: int) -> NDArray[Any]:
    """Return the stored features (images, columns, channels) of some images at one row of positions.

    Raises `SourceError` if a chunk is torn or altered.
    """
    try:
        return np.asarray(array[start:stop, row])
    except _DAMAGED as error:
        raise SourceError(
            f"the stored features of images {start} to {stop - 1} of {array.store_path} at row {row} are damaged "
            f"({' '.join(str(error).split())}). Restore them, or clean the archive again; an unfinished run extracts "
            "them again if you run the same command."
        ) from error


def read_distances(distances: ArrayRef, segment: Segment, row: int | None = None) -> NDArray[np.float64]:
    """Return the stored distances (taking part, rows, columns) of a segment's masked images, at all rows or at one.

    Raises `DamagedArrayError` if a chunk is torn, altered or missing.
    """
    rows = slice(None) if row is None else row
    values = read_stored(distances.open(), (slice(segment.start, segment.stop), rows))[segment.mask]
    if np.isnan(values).any():
        raise DamagedArrayError(_damaged(distances.open(), "some were never written"))
    return values


def read_stored(array: zarr.Array[Any], selection: Any = ...) -> NDArray[Any]:
    """Return a part of a stored array of distances, or of an array beside them.

    Raises `DamagedArrayError` if a chunk is torn or altered.
    """
    try:
        return np.asarray(array[selection])
    except _DAMAGED as error:
        raise DamagedArrayError(_damaged(array, " ".join(str(error).split()))) from error


def _damaged(array: zarr.Array[Any], why: str) -> str:
    return (
        f"{array.store_path} is damaged ({why}). Restore it or make it again: `paire recut` judges the features of a "
        "finished run again, `paire score --anomaly-maps` scores again, and an unfinished run makes it again if you "
        "run the same command."
    )
