"""What the guard finds of stored features: the planted share, other kinds of images, nothing on good ones."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from pipeline.cluster.cluster import Cluster, open_cluster
from pipeline.cluster.progress import Reporter
from pipeline.judging.examination import Examination, examine_group, weigh_power, weigh_small_groups
from pipeline.judging.group import Group
from pipeline.judging.statistics import GroupStatistics
from pipeline.judging.strategies.base import UNCHANGED, Trimming
from schemas.arrays import Mask
from schemas.names import storage_name
from schemas.records.run import DISTANCES, FEATURES
from schemas.stores.features import FeatureGeometry
from tests.support.archives import tiny_config
from workers.guard.contamination import Contamination
from workers.guard.findings import Finding
from workers.storage.directory import Directory
from workers.trust.power import NOT_JUDGED, Power
from workers.verdict.purity import Purity

GEOMETRY = FeatureGeometry(3, 4, 24, 3, 4, 1, 1)
GROUP = "line 1"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(tiny_config().cluster) as opened:
        yield opened


def planted(good: int, bad: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Return features of good images followed by bad ones, which are far off at one position each."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(good + bad, GEOMETRY.rows, GEOMETRY.columns, GEOMETRY.channels))
    for image in range(good, good + bad):
        values[image, rng.integers(GEOMETRY.rows), rng.integers(GEOMETRY.columns)] += 12 * rng.normal(
            size=GEOMETRY.channels
        )
    return values.astype(np.float32)


def judged(clean: Mask, *, threshold: float = np.inf) -> Trimming:
    """Return how a group came out, as far as the guard looks at it."""
    thresholds = np.full((GEOMETRY.rows, GEOMETRY.columns), threshold)
    return Trimming(clean, clean, clean, np.zeros(len(clean), np.int16), thresholds, clean[np.newaxis], (), UNCHANGED)


def examined(
    cluster: Cluster,
    run: Path,
    values: NDArray[np.float32],
    clean: Mask,
    *settings: str,
    measured: Mask | None = None,
    threshold: float = np.inf,
) -> Examination:
    """Store features, measure them as a strategy would have, examine."""
    directory, config = Directory.at(run), tiny_config(*settings)
    store = (directory / FEATURES).zarr_group("", "w")
    store.create_array(storage_name(GROUP), data=values, chunks=GEOMETRY.chunk_shape(len(values)))
    measured = np.ones(len(values), bool) if measured is None else measured
    group = Group(GROUP, measured, directory / FEATURES, GEOMETRY, config)
    with (
        cluster.client.as_current(),
        GroupStatistics(cluster, group, directory / DISTANCES, Reporter()) as statistics,
    ):
        statistics.run_pass(clean, 1)
        before = distances(run)
        found = examine_group(cluster, group, judged(clean, threshold=threshold), statistics)
    np.testing.assert_array_equal(distances(run), before)
    assert {path.name for path in run.iterdir()} == {FEATURES, DISTANCES}
    assert [path.name for path in (run / DISTANCES / storage_name(GROUP)).iterdir() if path.is_dir()] == ["distance"]
    return found


def distances(run: Path) -> NDArray[np.float64]:
    array = zarr.open_array(run / DISTANCES / storage_name(GROUP) / "distance", mode="r")
    return np.asarray(array[:])


def conditions(examination: Examination) -> list[tuple[str, bool]]:
    return [(finding.condition, finding.stops) for finding in examination.findings]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
@pytest.mark.parametrize("cautious", [False, True])
def test_the_planted_share_is_in_the_interval_and_nothing_else_is_found(
    cluster: Cluster, tmp_path: Path, share: float, cautious: bool
) -> None:
    bad = round(120 * share)
    clean = np.arange(120) < (60 if cautious else 120 - bad)
    found = examined(cluster, tmp_path, planted(120 - bad, bad), clean, "trim.smoothing=1")
    assert found.contamination is not None
    assert found.contamination.lower <= share <= found.contamination.upper
    assert conditions(found) == []


def test_nearly_half_of_bad_images_stops(cluster: Cluster, tmp_path: Path) -> None:
    found = examined(cluster, tmp_path, planted(55, 45), np.arange(100) < 55, "trim.smoothing=1")
    assert conditions(found) == [("contamination", True)]


@pytest.mark.parametrize(("images", "expected"), [(80, [("kinds", True)]), (48, [])])
def test_two_products_stop_in_a_group_large_enough_to_tell(
    cluster: Cluster, tmp_path: Path, images: int, expected: list[tuple[str, bool]]
) -> None:
    values = planted(images, 0)
    values[::2] += 3
    assert conditions(examined(cluster, tmp_path, values, np.ones(images, bool))) == expected


@pytest.mark.parametrize(("quantile", "stops"), [(0.75, True), (0.97, False)])
def test_positions_that_exclude_a_quarter_each_and_everything_together_stop(
    cluster: Cluster, tmp_path: Path, quantile: float, stops: bool
) -> None:
    values, clean = planted(120, 0), np.ones(120, bool)
    examined(cluster, tmp_path, values, clean)
    threshold = float(np.quantile(distances(tmp_path), quantile))
    found = examined(cluster, tmp_path, values, clean, threshold=threshold)
    assert (("positions", True) in conditions(found)) == stops


def test_hardly_any_clean_images_leave_no_estimate(cluster: Cluster, tmp_path: Path) -> None:
    found = examined(cluster, tmp_path, planted(12, 0), np.arange(12) < 3)
    assert found.contamination is None
    assert found.to_json()["contamination"] is None
    assert conditions(found) == [("images", True)]


def test_images_that_take_no_part_change_nothing(cluster: Cluster, tmp_path: Path) -> None:
    values, clean = planted(54, 6), np.arange(60) < 54
    expected = examined(cluster, tmp_path / "all", values, clean)
    absent = np.insert(values, [0, 30], 1e4, axis=0)
    part = np.insert(np.ones(60, bool), [0, 30], values=False)
    found = examined(cluster, tmp_path / "more", absent, np.insert(clean, [0, 30], values=False), measured=part)
    assert found.to_json() == expected.to_json()


@pytest.mark.parametrize(
    "settings",
    [("trim.target_false_reject=0.49",), ("trim.target_false_reject=0.001",), ("gaussian.estimator=oas",)],
)
def test_what_a_strategy_is_asked_for_does_not_change_what_is_found(
    cluster: Cluster, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    values, clean = planted(80, 8), np.arange(88) < 80
    found = examined(cluster, tmp_path / "other", values, clean, *settings)
    assert found == examined(cluster, tmp_path / "default", values, clean)


def test_images_that_are_all_the_same_have_no_contamination(cluster: Cluster, tmp_path: Path) -> None:
    found = examined(cluster, tmp_path, np.ones_like(planted(60, 0)), np.ones(60, bool))
    assert found.contamination is not None
    assert found.contamination.share == 0
    assert conditions(found) == []


@pytest.mark.parametrize("settings", [(), ("gaussian.segment_images=7",)])
def test_two_worker_processes_find_bitwise_what_one_finds(
    cluster: Cluster, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    values, clean = planted(66, 4), np.arange(70) < 66
    one = examined(cluster, tmp_path / "one", values, clean, *settings, threshold=6.0)
    with open_cluster(tiny_config("cluster.workers=2", "cluster.processes=true").cluster) as two:
        assert examined(two, tmp_path / "two", values, clean, *settings, threshold=6.0) == one


def test_other_segments_find_the_same(cluster: Cluster, tmp_path: Path) -> None:
    values, clean = planted(66, 4), np.arange(70) < 66
    whole, cut = (
        examined(cluster, tmp_path / size, values, clean, f"gaussian.segment_images={size}", threshold=6.0)
        for size in ("4096", "7")
    )
    assert cut.to_json() == whole.to_json()


@pytest.mark.parametrize(("large", "stops"), [(900, False), (100, True)])
def test_the_smallness_of_a_group_stops_a_run_only_if_such_groups_matter(large: int, stops: bool) -> None:
    small = Examination(None, (Finding("images", "too few."),))
    good = Examination(Contamination(0.0, 0.0, 0.1, large, None), ())
    found = weigh_small_groups({"small": small, "large": good}, {"small": 20, "large": large})
    assert conditions(found["small"]) == [("images", stops)]
    assert found["large"] == good


def test_the_ledger_gets_the_estimate_with_four_digits_and_the_findings_in_full() -> None:
    examination = Examination(
        Contamination(0.12345678, 0.1, 0.2, 50, None),
        (Finding("kinds", "two.", stops=False),),
        purity=Purity(0.98765432, 0.9),
    )
    assert examination.to_json() == {
        "contamination": {"share": 0.1235, "lower": 0.1, "upper": 0.2},
        "purity": {"estimate": 0.9877, "lower": 0.9},
        "findings": [{"condition": "kinds", "sentence": "two.", "stops": False}],
        "power": NOT_JUDGED.to_json(),
    }


# --- what is seen of planted defects


def power_of(planted: int, seen: int) -> Power:
    return Power((("blob", 0.08, planted, seen),))


def test_a_blind_group_stops_and_a_group_of_few_defects_only_if_the_whole_run_is_blind() -> None:
    good = Examination(None, ())
    groups = {"large": good, "small": good}
    one = weigh_power(groups, {"large": power_of(24, 24), "small": power_of(8, 0)})
    assert conditions(one["large"]) == []
    assert conditions(one["small"]) == [("power", False)]
    both = weigh_power(groups, {"large": power_of(24, 2), "small": power_of(8, 0)})
    assert conditions(both["large"]) == conditions(both["small"]) == [("power", True)]
    assert both["small"].power == power_of(8, 0)


def test_a_group_that_has_no_map_keeps_its_examination() -> None:
    small = Examination(None, (Finding("images", "too few."),))
    assert weigh_power({"small": small}, {}) == {"small": small}


def test_findings_that_stop_come_before_a_warning_of_power(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "paire")  # an open cluster silences handlers
    found = Examination(None, (Finding("kinds", "two.", stops=False),))
    weighed = weigh_power({"all": found}, {"all": power_of(32, 1)})["all"]
    assert conditions(weighed) == [("power", True), ("kinds", False)]
    assert any("sees 1 (95 % interval" in message for message in caplog.messages)
