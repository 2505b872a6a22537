"""What a run costs: bytes, tasks, requests and floating-point operations, as pure functions.

The plan, the check of the workers' memory (`pipeline.costs.working_memory`), the simulated schedule and
``docs/scaling.md`` all use these formulas, so they cannot disagree. Everything follows from a `Layout` and from numbers
of images: n take part, f of them are fitted. Bytes and tasks are exact. Requests are exact where segments have whole
chunks. Operations are those of the leading terms.
"""

import math
from dataclasses import dataclass

import numpy as np

from schemas.config import Config
from schemas.stores.features import CHUNK_IMAGES, FeatureGeometry
from schemas.stores.gaussian_map import DTYPES
from workers.features.arrays import is_whole_row
from workers.gaussian.fit import uses_dual
from workers.gaussian.neighbours import REFERENCES
from workers.guard.structure import MIN_SAMPLE, SAMPLE
from workers.map.reader import FLOAT64, byte_count_of
from workers.map.writer import array_chunks, chunk_rows
from workers.passes.by_products import SMALL_GROUP, band_rows, products_chunk, uses_products
from workers.passes.kept_moments import kept_values, pays_to_keep
from workers.verdict.near_duplicates import lattice

# Passes that the strategy `paire` usually makes over a group (the median of docs/study/results.csv).
USUAL_PASSES = 3

# The breakdown guard fits twice, unless its first fit finds the images that the second one would.
GUARD_FITS = 2

# Bytes of a float64: distances, products and Gaussians.
FLOAT64_BYTES = 8

# Bytes of the CRC-32C of each chunk of features, distances and moments.
_CHECKSUM = 4

# Operations of a symmetric eigenproblem with vectors, over n^3 (Golub and Van Loan, Matrix Computations, section 8.3).
_EIGH = 9.0

# Arrays beside a group's distances: thresholds, clean sets, near-duplicates.
_VERDICT_ARRAYS = 3


