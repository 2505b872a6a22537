"""Judging hand-made features: verdicts and books without an archive or a backbone."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

import pipeline.costs.footprint
from pipeline.cluster.cluster import Cluster, open_cluster
from pipeline.cluster.progress import Reporter
from pipeline.judging.judge import Judge
from pipeline.run_directory.record import new_record
from schemas.config import Config
from schemas.names import sample_id, storage_name
from schemas.records.image import ImageOutcome
from schemas.records.run import FEATURES
from schemas.stores.features import FeatureGeometry
from tests.scenarios.test_against_reference import planted
from tests.support.archives import tiny_config
from workers.map.reader import GaussianMap
from workers.passes.by_products import SMALL_GROUP
from workers.storage.directory import Directory
from workers.trust.power import NOT_JUDGED

CHANNELS = 48
PAIRE = "trim.strategy=paire"
GEOMETRY = FeatureGeometry(2, 3, CHANNELS, 2, 3, 1, 1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(tiny_config().cluster) as opened:
        yield opened


def catalog_of(counts: dict[str, int]) -> pd.DataFrame:
    """Return a catalog of so many images in each group."""
    rows = [(f"{group}/{row:03d}.png", group, row) for group, count in sorted(counts.items()) for row in range(count)]
    frame = pd.DataFrame(rows, columns=["file_name", "group", "row"]).astype({"row": "Int64"})
    ids = [sample_id(name) for name in frame["file_name"]]
    return frame.assign(sample_id=ids, image_path=frame["file_name"], reason="")


def judged(
    cluster: Cluster, run: Path, features: dict[str, NDArray[Any]], config: Config, *, store: Path | None = None
) -> dict[str, Any]:
    """Store features, judge them, return the ledger."""
    directory, stored = Directory.at(run), Directory.at(store or run / FEATURES)
    root = stored.zarr_group("", "w")
    for group, values in features.items():
        root.create_array(storage_name(group), data=values, chunks=GEOMETRY.chunk_shape(len(values)))
    catalog = catalog_of({group: len(values) for group, values in features.items()})
    outcomes = {
        group: [ImageOutcome(row, f"{group}{row}", 10, 30, 20) for row in range(len(values))]
        for group, values in features.items()
    }
    record = new_record("archive", catalog, config, "weights")
    return Judge(directory, stored, GEOMETRY, config, record, cluster, Reporter()).judge(catalog, outcomes)


def manifest(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "manifest.parquet").drop(columns="run_id")


@pytest.mark.parametrize("strategy", ["paire", "trim-once", "none", "grow", "concentrate"])
def test_where_the_features_lie_does_not_matter(cluster: Cluster, tmp_path: Path, strategy: str) -> None:
    features, config = {"all": planted(24, 3, CHANNELS, seed=1)}, tiny_config(f"trim.strategy={strategy}")
    inside = judged(cluster, tmp_path / "inside", features, config)
    outside = judged(cluster, tmp_path / "outside", features, config, store=tmp_path / "elsewhere")
    assert inside == outside
    pd.testing.assert_frame_equal(manifest(tmp_path / "inside"), manifest(tmp_path / "outside"), check_exact=True)
    assert not (tmp_path / "outside" / FEATURES).exists()


def test_each_group_is_judged_by_itself_and_one_too_small_not_at_all(cluster: Cluster, tmp_path: Path) -> None:
    features = {"a": planted(12, 1, CHANNELS, seed=2), "b": planted(15, 2, CHANNELS, seed=3)}
    tiny = {"tiny": planted(2, 0, CHANNELS, seed=4)}
    together = judged(cluster, tmp_path / "run", features | tiny, tiny_config())
    for name, values in features.items():
        alone = judged(cluster, tmp_path / name, {name: values}, tiny_config())
        assert together["groups"][name] == alone["groups"][name]
    assert together["groups"]["tiny"] == {
        **dict.fromkeys(("clean", "anomalous", "duplicate", "unreadable"), 0),
        "inputs": 2,
        "skipped": 2,
        "iterations": 0,
        "stop_reason": "not judged",
        "floor_applied": False,
        "near_duplicates": 0,
        "warnings": ["group 'tiny' has 2 different readable images; at least 3 are needed to judge any"],
        "contamination": None,
        "findings": [
            {
                "condition": "images",
                "sentence": "group 'tiny' has 2 different readable images; at least 3 are needed to judge any. Add "
                "images, or merge groups that show the same view.",
                "stops": True,
            }
        ],
        "power": NOT_JUDGED.to_json(),
        "purity": None,
    }
    passes = pd.read_parquet(tmp_path / "run" / "iterations.parquet")
    assert passes["group"].value_counts().to_dict() == {
        name: together["groups"][name]["iterations"] for name in features
    }
    (tmp_path / "run" / "_SUCCESS").touch()  # the job's to write, once all else is
    assert GaussianMap.open(str(tmp_path / "run" / "model")).groups == ("a", "b")


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        pytest.param(("trim.strategy=none",), "no position has a threshold", id="nothing trimmed"),
        pytest.param((PAIRE, "trim.max_iterations=1", "trim.stop_fraction=1"), "did not settle", id="cut off"),
        pytest.param(("trim.max_iterations=1",), "did not settle", id="growth cut off"),
        pytest.param((PAIRE, "trim.min_clean_fraction=1"), "the floor chose the clean set", id="floor"),
        pytest.param(("trim.strategy=trim-once", "trim.tau=0.01", "trim.eta=1e9"), "images are clean:", id="few"),
    ],
)
def test_the_ledger_warns_of_verdicts_that_are_less_trustworthy(
    cluster: Cluster, tmp_path: Path, settings: tuple[str, ...], warning: str
) -> None:
    features = {"all": planted(60, 18, CHANNELS, seed=5)}
    ledger = judged(cluster, tmp_path / "run", features, tiny_config(*settings))
    assert any(warning in text for text in ledger["groups"]["all"]["warnings"])


def test_nothing_but_planted_images_is_found_and_nothing_is_warned_of(cluster: Cluster, tmp_path: Path) -> None:
    values = planted(80, 0, CHANNELS, seed=6)
    values[:4, 1, 2] += 9
    ledger = judged(cluster, tmp_path / "run", {"all": values}, tiny_config("trim.strategy=grow"))
    anomalous = np.flatnonzero(manifest(tmp_path / "run")["decision"] == "anomalous").tolist()
    assert anomalous[:4] == [0, 1, 2, 3]
    assert ledger["groups"]["all"]["clean"] >= 70
    assert ledger["groups"]["all"]["warnings"] == []


def test_small_groups_are_judged_in_one_task_each_as_by_many(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    features = {f"group {number}": planted(12 + number, 1, CHANNELS, seed=number) for number in range(4)}
    features |= {"h primal": planted(60, 3, CHANNELS, seed=5), "z": planted(SMALL_GROUP + 9, 3, CHANNELS, seed=6)}
    submitted: list[str] = []
    submit = cluster.client.submit

    def count(function: Any, *args: Any, **kwargs: Any) -> Any:
        submitted.append(function.__name__)
        return submit(function, *args, **kwargs)

    monkeypatch.setattr(cluster.client, "submit", count)
    caplog.set_level("INFO", "paire")

    def messages() -> list[str]:
        return [message for message in caplog.messages if not message.startswith("power:")]  # which has the time

    apart = judged(cluster, tmp_path / "apart", features, tiny_config("trim.strategy=grow"))
    assert submitted.count("_judge_alone") == 5
    groups_of_log = [message.partition(":")[0] for message in messages()]
    assert sorted(groups_of_log) == groups_of_log
    assert {"group 0", "z"} <= set(groups_of_log)
    expected = messages()
    caplog.clear()
    monkeypatch.setattr(pipeline.costs.footprint, "SMALL_GROUP", 0)
    in_turn = judged(cluster, tmp_path / "turn", features, tiny_config("trim.strategy=grow"))
    assert apart == in_turn
    assert messages() == expected
    pd.testing.assert_frame_equal(manifest(tmp_path / "apart"), manifest(tmp_path / "turn"), check_exact=True)


@pytest.mark.parametrize("strategy", ["paire", "grow"])
def test_many_groups_are_judged_side_by_side_whatever_their_size(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    # By inner products and beyond them, small before large and large before small.
    sizes = [12, 2 * CHANNELS, 14, 3 * CHANNELS, 13, 12]
    features = {f"group {place}": planted(size, 1, CHANNELS, seed=place) for place, size in enumerate(sizes)}
    config = tiny_config(f"trim.strategy={strategy}")
    monkeypatch.setattr(pipeline.costs.footprint, "SMALL_GROUP", 0)
    in_turn = judged(cluster, tmp_path / "turn", features, config)
    asked: list[list[str]] = []
    apart = Judge._judge_apart

    def note(judge: Judge, outcomes: Any) -> Any:
        asked.append(list(outcomes))
        return apart(judge, outcomes)

    monkeypatch.setattr(Judge, "_judge_apart", note)
    many = dataclasses.replace(cluster, workers=16)
    for largest, expected in ((0, 0), (14, 4), (3 * CHANNELS, 6)):
        monkeypatch.setattr("pipeline.judging.judge.apart_up_to", lambda *_, largest=largest: largest)
        assert judged(many, tmp_path / str(largest), features, config) == in_turn
        assert asked.pop() == [group for group, size in zip(features, sizes, strict=True) if size <= largest]
        assert expected == sum(size <= largest for size in sizes)
        pd.testing.assert_frame_equal(manifest(tmp_path / str(largest)), manifest(tmp_path / "turn"), check_exact=True)


def test_nothing_is_left_beside_the_distances(cluster: Cluster, tmp_path: Path) -> None:
    judged(cluster, tmp_path / "run", {"all": planted(20, 2, CHANNELS, seed=7)}, tiny_config())
    group = tmp_path / "run" / "distances" / storage_name("all")
    assert {path.name for path in group.iterdir() if path.is_dir()} == {
        "distance",
        "threshold",
        "clean",
        "representative",
    }
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()} == {"distances", "features", "model"}
