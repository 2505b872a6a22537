"""Passes over a group of more images than channels: moments kept from one to the next, and what stays the same."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import workers.passes.kept_moments
from pipeline.cluster.progress import Reporter
from pipeline.judging.group import Group
from pipeline.judging.passes import MOMENTS
from pipeline.judging.statistics import GroupStatistics
from schemas.names import storage_name
from schemas.records.run import DISTANCE
from schemas.stores.features import FeatureGeometry
from tests.support.archives import tiny_config
from tests.support.watched import tasks_submitted
from workers.gaussian.neighbours import choose_references
from workers.map.reader import GaussianMap, MapDescription
from workers.map.writer import complete_map, create_map, write_thresholds
from workers.storage.directory import Directory

GROUP = "line 1"
IMAGES, CHANNELS = 300, 6
GEOMETRY = FeatureGeometry(
    rows=2, columns=2, channels=CHANNELS, grid_rows=2, grid_columns=2, pool_kernel=1, pool_stride=1
)
NEVER = 10**9

Mask = NDArray[np.bool_]
Open = Callable[..., GroupStatistics]


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return tasks_submitted(monkeypatch)


@pytest.fixture
def statistics(tmp_path: Path, submitted: Counter[str], monkeypatch: pytest.MonkeyPatch) -> Open:
    """Return what opens the passes over the same features; ``storage`` images cost as much as keeping moments."""
    rng = np.random.default_rng(0)
    values = rng.normal(5, 1, GEOMETRY.array_shape(IMAGES)).astype(np.float16)
    features = Directory.at(tmp_path / "features")
    features.zarr_group("", "w").create_array(storage_name(GROUP), data=values, chunks=(64, 1, 2, CHANNELS))

    def opened(name: str, *settings: str, storage: int = 5) -> GroupStatistics:
        monkeypatch.setattr(workers.passes.kept_moments, "STORAGE_IMAGES", storage)
        distances = Directory.at(tmp_path / name)
        distances.zarr_group("", "w")
        config = tiny_config("gaussian.segment_images=100", *settings)
        group = Group(GROUP, np.arange(IMAGES) != 7, features, GEOMETRY, config)
        return GroupStatistics(None, group, distances, Reporter())

    return opened


def clean(seed: int, removed: int) -> Mask:
    """Return images to fit, all that take part but some."""
    mask: Mask = np.arange(IMAGES) != 7
    mask[np.random.default_rng(seed).choice(IMAGES, removed, replace=False)] = False
    return mask


SEQUENCE = [clean(0, 0), clean(1, 30), clean(2, 40), clean(2, 40), clean(3, 200), clean(4, 20), clean(5, 35)]


def stored(folder: Path, name: str = DISTANCE) -> NDArray[np.float64]:
    return np.asarray(zarr.open_group(folder / storage_name(GROUP), mode="r")[name])


@pytest.mark.parametrize(
    "settings",
    [(), ("gaussian.estimator=ridge",), ("gaussian.estimator=oas",), ("gaussian.estimator=ledoit-wolf",)],
    ids=str,
)
def test_passes_with_kept_moments_find_what_passes_without_them_find(
    tmp_path: Path, statistics: Open, submitted: Counter[str], settings: tuple[str, ...]
) -> None:
    found: dict[str, list[tuple[NDArray[np.float64], ...]]] = {}
    for name, storage in (("kept", 5), ("anew", NEVER)):
        with statistics(name, *settings, storage=storage) as passes:
            found[name] = []
            for number, fitted in enumerate(SEQUENCE):
                if number % 2:
                    scores = passes.score_pass(fitted, number + 1, smoothing=1)
                    found[name].append((scores, stored(tmp_path / name)))
                else:
                    result = passes.run_pass(fitted, number + 1)
                    found[name].append((result.margin, result.thresholds, stored(tmp_path / name)))
        if "ledoit-wolf" in str(settings) or storage == NEVER:
            assert not submitted["update_row"]
        else:
            # Of the last six passes all but the one that fits few images, and the one after it.
            assert submitted.pop("update_row") == 4 * GEOMETRY.rows
    for kept, expected in zip(found["kept"], found["anew"], strict=True):
        for one, other in zip(kept, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9)


def test_the_same_sequence_gives_the_same_to_the_last_bit(tmp_path: Path, statistics: Open) -> None:
    for name in ("one", "two"):
        with statistics(name) as passes:
            for number, fitted in enumerate(SEQUENCE, start=2):
                passes.run_pass(fitted, number)
    np.testing.assert_array_equal(stored(tmp_path / "one"), stored(tmp_path / "two"))


def test_passes_over_neighbours_leave_the_kept_moments_as_they_are(
    tmp_path: Path, statistics: Open, submitted: Counter[str]
) -> None:
    found: list[tuple[NDArray[np.float64], ...]] = []
    for name, storage in (("kept", 5), ("again", NEVER)):
        with statistics(name, storage=storage) as passes:
            passes.run_pass(SEQUENCE[0], 1)
            submitted.clear()
            scores = passes.score_pass(SEQUENCE[1], 2, smoothing=1, neighbours=True)
            assert submitted["accumulate_segment"] == (0 if storage == 5 else 3 * GEOMETRY.rows)
            found.append((scores, stored(tmp_path / name)))
            before = submitted.copy()
            alone = passes.score_neighbours(SEQUENCE[0], 3)
            assert submitted - before == Counter(
                {"read_references": GEOMETRY.rows, "measure_segment": 3 * GEOMETRY.rows, "score_segment": 3}
            )
            np.testing.assert_array_equal(stored(tmp_path / name), found[-1][1])
            found.append((alone, passes.score_pass(SEQUENCE[2], 4, smoothing=1), stored(tmp_path / name)))
    for one, other in zip(found[:2], found[2:], strict=True):
        for kept, expected in zip(one, other, strict=True):
            np.testing.assert_allclose(kept, expected, rtol=1e-9)


def test_scores_by_neighbours_are_the_largest_log_distances_to_the_second_nearest_reference(
    statistics: Open, tmp_path: Path
) -> None:
    values = np.asarray(zarr.open_group(tmp_path / "features", mode="r")[storage_name(GROUP)]).astype(np.float64)
    chosen = choose_references(SEQUENCE[1])
    expected = np.zeros(GEOMETRY.array_shape(IMAGES)[:3])
    for row, column in np.ndindex(expected.shape[1:]):
        here = values[:, row, column]
        apart = np.linalg.norm(here[:, np.newaxis] - here[chosen], axis=2)
        apart[np.flatnonzero(chosen), np.arange(int(chosen.sum()))] = np.inf
        expected[:, row, column] = np.sort(apart, axis=1)[:, 1]
    with statistics("near") as passes:
        alone = passes.score_neighbours(SEQUENCE[1], 1)
        passes.score_pass(SEQUENCE[1], 2, smoothing=1)
        gaussian = stored(tmp_path / "near")
        scores = passes.score_pass(SEQUENCE[1], 3, smoothing=1, neighbours=True)
    assert np.isnan(alone[7])
    measured = np.arange(IMAGES) != 7
    np.testing.assert_allclose(alone[measured], np.log(expected.max(axis=(1, 2)))[measured], rtol=1e-9)
    np.testing.assert_allclose(stored(tmp_path / "near")[measured], (gaussian * expected)[measured], rtol=1e-9)
    np.testing.assert_allclose(scores[measured], np.log((gaussian * expected).max(axis=(1, 2)))[measured], rtol=1e-9)


def test_moments_are_kept_until_the_passes_are_closed(tmp_path: Path, statistics: Open) -> None:
    group = tmp_path / "kept" / storage_name(GROUP)
    with statistics("kept") as passes:
        assert not (group / MOMENTS).exists()
        passes.run_pass(SEQUENCE[0], 1)
        assert stored(tmp_path / "kept", MOMENTS).any()
    assert (group / DISTANCE).exists()
    assert not (group / MOMENTS).exists()


def test_a_group_too_small_for_any_update_keeps_no_moments(tmp_path: Path, statistics: Open) -> None:
    with statistics("few", storage=IMAGES) as passes:
        passes.run_pass(SEQUENCE[0], 1)
        assert not (tmp_path / "few" / storage_name(GROUP) / MOMENTS).exists()


def test_what_is_published_is_fitted_anew(tmp_path: Path, statistics: Open) -> None:
    factors = []
    for name, storage in (("kept", 5), ("anew", NEVER)):
        model = Directory.at(tmp_path / f"model of {name}")
        config = tiny_config()
        create_map(model, MapDescription("run", "digest", config.features, "weights", GEOMETRY, "ridge"))
        with statistics(name, storage=storage) as passes:
            for number, fitted in enumerate(SEQUENCE[:3], start=2):
                passes.run_pass(fitted, number)
            passes.publish(SEQUENCE[2], model, neighbours=True)
        root = zarr.open_group(tmp_path / f"model of {name}" / storage_name(GROUP), mode="r")
        factors.append({key: np.asarray(array) for key, array in root.arrays()})
    assert "reference" in factors[0]
    for key, values in factors[0].items():
        np.testing.assert_array_equal(values, factors[1][key], err_msg=key)


@pytest.mark.parametrize(("estimator", "tolerance"), [("ridge", 1e-6), ("relative-ridge", 3e-4)])
def test_the_map_has_the_reference_images_that_its_distances_are_measured_to(
    tmp_path: Path, statistics: Open, estimator: str, tolerance: float
) -> None:
    model, config = Directory.at(tmp_path / "run" / "model"), tiny_config()
    create_map(model, MapDescription("run", "digest", config.features, "weights", GEOMETRY, estimator))
    fitted = SEQUENCE[1]
    with statistics("one", f"gaussian.estimator={estimator}") as passes:
        checksums = passes.publish(fitted, model, neighbours=True)
        scores = passes.score_pass(fitted, 1, smoothing=1, neighbours=True)
    write_thresholds(model, GROUP, np.ones(GEOMETRY.array_shape(1)[1:3]), checksums=checksums, smoothing=1)
    complete_map(model)
    opened = GaussianMap.open(model.url, published_only=False)
    assert opened.measures_neighbours(GROUP)
    values = np.asarray(zarr.open_group(tmp_path / "features", mode="r")[storage_name(GROUP)])
    chosen = choose_references(fitted)
    near = np.asarray(zarr.open_group(model.url, mode="r")[f"{storage_name(GROUP)}/reference"])
    np.testing.assert_array_equal(near, np.moveaxis(values[chosen], 0, 2))
    # Images outside the fit have the distances of the pass, but for its covariance, which is that of one image less.
    # A ridge relative to the spread changes with it a little.
    outside = ~fitted & (np.arange(IMAGES) != 7)
    found = np.log(opened.distances(GROUP, values[outside]).max(axis=(1, 2)))
    count = int(fitted.sum())
    np.testing.assert_allclose(found, scores[outside] + 0.5 * np.log((count - 1) / (count - 2)), rtol=tolerance)
