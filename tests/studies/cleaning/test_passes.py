"""Strategies on Gram matrices: planted outliers go, and what is measured afterwards is what the published map says."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.judging.strategies.registry import STRATEGIES, estimator_of
from schemas.config import GaussianConfig, parse_config
from studies.cleaning.gram import Gram, products_of
from studies.cleaning.methods import NONE, Method
from studies.cleaning.passes import Archive, _Passes
from workers.gaussian.fit import fit_dual
from workers.gaussian.neighbours import neighbour_distances
from workers.verdict.near_duplicates import lattice, sketch

NORMALS, OUTLIERS, GRID, CHANNELS = 60, 6, (3, 4), 96
IMAGES = NORMALS + OUTLIERS
TESTED = np.arange(IMAGES, IMAGES + 10)
IS_OUTLIER = np.arange(IMAGES) >= NORMALS


def features() -> NDArray[np.float64]:
    """Return features of an archive and of ten images more; outliers are far off at one position each."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(IMAGES + len(TESTED), GRID[0] * GRID[1], CHANNELS))
    for image in np.flatnonzero(IS_OUTLIER):
        values[image, rng.integers(values.shape[1])] += 4 * rng.normal(size=CHANNELS)
    return values


@pytest.fixture(scope="module")
def archive() -> Archive:
    values = features()
    products = np.empty((values.shape[1], len(values), len(values)))
    products_of(values, products)
    sketches = sketch(values[:IMAGES].reshape(IMAGES, *GRID, CHANNELS)[:, lattice(GRID[0])])
    return Archive(Gram(products, CHANNELS), np.arange(IMAGES), GRID, sketches)


@pytest.mark.parametrize("strategy", ["trim-once", "paire", "concentrate", "grow"])
def test_a_strategy_leaves_out_what_was_planted(archive: Archive, strategy: str) -> None:
    trimming = archive.clean(Method(strategy).config()).trimming
    assert not (trimming.clean & IS_OUTLIER).any()
    assert trimming.clean.sum() >= IMAGES // 10
    assert trimming.thresholds.shape == GRID


def test_grow_keeps_most_of_what_is_clean(archive: Archive) -> None:
    assert archive.clean(Method("grow").config()).trimming.clean[~IS_OUTLIER].mean() > 0.8


def test_without_trimming_everything_is_kept(archive: Archive) -> None:
    assert archive.clean(Method(NONE).config()).trimming.clean.all()


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_the_map_is_that_of_the_production_kernels(archive: Archive, strategy: str) -> None:
    config, clean, values = Method(strategy).config(), ~IS_OUTLIER, features()
    found = archive.map_distances(clean, TESTED, config)
    assert found.shape == (len(TESTED), *GRID)
    for position in range(values.shape[1]):
        kept = values[:IMAGES][clean][:, position]
        expected = fit_dual(kept, GaussianConfig(), estimator_of(config)).gaussian.mahalanobis(values[TESTED, position])
        if strategy == "grow":
            expected *= neighbour_distances(values[TESTED, position], kept)
        row, column = divmod(position, GRID[1])
        np.testing.assert_allclose(found[:, row, column], expected, rtol=1e-6)


def test_a_robust_score_and_its_distances_belong_together(archive: Archive) -> None:
    passes = _Passes(archive, parse_config(None, ["trim.strategy=concentrate"]))
    everything = np.ones(IMAGES, bool)
    scores = passes.score_pass(everything, 1, smoothing=None)
    limit = float(np.median(scores))
    below = (passes.distances < passes.thresholds_at(limit)).all(axis=(1, 2))
    assert (below == (scores < limit)).all()


def test_the_distances_of_a_cleaning_are_those_that_decided(archive: Archive) -> None:
    cleaning = archive.clean(Method("paire").config())
    passing = (cleaning.distances < cleaning.trimming.thresholds).all(axis=(1, 2))
    assert (passing == cleaning.trimming.clean).all()


def test_scores_are_those_of_a_pass_that_leaves_one_out(archive: Archive) -> None:
    config = Method("grow").config()
    found = archive.scores(~IS_OUTLIER, config, estimator="relative-ridge", smoothing=3)
    passes = _Passes(archive, config)
    np.testing.assert_array_equal(found, passes.score_pass(~IS_OUTLIER, 1, smoothing=3, neighbours=True))
