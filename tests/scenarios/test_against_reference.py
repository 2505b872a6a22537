"""The iteration on Dask against the literal NumPy version of the algorithm, pass by pass."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.cluster.cluster import Cluster, open_cluster
from pipeline.cluster.progress import Reporter
from pipeline.judging.group import Group
from pipeline.judging.statistics import GroupStatistics
from pipeline.judging.strategies.base import CYCLE, MAJORITY, MAX_ITERATIONS, UNCHANGED, Trimming
from pipeline.judging.strategies.paire import trim
from schemas.config import Config
from schemas.names import storage_name
from schemas.records.run import DISTANCE
from schemas.stores.features import CHUNK_IMAGES, FeatureGeometry
from tests.support import reference
from tests.support.archives import tiny_config
from workers.storage.directory import Directory

GROUP = "line 1/camera 2"
STOP_REASONS = {"unchanged": UNCHANGED, "majority": MAJORITY, "cycle": CYCLE, "maximum": MAX_ITERATIONS}

# images, planted anomalies, channels: all in the dual form, all in the primal, and from one to the other on the way.
CASES = [
    pytest.param(3, 0, 8, id="the fewest images"),
    pytest.param(4, 1, 2, id="four images"),
    pytest.param(5, 1, 16, id="five images"),
    pytest.param(9, 1, 3, id="nine images"),
    pytest.param(13, 2, 32, id="dual, small"),
    pytest.param(24, 3, 48, id="dual"),
    pytest.param(40, 4, 5, id="primal"),
    pytest.param(40, 0, 40, id="as many channels as images, nothing planted"),
    pytest.param(44, 6, 30, id="primal first, dual when fewer are fitted"),
    pytest.param(60, 6, 30, id="primal, dual and primal again"),
    pytest.param(60, 18, 20, id="three in ten planted"),
    pytest.param(80, 8, 96, id="dual, larger"),
    pytest.param(81, 4, 12, id="primal, larger"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(tiny_config().cluster) as opened:
        yield opened


def paper_config(*settings: str) -> Config:
    """Return a configuration of the paper's rule."""
    return tiny_config("trim.strategy=paire", *settings)


@dataclass
class Recorded:
    """A group's passes as the pipeline made them: distances, thresholds and the set each was fitted on."""

    distances: list[NDArray[np.float64]] = field(default_factory=list)
    thresholds: list[NDArray[np.float64]] = field(default_factory=list)
    fitted: list[NDArray[np.bool_]] = field(default_factory=list)
    trimming: Trimming | None = None


def planted(images: int, anomalies: int, channels: int, seed: int, grid: tuple[int, int] = (2, 3)) -> NDArray[Any]:
    """Return float32 features (images, rows, columns, channels), some images shifted at one or two positions."""
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.2, 2.0, channels)
    features = rng.normal(size=(images, *grid, channels)) * scales + rng.normal(0, 3, (*grid, channels))
    for image in rng.permutation(images)[:anomalies]:
        for _ in range(rng.integers(1, 3)):
            features[image, rng.integers(grid[0]), rng.integers(grid[1])] += rng.normal(0, 6, channels)
    return features.astype(np.float32)


def run_passes(
    cluster: Cluster, folder: Path, features: NDArray[Any], config: Config, measured: NDArray[np.bool_] | None = None
) -> Recorded:
    """Write features into a store and run the pipeline's iteration over them."""
    images, rows, columns, channels = features.shape
    geometry = FeatureGeometry(rows, columns, channels, rows, columns, 1, 1)
    measured = np.ones(images, dtype=bool) if measured is None else measured
    store, distances = Directory.at(folder / "features"), Directory.at(folder / "distances")
    array = store.zarr_group("", "w").create_array(
        storage_name(GROUP), shape=features.shape, chunks=geometry.chunk_shape(images), dtype=features.dtype
    )
    array[:] = features
    distances.zarr_group("", "w")
    statistics = GroupStatistics(cluster, Group(GROUP, measured, store, geometry, config), distances, Reporter())
    recorded = Recorded()

    def measure(fitted: NDArray[np.bool_], number: int) -> Any:
        result = statistics.run_pass(fitted, number)
        stored: Any = (distances / storage_name(GROUP)).zarr_group("")[DISTANCE]
        recorded.distances.append(np.asarray(stored[:]))
        recorded.thresholds.append(result.thresholds)
        recorded.fitted.append(fitted.copy())
        return result

    recorded.trimming = trim(measure, measured, config.trim, name=GROUP)
    return recorded


def parameters(config: Config) -> reference.Parameters:
    """Return the configuration under the reference's names."""
    section = config.trim
    return reference.Parameters(
        ridge=config.gaussian.ridge,
        alpha=section.alpha,
        beta=section.beta,
        tau=section.tau,
        eta=section.eta,
        min_clean_fraction=section.min_clean_fraction,
        stop_fraction=section.stop_fraction,
        max_iterations=section.max_iterations,
    )


