"""Writing the map: the same arrays whichever task writes which rows, in chunks of a size, complete only at the end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from schemas.errors import GaussianMapError
from schemas.names import storage_name
from schemas.stores.features import FeatureGeometry
from schemas.stores.gaussian_map import (
    CHECKSUMS,
    DTYPES,
    FACTOR,
    MEAN,
    REFERENCE,
    RIDGE,
    ROWS,
    THRESHOLDS,
    VARIANCE,
    checksum,
)
from tests.support.maps import describe, finish, fit_row, new_map, reference_rows
from workers.map.reader import GaussianMap
from workers.map.writer import CHUNK_BYTES, array_chunks, create_group_map, create_map, write_rows, write_thresholds
from workers.passes.by_features import References
from workers.storage.directory import Directory

GEOMETRY = FeatureGeometry(rows=4, columns=3, channels=8, grid_rows=5, grid_columns=6, pool_kernel=2, pool_stride=1)
PAPER = FeatureGeometry(14, 14, 1792, 64, 64, 10, 4)
GROUP = "part"
FORMS = [pytest.param(6, id="dual"), pytest.param(20, id="primal")]


def samples(count: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=GEOMETRY.array_shape(count))


def write(model: Directory, fitted: int, order: list[int], together: int = 1, *, references: int = 0) -> list[int]:
    """Write a group's rows, ``together`` at a time, in an order; returns the checksum of each row."""
    create_group_map(model, GROUP, GEOMETRY, fitted, references=references, rows_together=together)
    rows = [fit_row(samples(fitted)[:, row]) for row in range(GEOMETRY.rows)]
    near = reference_rows(samples(fitted), references)
    checksums = {}
    for first in order:
        stop = first + together
        checksums[first] = write_rows(model, GROUP, first, rows[first:stop], near[first:stop])
    return [value for first in sorted(checksums) for value in checksums[first]]


def arrays(model: Directory) -> dict[str, NDArray[Any]]:
    members = model.zarr_group(storage_name(GROUP)).members()
    return {name: np.asarray(array[:]) for name, array in members if isinstance(array, zarr.Array)}


@pytest.mark.parametrize("references", [0, 4])
@pytest.mark.parametrize("fitted", FORMS)
def test_neither_the_order_of_the_tasks_nor_their_rows_change_what_is_written(
    tmp_path: Path, fitted: int, references: int
) -> None:
    found = []
    for number, (order, together) in enumerate([([0, 1, 2, 3], 1), ([3, 0, 2, 1], 1), ([2, 0], 2), ([0], 4)]):
        model = new_map(Directory.at(tmp_path / f"{number}"), describe(GEOMETRY))
        found.append((write(model, fitted, order, together, references=references), arrays(model)))
    expected_checksums, expected = found[0]
    near = {REFERENCE} if references else set()
    assert expected.keys() == {MEAN, FACTOR, THRESHOLDS} | near | ({VARIANCE, RIDGE} if fitted == 6 else set())
    for checksums, written in found[1:]:
        assert checksums == expected_checksums
        for name, values in expected.items():
            np.testing.assert_array_equal(written[name], values, err_msg=name)


@pytest.mark.parametrize("references", [0, 4])
@pytest.mark.parametrize("fitted", FORMS)
def test_the_checksum_of_a_row_is_that_of_what_is_stored_of_it(tmp_path: Path, fitted: int, references: int) -> None:
    model = new_map(Directory.at(tmp_path / "run"), describe(GEOMETRY))
    checksums = write(model, fitted, [0, 2], 2, references=references)
    stored = arrays(model)
    names = [name for name in (MEAN, FACTOR, VARIANCE, RIDGE, REFERENCE) if name in stored]
    assert (REFERENCE in names) == bool(references)
    assert checksums == [checksum(stored[name][row] for name in names) for row in range(GEOMETRY.rows)]
    thresholds = np.arange(12.0).reshape(4, 3)
    write_thresholds(model, GROUP, thresholds, checksums=checksums, smoothing=3)
    attributes = model.zarr_group(storage_name(GROUP)).attrs.asdict()
    assert attributes[CHECKSUMS] == {ROWS: checksums, THRESHOLDS: checksum([thresholds])}
    assert (attributes["smoothing"], attributes["references"]) == (3, references)


