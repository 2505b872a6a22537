"""The whole job on a tiny archive: the run directory, its books, every decision again, and how it survives its ends."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import torchvision

import pipeline.commands.clean
import pipeline.judging.judge
from pipeline.commands.score import score
from pipeline.judging.manifest import build_manifest
from pipeline.judging.strategies.base import MAJORITY, UNCHANGED
from schemas.config import parse_config
from schemas.errors import ConfigError, GaussianMapError, LedgerError, SourceError
from schemas.names import sample_id
from schemas.tables import iterations as iterations_table
from schemas.tables import manifest as manifest_table
from tests.support import reference
from tests.support.archives import write_parts
from tests.support.runs import ALL_OF_A_RUN, SETTLED, Run, assert_balanced, config, quick_run_on, run_on
from workers.map.reader import GaussianMap


def parameters(*settings: str) -> reference.Parameters:
    """Return a configuration under the reference's names."""
    trim = config(*settings).trim
    return reference.Parameters(stop_fraction=trim.stop_fraction, max_iterations=trim.max_iterations)


# --- the run directory


def test_the_run_directory_holds_what_the_architecture_names_and_nothing_else(finished: Run) -> None:
    assert {path.name for path in finished.path.iterdir()} == ALL_OF_A_RUN
    assert (finished.path / "_SUCCESS").read_bytes() == b""


def test_the_ledger_balances(finished: Run) -> None:
    assert_balanced(finished)
    total = finished.result.ledger["total"]
    assert (total["inputs"], total["duplicate"], total["unreadable"], total["skipped"]) == (23, 2, 1, 1)


def test_the_ledger_says_how_the_group_ended(finished: Run) -> None:
    entry = finished.result.ledger["groups"]["all"]
    assert entry["iterations"] == len(finished.iterations)
    assert entry["stop_reason"] in {UNCHANGED, MAJORITY}
    assert isinstance(entry["floor_applied"], bool)
    assert isinstance(entry["warnings"], list)


@pytest.mark.parametrize(
    ("name", "columns"),
    [("manifest.parquet", manifest_table.COLUMNS), ("iterations.parquet", iterations_table.COLUMNS)],
)
def test_the_tables_have_the_documented_columns(finished: Run, name: str, columns: Any) -> None:
    schema = pq.read_schema(finished.path / name)
    assert [(field.name, field.type) for field in schema] == [(column.name, column.type) for column in columns]


def test_ids_depend_on_the_relative_names(finished: Run) -> None:
    assert finished.manifest["sample_id"].tolist() == [sample_id(name) for name in finished.manifest["file_name"]]


def test_the_manifest_has_the_facts_of_every_file(finished: Run) -> None:
    for row in finished.manifest.to_dict("records"):
        content = (finished.source / str(row["file_name"])).read_bytes()
        if row["decision"] != "skipped":
            assert row["content_sha256"] == hashlib.sha256(content).hexdigest()
            assert row["bytes"] == len(content)
        if row["decision"] in {"clean", "anomalous", "duplicate"}:
            assert (row["width"], row["height"]) == (64, 64)
        else:
            assert row["reason"]


@pytest.mark.parametrize(
    ("copy", "first"), [("good_002.png", "copy of good.png"), ("sub/copy of bad.png", "bad_001.png")]
)
def test_a_duplicate_shares_the_verdict_of_the_first_copy(finished: Run, copy: str, first: str) -> None:
    rows = finished.manifest.set_index("file_name").to_dict("index")
    assert rows[copy]["decision"] == "duplicate"
    assert rows[copy]["duplicate_of"] == rows[first]["sample_id"]
    for column in ("label", "margin", "anomaly_score", "iteration"):
        assert rows[copy][column] == rows[first][column]


def test_the_clean_list_names_the_clean_images_and_no_others(finished: Run) -> None:
    listed = pd.read_csv(finished.path / "clean.csv", keep_default_na=False)
    kept = finished.manifest[finished.manifest["decision"] == "clean"]
    assert listed["image_path"].tolist() == kept["image_path"].tolist()
    assert list(listed.columns) == ["sample_id", "image_path", "file_name", "group"]
    assert all(Path(path).is_file() for path in listed["image_path"])


def test_the_resolved_configuration_gives_the_same_configuration_back(finished: Run) -> None:
    assert parse_config((finished.path / "config.yaml").read_text()) == config()


