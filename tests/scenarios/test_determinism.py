"""The result depends on neither the number of workers, nor their processes, nor how the images are cut into tasks."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from numpy.typing import NDArray

from pipeline.cluster.cluster import Cluster, open_cluster
from pipeline.cluster.progress import Reporter
from pipeline.commands.clean import clean
from pipeline.commands.recut import recut
from pipeline.judging.group import Group
from pipeline.judging.statistics import GroupStatistics
from pipeline.judging.strategies.base import Search, Trimming
from pipeline.judging.strategies.grow import Grow
from schemas.config import parse_config
from schemas.names import storage_name
from schemas.records.run import DISTANCE, DISTANCES, FEATURES, ITERATIONS, LEDGER, MANIFEST, MODEL
from schemas.stores.features import FeatureGeometry
from tests.scenarios.test_against_reference import GROUP, Recorded, paper_config, planted, run_passes
from tests.support.archives import tiny_config, write_parts
from workers.storage.directory import Directory

SETTINGS = ("trim.stop_fraction=1", "trim.max_iterations=3")

# In the primal form moments are merged over segments, in the dual form each row is fitted in one task.
FORMS = [pytest.param(4, id="primal"), pytest.param(64, id="dual")]


@pytest.fixture(scope="module")
def one_process() -> Iterator[Cluster]:
    with open_cluster(tiny_config().cluster) as cluster:
        yield cluster


def passes(cluster: Cluster, folder: Path, channels: int, *settings: str) -> Recorded:
    """Run the iteration over the same features, wherever and however."""
    # Two clusters are open side by side here; a command has one.
    with cluster.client.as_current():
        return run_passes(cluster, folder, planted(41, 5, channels, seed=2), paper_config(*SETTINGS, *settings))


def decisions(recorded: Recorded) -> tuple[Any, ...]:
    """Return all that a run decided, without times."""
    trimming = recorded.trimming
    assert trimming is not None
    table = [(step.n_clean, step.n_added, step.n_removed, step.n_positions_trimmed) for step in trimming.iterations]
    sets = [fitted.tolist() for fitted in recorded.fitted]
    return table, sets, trimming.clean.tolist(), trimming.last_changed.tolist(), trimming.stop_reason


@pytest.mark.parametrize("segment", [7, 4096])
@pytest.mark.parametrize("channels", FORMS)
def test_two_worker_processes_find_bitwise_what_one_finds(
    one_process: Cluster, two_processes: Cluster, tmp_path: Path, channels: int, segment: int
) -> None:
    setting = f"gaussian.segment_images={segment}"
    one = passes(one_process, tmp_path / "one", channels, setting)
    two = passes(two_processes, tmp_path / "two", channels, setting)
    assert decisions(two) == decisions(one)
    np.testing.assert_array_equal(np.stack(two.thresholds), np.stack(one.thresholds), strict=True)
    np.testing.assert_array_equal(np.stack(two.distances), np.stack(one.distances), strict=True)


@pytest.mark.parametrize("channels", FORMS)
def test_other_segments_decide_the_same_at_the_same_distances(
    one_process: Cluster, tmp_path: Path, channels: int
) -> None:
    whole = passes(one_process, tmp_path / "whole", channels, "gaussian.segment_images=4096")
    for segment in (1, 40):
        cut = passes(one_process, tmp_path / f"cut {segment}", channels, f"gaussian.segment_images={segment}")
        assert decisions(cut) == decisions(whole)
        np.testing.assert_allclose(np.stack(cut.distances), np.stack(whole.distances), rtol=1e-9)
        np.testing.assert_allclose(np.stack(cut.thresholds), np.stack(whole.thresholds), rtol=1e-9)


# More images than there are references; in the dual form by inner products.
GROWN = [pytest.param(4, id="primal"), pytest.param(310, id="dual")]


def grow_in(cluster: Cluster, folder: Path, channels: int, segment: int) -> tuple[Trimming, NDArray[np.float64]]:
    """Find the clean set of 300 images by `grow`, and return it with the stored distances."""
    features, config = planted(300, 20, channels, seed=4), tiny_config(f"gaussian.segment_images={segment}")
    geometry = FeatureGeometry(2, 3, channels, 2, 3, 1, 1)
    store, distances = Directory.at(folder / "features"), Directory.at(folder / "distances")
    store.zarr_group("", "w").create_array(
        storage_name(GROUP), data=features, chunks=geometry.chunk_shape(len(features))
    )
    distances.zarr_group("", "w")
    group = Group(GROUP, np.ones(300, bool), store, geometry, config)
    search = Search(group.measured, config.trim, group.grid, np.arange(300), GROUP)
    with cluster.client.as_current(), GroupStatistics(cluster, group, distances, Reporter()) as statistics:
        trimming = Grow().find(statistics, search)
    stored: Any = (distances / storage_name(GROUP)).zarr_group("")[DISTANCE]
    return trimming, np.asarray(stored[:])


@pytest.mark.parametrize("segment", [100, 4096])
@pytest.mark.parametrize("channels", GROWN)
def test_two_worker_processes_grow_bitwise_what_one_grows(
    one_process: Cluster, two_processes: Cluster, tmp_path: Path, channels: int, segment: int
) -> None:
    one, one_distances = grow_in(one_process, tmp_path / "one", channels, segment)
    two, two_distances = grow_in(two_processes, tmp_path / "two", channels, segment)
    np.testing.assert_array_equal(two.history, one.history)
    np.testing.assert_array_equal(two.thresholds, one.thresholds, strict=True)
    np.testing.assert_array_equal(two_distances, one_distances, strict=True)
    assert two.purity == one.purity


@pytest.mark.parametrize("channels", GROWN)
def test_other_segments_grow_the_same_at_the_same_distances(
    one_process: Cluster, tmp_path: Path, channels: int
) -> None:
    whole, whole_distances = grow_in(one_process, tmp_path / "whole", channels, 4096)
    assert len(whole.iterations) > 4
    for segment in (90, 256):
        cut, distances = grow_in(one_process, tmp_path / f"cut {segment}", channels, segment)
        np.testing.assert_array_equal(cut.history, whole.history)
        np.testing.assert_allclose(distances, whole_distances, rtol=1e-9)
        np.testing.assert_allclose(cut.thresholds, whole.thresholds, rtol=1e-9)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of two lines with defects, a copy and a broken file."""
    folder = tmp_path_factory.mktemp("archive")
    write_parts(folder / "line1", 14, 2)
    write_parts(folder / "line2", 17, 1, first_seed=100)
    (folder / "line1" / "copy.png").write_bytes((folder / "line1" / "good_003.png").read_bytes())
    (folder / "line2" / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def first_run(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run made by one worker inside this process."""
    run = tmp_path_factory.mktemp("first") / "run"
    clean(str(archive), str(run), tiny_config(*SETTINGS, "input.group_by={line}/*"))
    return run


def manifest_of(run: Path, *apart_from: str) -> pd.DataFrame:
    return pd.read_parquet(run / MANIFEST).drop(columns=["run_id", *apart_from])


def arrays(run: Path, part: str) -> dict[str, NDArray[Any]]:
    """Return every array of a Zarr group of the run."""
    members = zarr.open_group(run / part, mode="r").members(max_depth=None)
    return {name: np.asarray(node[:]) for name, node in members if isinstance(node, zarr.Array)}


def test_two_worker_processes_write_the_manifest_that_one_writes(
    archive: Path, first_run: Path, two_processes: Cluster, tmp_path: Path
) -> None:
    config = tiny_config(*SETTINGS, "input.group_by={line}/*")
    clean(str(archive), str(tmp_path / "run"), config, scheduler=two_processes.client.scheduler.address)
    pd.testing.assert_frame_equal(manifest_of(tmp_path / "run"), manifest_of(first_run), check_exact=True)
    assert (tmp_path / "run" / LEDGER).read_bytes() == (first_run / LEDGER).read_bytes()
    for part in (FEATURES, DISTANCES, MODEL):
        found, expected = arrays(tmp_path / "run", part), arrays(first_run, part)
        assert found.keys() == expected.keys()
        assert len(found) >= 2
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=f"{part}/{name}")
    found_table, table = (pd.read_parquet(run / ITERATIONS) for run in (tmp_path / "run", first_run))
    pd.testing.assert_frame_equal(found_table.drop(columns="seconds"), table.drop(columns="seconds"))


def test_other_segments_write_the_same_manifest(first_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(first_run, tmp_path / "run")
    version = recut(str(run), parse_config(None, ["gaussian.segment_images=7", "guard.accept_untrustworthy=true"]))
    found, expected = (manifest_of(run, "config_digest", "reason") for run in (Path(version.run), first_run))
    pd.testing.assert_frame_equal(found, expected, rtol=1e-9)


def test_a_moved_archive_gives_the_same_manifest_but_for_its_place(
    archive: Path, first_run: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    for path in sorted(archive.rglob("*.png"), reverse=True):
        target = moved / path.relative_to(archive)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    clean(str(moved), str(tmp_path / "run"), tiny_config(*SETTINGS, "input.group_by={line}/*"))
    found, expected = (manifest_of(run, "image_path") for run in (tmp_path / "run", first_run))
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
