"""The strategies beyond the paper, as pure loops over scores and from end to end on images."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from numpy.typing import NDArray

from pipeline.commands.clean import clean
from pipeline.commands.recut import recut
from pipeline.judging.strategies.base import AMBIGUOUS, UNCHANGED
from pipeline.judging.strategies.concentrate import concentrate
from pipeline.judging.strategies.grow import grow
from schemas.config import GaussianConfig, TrimConfig, parse_config
from schemas.tables.manifest import CLEAN
from tests.support.archives import tiny_config, write_parts
from workers.gaussian.fit import fit_dual, fit_primal, uses_dual
from workers.gaussian.moments import accumulate
from workers.map.reader import GaussianMap
from workers.verdict.smoothing import smooth

GRID = (6, 6)
Mask = NDArray[np.bool_]


class Synthetic:
    """Patch features of a group with planted anomalies, scored as a run scores them."""

    def __init__(self, images: int, channels: int, noise: float, *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        rows, columns = GRID
        mixing = rng.normal(size=(channels, channels)) / np.sqrt(channels)
        shared = 0.5 * rng.normal(size=(images, 1, 1, channels))
        self.features = (rng.normal(size=(images, rows, columns, channels)) + shared) @ mixing
        self.is_bad = rng.permutation(images) < round(noise * images)
        for index in np.flatnonzero(self.is_bad):
            row, column = rng.integers(0, rows - 2), rng.integers(0, columns - 2)
            direction = rng.normal(size=channels) @ mixing
            self.features[index, row : row + 3, column : column + 3] += 3.0 * direction

    def score(self, fitted: Mask, number: int, *, smoothing: int, nearest: float = 1.0) -> NDArray[np.float64]:
        """Return each image's largest smoothed log distance, fitted ones left out of their fit."""
        flat = self.features.reshape(len(self.features), -1, self.features.shape[-1])
        distances = np.empty(flat.shape[:2])
        for position in range(flat.shape[1]):
            here = flat[:, position]
            measured = leave_one_out(here, fitted)
            if nearest < 1.0:
                rows = np.flatnonzero(fitted)
                chosen = np.zeros_like(fitted)
                count = max(3, round(nearest * len(rows)))
                chosen[rows[np.argsort(measured[rows], kind="stable")[:count]]] = True
                measured = leave_one_out(here, chosen)
            distances[:, position] = measured
        # The grid is small: squares of 5 x 5 positions would be all of it.
        side = min(smoothing, 3)
        scores: NDArray[np.float64] = np.log(smooth(distances.reshape(-1, *GRID), side).max(axis=(1, 2)))
        return scores

    def deviate(self, fitted: Mask, number: int) -> NDArray[np.float64]:
        return self.score(fitted, number, smoothing=3)


def leave_one_out(samples: NDArray[np.float64], fitted: Mask) -> NDArray[np.float64]:
    config, chosen = GaussianConfig(), samples[fitted]
    gaussian = (
        fit_dual(chosen, config, "relative-ridge", leaves_one_out=True)
        if uses_dual(*chosen.shape)
        else fit_primal(accumulate(chosen[:, np.newaxis]), config, "relative-ridge", leaves_one_out=True)[0]
    )
    return gaussian.leave_one_out(samples, fitted)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(("images", "channels"), [(120, 40), (1500, 12)])
def test_nearly_every_clean_image_is_kept_and_no_bad_one_at_any_noise(images: int, channels: int, noise: float) -> None:
    group = Synthetic(images, channels, noise)
    trimming = grow(group.score, np.ones(images, bool), TrimConfig(strategy="grow"), grid=GRID)
    assert trimming.clean[~group.is_bad].mean() >= 0.95
    assert trimming.clean[group.is_bad].sum() <= 0.005 * trimming.clean.sum()


