"""What a worker holds at its peak, in bytes, as pure functions: without interpreter, libraries and backbone.

The plan and the check before a run ask here. Moments that are kept between passes (`workers.passes.kept_moments`) take
no more: a task that updates a row holds its moments and its factors, less than one that merges.
"""

from pipeline.costs.footprint import Layout, by_products, chunks, has_whole_rows
from schemas.stores.features import CHUNK_IMAGES
from workers.gaussian.fit import uses_dual
from workers.map.writer import chunk_rows
from workers.passes.by_products import products_chunk

_DOUBLE = 8

# Blocks that an extracting worker holds: one is computed while another is written.
_LIVE_BLOCKS = 2

# Batches of pixels that are decoded, or wait, at once (see workers.features.block).
_BATCHES = 4

# Results of earlier tasks, such as moments, that a worker keeps until a later one has taken them.
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
    if not by_products(layout, measured):
        # Where one task does all of a row, what it has read stays.
        held = chunks(measured) if has_whole_rows(layout, measured) else 1
        passes = (_fit_memory(layout, measured, each, held=held, threads=threads) for each in (fitted, D + 1))
        return max(publish, *passes)
    size, wide, *_ = products_chunk(measured, geometry.rows, columns)
    row = size * measured * columns * layout.position_bytes
    chunk = size * wide * measured**2 * _DOUBLE
    multiplied = row + 2 * chunk + threads * (measured * D + measured**2) * _DOUBLE
    # Beside a chunk each thread has K, its factor and the inverse, and what an exact fit needs where it is called for.
    passed = chunk + row + threads * (5 * measured**2 + 6 * measured * D) * _DOUBLE
    return max(multiplied, passed, publish)


def _fit_memory(layout: Layout, measured: int, fitted: int, *, held: int, threads: int) -> int:
    """Return the bytes of fitting a row of positions to features, and of measuring images, so many chunks held."""
    D, columns = layout.geometry.channels, layout.geometry.columns
    read = held * CHUNK_IMAGES * columns * layout.position_bytes
    columns *= chunk_rows(layout.geometry, measured=measured, fitted=fitted)  # published together
    if uses_dual(fitted, D):
        row = fitted * columns * layout.position_bytes
        return 2 * row + read + (2 * columns + 4 * threads) * fitted * D * _DOUBLE + threads * 3 * fitted**2 * _DOUBLE
    moments = columns * D**2 * _DOUBLE
    # Moments and factors; or two parts and their sum, beside what waits for later tasks.
    parts = 2 if has_whole_rows(layout, measured) else 3 + _KEPT_RESULTS
    return parts * moments + read + threads * (2 * D**2 + 2 * CHUNK_IMAGES * D) * _DOUBLE
