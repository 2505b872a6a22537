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
from schemas.stores.gaussian_map import CHECKSUMS, FACTOR, MEAN, RIDGE, ROWS, THRESHOLDS, VARIANCE, checksum
from tests.support.maps import describe, finish, fit_row, new_map
from workers.map.reader import GaussianMap
from workers.map.writer import CHUNK_BYTES, array_chunks, create_group_map, create_map, write_rows, write_thresholds
from workers.storage.directory import Directory

GEOMETRY = FeatureGeometry(rows=4, columns=3, channels=8, grid_rows=5, grid_columns=6, pool_kernel=2, pool_stride=1)
PAPER = FeatureGeometry(14, 14, 1792, 64, 64, 10, 4)
GROUP = "part"
FORMS = [pytest.param(6, id="dual"), pytest.param(20, id="primal")]


def samples(count: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=GEOMETRY.array_shape(count))


def write(model: Directory, fitted: int, order: list[int], together: int = 1) -> list[int]:
    """Write a group's rows, ``together`` at a time, in an order; returns the checksum of each row."""
    create_group_map(model, GROUP, GEOMETRY, fitted, rows_together=together)
    rows = [fit_row(samples(fitted)[:, row]) for row in range(GEOMETRY.rows)]
    checksums = {}
    for first in order:
        checksums[first] = write_rows(model, GROUP, first, rows[first : first + together])
    return [value for first in sorted(checksums) for value in checksums[first]]


def arrays(model: Directory) -> dict[str, NDArray[Any]]:
    members = model.zarr_group(storage_name(GROUP)).members()
    return {name: np.asarray(array[:]) for name, array in members if isinstance(array, zarr.Array)}


@pytest.mark.parametrize("fitted", FORMS)
def test_neither_the_order_of_the_tasks_nor_their_rows_change_what_is_written(tmp_path: Path, fitted: int) -> None:
    found = []
    for number, (order, together) in enumerate([([0, 1, 2, 3], 1), ([3, 0, 2, 1], 1), ([2, 0], 2), ([0], 4)]):
        model = new_map(Directory.at(tmp_path / f"{number}"), describe(GEOMETRY))
        found.append((write(model, fitted, order, together), arrays(model)))
    expected_checksums, expected = found[0]
    assert expected.keys() == {MEAN, FACTOR, THRESHOLDS} | ({VARIANCE, RIDGE} if fitted == 6 else set())
    for checksums, written in found[1:]:
        assert checksums == expected_checksums
        for name, values in expected.items():
            np.testing.assert_array_equal(written[name], values, err_msg=name)


@pytest.mark.parametrize("fitted", FORMS)
def test_the_checksum_of_a_row_is_that_of_what_is_stored_of_it(tmp_path: Path, fitted: int) -> None:
    model = new_map(Directory.at(tmp_path / "run"), describe(GEOMETRY))
    checksums = write(model, fitted, [0, 2], 2)
    stored = arrays(model)
    names = [name for name in (MEAN, FACTOR, VARIANCE, RIDGE) if name in stored]
    assert checksums == [checksum(stored[name][row] for name in names) for row in range(GEOMETRY.rows)]
    thresholds = np.arange(12.0).reshape(4, 3)
    write_thresholds(model, GROUP, thresholds, checksums=checksums, smoothing=3, nearest=0.5)
    attributes = model.zarr_group(storage_name(GROUP)).attrs.asdict()
    assert attributes[CHECKSUMS] == {ROWS: checksums, THRESHOLDS: checksum([thresholds])}
    assert (attributes["smoothing"], attributes["nearest"]) == (3, 0.5)


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


@pytest.mark.parametrize("fitted", [12, 600, 4000])
@pytest.mark.parametrize("channels", [8, 448, 1792])
def test_chunks_hold_whole_positions_and_stay_below_a_size_where_they_can(fitted: int, channels: int) -> None:
    geometry = replace(PAPER, channels=channels)
    for name, (shape, chunks) in array_chunks(geometry, fitted=fitted, rows_together=1).items():
        assert shape[:2] == (14, 14), name
        assert chunks[2:] == shape[2:], name
        position = 8 * int(np.prod(shape[2:]))
        assert 8 * int(np.prod(chunks)) <= max(CHUNK_BYTES, position), name
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