def test_every_clean_image_is_below_the_threshold_and_no_other() -> None:
    group = Synthetic(100, 20, 0.1)
    trimming = grow(group.score, np.ones(100, bool), TrimConfig(strategy="grow"), grid=GRID)
    scores = group.score(trimming.fitted, 0, smoothing=trimming.smoothing)
    np.testing.assert_array_equal(trimming.clean, scores < np.log(trimming.thresholds[0, 0]))
    assert (trimming.thresholds == trimming.thresholds[0, 0]).all()
    np.testing.assert_array_equal(trimming.history[-1], trimming.clean)


def test_a_higher_rate_of_false_rejects_keeps_fewer() -> None:
    group, everything = Synthetic(200, 20, 0.1), np.ones(200, bool)
    kept = [
        int(grow(group.score, everything, TrimConfig(target_false_reject=rate), grid=GRID).clean.sum())
        for rate in (0.01, 0.1, 0.3)
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1]


def test_images_that_take_no_part_are_never_clean() -> None:
    group, measured = Synthetic(60, 12, 0.1), np.arange(60) % 5 != 0
    for trimming in (
        grow(group.score, measured, TrimConfig(), grid=GRID),
        concentrate(group.deviate, lambda value: np.full(GRID, value), measured, TrimConfig(), grid=GRID),
    ):
        assert not trimming.clean[~measured].any()


@pytest.mark.parametrize("images", [3, 4, 5, 9])
def test_a_tiny_group_is_no_error(images: int) -> None:
    group = Synthetic(images, 12, 0.0)
    assert grow(group.score, np.ones(images, bool), TrimConfig(), grid=GRID).clean.any()


def test_equal_scores_keep_a_half_at_the_start_and_end() -> None:
    trimming = grow(lambda *_, **__: np.zeros(20), np.ones(20, bool), TrimConfig(), grid=GRID)
    assert len(trimming.clean) == 20
    assert len(trimming.iterations) <= 3


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return a run over 44 images, to be judged anew by each strategy, and the names of those with a defect."""
    folder = tmp_path_factory.mktemp("grow")
    bad = write_parts(folder / "archive", good=40, defective=4)
    clean(str(folder / "archive"), str(folder / "run"), tiny_config("trim.strategy=none"))
    return folder / "run", bad


def judged_anew(run: Path, *settings: str) -> Path:
    """Return the run's images judged by other options, as a whole run of them would: see test_recut."""
    return Path(recut(str(run), parse_config(None, (*settings, "guard.accept_untrustworthy=true"))).run)


@pytest.mark.parametrize("strategy", ["grow", "concentrate", "none", "trim-once"])
def test_the_manifest_follows_from_the_stored_distances(cleaned: tuple[Path, list[str]], strategy: str) -> None:
    run, bad = cleaned
    # Concentration takes many passes to settle; any number of them will do here.
    few = ["trim.max_iterations=3"] if strategy == "concentrate" else []
    version = judged_anew(run, f"trim.strategy={strategy}", *few)
    manifest = pd.read_parquet(version / "manifest.parquet").sort_values("file_name")
    store = zarr.open_group(str(version / "distances" / "all"), mode="r")
    distance, threshold = (np.asarray(store[name]) for name in ("distance", "threshold"))
    margin = (smooth(distance, int(str(store.attrs["smoothing"]))) / threshold).max(axis=(1, 2))
    margin = np.fmax(margin, margin[np.asarray(store["representative"])])
    np.testing.assert_allclose(manifest["margin"], margin, rtol=1e-9)
    is_clean = (manifest["decision"] == CLEAN).to_numpy()
    last = pd.read_parquet(version / "iterations.parquet").iloc[-1]
    expected = margin < 1
    if last["floor_applied"]:
        expected = np.zeros(len(margin), bool)
        expected[np.argsort(margin, kind="stable")[: last["n_clean"]]] = True
    np.testing.assert_array_equal(is_clean, expected)
    assert is_clean.all() == (strategy == "none")
    if strategy == "grow":
        assert not manifest.loc[manifest["file_name"].isin(bad), "decision"].eq(CLEAN).any()
        assert is_clean.sum() >= 0.9 * 40


