"""The formulas against what runs write and hold: bytes on disk, the shapes of tasks, laws of the costs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec

from pipeline.costs.footprint import (
    Layout,
    PassKind,
    Requests,
    by_products,
    chunks,
    count_references,
    distance_bytes,
    feature_bytes,
    fit_flop,
    fit_tasks,
    map_bytes,
    measure_flop,
    moments_bytes,
    pass_flop,
    pass_tasks,
    products_bytes,
    products_flop,
    publish_tasks,
)
from pipeline.costs.working_memory import judging_memory
from pipeline.judging.distances import GroupDistances
from pipeline.judging.group import Group
from schemas.stores.features import CHUNK_IMAGES, FeatureGeometry
from tests.support.archives import tiny_config
from tests.support.maps import describe
from workers.features.arrays import WHOLE_ROW_IMAGES
from workers.gaussian.neighbours import REFERENCES, choose_references
from workers.map.writer import chunk_rows, create_group_map, create_map
from workers.passes.by_products import products_chunk
from workers.passes.kept_moments import kept_values
from workers.storage.directory import Directory

GEOMETRY = FeatureGeometry(rows=3, columns=5, channels=16, grid_rows=12, grid_columns=20, pool_kernel=4, pool_stride=4)
LAYOUT = Layout(GEOMETRY, itemsize=2, segment_images=300)


def written(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("c/**/*") if path.is_file())


@pytest.mark.parametrize("images", [1, 7, CHUNK_IMAGES, CHUNK_IMAGES + 1, 700])
def test_feature_bytes_are_those_of_the_chunks_on_disk(images: int, tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "features",
        shape=GEOMETRY.array_shape(images),
        chunks=GEOMETRY.chunk_shape(images),
        dtype="float16",
        compressors=Crc32cCodec(),
    )
    array[:] = 1
    assert feature_bytes(LAYOUT, images) == written(tmp_path)


@pytest.mark.parametrize("images", [1, 16, 17, 300, 700])
def test_distance_bytes_are_those_of_the_chunks_on_disk(images: int, tmp_path: Path) -> None:
    config = tiny_config(f"gaussian.segment_images={LAYOUT.segment_images}")
    group = Group("all", np.ones(images, bool), Directory.at(tmp_path) / "features", GEOMETRY, config)
    distances = GroupDistances(Directory.at(tmp_path), group)
    distances.create("distance")
    distances.array("distance").open("r+")[...] = np.ones((images, GEOMETRY.rows, GEOMETRY.columns))
    assert distance_bytes(LAYOUT, images) == written(tmp_path)


@pytest.mark.parametrize("has_references", [False, True])
@pytest.mark.parametrize(("measured", "fitted"), [(3, 3), (16, 16), (40, 17), (64, 40), (65, 40), (65, 16), (300, 290)])
def test_map_bytes_are_those_of_the_published_arrays(
    measured: int, fitted: int, has_references: bool, tmp_path: Path
) -> None:
    directory = Directory.at(tmp_path)
    create_map(directory, describe(GEOMETRY))
    together = chunk_rows(GEOMETRY, measured=measured, fitted=fitted)
    layout = replace(LAYOUT, has_references=has_references)
    references = int(choose_references(np.ones(fitted, bool)).sum()) if has_references else 0
    assert count_references(layout, fitted) == references
    create_group_map(directory, "all", GEOMETRY, fitted, references=references, rows_together=together)
    node = zarr.open_group(tmp_path / "all", mode="r+")
    for _, array in node.arrays():
        array[...] = np.ones(array.shape)
    assert map_bytes(layout, measured, fitted) == written(tmp_path)
    assert (together > 1) == (measured <= 64)


@pytest.mark.parametrize("measured", [2, 9, 16])
def test_products_bytes_are_those_of_the_scratch_array(measured: int, tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "products",
        shape=(GEOMETRY.rows, GEOMETRY.columns, measured, measured),
        chunks=products_chunk(measured, GEOMETRY.rows, GEOMETRY.columns),
        dtype="float64",
        compressors=None,
    )
    array[:] = 1
    assert products_bytes(LAYOUT, measured) == written(tmp_path)


def test_moments_bytes_are_those_of_the_scratch_array(tmp_path: Path) -> None:
    values = kept_values(GEOMETRY.channels)
    array = zarr.create_array(
        tmp_path / "moments",
        shape=(GEOMETRY.rows, GEOMETRY.columns, values),
        chunks=(1, 1, values),
        dtype="float64",
        compressors=Crc32cCodec(),
    )
    array[:] = 1
    assert moments_bytes(LAYOUT, 3000) == written(tmp_path)


def test_moments_are_kept_where_an_update_could_be_less_work() -> None:
    assert moments_bytes(LAYOUT, 1999) == 0
    assert moments_bytes(LAYOUT, 2000) > 0
    large = replace(LAYOUT, geometry=replace(GEOMETRY, channels=2000))
    assert moments_bytes(large, 2000) == 0
    assert moments_bytes(replace(LAYOUT, updates_moments=False), 3000) == 0


def test_a_group_beyond_the_channels_has_no_products() -> None:
    assert by_products(LAYOUT, 16)
    assert not by_products(LAYOUT, 17)
    assert products_bytes(LAYOUT, 17) == 0


@given(st.integers(1, 5000), st.integers(1, 5000))
@settings(max_examples=50)
def test_more_images_never_cost_less(one: int, other: int) -> None:
    fewer, more = sorted((one, other))
    costs: list[Callable[[int], float]] = [
        lambda n: feature_bytes(LAYOUT, n),
        lambda n: chunks(n),
        lambda n: distance_bytes(LAYOUT, n),
        lambda n: map_bytes(LAYOUT, n, n),
        lambda n: map_bytes(replace(LAYOUT, has_references=True), n, n),
        lambda n: products_flop(LAYOUT, n),
    ]
    assert all(cost(fewer) <= cost(more) for cost in costs)


@given(st.integers(17, 100_000), st.integers(2, 50))
@settings(max_examples=50)
def test_a_pass_beyond_the_dual_form_is_linear_in_the_images(images: int, times: int) -> None:
    # Merging has a cost for each chunk, whether it is full or not.
    one, many = (pass_flop(LAYOUT, count, count, PassKind()) for count in (images, times * images))
    assert many <= times * one * (1 + 1e-9)


def test_operations_are_those_of_the_kernels_leading_terms() -> None:
    D, n = 100, 10_000
    assert fit_flop(D, n) == n * D**2 + 4 * D**2 * 40 + D**3 / 3
    assert measure_flop(D, n, n) == n * D**2
    assert measure_flop(D, n, 50) == 4 * n * 50 * D
    assert products_flop(LAYOUT, 10) == 15 * 10**2 * 16
    # A distance to each reference image: of features a product of D channels, of inner products a sum.
    plain, near, alone = (
        PassKind(scores=True),
        PassKind(scores=True, neighbours=True),
        PassKind(scores=True, neighbours=True, fits=False),
    )
    for images, each in ((700, 16), (10, 1)):
        references = min(images, REFERENCES)
        assert pass_flop(LAYOUT, images, images, alone) == 15 * 2 * images * references * each
        both = pass_flop(LAYOUT, images, images, plain) + pass_flop(LAYOUT, images, images, alone)
        assert pass_flop(LAYOUT, images, images, near) == pytest.approx(both)


@pytest.mark.parametrize(
    ("images", "fitted", "kind", "is_first", "tasks"),
    [
        (16, 16, PassKind(), True, 2),  # one band of a small group: products and verdict
        (16, 8, PassKind(), False, 1),
        (16, 8, PassKind(scores=True), False, 2),  # and the scores of its segment
        (16, 8, PassKind(scores=True, by_rows=True), False, 1 + 3),
        (700, 700, PassKind(), True, 3 * (3 + 2 + 1 + 3 + 1)),  # moments, their merges, the fit, distances, verdict
        (700, 10, PassKind(), False, 3 * (1 + 3 + 1)),
        (700, 700, PassKind(scores=True), False, 3 * (6 + 3) + 3),
        (700, 700, PassKind(scores=True, neighbours=True), True, 3 * (6 + 3 + 1) + 3),  # and the references
        (700, 700, PassKind(scores=True, neighbours=True, fits=False), False, 3 * (3 + 1) + 3),
        (16, 8, PassKind(scores=True, neighbours=True, fits=False), False, 2),
        (300, 300, PassKind(), True, 3),  # one segment: all of a row
        (300, 10, PassKind(scores=True, neighbours=True), True, 3 + 1),
    ],
)
def test_tasks_of_a_pass(images: int, fitted: int, kind: PassKind, is_first: bool, tasks: int) -> None:
    assert pass_tasks(LAYOUT, images, fitted, kind, is_first=is_first) == tasks


def test_tasks_of_publishing_are_a_fit_and_a_write_of_each_row_or_both_as_one() -> None:
    assert publish_tasks(LAYOUT, 700, 10) == 3 * 2
    assert publish_tasks(LAYOUT, 700, 700) == 3 * (fit_tasks(LAYOUT, 700, 700) + 1)
    assert publish_tasks(LAYOUT, 300, 300) == 3
    assert publish_tasks(LAYOUT, 16, 8) == 1  # of a small group all rows share chunks
    near = replace(LAYOUT, has_references=True)
    assert publish_tasks(near, 700, 700) == 3 * (fit_tasks(LAYOUT, 700, 700) + 2)
    assert publish_tasks(near, 300, 300) == 3


def test_a_large_row_is_many_tasks_whatever_the_segment() -> None:
    whole, wide = replace(LAYOUT, segment_images=WHOLE_ROW_IMAGES), replace(LAYOUT, segment_images=10**6)
    assert (
        pass_tasks(whole, WHOLE_ROW_IMAGES, 700, PassKind()) == pass_tasks(wide, WHOLE_ROW_IMAGES, 700, PassKind()) == 3
    )
    assert pass_tasks(wide, WHOLE_ROW_IMAGES + 1, 700, PassKind()) == 3 * (1 + 1 + 1 + 1)
    # Beyond that size a worker holds no more.
    small, large = (judging_memory(wide, images, images, threads=1) for images in (10_000, 1_000_000))
    assert small == large


def test_requests_add_and_multiply() -> None:
    assert (Requests(1, 2) + Requests(3, 4)).times(2) == Requests(8, 12)
