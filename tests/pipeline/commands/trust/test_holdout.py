"""A fit without the held-out images: the map and the thresholds are those of the rule, computed directly."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.cluster.cluster import Cluster, open_cluster
from pipeline.cluster.progress import Reporter
from pipeline.commands.trust.holdout import fit_holdout, require_rule
from pipeline.judging.group import Group
from pipeline.judging.strategies.registry import STRATEGIES, estimator_of, strategy_of
from schemas.config import Config
from schemas.errors import SourceError
from schemas.names import storage_name
from schemas.stores.features import FeatureGeometry
from tests.support.archives import tiny_config
from tests.support.maps import describe, finish, new_map
from workers.gaussian.fit import FittedGaussian, fit_dual
from workers.gaussian.neighbours import choose_references, neighbour_distances
from workers.map.reader import GaussianMap
from workers.map.writer import create_group_map, write_thresholds
from workers.storage.directory import Directory
from workers.verdict.calibration import fit_score_law
from workers.verdict.smoothing import smooth
from workers.verdict.threshold import position_threshold

GROUP = "Line 1"
RULES = ("paire", "trim-once", "concentrate", "grow")
IMAGES, ROWS, COLUMNS, CHANNELS = 60, 4, 3, 70
GEOMETRY = FeatureGeometry(ROWS, COLUMNS, CHANNELS, ROWS, COLUMNS, 1, 1)

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(tiny_config().cluster) as opened:
        yield opened


@pytest.fixture(scope="module")
def features() -> Floats:
    """Return features of which the last few images are others, one of them unreadable."""
    rng = np.random.default_rng(8)
    values = rng.normal(0, 1, (IMAGES, ROWS, COLUMNS, CHANNELS)) * np.linspace(0.2, 2, CHANNELS)
    values[-5:, 1, 1] += 4
    values[-1] = 0
    return values.astype(np.float32).astype(np.float64)


@pytest.fixture
def masks() -> tuple[Mask, Mask]:
    """Return the images that took part, and the kept ones without those held out."""
    measured = np.ones(IMAGES, dtype=bool)
    measured[-1] = False
    fitted = measured.copy()
    fitted[-5:] = False
    fitted[::9] = False
    return measured, fitted


def hold_out(
    cluster: Cluster, folder: Path, features: Floats, masks: tuple[Mask, Mask], config: Config
) -> tuple[GaussianMap, Floats]:
    store = Directory.at(folder / "features")
    array = store.zarr_group("", "w").create_array(
        storage_name(GROUP),
        shape=features.shape,
        chunks=GEOMETRY.chunk_shape(IMAGES),
        dtype="float32",
    )
    array[:] = features.astype(np.float32)
    model = new_map(Directory.at(folder / "run"), describe(GEOMETRY))
    references = IMAGES if strategy_of(config).measures_neighbours else 0
    create_group_map(model, GROUP, GEOMETRY, IMAGES, references=references)
    write_thresholds(model, GROUP, np.ones((ROWS, COLUMNS)), checksums=[0] * ROWS, smoothing=config.trim.smoothing)
    finish(Directory.at(folder / "run"))
    holdout = fit_holdout(
        Group(GROUP, masks[0], store, GEOMETRY, config),
        masks[1],
        scratch=Directory.at(folder / "scratch"),
        published=GaussianMap.open(model.url),
        cluster=cluster,
        reporter=Reporter(),
    )
    gaussian_map = GaussianMap.open(holdout.model)
    thresholds = gaussian_map.thresholds(GROUP)
    assert holdout.fitted == masks[1].sum()
    assert holdout.positions_with_threshold == np.isfinite(thresholds).sum()
    return gaussian_map, thresholds


def fit_all(features: Floats, fitted: Mask, config: Config, *, leaves_one_out: bool) -> list[list[FittedGaussian]]:
    estimator = estimator_of(config)
    return [
        [
            fit_dual(features[fitted][:, row, column], config.gaussian, estimator, leaves_one_out=leaves_one_out)
            for column in range(COLUMNS)
        ]
        for row in range(ROWS)
    ]


def loo_distances(features: Floats, fitted: Mask, config: Config) -> Floats:
    """Return the distances of all images, of the fitted ones without themselves."""
    gaussians = fit_all(features, fitted, config, leaves_one_out=True)
    distances = np.empty(features.shape[:3])
    for row, column in np.ndindex(ROWS, COLUMNS):
        distances[:, row, column] = gaussians[row][column].leave_one_out(features[:, row, column], fitted)
    return distances


@pytest.mark.parametrize("strategy", RULES)
def test_the_map_is_fitted_without_the_held_out_images(
    cluster: Cluster, tmp_path: Path, features: Floats, masks: tuple[Mask, Mask], strategy: str
) -> None:
    config = tiny_config(f"trim.strategy={strategy}")
    gaussian_map, _ = hold_out(cluster, tmp_path, features, masks, config)
    gaussians = fit_all(features, masks[1], config, leaves_one_out=False)
    found = gaussian_map.distances(GROUP, features)
    for row, column in np.ndindex(ROWS, COLUMNS):
        here = features[:, row, column]
        expected = gaussians[row][column].gaussian.mahalanobis(here)
        if strategy == "grow":
            expected = expected * neighbour_distances(here, here[choose_references(masks[1])])
        np.testing.assert_allclose(found[:, row, column], expected, rtol=1e-6)


def test_the_threshold_of_grow_is_that_of_the_law_of_the_fitted_images_scores(
    cluster: Cluster, tmp_path: Path, features: Floats, masks: tuple[Mask, Mask]
) -> None:
    config = tiny_config("trim.strategy=grow", "trim.smoothing=3", "trim.target_false_reject=0.1")
    gaussian_map, thresholds = hold_out(cluster, tmp_path, features, masks, config)
    assert gaussian_map.measures_neighbours(GROUP)
    distances = loo_distances(features, masks[1], config)
    references = choose_references(masks[1])
    own = np.where(references, np.cumsum(references) - 1, -1)
    for row, column in np.ndindex(ROWS, COLUMNS):
        here = features[:, row, column]
        distances[:, row, column] *= neighbour_distances(here, here[references], own)
    scores = np.log(smooth(distances, 3).max(axis=(1, 2)))
    expected = np.exp(fit_score_law(scores[masks[1]]).threshold(0.1))
    np.testing.assert_allclose(thresholds, np.full((ROWS, COLUMNS), expected), rtol=1e-6)


@pytest.mark.parametrize("strategy", ["paire", "trim-once"])
def test_the_thresholds_of_the_paper_are_those_of_the_sorted_distances_of_all_images(
    cluster: Cluster, tmp_path: Path, features: Floats, masks: tuple[Mask, Mask], strategy: str
) -> None:
    config = tiny_config(f"trim.strategy={strategy}", "gaussian.estimator=oas")
    gaussian_map, thresholds = hold_out(cluster, tmp_path, features, masks, config)
    distances = gaussian_map.distances(GROUP, features)
    measured, fitted = masks
    for row, column in np.ndindex(ROWS, COLUMNS):
        expected = position_threshold(
            distances[measured, row, column], config.trim, fitted=int(fitted.sum()), is_first=False
        )
        np.testing.assert_allclose(thresholds[row, column], expected, rtol=1e-6)


def test_the_thresholds_of_concentrate_are_robust_deviations_of_the_fitted_images_scores(
    cluster: Cluster, tmp_path: Path, features: Floats, masks: tuple[Mask, Mask]
) -> None:
    config = tiny_config("trim.strategy=concentrate", "trim.deviations=2.5")
    _, thresholds = hold_out(cluster, tmp_path, features, masks, config)
    measured, fitted = masks
    logs = np.log(loo_distances(features, fitted, config))
    median = np.median(logs[measured], axis=0)
    spread = 1.4826 * np.median(np.abs(logs[measured] - median), axis=0)
    scores = ((logs - median) / spread).max(axis=(1, 2))[fitted]
    middle = np.median(scores)
    limit = middle + 2.5 * 1.4826 * np.median(middle - scores[scores <= middle])
    np.testing.assert_allclose(thresholds, np.exp(median + limit * spread), rtol=1e-6)


def test_a_group_takes_the_place_of_the_one_before(
    cluster: Cluster, tmp_path: Path, features: Floats, masks: tuple[Mask, Mask]
) -> None:
    config = tiny_config("trim.strategy=grow")
    first, _ = hold_out(cluster, tmp_path, features, masks, config)
    before = first.distances(GROUP, features)
    second, _ = hold_out(cluster, tmp_path, features + 1, masks, config)
    assert second.groups == (GROUP,)
    assert not np.allclose(second.distances(GROUP, features), before)


def test_a_strategy_without_a_rule_is_refused() -> None:
    with pytest.raises(SourceError, match=r"trim.strategy = 'none', which keeps every image.*grow"):
        require_rule(tiny_config("trim.strategy=none"))
    assert tuple(name for name, strategy in STRATEGIES.items() if strategy.rejects) == RULES
    for strategy in RULES:
        require_rule(tiny_config(f"trim.strategy={strategy}"))