@pytest.mark.parametrize("estimator", ["oas", "ledoit-wolf", "relative-ridge"])
def test_an_estimator_is_part_of_the_published_map(
    cleaned: tuple[Path, list[str]], tmp_path: Path, estimator: str
) -> None:
    run, _ = cleaned
    version = judged_anew(run, f"gaussian.estimator={estimator}", "trim.strategy=none", "gaussian.segment_images=8")
    root = zarr.open_group(str(version / "model"), mode="r")
    assert root.attrs["estimator"] == estimator
    features = np.asarray(zarr.open_array(run / "features" / "all", mode="r")[:])
    distances = GaussianMap.open(version / "model").distances("all", features)
    stored = np.asarray(zarr.open_array(version / "distances" / "all" / "distance", mode="r")[:])
    # Fitted on everything and measured under the same fit.
    np.testing.assert_allclose(distances, stored, rtol=1e-9)
    manifest = pd.read_parquet(version / "manifest.parquet").sort_values("file_name")
    np.testing.assert_allclose(manifest["anomaly_score"], stored.max(axis=(1, 2)))


def test_without_a_boundary_only_the_better_half_is_kept() -> None:
    # Bad scores at all heights: wherever the threshold lies, some are just above it and some just below.
    rng = np.random.default_rng(4)
    scores = np.concatenate([rng.gumbel(size=160), np.linspace(0, 10, 40)])
    trimming = grow(lambda *_, **__: scores, np.ones(200, bool), TrimConfig(strategy="grow"), grid=GRID)
    assert (trimming.stop_reason, trimming.smoothing) == (AMBIGUOUS, 1)
    assert trimming.clean.sum() == 100
    assert scores[trimming.clean].max() < np.log(trimming.thresholds[0, 0]) < scores[~trimming.clean].min()


def test_bad_scores_beyond_a_gap_leave_the_boundary_clear() -> None:
    scores = np.concatenate([np.random.default_rng(4).gumbel(size=160), np.linspace(10, 20, 40)])
    trimming = grow(lambda *_, **__: scores, np.ones(200, bool), TrimConfig(strategy="grow"), grid=GRID)
    assert trimming.stop_reason == UNCHANGED
    assert trimming.clean[:160].sum() >= 155
    assert not trimming.clean[160:].any()


def test_a_kept_defect_hardly_touches_the_map() -> None:
    # Two defects of one kind support each other at one position, and so may pass for clean.
    rng = np.random.default_rng(5)
    features, everything = rng.normal(size=(100, 12)), np.ones(100, bool)
    defect = 4.0 * rng.normal(size=12)
    features[:2] += defect
    trimming = grow(lambda *_, **__: rng.gumbel(size=100), everything, TrimConfig(strategy="grow"), grid=GRID)
    assert trimming.nearest == 1.0 - TrimConfig().target_false_reject
    apart = leave_one_out(features, everything)
    nearest = np.isin(np.arange(100), np.argsort(apart)[: round(trimming.nearest * 100)])
    assert not nearest[:2].any()


def test_the_map_is_fitted_on_the_images_nearest_at_each_position(tmp_path: Path) -> None:
    write_parts(tmp_path / "archive", 60, 2)
    clean(str(tmp_path / "archive"), str(tmp_path / "run"), tiny_config("trim.strategy=grow"))
    manifest = pd.read_parquet(tmp_path / "run" / "manifest.parquet")
    kept = int(((manifest["decision"] == CLEAN) & manifest["near_duplicate_of"].isna()).sum())
    published = GaussianMap.open(str(tmp_path / "run" / "model"))
    fitted, channels = round(0.98 * kept), published.description.geometry.channels
    assert published.nearest("all") == 0.98
    assert fitted < kept
    factor = zarr.open_array(tmp_path / "run" / "model" / "all" / "factor", mode="r")
    assert factor.shape[2] == (fitted - 1 if uses_dual(fitted, channels) else channels)
