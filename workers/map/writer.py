"""Writing the Gaussian map: different tasks write some rows of positions each.

Each task returns the checksums of its rows; the last step stores them, see ``schemas.stores.gaussian_map``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from schemas.names import storage_name
from schemas.stores.features import FeatureGeometry
from schemas.stores.gaussian_map import (
    CHECKSUM,
    CHECKSUMS,
    CHUNK_ROWS,
    DTYPES,
    DUAL,
    FACTOR,
    GROUPS,
    MEAN,
    PRIMAL,
    REFERENCE,
    REFERENCES,
    RIDGE,
    ROWS,
    SMOOTHING,
    THRESHOLDS,
    VARIANCE,
    attributes_checksum,
    checksum,
)
from workers.gaussian.fit import DualGaussian, FittedGaussian, uses_dual
from workers.map.reader import FLOAT64, MapDescription, array_of, byte_count_of, position_shapes
from workers.passes.by_features import References
from workers.passes.by_products import SMALL_GROUP
from workers.storage.directory import Directory

# Largest chunk; object stores are efficient at this size.
CHUNK_BYTES = 16 * 1024**2


def create_map(directory: Directory, description: MapDescription) -> None:
    """Create an empty map, replacing an old one."""
    directory.zarr_group("", "w").attrs.update(description.to_attributes())


def chunk_rows(geometry: FeatureGeometry, *, measured: int, fitted: int) -> int:
    """Return how many rows of positions of a product group's map share a chunk, so that one task writes them.

    A small group has as many rows in a chunk as its size allows: ten thousand groups with fifty objects each would be
    half a million objects.

    Parameters
    ----------
    measured, fitted
        Images of the group that take part, and images that each position is fitted on.
    """
    if measured > SMALL_GROUP:
        return 1
    shapes = position_shapes(geometry, _form(geometry, fitted), fitted)
    return max(1, min(geometry.rows, CHUNK_BYTES // (geometry.columns * byte_count_of(shapes[FACTOR]))))


def array_chunks(
    geometry: FeatureGeometry, *, fitted: int, references: int, rows_together: int
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the shape and the chunk shape of each array of a product group's Gaussians and reference images."""
    found = {}
    for name, position in position_shapes(geometry, _form(geometry, fitted), fitted, references).items():
        # Different tasks write the rows, and scorers stream them.
        columns = min(geometry.columns, max(1, CHUNK_BYTES // byte_count_of(position, DTYPES.get(name, FLOAT64))))
        found[name] = ((geometry.rows, geometry.columns, *position), (rows_together, columns, *position))
    return found


def create_group_map(
    directory: Directory,
    group: str,
    geometry: FeatureGeometry,
    fitted: int,
    *,
    references: int = 0,
    rows_together: int = 1,
) -> None:
    """Create the arrays of one product group; `write_rows` then fills ``rows_together`` rows of positions at a time."""
    form = _form(geometry, fitted)
    node = directory.zarr_group("", "r+").create_group(storage_name(group), overwrite=True)
    counts = {"fitted": fitted, REFERENCES: references, CHUNK_ROWS: rows_together}
    node.attrs.update({"group": group, "form": form, **counts})
    arrays = array_chunks(geometry, fitted=fitted, references=references, rows_together=rows_together)
    for name, (shape, chunks) in arrays.items():
        _create(node, name, shape, chunks)
    _create(node, THRESHOLDS, (geometry.rows, geometry.columns), (geometry.rows, geometry.columns))


def write_rows(
    directory: Directory,
    group: str,
    first: int,
    rows: Sequence[Sequence[FittedGaussian]],
    references: Sequence[References] = (),
) -> list[int]:
    """Write the Gaussians and reference images of rows of positions that share chunks; the checksum of each row."""
    node = directory.zarr_group(storage_name(group), "r+")
    is_dual = isinstance(rows[0][0].gaussian, DualGaussian)
    names = (MEAN, FACTOR, *((VARIANCE, RIDGE) if is_dual else ()), *((REFERENCE,) if references else ()))
    arrays = {name: array_of(node, name) for name in names}
    values = {name: np.zeros((len(rows), *array.shape[1:]), array.dtype) for name, array in arrays.items()}
    for row, near in enumerate(references):
        values[REFERENCE][row] = np.moveaxis(near.values, 1, 0) + np.float32(0.0)
    for place in np.ndindex(values[MEAN].shape[:2]):
        gaussian = rows[place[0]][place[1]].gaussian
        # Adding 0 turns -0 into 0: Zarr does not store a chunk of zeros, and reads it back as 0.
        values[MEAN][place] = gaussian.mean + 0.0
        if isinstance(gaussian, DualGaussian):
            values[FACTOR][place][: len(gaussian.directions)] = gaussian.directions
            values[VARIANCE][place][: len(gaussian.variances)] = gaussian.variances
            values[RIDGE][place] = gaussian.ridge
        else:
            values[FACTOR][place] = gaussian.cholesky
    for name, array in arrays.items():
        array[first : first + len(rows)] = values[name]
    return [checksum(each[row] for each in values.values()) for row in range(len(rows))]


def write_thresholds(
    directory: Directory,
    group: str,
    thresholds: NDArray[np.float64],
    *,
    checksums: Sequence[int],
    smoothing: int,
) -> None:
    """Write a product group's thresholds (rows, columns), which completes its part of the map.

    ``checksums`` are those that `write_rows` returned; ``schemas.stores.gaussian_map`` explains ``smoothing``.
    """
    node = directory.zarr_group(storage_name(group), "r+")
    array_of(node, THRESHOLDS)[:] = thresholds
    kept: dict[str, Any] = {ROWS: list(checksums), THRESHOLDS: checksum([np.ascontiguousarray(thresholds)])}
    node.attrs.update({SMOOTHING: smoothing, CHECKSUMS: kept})


def complete_map(directory: Directory) -> None:
    """Complete a map after all its groups are written; readers refuse it before."""
    root = directory.zarr_group("", "r+")
    groups = {str(node.attrs["group"]): attributes_checksum(node.attrs.asdict()) for _, node in root.groups()}
    attributes = {**root.attrs.asdict(), GROUPS: groups}
    root.attrs.update({GROUPS: groups, CHECKSUM: attributes_checksum(attributes)})


def _form(geometry: FeatureGeometry, fitted: int) -> str:
    return DUAL if uses_dual(fitted, geometry.channels) else PRIMAL


def _create(node: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    dtype = DTYPES.get(name, FLOAT64)
    node.create_array(name, shape=shape, chunks=chunks, dtype=dtype, compressors=None, fill_value=0.0)
