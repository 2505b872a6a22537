"""A run's Zarr arrays as recipes, and the features of some images at one row of positions, read chunk by chunk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from schemas.errors import SourceError
from schemas.features import CHUNK_IMAGES
from workers.storage import Directory

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


class HeldFeatures(ArrayRef):
    """Features of which a task needs the same row of positions several times: a chunk that was read stays in memory."""

    def open(self, mode: str = "r") -> zarr.Array[Any]:
        """Open the array, which is only read."""
        assert mode == "r"
        return self._opened

    def reader(self) -> Callable[[int, int, int], NDArray[Any]]:
        """Return what reads features from the array, once each."""
        return self._read

    @cached_property
    def _opened(self) -> zarr.Array[Any]:
        return super().open()

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
    except (ValueError, RuntimeError) as error:  # a chunk of another length or checksum; one that zstd refuses
        raise SourceError(
            f"the stored features of images {start} to {stop - 1} of {array.store_path} at row {row} are damaged "
            f"({' '.join(str(error).split())}). Restore them, or clean the archive anew; an unfinished run extracts "
            "them anew when the same command is run again."
        ) from error