@pytest.mark.parametrize("fitted", FORMS)
def test_a_mean_of_negative_zeros_keeps_its_checksum_though_its_chunk_is_not_stored(
    tmp_path: Path, fitted: int
) -> None:
    model = new_map(Directory.at(tmp_path / "run"), describe(GEOMETRY))
    create_group_map(model, GROUP, GEOMETRY, fitted)
    row = [
        replace(one, gaussian=replace(one.gaussian, mean=np.full(GEOMETRY.channels, -0.0)))
        for one in fit_row(samples(fitted)[:, 0])
    ]
    checksums = write_rows(model, GROUP, 0, [row])
    stored = arrays(model)
    names = [name for name in (MEAN, FACTOR, VARIANCE, RIDGE) if name in stored]
    assert checksums == [checksum(stored[name][0] for name in names)]


def test_references_are_stored_position_by_position_as_float32(tmp_path: Path) -> None:
    model = new_map(Directory.at(tmp_path / "run"), describe(GEOMETRY))
    write(model, 20, [0, 1, 2, 3], references=4)
    stored = arrays(model)[REFERENCE]
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, np.moveaxis(samples(20)[:4], 0, 2).astype(np.float32))


def test_references_of_negative_zeros_keep_their_checksum_though_their_chunk_is_not_stored(tmp_path: Path) -> None:
    model = new_map(Directory.at(tmp_path / "run"), describe(GEOMETRY))
    create_group_map(model, GROUP, GEOMETRY, 6, references=2)
    near = References(np.arange(6) < 2, np.full((2, GEOMETRY.columns, GEOMETRY.channels), -0.0, np.float32))
    checksums = write_rows(model, GROUP, 0, [fit_row(samples(6)[:, 0])], [near])
    stored = arrays(model)
    assert checksums == [checksum(stored[name][0] for name in (MEAN, FACTOR, VARIANCE, RIDGE, REFERENCE))]


@pytest.mark.parametrize("references", [0, 3, 256])
@pytest.mark.parametrize("fitted", [12, 600, 4000])
@pytest.mark.parametrize("channels", [8, 448, 1792])
def test_chunks_hold_whole_positions_and_stay_below_a_size_where_they_can(
    fitted: int, channels: int, references: int
) -> None:
    geometry = replace(PAPER, channels=channels)
    written = array_chunks(geometry, fitted=fitted, references=references, rows_together=1)
    assert (REFERENCE in written) == bool(references)
    for name, (shape, chunks) in written.items():
        assert shape[:2] == (14, 14), name
        assert chunks[2:] == shape[2:], name
        item = np.dtype(DTYPES.get(name, "float64")).itemsize
        position = item * int(np.prod(shape[2:]))
        assert item * int(np.prod(chunks)) <= max(CHUNK_BYTES, position), name
        # A column more would not fit: no smaller than they need be.
        assert chunks[1] == 14 or (chunks[1] + 1) * position > CHUNK_BYTES, name


def test_a_map_is_believed_only_when_it_is_complete_and_not_after_it_was_begun_again(tmp_path: Path) -> None:
    run = Directory.at(tmp_path / "run")
    model = new_map(run, describe(GEOMETRY))
    checksums = write(model, 6, [0, 1, 2, 3])
    write_thresholds(model, GROUP, np.ones((4, 3)), checksums=checksums, smoothing=1)
    with pytest.raises(GaussianMapError):
        GaussianMap.open(model.url)
    finish(run)
    GaussianMap.open(model.url).thresholds(GROUP)
    create_map(model, describe(GEOMETRY))
    with pytest.raises(GaussianMapError):
        GaussianMap.open(model.url)