@dataclass(frozen=True)
class Layout:
    """What the costs depend on, besides numbers of images.

    Attributes
    ----------
    itemsize
        Bytes of a stored feature.
    segment_images
        Images in one statistics task.
    updates_moments
        Whether a large group's moments are kept from pass to pass. They are not where the estimator reads all images
        in every pass.
    has_references
        Whether the map has reference images.
    """

    geometry: FeatureGeometry
    itemsize: int
    segment_images: int
    updates_moments: bool = True
    has_references: bool = False

    @classmethod
    def of(cls, geometry: FeatureGeometry, config: Config, *, has_references: bool = False) -> "Layout":
        """Return the layout of a configuration."""
        return cls(
            geometry,
            itemsize=np.dtype(config.features.dtype).itemsize,
            segment_images=config.gaussian.segment_images,
            updates_moments=config.gaussian.estimator != "ledoit-wolf",
            has_references=has_references,
        )

    @property
    def positions(self) -> int:
        """Number of positions, h' w'."""
        return self.geometry.rows * self.geometry.columns

    @property
    def position_bytes(self) -> int:
        """Bytes of one stored patch feature vector."""
        return self.geometry.channels * self.itemsize

    def segments(self, images: int) -> int:
        """Return the number of segments of a group."""
        return -(-images // self.segment_images)


@dataclass(frozen=True)
class PassKind:
    """What a pass computes.

    Attributes
    ----------
    scores
        The pass measures each fitted image without itself, and scores images. Otherwise it finds thresholds.
    fits
        The pass fits every position and measures Mahalanobis distances.
    neighbours
        The pass measures distances to reference images.
    by_rows
        Scores are in robust deviations, found row by row.
    """

    scores: bool = False
    fits: bool = True
    neighbours: bool = False
    by_rows: bool = False


# What the breakdown guard's fits compute.
GUARD_PASS = PassKind(scores=True, neighbours=True)


@dataclass(frozen=True)
class Requests:
    """Reads and writes of chunks."""

    get: int = 0
    put: int = 0

    def __add__(self, other: "Requests") -> "Requests":
        return Requests(self.get + other.get, self.put + other.put)

    def times(self, count: int) -> "Requests":
        """Return these requests ``count`` times."""
        return Requests(self.get * count, self.put * count)


def chunks(images: int) -> int:
    """Return how many chunks of the feature store hold one row of positions: also the blocks that extraction makes."""
    return -(-images // CHUNK_IMAGES)


def feature_bytes(layout: Layout, images: int) -> int:
    """Return the bytes of a group's features, uncompressed: whole chunks, the last one padded."""
    held = images if images <= CHUNK_IMAGES else chunks(images) * CHUNK_IMAGES
    return held * layout.positions * layout.position_bytes + chunks(images) * layout.geometry.rows * _CHECKSUM


def distance_bytes(layout: Layout, images: int) -> int:
    """Return the bytes of a group's distances: whole chunks, in both directions."""
    rows_together = _rows_together(layout, images) if by_products(layout, images) else 1
    count = layout.segments(images) * row_chunks(layout, images)
    positions = rows_together * layout.geometry.columns
    return count * (min(layout.segment_images, images) * positions * FLOAT64_BYTES + _CHECKSUM)


def products_bytes(layout: Layout, measured: int) -> int:
    """Return the bytes of the inner products that a group has while it is judged; 0 where it has none."""
    if not by_products(layout, measured):
        return 0
    rows, columns, *_ = products_chunk(measured, layout.geometry.rows, layout.geometry.columns)
    count = row_chunks(layout, measured) * _column_chunks(layout, measured)
    return count * rows * columns * measured**2 * FLOAT64_BYTES


def keeps_moments(layout: Layout, fitted: int) -> bool:
    """Tell whether a pass keeps the moments of the fitted images for the next pass."""
    return layout.updates_moments and not uses_dual(fitted, layout.geometry.channels) and pays_to_keep(fitted)


def moments_bytes(layout: Layout, fitted: int) -> int:
    """Return the bytes of the moments that a group keeps while it is judged; 0 where it keeps none."""
    if not keeps_moments(layout, fitted):
        return 0
    return layout.positions * (kept_values(layout.geometry.channels) * FLOAT64_BYTES + _CHECKSUM)


def map_bytes(layout: Layout, measured: int, fitted: int) -> int:
    """Return the bytes of a group's Gaussians and thresholds: whole chunks."""
    arrays = sum(count * size for count, size in _map_chunks(layout, measured, fitted))
    return arrays + layout.positions * FLOAT64_BYTES


def count_references(layout: Layout, fitted: int) -> int:
    """Return how many reference images a map has that is fitted on this number of images."""
    return min(fitted, REFERENCES) if layout.has_references else 0


def _map_chunks(layout: Layout, measured: int, fitted: int) -> list[tuple[int, int]]:
    """Return the number of chunks of each array of a map, and the bytes of one."""
    together = chunk_rows(layout.geometry, measured=measured, fitted=fitted)
    references = count_references(layout, fitted)
    arrays = array_chunks(layout.geometry, fitted=fitted, references=references, rows_together=together)
    return [
        (
            math.prod(-(-n // size) for n, size in zip(shape, chunk, strict=True)),
            byte_count_of(chunk, DTYPES.get(name, FLOAT64)),
        )
        for name, (shape, chunk) in arrays.items()
    ]


def _map_bands(layout: Layout, measured: int, fitted: int) -> int:
    """Return how many chunks of a map the rows of positions fill: one task writes each."""
    return -(-layout.geometry.rows // chunk_rows(layout.geometry, measured=measured, fitted=fitted))


def by_products(layout: Layout, measured: int) -> bool:
    """Tell whether the passes over a group use inner products."""
    return uses_products(measured, layout.geometry.channels)


def is_small(images: int) -> bool:
    """Tell whether a group is always judged in one task."""
    return images <= SMALL_GROUP


def row_chunks(layout: Layout, images: int) -> int:
    """Return how many chunks of distances the rows of positions fill: a pass by products has one task for each."""
    rows = layout.geometry.rows
    return -(-rows // _rows_together(layout, images)) if by_products(layout, images) else rows


def fit_tasks(layout: Layout, images: int, fitted: int) -> int:
    """Return the tasks that fit one row of positions to features."""
    if uses_dual(fitted, layout.geometry.channels):
        return 1
    return 2 * layout.segments(images)  # accumulate, merge all but the first, factorise


def has_whole_rows(layout: Layout, images: int) -> bool:
    """Tell whether one task does all of a row of positions, and reads its features once."""
    return is_whole_row(images, layout.segment_images)


def pass_tasks(
    layout: Layout, images: int, fitted: int, kind: PassKind, *, is_first: bool = False, updates: bool = False
) -> int:
    """Return the tasks of one pass.

    Parameters
    ----------
    is_first
        The first pass by products also computes the products.
    updates
        The pass updates kept moments, with fewer tasks. This depends on how many images the pass changes, so a plan
        assumes that no pass does.
    """
    rows, segments = layout.geometry.rows, layout.segments(images)
    closing = 0
    if kind.scores:
        closing = rows if kind.by_rows else segments
    if by_products(layout, images):
        return row_chunks(layout, images) * (2 if is_first else 1) + closing
    if has_whole_rows(layout, images):
        return rows + closing
    fit = (1 if updates else fit_tasks(layout, images, fitted)) if kind.fits else 0
    row = fit + segments + (1 if kind.neighbours else 0)
    return rows * (row + (0 if kind.scores else 1)) + closing


def publish_tasks(layout: Layout, images: int, fitted: int) -> int:
    """Return the tasks that fit the published Gaussians and write them."""
    if has_whole_rows(layout, images):
        return _map_bands(layout, images, fitted)
    row = fit_tasks(layout, images, fitted) + (1 if layout.has_references else 0)
    return layout.geometry.rows * row + _map_bands(layout, images, fitted)


def near_duplicate_tasks(layout: Layout, images: int) -> int:
    """Return the tasks that find near-duplicates: a sketch of each segment, and one comparison."""
    return layout.segments(images) + 1


def examine_tasks(layout: Layout, images: int, fitted: int) -> int:
    """Return the tasks of the breakdown guard: its fits, the count of exclusions, and the sample's structure."""
    rows, segments = layout.geometry.rows, layout.segments(images)
    structure = 2 * rows - 1 if images >= MIN_SAMPLE else 0
    return GUARD_FITS * pass_tasks(layout, images, fitted, GUARD_PASS) + segments + structure


def pass_flop(layout: Layout, measured: int, fitted: int, kind: PassKind) -> float:
    """Return the operations of one pass over a group, without those of the products."""
    channels, n, f = layout.geometry.channels, float(measured), float(fitted)
    near = 2.0 * n * min(fitted, REFERENCES) if kind.neighbours else 0.0
    if by_products(layout, measured):
        # Centring; the Cholesky factor and its inverse, f^3 / 3 each; a triangular solve for images not fitted.
        fit = 3.0 * f**2 + 2.0 * f**3 / 3.0 + f**2 * (n - f)
        return layout.positions * (near + (fit if kind.fits else 0.0))
    fit = fit_flop(channels, fitted) + measure_flop(channels, measured, fitted)
    return layout.positions * (near * channels + (fit if kind.fits else 0.0))


def products_flop(layout: Layout, measured: int) -> float:
    """Return the operations of a group's inner products: a symmetric rank-D update at every position."""
    return layout.positions * float(measured) ** 2 * layout.geometry.channels


def fit_flop(channels: int, fitted: int) -> float:
    """Return the operations of fitting one position to features."""
    D, f = float(channels), float(fitted)
    if uses_dual(fitted, channels):
        # Gram matrix, its eigenvectors, directions, their Gram matrix, its factor and solve, variances.
        return f**2 * D + _EIGH * f**3 + 2 * f**2 * D + f**2 * D + f**3 / 3 + f**2 * D + 2 * f**2 * D
    # A symmetric rank-f update; for each chunk a merge of D x D matrices; the Cholesky factor.
    return f * D**2 + 4.0 * D**2 * chunks(fitted) + D**3 / 3.0


def measure_flop(channels: int, measured: int, fitted: int) -> float:
    """Return the operations of measuring images at one position under a fit to features."""
    if uses_dual(fitted, channels):
        return 4.0 * measured * fitted * channels
    return float(measured) * channels**2


def publish_flop(layout: Layout, fitted: int) -> float:
    """Return the operations of the published fit."""
    return layout.positions * fit_flop(layout.geometry.channels, fitted)


def pass_requests(
    layout: Layout, images: int, fitted: int, kind: PassKind, *, is_first: bool = False, changed: int | None = None
) -> Requests:
    """Return the requests of one pass, as if each chunk held a fitted image.

    Parameters
    ----------
    is_first
        As for `pass_tasks`.
    changed
        In a pass that updates moments, how many chunks of a row hold images that were added or removed. None: the pass
        does not update moments.
    """
    rows, segments = layout.geometry.rows, layout.segments(images)
    features = rows * chunks(images)
    if by_products(layout, images):
        count, wide = row_chunks(layout, images), _column_chunks(layout, images)
        multiplied = Requests(get=features, put=count * wide) if is_first else Requests()
        scored = Requests(get=(rows if kind.by_rows else count) * segments if kind.scores else 0)
        return multiplied + Requests(get=count * wide, put=count * segments) + scored
    # A fit reads all features, references lie in some of their chunks, and distances read all of them again, unless one
    # task does everything.
    near = rows * min(chunks(images), REFERENCES) if kind.neighbours else 0
    total = Requests(get=features if has_whole_rows(layout, images) else (1 + kind.fits) * features + near)
    total += Requests(get=rows * segments, put=rows * segments)
    if kind.fits and keeps_moments(layout, fitted):
        total += Requests(put=layout.positions)
    if changed is not None:
        total += Requests(get=layout.positions)
        if not has_whole_rows(layout, images):
            total += Requests(get=rows * changed - features)
    return total


def extraction_requests(layout: Layout, images: int) -> Requests:
    """Return the requests for chunks of extracting a group; each image is one read more."""
    return Requests(put=layout.geometry.rows * chunks(images))


def verdict_requests(layout: Layout, images: int) -> Requests:
    """Return the requests of a verdict: reading the evidence of each image, writing the thresholds and their arrays.

    The clean sets count as one chunk; in large groups they can be several.
    """
    evidence = layout.segments(images) * row_chunks(layout, images)
    return Requests(get=evidence, put=_VERDICT_ARRAYS + 1)


def publish_requests(layout: Layout, images: int, fitted: int) -> Requests:
    """Return the requests of publishing a group's Gaussians, without its thresholds."""
    written = sum(count for count, _ in _map_chunks(layout, images, fitted))
    # Even one task for a whole row reads the chunks of the references again.
    near = min(chunks(images), REFERENCES) if layout.has_references else 0
    return Requests(get=layout.geometry.rows * (chunks(images) + near), put=written)


def near_duplicate_requests(layout: Layout, images: int) -> Requests:
    """Return the requests of finding near-duplicates, which reads a few rows of positions."""
    return Requests(get=len(lattice(layout.geometry.rows)) * chunks(images))


def examine_requests(layout: Layout, images: int, fitted: int) -> Requests:
    """Return the requests of the breakdown guard, as if its sample held images of each chunk."""
    rows, count = layout.geometry.rows, chunks(images)
    sampled = rows * min(count, SAMPLE) if images >= MIN_SAMPLE else 0
    excluded = layout.segments(images) * row_chunks(layout, images)
    fits = pass_requests(layout, images, fitted, GUARD_PASS).times(GUARD_FITS)
    return fits + Requests(get=excluded + sampled)


def _rows_together(layout: Layout, measured: int) -> int:
    """Return how many rows of positions one task of a pass by products has."""
    return band_rows(measured, layout.geometry.rows, layout.geometry.columns)


def _column_chunks(layout: Layout, measured: int) -> int:
    wide = products_chunk(measured, layout.geometry.rows, layout.geometry.columns)[1]
    return -(-layout.geometry.columns // wide)
