"""A row of positions as one task: it finds what many tasks find, reads once, and holds what is said."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client
from numpy.typing import NDArray

from pipeline.cluster.tasks import Here, TaskWindow
from pipeline.costs.footprint import Layout
from pipeline.costs.working_memory import judging_memory
from pipeline.judging.row_tasks import PassPlan, RowTasks, compute_row, submit_row
from schemas.config import GaussianConfig, TrimConfig
from schemas.stores.features import CHUNK_IMAGES, FeatureGeometry
from tests.support.watched import chunks_read, peak_bytes
from workers.features.arrays import ArrayRef
from workers.gaussian.fit import Fit
from workers.gaussian.neighbours import choose_references
from workers.passes.kept_moments import Change, KeptMoments, kept_values
from workers.storage.directory import Directory

# In chunks of 256 images each, of which the last one is not full.
IMAGES, COLUMNS, CHANNELS, ROW = 600, 3, 20, 1
MEASURED = np.arange(IMAGES) != 7
FITTED = MEASURED & (np.arange(IMAGES) % 5 != 0)
FEW = MEASURED & (np.arange(IMAGES) < CHANNELS)
ARRAYS = "distances", "moments"


@pytest.fixture
def store(tmp_path: Path) -> Directory:
    return write_store(tmp_path, IMAGES, COLUMNS, CHANNELS)


def write_store(folder: Path, images: int, columns: int, channels: int) -> Directory:
    """Write features of two rows, and empty arrays of distances and moments."""
    directory, rng = Directory.at(folder), np.random.default_rng(0)
    values = rng.normal(5, 1, (images, 2, columns, channels)).astype(np.float16)
    group, size = directory.zarr_group("", "w"), kept_values(channels)
    group.create_array("features", data=values, chunks=(CHUNK_IMAGES, 1, columns, channels))
    group.create_array(
        "distances", shape=(images, 2, columns), chunks=(images, 1, columns), dtype="float64", fill_value=np.nan
    )
    group.create_array("moments", shape=(2, columns, size), chunks=(1, 1, size), dtype="float64")
    return directory


def row_tasks(store: Directory, segment_images: int, measured: NDArray[np.bool_] = MEASURED) -> RowTasks:
    features = ArrayRef(store, "", "features")
    return RowTasks(features, ROW, measured, features.open().shape[3], segment_images)


def stored(store: Directory) -> dict[str, NDArray[Any]]:
    root = zarr.open_group(store.url, mode="r")
    return {name: np.asarray(root[name]) for name in ARRAYS}


def plan(fitted: NDArray[np.bool_], estimator: str | None = "ridge", *, leaves_one_out: bool = False) -> PassPlan:
    if estimator is None:
        return PassPlan(fitted, None, 1, None, None)
    return PassPlan(fitted, Fit(GaussianConfig(), estimator, leaves_one_out=leaves_one_out), 1, None, None)


def kept(store: Directory) -> KeptMoments:
    return KeptMoments(ArrayRef(store, "", "moments"))


@pytest.mark.parametrize("fitted", [FITTED, FEW], ids=["primal", "dual"])
@pytest.mark.parametrize("references", [None, 5, 100])
@pytest.mark.parametrize("leaves_one_out", [False, True])
@pytest.mark.parametrize("estimator", ["relative-ridge", "ledoit-wolf", None])
def test_one_task_measures_what_the_tasks_of_segments_measure(
    store: Directory,
    fitted: NDArray[np.bool_],
    references: int | None,
    leaves_one_out: bool,
    estimator: str | None,
) -> None:
    into, here = ArrayRef(store, "", "distances"), Here()
    near = None if references is None and estimator else choose_references(fitted, references or 30)
    asked = (into, plan(fitted, estimator, leaves_one_out=leaves_one_out), near)
    found = []
    for segment_images in (CHUNK_IMAGES, IMAGES):
        receipts = here.gather(submit_row(here, RowTasks.submit_distances, row_tasks(store, segment_images), *asked))
        assert sum(receipts) == MEASURED.sum()
        assert len(receipts) == (3 if segment_images == CHUNK_IMAGES else 1)
        found.append(stored(store)["distances"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)
    assert np.isfinite(found[1][MEASURED, ROW]).all()


def test_one_task_judges_and_keeps_what_the_tasks_of_segments_judge_and_keep(store: Directory) -> None:
    into, here, found = ArrayRef(store, "", "distances"), Here(), []
    first = plan(FITTED)._replace(kept=kept(store))
    fewer = FITTED & (np.arange(IMAGES) > 3)
    second = first._replace(fitted=fewer, number=2, change=Change(FITTED, fewer, 1, 2))
    for segment_images in (CHUNK_IMAGES, IMAGES):
        for each in (first, second):
            tasks = row_tasks(store, segment_images)
            (verdict,) = here.gather(submit_row(here, RowTasks.submit_verdict, tasks, into, each, TrimConfig(), True))
            # Of what is kept, number, count and error come first; the error is a bound, which follows from the order.
            moments = np.delete(stored(store)["moments"], 2, axis=-1)
            found.append((verdict.thresholds, verdict.margin, stored(store)["distances"], moments))
    for several, one in zip(found[:2], found[2:], strict=True):
        for expected, values in zip(several, one, strict=True):
            np.testing.assert_allclose(values, expected, rtol=1e-9)


@pytest.mark.parametrize("estimator", ["ridge", None])
@pytest.mark.parametrize("references", [None, 100])
def test_one_task_reads_every_chunk_once(
    store: Directory, references: int | None, estimator: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = chunks_read(monkeypatch)
    into = ArrayRef(store, "", "distances")
    near = None if references is None else choose_references(FITTED, references)
    asked = into, plan(FITTED, estimator, leaves_one_out=True), near
    compute_row(RowTasks.submit_distances, row_tasks(store, IMAGES), *asked)
    assert sorted(key for key in read if key.startswith("features/")) == [
        f"features/c/{chunk}/{ROW}/0/0" for chunk in range(3)
    ]


def test_a_cluster_has_one_task_for_a_row_whose_arguments_may_be_futures(store: Directory) -> None:
    into = ArrayRef(store, "", "distances")
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        window = TaskWindow(client, 1)
        coming = window.submit(plan, FITTED)
        futures = submit_row(window, RowTasks.submit_distances, row_tasks(store, IMAGES), into, coming, None)
        assert window.gather(futures) == [MEASURED.sum()]
        assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 2


def test_a_row_is_judged_in_the_memory_that_is_said(tmp_path: Path) -> None:
    images, columns, channels = 2600, 4, 200
    store = write_store(tmp_path, images, columns, channels)
    everything, fewer = np.ones(images, bool), np.arange(images) >= 50
    into, tasks = ArrayRef(store, "", "distances"), row_tasks(store, images, everything)
    first = plan(everything)._replace(kept=kept(store))
    second = first._replace(fitted=fewer, number=2, change=Change(everything, fewer, 1, 2))
    layout = Layout(FeatureGeometry(1, columns, channels, 4, 4 * columns, 4, 4), 2, images)
    said = judging_memory(layout, images, images, threads=2)

    row = images * columns * channels * 2
    for each in (first, second):
        assert row < peak_bytes(partial(compute_row, RowTasks.submit_distances, tasks, into, each, None)) <= said
    left_out = plan(everything, leaves_one_out=True)
    near = choose_references(everything)
    for each in (left_out, plan(everything, None)):
        assert row < peak_bytes(partial(compute_row, RowTasks.submit_distances, tasks, into, each, near)) <= said