def test_the_record_names_the_run_its_inputs_and_its_software(finished: Run) -> None:
    record = json.loads((finished.path / "run.json").read_text())
    assert (record["state"], record["run_id"]) == ("done", finished.result.run_id)
    assert record["source"] == str(finished.source)
    assert record["config_digest"] == config().digest() == finished.manifest["config_digest"].unique().item()
    assert record["weights_digest"] == finished.manifest["weights_digest"].unique().item()
    assert set(finished.manifest["run_id"]) == {finished.result.run_id}
    assert {"python", "paire", "torch", "zarr"} <= set(record["versions"])
    assert sum(record["hosts"].values()) == 1


def test_the_log_is_one_json_object_per_line(finished: Run) -> None:
    lines = [json.loads(line) for line in (finished.path / "log.jsonl").read_text().splitlines()]
    assert lines
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    assert any("published" in line["message"] for line in lines)


def test_features_of_readable_images_are_stored_and_of_others_zero(finished: Run) -> None:
    features = finished.array("features/all")
    assert features.dtype == np.float16
    catalog = pd.read_parquet(finished.path / "catalog.parquet")
    unreadable = catalog.loc[catalog["file_name"] == "empty.png", "row"].tolist()
    assert np.flatnonzero(np.abs(features).max(axis=(1, 2, 3)) == 0).tolist() == unreadable


# --- every decision again, with NumPy alone


def test_every_decision_follows_from_distances_and_thresholds(finished: Run) -> None:
    distance, threshold = finished.array("distances/all/distance"), finished.array("distances/all/threshold")
    rows = pd.read_parquet(finished.path / "catalog.parquet").merge(
        finished.manifest, on="sample_id", suffixes=("", "_")
    )
    rows = rows[rows["row"].notna() & rows["decision"].isin(["clean", "anomalous"])]
    found = distance[rows["row"].astype(int)]
    assert not np.isnan(found).any()
    assert not finished.iterations["floor_applied"].iloc[-1]
    clean_images = (found < threshold).all(axis=(1, 2))
    assert (rows["decision"] == "clean").tolist() == clean_images.tolist()
    assert clean_images.any()
    assert not clean_images.all()
    np.testing.assert_array_equal(rows["anomaly_score"], found.max(axis=(1, 2)))
    np.testing.assert_array_equal(rows["margin"], (found / threshold).max(axis=(1, 2)))
    places = (np.arange(len(rows)), rows["worst_row"].astype(int), rows["worst_col"].astype(int))
    np.testing.assert_array_equal(rows["distance"], found[places])
    np.testing.assert_array_equal(rows["threshold"], threshold[places[1:]])


def test_images_that_took_no_part_have_no_distances(finished: Run) -> None:
    distance = finished.array("distances/all/distance")
    rows = pd.read_parquet(finished.path / "catalog.parquet").merge(
        finished.manifest, on="sample_id", suffixes=("", "_")
    )
    judged = rows["decision"].isin(["clean", "anomalous"])
    absent = rows[rows["row"].notna() & ~judged]["row"].astype(int)
    assert len(absent) == 3
    assert np.isnan(distance[absent]).all()


@pytest.mark.parametrize(("name", "settings"), [("finished", ()), ("settled", (SETTLED,))])
def test_the_whole_iteration_follows_from_the_stored_features(
    request: pytest.FixtureRequest, name: str, settings: tuple[str, ...]
) -> None:
    run: Run = request.getfixturevalue(name)
    distance = run.array("distances/all/distance")
    took_part = ~np.isnan(distance).any(axis=(1, 2))
    outcome = reference.trim(run.array("features/all")[took_part], parameters(*settings))
    last = outcome.passes[-1]
    np.testing.assert_allclose(distance[took_part], last.distances, rtol=1e-6)
    np.testing.assert_allclose(run.array("distances/all/threshold"), last.thresholds, rtol=1e-6)
    table = run.iterations.drop(columns=["group", "iteration", "n_fitted", "seconds"]).to_numpy().tolist()
    assert table == [
        [int(step.clean.sum()), step.n_added, step.n_removed, step.n_positions_trimmed, step.floor_applied]
        for step in outcome.passes
    ]
    history = run.array("distances/all/clean")
    assert history[:, took_part].tolist() == [step.clean.tolist() for step in outcome.passes]
    catalog = pd.read_parquet(run.path / "catalog.parquet").set_index("row")
    judged = run.manifest.set_index("sample_id").loc[catalog.loc[np.flatnonzero(took_part), "sample_id"]]
    assert (judged["decision"] == "clean").tolist() == outcome.clean.tolist()
    assert judged["iteration"].tolist() == outcome.last_changed


