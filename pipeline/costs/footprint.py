"""What a run costs before it runs: bytes, tasks, requests and floating-point operations, as pure functions.

The plan, the check of the workers' memory (`pipeline.costs.working_memory`), the simulated schedule and
``docs/scaling.md`` all ask here, so that they can not disagree. Everything follows from a `Layout` and from numbers of
images: n take part, f of them are fitted. Bytes are exact, and so are numbers of tasks, and of requests where segments
have whole chunks; operations are those of the leading terms.
"""

import math
from dataclasses import dataclass

from schemas.config import Config
from schemas.stores.features import CHUNK_IMAGES, FeatureGeometry
from workers.features.arrays import is_whole_row
from workers.gaussian.fit import uses_dual
from workers.guard.structure import MIN_SAMPLE, SAMPLE
from workers.map.reader import byte_count_of
from workers.map.writer import array_chunks, chunk_rows
from workers.passes.by_products import SMALL_GROUP, bands, products_chunk, uses_products
from workers.passes.kept_moments import kept_values, pays_to_keep
from workers.verdict.near_duplicates import lattice

# Distances, products and Gaussians are float64.
_DOUBLE = 8

# Of each chunk of features, distances and moments: CRC-32C.
_CHECKSUM = 4

# Operations of a symmetric eigenproblem with vectors, over n^3 (Golub and Van Loan, Matrix Computations, section 8.3).
_EIGH = 9.0

# The share of the images that each position is fitted on at the start of `grow`: as in
# pipeline.judging.strategies.grow, which workers can not import.
NEAREST = 0.75

# Arrays beside a group's distances: thresholds, clean sets, near-duplicates.
_VERDICT_ARRAYS = 3


