"""Find near-duplicates: images so alike that they are copies of one another, though not byte for byte.

A part photographed twice, or one picture saved twice as JPEG, counts as several images in a fit, and a defect in it
supports itself: in a fit on n images, k of them copies, each copy measured without itself still has
d^2 < n / (k - 1), however far all copies lie from the rest. So only the first copy, the representative, is fitted.

Whole images are compared, not single positions: a recurring variant is alike at some positions, a copy at all of them.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import Indices
from schemas.stores.features import CHUNK_IMAGES
from workers.features.arrays import ArrayRef, Segment, read_features

# Positions in each direction that stand for the image: distances between images change by a few percent only.
POSITIONS = 4

# Length of a sketch: makes distances right to sqrt(1 / (2 * 256)) = 4 % (Achlioptas 2003).
SKETCH = 256
SEED = 0

# The nearest quarter of the other images shows how near independent images are: copies are fewer than that.
QUARTER = 0.25

# However sparse its neighbours are, a copy differs little from its original: by less than this share of the length of
# its sketch. Saving as JPEG again changes 2 to 6 %, another photograph of a part 10 to 25 %.
OWN_CHANGE = 0.1

# More copies than this share of the images are no copies: the parts lie turned or shifted, so that each resembles the
# next, or the features see no difference.
MOST_COPIES = 0.5

# Half of fewer distinct images is too few to fit.
MIN_DISTINCT = 8

BLOCK_BYTES = 8 * 1024**2  # of distances at once

Sketches = NDArray[np.float32]


def sketch_segment(features: ArrayRef, segment: Segment) -> Sketches:
    """Return the sketches (images, 256) of a segment's masked images, in order; reads a few rows of positions."""
    array = features.open()
    rows = lattice(array.shape[1])
    parts = [np.empty((0, SKETCH), np.float32)]
    for start in range(segment.start, segment.stop, CHUNK_IMAGES):
        stop = min(start + CHUNK_IMAGES, segment.stop)
        mask = segment.mask[start - segment.start : stop - segment.start]
        if mask.any():
            parts.append(sketch(np.stack([read_features(array, start, stop, row)[mask] for row in rows], axis=1)))
    return np.concatenate(parts)


def sketch(values: NDArray[np.floating]) -> Sketches:
    """Return random projections (images, 256) of features (images, lattice rows, columns, channels)."""
    chosen = values[:, :, lattice(values.shape[2])].reshape(len(values), -1).astype(np.float32)
    projections: Sketches = chosen @ _signs(chosen.shape[1])
    return projections


def find_representatives(parts: list[Sketches], closeness: float) -> Indices:
    """Return the index (images,) of each image's representative: the first one that it nearly copies, or itself.

    Each image has a radius within which the nearest quarter of the others lie. Two images are near-duplicates if their
    distance is less than ``closeness`` times the radius of each, and less than `OWN_CHANGE` of the length of each
    sketch. A representative is not a near-duplicate of another one. If fewer than `MIN_DISTINCT` images would be left,
    or more than `MOST_COPIES` of them were copies, every image represents itself.

    Parameters
    ----------
    parts
        The sketches (images, 256) of all images, segment by segment.
    closeness
        0 finds no near-duplicates.
    """
    sketches = np.concatenate(parts).astype(np.float64)
    count = len(sketches)
    representative = np.arange(count)
    if count < 2:
        return representative
    squares = np.einsum("ij,ij->i", sketches, sketches)
    limits, size = np.empty(count), max(1, BLOCK_BYTES // (8 * count))
    quarter = math.ceil(QUARTER * (count - 1)) - 1
    for start in range(0, count, size):
        stop = min(start + size, count)
        # Euclidean distances by one matrix product; scikit-learn, which has them, takes a second to load.
        products = sketches[start:stop] @ sketches.T
        distances = np.sqrt(np.maximum(squares[start:stop, np.newaxis] + squares - 2.0 * products, 0.0))
        own = np.arange(len(distances))
        distances[own, start + own] = np.inf
        limit = closeness * np.partition(distances, quarter, axis=1)[:, quarter]
        limit = np.minimum(limit, OWN_CHANGE * np.sqrt(squares[start:stop]))
        limits[start:stop] = limit
        # Rows come in order: all earlier ones are settled, and their limits known.
        for place, earlier in np.argwhere(distances < limit[:, np.newaxis]):
            later = start + place
            is_near = earlier < later and distances[place, earlier] < limits[earlier]
            if is_near and representative[earlier] == earlier and representative[later] == later:
                representative[later] = earlier
    fewest = max(MIN_DISTINCT, math.ceil((1.0 - MOST_COPIES) * count))
    return representative if len(np.unique(representative)) >= fewest else np.arange(count)


def lattice(count: int) -> Indices:
    """Return which of ``count`` rows or columns stand for all: evenly spread, away from the border."""
    return np.unique(((np.arange(POSITIONS) + 0.5) * count / POSITIONS).astype(np.int64))


@lru_cache(maxsize=1)
def _signs(length: int) -> NDArray[np.float32]:
    """Return the projection (length, 256): random signs, scaled to keep distances."""
    signs = np.random.default_rng(SEED).integers(0, 2, size=(length, SKETCH), dtype=np.int8)
    projection: NDArray[np.float32] = (2 * signs - 1).astype(np.float32) / np.float32(math.sqrt(SKETCH))
    return projection