@pytest.mark.parametrize("name", ["finished", "settled"])
def test_the_published_gaussians_are_those_of_the_clean_images(request: pytest.FixtureRequest, name: str) -> None:
    run: Run = request.getfixturevalue(name)
    features, kept = run.array("features/all").astype(np.float64), run.array("distances/all/clean")[-1]
    gaussians = GaussianMap.open(str(run.path / "model"))
    assert gaussians.groups == ("all",)
    readable = np.abs(features).max(axis=(1, 2, 3)) > 0
    expected = reference.distances(features[readable], kept[readable], parameters())
    np.testing.assert_allclose(gaussians.distances("all", features[readable]), expected, rtol=1e-6)


# --- runs that end early


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def forgetful(*args: Any, **options: Any) -> pd.DataFrame:
    return build_manifest(*args, **options).iloc[1:].reset_index(drop=True)


def test_a_run_that_ended_early_is_not_published_and_finished_by_the_same_command(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, begun = tmp_path / "run", set()

    def end_early(
        module: Any, stage: str, instead: Callable[..., Any], error: type[BaseException], state: str = "interrupted"
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(module, stage, instead)
            with pytest.raises(error):
                run_on(finished.source, out)
        record = json.loads((out / "run.json").read_text())
        assert record["state"] == state
        assert not {"_SUCCESS", "ledger.json"} & {path.name for path in out.iterdir()}
        begun.add(record["run_id"])

    end_early(pipeline.commands.clean, "extract_features", interrupt, KeyboardInterrupt)
    end_early(pipeline.judging.judge, "build_manifest", forgetful, LedgerError, "running")
    assert not (out / "manifest.parquet").exists()
    end_early(pipeline.judging.judge, "write_ledger", interrupt, KeyboardInterrupt)
    with pytest.raises(GaussianMapError, match="not finished"):
        score(str(out / "model"), str(finished.source), str(tmp_path / "scores"), config())

    again = run_on(finished.source, out)
    assert not again.result.was_done
    assert begun == {again.result.run_id}
    assert {path.name for path in out.iterdir()} == ALL_OF_A_RUN
    pd.testing.assert_frame_equal(
        again.manifest.drop(columns="run_id"), finished.manifest.drop(columns="run_id"), check_exact=True
    )


def test_nothing_is_written_when_the_source_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        quick_run_on(tmp_path / "nowhere", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_when_the_backbone_is_wrong(full_archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"features\.nodes"):
        quick_run_on(full_archive, tmp_path / "run", "features.nodes=layer9")
    assert not (tmp_path / "run").exists()


def test_a_weights_file_made_again_at_the_same_place_is_used(tmp_path: Path) -> None:
    write_parts(tmp_path / "archive", 2)
    weights = tmp_path / "weights.pth"
    settings = ("features.backbone=squeezenet1_1", "features.nodes=features.1", f"features.weights={weights}")
    used = []
    for name in ("first", "second"):
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), weights)
        finished = quick_run_on(tmp_path / "archive", tmp_path / name, *settings)
        assert finished.manifest["weights_digest"].unique().item() == hashlib.sha256(weights.read_bytes()).hexdigest()
        used.append(finished.array("features/all"))
    first, second = used
    assert not np.array_equal(first, second)


def test_what_a_model_of_timm_says_of_itself_is_recorded_and_used_again(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    write_parts(tmp_path / "archive", 3)
    backbone = ("features.backbone=test_vit", "features.image_size=64", "features.weights=random", "features.nodes=")
    unset = ("features.pool_kernel=", "features.pool_stride=")
    first = quick_run_on(tmp_path / "archive", tmp_path / "run", *backbone, *unset)
    options = json.loads((first.path / "run.json").read_text())["options"]
    assert options["features.nodes"] == ["blocks.0", "blocks.2", "blocks.3"]
    assert options["features.mean"] == options["features.std"] == [0.5, 0.5, 0.5]
    assert (options["features.pool_kernel"], options["features.pool_stride"]) == (1, 1)
    assert first.array("features/all").shape == (3, 4, 4, 192)
    assert quick_run_on(tmp_path / "archive", first.path, *backbone, *unset).result.was_done
    found = GaussianMap.open(str(first.path / "model")).description.features
    assert (found.nodes, found.mean) == (("blocks.0", "blocks.2", "blocks.3"), (0.5, 0.5, 0.5))
