"""The strategies beyond the paper, as pure loops over scores and from end to end on images."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from numpy.typing import NDArray

from pipeline.commands.clean import clean
from pipeline.commands.recut import recut
from pipeline.judging.strategies.base import AMBIGUOUS, MAX_ITERATIONS, MIN_START, UNCHANGED
from pipeline.judging.strategies.concentrate import concentrate
from pipeline.judging.strategies.grow import CONCENTRATIONS, Grow, grow
from schemas.config import GaussianConfig, TrimConfig, parse_config
from schemas.tables.manifest import CLEAN
from tests.support.archives import part_pixels, png, tiny_config, write_parts
from workers.gaussian.fit import fit_dual, fit_primal, uses_dual
from workers.gaussian.moments import accumulate
from workers.gaussian.neighbours import choose_references, neighbour_distances
from workers.map.reader import GaussianMap
from workers.verdict.calibration import fit_score_law
from workers.verdict.smoothing import SMALLEST, smooth

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
        self.passes: list[Mask] = []  # what each was fitted on
        self.is_bad = rng.permutation(images) < round(noise * images)
        for index in np.flatnonzero(self.is_bad):
            row, column = rng.integers(0, rows - 2), rng.integers(0, columns - 2)
            direction = rng.normal(size=channels) @ mixing
            self.features[index, row : row + 3, column : column + 3] += 4.0 * direction

    def distances(self, fitted: Mask, *, fits: bool = True, neighbours: bool = True) -> NDArray[np.float64]:
        """Return the distances (images, rows, columns): of the fit, to neighbours, or their product."""
        references = choose_references(fitted)
        own = np.where(references, np.cumsum(references) - 1, -1)
        distances = np.ones(self.features.shape[:3])
        for row, column in np.ndindex(GRID):
            here = self.features[:, row, column]
            if fits:
                distances[:, row, column] *= leave_one_out(here, fitted)
            if neighbours:
                distances[:, row, column] *= neighbour_distances(here, here[references], own)
        return distances

    def score_pass(
        self, fitted: Mask, number: int, *, smoothing: int | None, neighbours: bool = False
    ) -> NDArray[np.float64]:
        """Return each image's largest smoothed log distance, fitted ones left out of their fit."""
        assert smoothing is not None
        self.passes.append(fitted.copy())
        # The grid is small: squares of 5 x 5 positions would be all of it.
        distances = smooth(self.distances(fitted, neighbours=neighbours), min(smoothing, 3))
        scores: NDArray[np.float64] = np.log(distances.max(axis=(1, 2), initial=SMALLEST))
        return scores

    def score_neighbours(self, fitted: Mask, number: int) -> NDArray[np.float64]:
        """Return each image's largest log distance to its neighbours."""
        self.passes.append(fitted.copy())
        scores: NDArray[np.float64] = np.log(self.distances(fitted, fits=False).max(axis=(1, 2), initial=SMALLEST))
        return scores

    def deviate(self, fitted: Mask, number: int) -> NDArray[np.float64]:
        return self.score_pass(fitted, number, smoothing=3)


class Scripted:
    """Scores that are the same in every pass, whatever is fitted."""

    def __init__(self, scores: NDArray[np.float64], near: NDArray[np.float64] | None = None) -> None:
        self.scores, self.near = scores, scores if near is None else near
        self.passes: list[Mask] = []

    def score_pass(
        self, fitted: Mask, number: int, *, smoothing: int | None, neighbours: bool = False
    ) -> NDArray[np.float64]:
        self.passes.append(fitted)
        return self.scores

    def score_neighbours(self, fitted: Mask, number: int) -> NDArray[np.float64]:
        return self.near


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
    trimming = grow(group, np.ones(images, bool), TrimConfig(strategy="grow"), grid=GRID)
    assert trimming.clean[~group.is_bad].mean() >= 0.95
    assert trimming.clean[group.is_bad].sum() <= 0.005 * trimming.clean.sum()


def test_every_clean_image_is_below_the_threshold_and_no_other() -> None:
    group = Synthetic(100, 20, 0.1)
    trimming = grow(group, np.ones(100, bool), TrimConfig(strategy="grow"), grid=GRID)
    scores = group.score_pass(trimming.fitted, 0, smoothing=trimming.smoothing, neighbours=True)
    np.testing.assert_array_equal(trimming.clean, scores < np.log(trimming.thresholds[0, 0]))
    assert (trimming.thresholds == trimming.thresholds[0, 0]).all()
    np.testing.assert_array_equal(trimming.history[-1], trimming.clean)


