"""What a worker holds at its peak, in bytes, without interpreter, libraries and backbone.

The plan and the check before a run use these formulas. Moments that are kept between passes
(`workers.passes.kept_moments`) need no memory on top: a task that updates a row holds its moments and its factors, less
than a task that merges.
"""

from pipeline.costs.footprint import FLOAT64_BYTES, Layout, by_products, chunks, has_whole_rows
from schemas.stores.features import CHUNK_IMAGES
from workers.gaussian.fit import uses_dual
from workers.gaussian.neighbours import REFERENCES
from workers.map.writer import chunk_rows
from workers.passes.by_products import products_chunk

# Dask pauses a worker that holds more than this share of its limit, and kills it soon after.
USABLE_MEMORY = 0.8

# Blocks that an extracting worker holds: it computes one while it writes another.
_LIVE_BLOCKS = 2

# Batches of pixels that are being decoded or waiting (see workers.features.block).
_BATCHES = 4

# Results of earlier tasks, such as moments, that a worker keeps until a later task takes them.
_KEPT_RESULTS = 4


def extraction_memory(layout: Layout, *, batch_size: int, image_size: int) -> int:
    """Return the bytes that an extracting worker holds besides the backbone: blocks of features, batches of pixels."""
    block = CHUNK_IMAGES * layout.positions * layout.position_bytes
    return _LIVE_BLOCKS * block + _BATCHES * batch_size * image_size**2 * 3 * 4


def judging_memory(layout: Layout, measured: int, fitted: int, *, threads: int) -> int:
    """Return the bytes that a worker holds at its peak while a group is judged."""
    geometry = layout.geometry
    D, columns = geometry.channels, geometry.columns
    publish = _fit_memory(layout, measured, fitted, held=1, threads=threads)
    # The reference images of a row, and each thread's two copies of one position's in float64.
    near = min(measured, REFERENCES) * D * (columns * layout.itemsize + 2 * threads * FLOAT64_BYTES)
    if not by_products(layout, measured):
        # A task that does all of a row keeps what it reads.
        held = chunks(measured) if has_whole_rows(layout, measured) else 1
        passes = (_fit_memory(layout, measured, each, held=held, threads=threads) for each in (fitted, D + 1))
        return near + max(publish, *passes)
    size, wide, *_ = products_chunk(measured, geometry.rows, columns)
    row = size * measured * columns * layout.position_bytes
    chunk = size * wide * measured**2 * FLOAT64_BYTES
    multiplied = row + 2 * chunk + threads * (measured * D + measured**2) * FLOAT64_BYTES
    # Besides a chunk, each thread holds K, its factor and the inverse, and what an exact fit needs.
    passed = chunk + row + threads * (5 * measured**2 + 6 * measured * D) * FLOAT64_BYTES
    return near + max(multiplied, passed, publish)


def _fit_memory(layout: Layout, measured: int, fitted: int, *, held: int, threads: int) -> int:
    """Return the bytes of fitting a row of positions to features and measuring images, with ``held`` chunks."""
    D, columns = layout.geometry.channels, layout.geometry.columns
    read = held * CHUNK_IMAGES * columns * layout.position_bytes
    columns *= chunk_rows(layout.geometry, measured=measured, fitted=fitted)  # published together
    if uses_dual(fitted, D):
        row = fitted * columns * layout.position_bytes
        return (
            2 * row
            + read
            + (2 * columns + 4 * threads) * fitted * D * FLOAT64_BYTES
            + threads * 3 * fitted**2 * FLOAT64_BYTES
        )
    moments = columns * D**2 * FLOAT64_BYTES
    # Moments and factors; or two parts and their sum, besides what waits for later tasks.
    parts = 2 if has_whole_rows(layout, measured) else 3 + _KEPT_RESULTS
    return parts * moments + read + threads * (2 * D**2 + 2 * CHUNK_IMAGES * D) * FLOAT64_BYTES