def assert_same(recorded: Recorded, expected: reference.Outcome, measured: NDArray[np.bool_] | None = None) -> None:
    """Compare all passes: distances, thresholds, clean sets, the table, the end."""
    trimming = recorded.trimming
    assert trimming is not None
    everything = np.ones(len(trimming.clean), dtype=bool) if measured is None else measured
    assert len(trimming.iterations) == len(expected.passes)
    fitted_afterwards = [*recorded.fitted[1:], trimming.clean]
    fitted_count = len(expected.passes[0].clean)
    for number, (step, found) in enumerate(zip(expected.passes, trimming.iterations, strict=True)):
        np.testing.assert_allclose(recorded.distances[number][everything], step.distances, rtol=1e-6)
        np.testing.assert_allclose(recorded.thresholds[number], step.thresholds, rtol=1e-6)
        np.testing.assert_array_equal(fitted_afterwards[number][everything], step.clean)
        assert not fitted_afterwards[number][~everything].any()
        n_clean = int(step.clean.sum())
        assert (found.iteration, found.n_fitted, found.n_clean) == (number + 1, fitted_count, n_clean)
        assert (found.n_added, found.n_removed) == (step.n_added, step.n_removed)
        assert (found.n_positions_trimmed, found.floor_applied) == (step.n_positions_trimmed, step.floor_applied)
        fitted_count = n_clean
    np.testing.assert_allclose(trimming.thresholds, expected.passes[-1].thresholds, rtol=1e-6)
    assert trimming.last_changed[everything].tolist() == expected.last_changed
    assert trimming.stop_reason == STOP_REASONS[expected.stop_reason]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("images", "anomalies", "channels"), CASES)
def test_every_pass_equals_the_literal_algorithm(
    cluster: Cluster, tmp_path: Path, images: int, anomalies: int, channels: int, seed: int
) -> None:
    features = planted(images, anomalies, channels, seed)
    config = paper_config()
    recorded = run_passes(cluster, tmp_path, features, config)
    assert_same(recorded, reference.trim(features, parameters(config)))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(("trim.stop_fraction=1",), id="until unchanged, a cycle or the maximum"),
        pytest.param(("trim.stop_fraction=1", "trim.max_iterations=2"), id="two passes at most"),
        pytest.param(("trim.alpha=0.1", "trim.beta=2", "trim.stop_fraction=0.9"), id="longer windows"),
        pytest.param(("trim.tau=1.5", "trim.eta=1.2", "trim.stop_fraction=0.9"), id="harder to trim"),
        pytest.param(("trim.min_clean_fraction=0.8", "trim.stop_fraction=1"), id="a high floor"),
        pytest.param(("gaussian.ridge=0.01",), id="a larger ridge"),
        pytest.param(("gaussian.segment_images=7", "trim.stop_fraction=1"), id="small segments"),
    ],
)
@pytest.mark.parametrize("channels", [6, 64])
def test_every_option_means_the_same_in_both(
    cluster: Cluster, tmp_path: Path, channels: int, settings: tuple[str, ...]
) -> None:
    features = planted(50, 5, channels, seed=7)
    config = paper_config(*settings)
    recorded = run_passes(cluster, tmp_path, features, config)
    assert_same(recorded, reference.trim(features, parameters(config)))


@pytest.mark.parametrize("channels", [4, 48])
def test_images_that_take_no_part_change_nothing(cluster: Cluster, tmp_path: Path, channels: int) -> None:
    features = planted(40, 4, channels, seed=3)
    measured = np.random.default_rng(3).random(40) < 0.8
    with_strangers = features.copy()
    with_strangers[~measured] = 1e4
    config = paper_config("trim.stop_fraction=1")
    recorded = run_passes(cluster, tmp_path, with_strangers, config, measured)
    assert_same(recorded, reference.trim(features[measured], parameters(config)), measured)
    assert all(np.isnan(distances[~measured]).all() for distances in recorded.distances)


def test_half_precision_features_are_measured_as_they_are_stored(cluster: Cluster, tmp_path: Path) -> None:
    features = planted(30, 3, 40, seed=1).astype(np.float16)
    config = paper_config()
    recorded = run_passes(cluster, tmp_path, features, config)
    assert_same(recorded, reference.trim(features, parameters(config)))


def test_more_images_than_a_chunk_holds_equal_the_literal_algorithm(cluster: Cluster, tmp_path: Path) -> None:
    features = planted(CHUNK_IMAGES + 30, 20, 3, seed=5, grid=(2, 1))
    config = paper_config("gaussian.segment_images=100", "trim.stop_fraction=0.9")
    recorded = run_passes(cluster, tmp_path, features, config)
    assert_same(recorded, reference.trim(features, parameters(config)))


@pytest.mark.parametrize("channels", [4, 48])
def test_a_position_where_all_features_are_equal_is_not_trimmed(
    cluster: Cluster, tmp_path: Path, channels: int
) -> None:
    features = planted(30, 3, channels, seed=11)
    features[:, 0, 1] = np.float32(0.1)
    config = paper_config()
    recorded = run_passes(cluster, tmp_path, features, config)
    assert all(np.isposinf(thresholds[0, 1]) for thresholds in recorded.thresholds)
    expected = reference.trim(features, parameters(config))
    np.testing.assert_allclose(recorded.thresholds, [step.thresholds for step in expected.passes], rtol=1e-6)
    assert recorded.trimming is not None
    np.testing.assert_array_equal(recorded.trimming.clean, expected.clean)