@dataclass(frozen=True)
class Layout:
    """What everything follows from besides numbers of images.

    Attributes
    ----------
    geometry
        The grid of positions.
    itemsize
        Bytes of a stored feature.
    segment_images
        Images in one statistics task.
    updates_moments
        Whether a large group's moments are kept from pass to pass: not where an estimator needs all images anyway.
    """

    geometry: FeatureGeometry
    itemsize: int
    segment_images: int
    updates_moments: bool = True

    @classmethod
    def of(cls, geometry: FeatureGeometry, config: Config) -> "Layout":
        """Return the layout that a configuration means."""
        return cls(
            geometry,
            itemsize=2 if config.features.dtype == "float16" else 4,
            segment_images=config.gaussian.segment_images,
            updates_moments=config.estimator() != "ledoit-wolf",
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
        """Return how many segments some images are."""
        return -(-images // self.segment_images)


@dataclass(frozen=True)
class PassKind:
    """What a pass computes.

    Attributes
    ----------
    scores
        Each fitted image is measured without itself, and images are scored; else positions are given thresholds.
    nearest
        Every position is fitted a second time, on the images nearest there.
    by_rows
        Scores are in robust deviations, found row by row.
    """

    scores: bool = False
    nearest: bool = False
    by_rows: bool = False


@dataclass(frozen=True)
class Requests:
    """Requests to a store for chunks: reads and writes."""

    get: int = 0
    put: int = 0

    def __add__(self, other: "Requests") -> "Requests":
        return Requests(self.get + other.get, self.put + other.put)

    def times(self, count: int) -> "Requests":
        """Return so many times these."""
        return Requests(self.get * count, self.put * count)


def chunks(images: int) -> int:
    """Return how many chunks of the feature store hold one row of positions of some images."""
    return -(-images // CHUNK_IMAGES)


def feature_bytes(layout: Layout, images: int) -> int:
    """Return the bytes of a group's features, uncompressed: whole chunks, of which the last one is padded."""
    held = images if images <= CHUNK_IMAGES else chunks(images) * CHUNK_IMAGES
    return held * layout.positions * layout.position_bytes + chunks(images) * layout.geometry.rows * _CHECKSUM


def distance_bytes(layout: Layout, images: int) -> int:
    """Return the bytes of a group's distances: whole chunks, in both directions."""
    rows = layout.geometry.rows
    size = band_size(layout, images) if by_products(layout, images) else 1
    segments, bands = layout.segments(images), -(-rows // size)
    padded = segments * min(layout.segment_images, images)
    return padded * bands * size * layout.geometry.columns * _DOUBLE + segments * bands * _CHECKSUM


def products_bytes(layout: Layout, measured: int) -> int:
    """Return the bytes of the inner products that are there while a group is judged; 0 where it goes without."""
    if not by_products(layout, measured):
        return 0
    size, columns, *_ = products_chunk(measured, layout.geometry.rows, layout.geometry.columns)
    return size * len(_bands(layout, measured)) * columns * _column_chunks(layout, measured) * measured**2 * _DOUBLE


def keeps_moments(layout: Layout, fitted: int) -> bool:
    """Tell whether a pass that fits so many images keeps their moments for the next one."""
    return layout.updates_moments and not uses_dual(fitted, layout.geometry.channels) and pays_to_keep(fitted)


def moments_bytes(layout: Layout, fitted: int) -> int:
    """Return the bytes of the moments that are there while a group is judged; 0 where none are kept."""
    if not keeps_moments(layout, fitted):
        return 0
    return layout.positions * (kept_values(layout.geometry.channels) * _DOUBLE + _CHECKSUM)


def map_bytes(layout: Layout, measured: int, fitted: int) -> int:
    """Return the bytes of a group's Gaussians and thresholds: whole chunks."""
    gaussians = sum(count * byte_count_of(chunk) for count, chunk in _map_chunks(layout, measured, fitted))
    return gaussians + layout.positions * _DOUBLE


def _map_chunks(layout: Layout, measured: int, fitted: int) -> list[tuple[int, tuple[int, ...]]]:
    """Return how many chunks each array of a map's Gaussians has, and their shape."""
    together = chunk_rows(layout.geometry, measured=measured, fitted=fitted)
    arrays = array_chunks(layout.geometry, fitted=fitted, rows_together=together).values()
    return [(math.prod(-(-n // size) for n, size in zip(shape, chunk, strict=True)), chunk) for shape, chunk in arrays]


def _map_bands(layout: Layout, measured: int, fitted: int) -> int:
    """Return how many chunks all rows of positions of an array of a map are."""
    return -(-layout.geometry.rows // chunk_rows(layout.geometry, measured=measured, fitted=fitted))


def by_products(layout: Layout, measured: int) -> bool:
    """Tell whether the passes over a group go by inner products."""
    return uses_products(measured, layout.geometry.channels)


def is_small(images: int) -> bool:
    """Tell whether a group is judged in one task, whatever else there is."""
    return images <= SMALL_GROUP


def band_size(layout: Layout, measured: int) -> int:
    """Return the rows of positions of one task of a pass by products."""
    return products_chunk(measured, layout.geometry.rows, layout.geometry.columns)[0]


def extraction_tasks(images: int) -> int:
    """Return the number of blocks of a group."""
    return chunks(images)


def fit_tasks(layout: Layout, images: int, fitted: int, *, chosen: bool = False) -> int:
    """Return the tasks that fit one row of positions to features; ``chosen``: each position on images of its own."""
    if uses_dual(fitted, layout.geometry.channels):
        return 1
    segments = layout.segments(images)
    return 2 * segments + (segments if chosen else 0)  # accumulate, merge all but the first, factorise


def has_whole_rows(layout: Layout, images: int) -> bool:
    """Tell whether a row of positions of a group is one task, which reads the features once."""
    return is_whole_row(images, layout.segment_images)


def pass_tasks(
    layout: Layout, images: int, fitted: int, kind: PassKind, *, is_first: bool = False, updates: bool = False
) -> int:
    """Return the tasks of one pass; the first one by products also computes those, one that updates moments has fewer.

    Whether a pass updates follows from what it changes, so a run is planned as if none did.
    """
    rows, segments = layout.geometry.rows, layout.segments(images)
    closing = 0
    if kind.scores:
        closing = rows if kind.by_rows else segments
    if by_products(layout, images):
        return len(_bands(layout, images)) * (2 if is_first else 1) + closing
    if has_whole_rows(layout, images):
        return rows + closing
    row = (1 if updates else fit_tasks(layout, images, fitted)) + segments
    if kind.nearest:
        row += 1 + segments + fit_tasks(layout, images, nearest_count(fitted), chosen=True) + segments
    return rows * (row + (0 if kind.scores else 1)) + closing


def nearest_count(fitted: int) -> int:
    """Return how many images the second fit of a position has in the start of ``grow``."""
    return max(1, round(NEAREST * fitted))


def publish_tasks(layout: Layout, images: int, fitted: int) -> int:
    """Return the tasks that fit the published Gaussians and write them."""
    if has_whole_rows(layout, images):
        return _map_bands(layout, images, fitted)
    return layout.geometry.rows * fit_tasks(layout, images, fitted) + _map_bands(layout, images, fitted)


def near_duplicate_tasks(layout: Layout, images: int) -> int:
    """Return the tasks that look for near-duplicates: a sketch of each segment, and their comparison."""
    return layout.segments(images) + 1


def examine_tasks(layout: Layout, images: int, fitted: int, *, fits: int) -> int:
    """Return the tasks of the breakdown guard: one fit or two, what was excluded, and the sample's structure."""
    rows, segments = layout.geometry.rows, layout.segments(images)
    structure = 2 * rows - 1 if images >= MIN_SAMPLE else 0
    return fits * pass_tasks(layout, images, fitted, PassKind(scores=True)) + segments + structure


def pass_flop(layout: Layout, measured: int, fitted: int, kind: PassKind) -> float:
    """Return the operations of one pass over a group, without those of the products."""
    channels, n, f = layout.geometry.channels, float(measured), float(fitted)
    repeats = 2.0 if kind.nearest else 1.0
    if by_products(layout, measured):
        # Centring; the Cholesky factor and its inverse, n^3 / 3 each; a triangular solve for those not fitted.
        return layout.positions * repeats * (3.0 * f**2 + 2.0 * f**3 / 3.0 + f**2 * (n - f))
    return layout.positions * repeats * (fit_flop(channels, fitted) + measure_flop(channels, measured, fitted))


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
    """Return the operations of the fit that is published."""
    return layout.positions * fit_flop(layout.geometry.channels, fitted)


def pass_requests(
    layout: Layout, images: int, fitted: int, kind: PassKind, *, is_first: bool = False, changed: int | None = None
) -> Requests:
    """Return the requests for chunks of one pass.

    Parameters
    ----------
    layout, images, fitted, kind, is_first
        As for `pass_tasks`; those fitted lie in all chunks.
    changed
        Chunks of a row with images that are added or removed, where moments are updated; None where they are not.
    """
    rows, segments = layout.geometry.rows, layout.segments(images)
    features = rows * chunks(images)
    if by_products(layout, images):
        count, wide = len(_bands(layout, images)), _column_chunks(layout, images)
        multiplied = Requests(get=features, put=count * wide) if is_first else Requests()
        scored = Requests(get=(rows if kind.by_rows else count) * segments if kind.scores else 0)
        return multiplied + Requests(get=count * wide, put=count * segments) + scored
    # Each fit reads all features, and so do the distances under it, unless one task does it all.
    fits = 2 if kind.nearest else 1
    total = Requests(get=features if has_whole_rows(layout, images) else 2 * fits * features)
    # Distances are read where it is found which of them are nearest, and in the end.
    total += Requests(get=rows * segments, put=rows * segments).times(fits)
    if keeps_moments(layout, fitted):
        total += Requests(put=layout.positions)
    if changed is not None:
        total += Requests(get=layout.positions)
        if not has_whole_rows(layout, images):
            total += Requests(get=rows * changed - features)
    return total


def extraction_requests(layout: Layout, images: int) -> Requests:
    """Return the requests for chunks of extracting a group; its images are read with one each besides."""
    return Requests(put=layout.geometry.rows * chunks(images))


def verdict_requests(layout: Layout, images: int) -> Requests:
    """Return the requests for chunks of a verdict: the evidence of each image, and the thresholds that it follows from.

    Beside the distances of large groups clean sets can be more than the one chunk that is counted for them.
    """
    evidence = layout.segments(images) * _distance_chunk_rows(layout, images)
    return Requests(get=evidence, put=_VERDICT_ARRAYS + 1)


def publish_requests(layout: Layout, images: int, fitted: int) -> Requests:
    """Return the requests for chunks of publishing a group's Gaussians, without its thresholds."""
    written = sum(count for count, _ in _map_chunks(layout, images, fitted))
    return Requests(get=layout.geometry.rows * chunks(images), put=written)


def near_duplicate_requests(layout: Layout, images: int) -> Requests:
    """Return the requests for chunks of looking for near-duplicates, which reads a few rows of positions."""
    return Requests(get=len(lattice(layout.geometry.rows)) * chunks(images))


def examine_requests(layout: Layout, images: int, fitted: int, *, fits: int) -> Requests:
    """Return the requests for chunks of the breakdown guard; a sample of a large group has images of each chunk."""
    rows, count = layout.geometry.rows, chunks(images)
    sampled = rows * min(count, SAMPLE) if images >= MIN_SAMPLE else 0
    excluded = Requests(get=layout.segments(images) * _distance_chunk_rows(layout, images))
    return pass_requests(layout, images, fitted, PassKind(scores=True)).times(fits) + excluded + Requests(get=sampled)


def _bands(layout: Layout, measured: int) -> list[object]:
    return list(bands(measured, layout.geometry.rows, layout.geometry.columns))


def _column_chunks(layout: Layout, measured: int) -> int:
    wide = products_chunk(measured, layout.geometry.rows, layout.geometry.columns)[1]
    return -(-layout.geometry.columns // wide)


def _distance_chunk_rows(layout: Layout, images: int) -> int:
    """Return how many chunks of distances all rows of positions of a segment are."""
    return len(_bands(layout, images)) if by_products(layout, images) else layout.geometry.rows
