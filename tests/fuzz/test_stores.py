"""Gaussian maps and feature stores of which a file was harmed, lost or exchanged: an error, or the true values."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.intake.extract import _compressors, _open_store, _require_array
from pipeline.judging.distances import GroupDistances
from pipeline.judging.group import Group
from schemas.config import parse_config
from schemas.errors import PaireError
from schemas.records.image import ImageOutcome, ImageRef
from schemas.records.run import DISTANCE
from schemas.stores.features import FeatureGeometry
from tests.fuzz.mutations import Mutation, attempt, fuzzing, mutate, mutations, tried
from tests.support.maps import describe, finish, new_map, write_group
from workers.features.arrays import read_distances, read_features
from workers.features.receipts import find_finished, write_receipt
from workers.map.reader import GaussianMap
from workers.storage.directory import Directory

GEOMETRY = FeatureGeometry(rows=2, columns=3, channels=8, grid_rows=5, grid_columns=6, pool_kernel=2, pool_stride=1)
GROUPS = ("dual", "primal")
THRESHOLDS = np.array([[1.5, np.inf, 2.5], [3.5, 4.5, np.inf]])
FEATURES = np.random.default_rng(0).normal(size=GEOMETRY.array_shape(40)).astype(np.float16)
OUTCOMES = [ImageOutcome(row, f"{row:064x}", 10, 64, 64) for row in range(len(FEATURES))]
REFS = [ImageRef(row, f"{row}.png") for row in range(len(FEATURES))]

# What happens to one file: it is changed, it is lost, or another takes its place.
harms = st.tuples(st.integers(0, 999), st.integers(0, 999), mutations | st.sampled_from(["lost", "exchanged"]))
Harm = tuple[int, int, list[Mutation] | str]


def harm(whole: Path, copy: Path, what: Harm) -> Path:
    """Make a copy of a tree in which something has happened to one file."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.name != "_SUCCESS")
    victim, other = files[what[0] % len(files)], files[what[1] % len(files)]
    if what[2] == "lost":
        victim.unlink()
    elif what[2] == "exchanged":
        content = victim.read_bytes()
        victim.write_bytes(other.read_bytes())
        other.write_bytes(content)
    else:
        assert not isinstance(what[2], str)
        victim.write_bytes(mutate(victim.read_bytes(), what[2], [other.read_bytes()]))
    return copy


def all_of(location: Path) -> list[Any]:
    """Return all that a map scores with and by."""
    opened = GaussianMap.open(location)
    scores = [(opened.distances(group, FEATURES[:3]).tolist(), opened.thresholds(group).tolist()) for group in GROUPS]
    said = [(opened.smoothing(group), opened.measures_neighbours(group)) for group in GROUPS]
    return [opened.groups, opened.description, scores, said]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Directory.at(tmp_path_factory.mktemp("map") / "run")
    model = new_map(run, describe(GEOMETRY))
    for group, count in zip(GROUPS, (5, 40), strict=True):
        write_group(model, group, GEOMETRY, FEATURES[:count], THRESHOLDS, references=4)
    finish(run)
    return Path(run.url)


@fuzzing(40)
@given(what=harms)
def test_harmed_maps_score_alike_or_not_at_all(published: Path, what: Harm) -> None:
    tried["Gaussian maps"] += 1
    copy = harm(published, published.parent / "copy", what)
    found = attempt(lambda: all_of(copy / "model"), PaireError)
    assert found is None or found == all_of(published / "model")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with two finished blocks of features, of one group each."""
    run = Directory.at(tmp_path_factory.mktemp("features") / "run")
    root = (run / "features").zarr_group("", "w")
    for group in GROUPS:
        array = root.create_array(
            group,
            shape=FEATURES.shape,
            chunks=GEOMETRY.chunk_shape(len(FEATURES)),
            dtype="float16",
            compressors=_compressors(run),
        )
        array[:] = FEATURES
        write_receipt(run / "receipts" / group, OUTCOMES, FEATURES)
    return Path(run.url)


@fuzzing(100)
@given(what=harms)
def test_harmed_blocks_are_extracted_again_or_whole(stored: Path, what: Harm) -> None:
    tried["feature stores, resumed"] += 1
    run = Directory.at(harm(stored, stored.parent / "copy", what))
    for group in GROUPS:
        root = _open_store(run / "features", keeps=True)
        _require_array(root, group, group, GEOMETRY, len(FEATURES), "float16", _compressors(run))
        array: Any = root[group]
        outcomes = find_finished(run / "receipts" / group, REFS, array)
        assert outcomes is None or (outcomes == OUTCOMES and (np.asarray(array[:]) == FEATURES).all())


@fuzzing(100)
@given(place=st.integers(0, 999), steps=mutations)
def test_harmed_chunks_are_not_judged(stored: Path, place: int, steps: list[Mutation]) -> None:
    tried["feature chunks, judged"] += 1
    row = place % GEOMETRY.rows
    chunk = stored / "features" / GROUPS[0] / "c" / "0" / str(row) / "0" / "0"
    content = chunk.read_bytes()
    try:
        chunk.write_bytes(mutate(content, steps, [content]))
        array: Any = Directory.at(stored / "features").zarr_group("")[GROUPS[0]]
        values = attempt(lambda: read_features(array, 0, len(FEATURES), row), PaireError)
    finally:
        chunk.write_bytes(content)
    assert values is None or (values == FEATURES[:, row]).all()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[GroupDistances, NDArray[np.float64]]:
    """Return the stored distances of a group, of which one image does not take part, and what they are."""
    takes_part = np.arange(9) != 4
    config = parse_config(None, ["gaussian.segment_images=5"])
    folder = Directory.at(tmp_path_factory.mktemp("distances"))
    group = GroupDistances(folder, Group("group", takes_part, folder, GEOMETRY, config))
    group.create(DISTANCE)
    values = np.random.default_rng(0).normal(20, 1, (9, GEOMETRY.rows, GEOMETRY.columns))
    values[4] = np.nan
    group.array(DISTANCE).open("r+")[...] = values
    return group, values


@fuzzing(100)
@given(place=st.integers(0, 999), steps=mutations)
def test_harmed_distances_are_not_used(
    measured: tuple[GroupDistances, NDArray[np.float64]], place: int, steps: list[Mutation]
) -> None:
    tried["chunks of distances"] += 1
    group, expected = measured
    chunks = sorted(Path(group.directory.url).glob(f"{DISTANCE}/c/*/*/*"))
    chunk = chunks[place % len(chunks)]
    content = chunk.read_bytes()
    try:
        chunk.write_bytes(mutate(content, steps, [content]))
        for segment in group.group.segments():
            values = attempt(partial(read_distances, group.array(DISTANCE), segment), PaireError)
            assert values is None or (values == expected[segment.start : segment.stop][segment.mask]).all()
    finally:
        chunk.write_bytes(content)