def test_a_higher_rate_of_false_rejects_keeps_fewer() -> None:
    group, everything = Synthetic(200, 20, 0.1), np.ones(200, bool)
    kept = [
        int(grow(group, everything, TrimConfig(target_false_reject=rate), grid=GRID).clean.sum())
        for rate in (0.01, 0.1, 0.3)
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[-1]


def test_images_that_take_no_part_are_never_clean() -> None:
    group, measured = Synthetic(60, 12, 0.1), np.arange(60) % 5 != 0
    for trimming in (
        grow(group, measured, TrimConfig(), grid=GRID),
        concentrate(group.deviate, lambda value: np.full(GRID, value), measured, TrimConfig(), grid=GRID),
    ):
        assert not trimming.clean[~measured].any()


@pytest.mark.parametrize("images", [3, 4, 5, 9])
def test_a_tiny_group_is_no_error(images: int) -> None:
    group = Synthetic(images, 12, 0.0)
    assert grow(group, np.ones(images, bool), TrimConfig(), grid=GRID).clean.any()


@pytest.mark.parametrize("equal", [20, 15, 11])
def test_equal_scores_stay_together(equal: int) -> None:
    scores = np.concatenate([np.zeros(equal), np.linspace(5, 9, 20 - equal)])
    trimming = grow(Scripted(scores), np.ones(20, bool), TrimConfig(), grid=GRID)
    np.testing.assert_array_equal(trimming.clean, scores == 0)
    assert len(trimming.iterations) <= 5


@pytest.mark.parametrize("equal", [20, 11])
def test_images_of_the_same_pixels_are_kept_though_nothing_lies_between_their_scores(
    tmp_path: Path, equal: int
) -> None:
    (tmp_path / "archive").mkdir()
    for number in range(20):
        pixels = part_pixels(max(0, number - equal + 1))
        # Other bytes behind the picture: not a copy of the file.
        (tmp_path / "archive" / f"{number:02}.png").write_bytes(png(pixels) + bytes(number))
    settings = "trim.strategy=grow", "guard.accept_untrustworthy=true"
    clean(str(tmp_path / "archive"), str(tmp_path / "run"), tiny_config(*settings))
    manifest = pd.read_parquet(tmp_path / "run" / "manifest.parquet").sort_values("file_name")
    assert manifest["decision"].eq(CLEAN).to_numpy()[:equal].all()


def test_the_better_half_is_that_of_the_images_that_can_be_fitted() -> None:
    # All near-duplicates have better scores than the others: a half of these would be of four different images.
    scores = np.concatenate([np.zeros(10), np.linspace(1.0, 1.1, 3), np.linspace(30, 40, 7)])
    fitted_for = np.concatenate([np.zeros(10, int), np.arange(10, 20)])
    trimming = grow(Scripted(scores), np.ones(20, bool), TrimConfig(), grid=GRID, fitted_for=fitted_for)
    assert trimming.published.sum() >= MIN_START
    assert trimming.clean[:10].all()


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
    scores = np.concatenate([rng.gumbel(size=100), rng.normal(5.5, 3.25, 80)])
    trimming = grow(Scripted(scores), np.ones(180, bool), TrimConfig(strategy="grow"), grid=GRID)
    assert trimming.stop_reason == AMBIGUOUS
    assert trimming.clean.sum() == 90
    assert scores[trimming.clean].max() < np.log(trimming.thresholds[0, 0]) < scores[~trimming.clean].min()
    assert trimming.purity is not None
    assert trimming.purity.lower < 0.8


def test_anomalies_right_at_the_threshold_lower_it() -> None:
    rng = np.random.default_rng(6)
    good = rng.gumbel(size=300)
    alone = grow(Scripted(good), np.ones(300, bool), TrimConfig(), grid=GRID)
    scores = np.concatenate([good, rng.normal(4.0, 1.0, 60)])
    trimming = grow(Scripted(scores), np.ones(360, bool), TrimConfig(), grid=GRID)
    assert trimming.stop_reason == UNCHANGED
    assert trimming.thresholds[0, 0] < alone.thresholds[0, 0]
    assert trimming.clean[:300].mean() > 0.7
    assert trimming.clean[300:].sum() <= 0.03 * trimming.clean.sum()


def test_bad_scores_beyond_a_gap_leave_the_boundary_clear() -> None:
    scores = np.concatenate([np.random.default_rng(4).gumbel(size=160), np.linspace(10, 20, 40)])
    trimming = grow(Scripted(scores), np.ones(200, bool), TrimConfig(strategy="grow"), grid=GRID)
    assert trimming.stop_reason == UNCHANGED
    assert trimming.clean[:160].sum() >= 155
    assert not trimming.clean[160:].any()


def planted(kind: int, strength: float, seed: int) -> tuple[Synthetic, Mask]:
    """Return a clean group where ``kind`` images are alike at some positions and apart from the rest, and which."""
    group, rng = Synthetic(160, 40, 0.0, seed=seed), np.random.default_rng(seed + 100)
    is_alike: Mask = rng.permutation(160) < kind
    difference = strength * rng.normal(size=40)
    group.features[is_alike, 1:4, 2:5] = 0.8 * group.features[is_alike, 1:4, 2:5] + difference
    return group, is_alike


@pytest.mark.parametrize(("kind", "strength", "seed"), [(3, 1.25, 2), (6, 1.25, 2), (6, 1.25, 0), (6, 1.0, 1)])
def test_a_family_of_rare_good_variants_is_admitted(kind: int, strength: float, seed: int) -> None:
    group, is_alike = planted(kind, strength, seed)
    # It lies beyond the threshold of a fit without it.
    apart = group.score_pass(~is_alike, 1, smoothing=1, neighbours=True)
    assert (apart[is_alike] > fit_score_law(apart[~is_alike]).threshold(TrimConfig().target_false_reject)).all()
    trimming = grow(group, np.ones(160, bool), TrimConfig(), grid=GRID)
    assert trimming.clean[is_alike].all()
    assert trimming.clean.mean() >= 0.95


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize(("strength", "seed"), [(1.25, 0), (1.25, 2), (4.0, 0), (4.0, 1), (4.0, 2)])
def test_neither_one_defect_nor_two_of_a_kind_support_themselves(kind: int, strength: float, seed: int) -> None:
    group, is_alike = planted(kind, strength, seed)
    trimming = grow(group, np.ones(160, bool), TrimConfig(), grid=GRID)
    assert not trimming.clean[is_alike].any()
    assert trimming.clean[~is_alike].mean() >= 0.95
    assert not trimming.fitted[is_alike].any()


def test_far_anomalies_are_rejected_at_every_share_below_a_half() -> None:
    for share in (0.05, 0.2, 0.4):
        group = Synthetic(200, 20, share, seed=3)
        trimming = grow(group, np.ones(200, bool), TrimConfig(), grid=GRID)
        assert not trimming.clean[group.is_bad].any()
        assert trimming.clean[~group.is_bad].mean() >= 0.95
        assert trimming.purity is not None
        assert trimming.purity.estimate >= 0.99


class Masking:
    """Good images, a family that lies within the law once it is fitted, and anomalies that may come near with it."""

    def __init__(self, *, masks: bool) -> None:
        rng = np.random.default_rng(8)
        self.is_family, self.is_bad = np.arange(240) >= 234, (np.arange(240) >= 200) & (np.arange(240) < 234)
        self.without = rng.gumbel(size=240)
        self.within = self.without.copy()
        self.without[self.is_family] = rng.uniform(5.0, 6.0, 6)
        self.without[self.is_bad] = self.within[self.is_bad] = rng.normal(20.0, 1.0, 34)
        if masks:
            self.within[self.is_bad] = rng.normal(4.0, 0.8, 34)
        self.near = np.where(self.is_bad, 10.0, rng.gumbel(size=240) / 5)

    def score_pass(
        self, fitted: Mask, number: int, *, smoothing: int | None, neighbours: bool = False
    ) -> NDArray[np.float64]:
        # The first fit, on all images, has the family as well.
        return self.within if (fitted & self.is_family).any() and number > 1 else self.without

    def score_neighbours(self, fitted: Mask, number: int) -> NDArray[np.float64]:
        return self.near


@pytest.mark.parametrize("masks", [False, True])
def test_a_family_is_taken_back_where_anomalies_would_come_with_it(masks: bool) -> None:
    group = Masking(masks=masks)
    trimming = grow(group, np.ones(240, bool), TrimConfig(), grid=GRID)
    is_good = ~group.is_bad & ~group.is_family
    assert trimming.clean[is_good].mean() >= 0.95
    assert not trimming.clean[group.is_bad].any()
    assert trimming.clean[group.is_family].all() != masks
    assert trimming.clean[group.is_family].any() != masks
    # It was admitted, and then taken back.
    assert (trimming.history[:, group.is_family].sum(axis=1) > 0).any()
    assert trimming.fitted[group.is_family].any() != masks


class Restless:
    """Scores that are others in every pass."""

    def __init__(self, seed: int) -> None:
        self.rng, self.scored, self.neighbours = np.random.default_rng(seed), 0, 0

    def score_pass(
        self, fitted: Mask, number: int, *, smoothing: int | None, neighbours: bool = False
    ) -> NDArray[np.float64]:
        self.scored += 1
        return self.rng.gumbel(size=len(fitted))

    def score_neighbours(self, fitted: Mask, number: int) -> NDArray[np.float64]:
        self.neighbours += 1
        return self.rng.gumbel(size=len(fitted))


@pytest.mark.parametrize("most", [1, 2, 5])
def test_the_number_of_passes_is_bounded_by_the_iterations(most: int) -> None:
    reasons = set()
    for seed in range(20):
        passes = Restless(seed)
        trimming = grow(passes, np.ones(300, bool), TrimConfig(max_iterations=most), grid=GRID)
        # All images and four halves; growth; families, what is pruned of them, and the way back.
        assert passes.scored <= 1 + (1 + CONCENTRATIONS) + most + 2 * most + 1
        assert passes.scored <= Grow().forecast.iterates * most + Grow().forecast.besides
        assert passes.neighbours <= most
        assert len(trimming.iterations) == passes.scored
        reasons.add(trimming.stop_reason)
    assert MAX_ITERATIONS in reasons


def test_a_pass_admits_a_twentieth_of_the_images_at_most_and_the_best_first() -> None:
    scores = np.random.default_rng(1).gumbel(size=200)
    trimming = grow(Scripted(scores), np.ones(200, bool), TrimConfig(), grid=GRID)
    grown = [step for step in trimming.iterations[1:-1] if step.n_added]
    assert len(grown) >= 9
    assert all(step.n_added <= 10 for step in grown)
    for kept in trimming.history:
        assert scores[kept].max() <= scores[~kept].min(initial=np.inf)


def test_the_same_scores_give_the_same_clean_set_whatever_the_order_of_the_images() -> None:
    scores = np.random.default_rng(2).gumbel(size=100)
    scores[:10] += 9.0
    order = np.random.default_rng(3).permutation(100)
    one, other = (grow(Scripted(each), np.ones(100, bool), TrimConfig(), grid=GRID) for each in (scores, scores[order]))
    np.testing.assert_array_equal(one.clean[order], other.clean)
    np.testing.assert_array_equal(one.thresholds, other.thresholds)


def test_what_is_published_is_the_clean_set_without_near_duplicates() -> None:
    scores = np.random.default_rng(5).gumbel(size=60)
    fitted_for = np.arange(60)
    fitted_for[40:50] = 7
    scripted = Scripted(scores)
    trimming = grow(scripted, np.ones(60, bool), TrimConfig(), grid=GRID, fitted_for=fitted_for)
    assert not any(fitted[40:50].any() for fitted in scripted.passes)
    np.testing.assert_array_equal(trimming.published, trimming.clean & (fitted_for == np.arange(60)))
    # A near-duplicate is judged no better than the image that is fitted for it.
    worst = np.maximum(scores[40:50], scores[7])
    np.testing.assert_array_equal(trimming.clean[40:50], worst < np.log(trimming.thresholds[0, 0]))


def test_the_map_is_of_the_clean_images_and_judges_new_ones_by_their_neighbours_too(tmp_path: Path) -> None:
    write_parts(tmp_path / "archive", 60, 2)
    clean(str(tmp_path / "archive"), str(tmp_path / "run"), tiny_config("trim.strategy=grow"))
    manifest = pd.read_parquet(tmp_path / "run" / "manifest.parquet").sort_values("file_name")
    is_kept = ((manifest["decision"] == CLEAN) & manifest["near_duplicate_of"].isna()).to_numpy()
    published = GaussianMap.open(str(tmp_path / "run" / "model"))
    kept, channels = int(is_kept.sum()), published.description.geometry.channels
    assert published.measures_neighbours("all")
    factor, references = (
        zarr.open_array(tmp_path / "run" / "model" / "all" / name, mode="r") for name in ("factor", "reference")
    )
    assert factor.shape[2] == (kept - 1 if uses_dual(kept, channels) else channels)
    features = np.asarray(zarr.open_array(tmp_path / "run" / "features" / "all", mode="r")[:])
    np.testing.assert_array_equal(np.asarray(references[:]), np.moveaxis(features[is_kept], 0, 2))
    distances, thresholds = published.distances("all", features), published.thresholds("all")
    passes: Mask = np.all(distances < thresholds, axis=(1, 2))
    is_bad = ~manifest["file_name"].str.startswith("good").to_numpy()
    assert not passes[is_bad].any()
    assert passes[is_kept].mean() >= 0.95
