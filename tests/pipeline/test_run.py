"""The whole job on tiny archives: the run directory, its books, who may use it, and what odd archives end as."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
import zarr
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import pipeline.judge
import pipeline.run
from pipeline.manifest import build_manifest
from pipeline.run import CleanResult, clean
from pipeline.scoring import score
from pipeline.trim import MAJORITY, UNCHANGED
from schemas import iterations as iterations_table
from schemas import manifest as manifest_table
from schemas import scores as scores_table
from schemas.config import Config, parse_config
from schemas.errors import (
    EXIT_UNREADABLE,
    ConfigError,
    GaussianMapError,
    LedgerError,
    RunConflictError,
    SourceError,
    UnreadableBudgetError,
    UntrustworthyError,
)
from schemas.names import sample_id, storage_name
from tests import reference
from tests.archives import other_pixels, part_pixels, png, tiny_config, write_parts
from workers.gaussian_map import GaussianMap

ALL_OF_A_RUN = {
    "run.json",
    "config.yaml",
    "catalog.parquet",
    "features",
    "iterations.parquet",
    "distances",
    "manifest.parquet",
    "clean.csv",
    "model",
    "ledger.json",
    "log.jsonl",
    "_SUCCESS",
}
DECISIONS = ("clean", "anomalous", "duplicate", "unreadable", "skipped")

# Until the clean set is unchanged, so that the published Gaussians are those of the last pass.
SETTLED = "trim.stop_fraction=1"


@dataclass(frozen=True)
class Run:
    """A finished run and what it was made of."""

    path: Path
    source: Path
    result: CleanResult

    @property
    def manifest(self) -> pd.DataFrame:
        return pd.read_parquet(self.path / "manifest.parquet")

    @property
    def iterations(self) -> pd.DataFrame:
        return pd.read_parquet(self.path / "iterations.parquet")

    def array(self, name: str) -> NDArray[Any]:
        return np.asarray(zarr.open_array(self.path / name, mode="r")[:])


def config(*settings: str) -> Config:
    """Return a configuration of 4 x 4 positions."""
    return tiny_config("features.pool_kernel=8", "features.pool_stride=8", *settings)


def run_on(source: Path, out: Path, *settings: str) -> Run:
    return Run(out, source, clean(str(source), str(out), config(*settings)))


def quick_run_on(source: Path, out: Path, *settings: str) -> Run:
    """Run over 2 x 2 positions, where it is not the evidence that matters."""
    return run_on(source, out, "features.pool_kernel=16", "features.pool_stride=16", *settings)


def decisions(run: Run) -> dict[str, str]:
    return dict(zip(run.manifest["file_name"], run.manifest["decision"], strict=True))


def assert_balanced(run: Run) -> None:
    """Check the ledger against the manifest and the manifest against the files."""
    ledger = json.loads((run.path / "ledger.json").read_text())
    assert ledger == run.result.ledger
    for books, part in [
        (ledger["total"], run.manifest),
        *((entry, run.manifest[run.manifest["group"] == group]) for group, entry in ledger["groups"].items()),
    ]:
        assert {name: books[name] for name in DECISIONS} == {
            name: int((part["decision"] == name).sum()) for name in DECISIONS
        }
        assert books["inputs"] == len(part) == sum(books[name] for name in DECISIONS)
    if run.source.is_dir():
        assert sorted(run.manifest["file_name"]) == sorted(
            path.relative_to(run.source).as_posix() for path in run.source.rglob("*") if path.is_file()
        )


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def parameters(*settings: str) -> reference.Parameters:
    """Return a configuration under the reference's names."""
    trim = config(*settings).trim
    return reference.Parameters(stop_fraction=trim.stop_fraction, max_iterations=trim.max_iterations)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive with all that real ones hold."""
    folder = tmp_path_factory.mktemp("archive")
    write_parts(folder, 16, 3)
    (folder / "copy of good.png").write_bytes((folder / "good_002.png").read_bytes())
    (folder / "sub").mkdir()
    (folder / "sub" / "copy of bad.png").write_bytes((folder / "bad_001.png").read_bytes())
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def run(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a finished run with the paper's stop."""
    return run_on(archive, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def settled(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a finished run that stopped because nothing changed."""
    finished = run_on(archive, tmp_path_factory.mktemp("runs") / "settled", SETTLED)
    assert finished.result.ledger["groups"]["all"]["stop_reason"] == UNCHANGED
    return finished


# --- the run directory


def test_the_run_directory_holds_what_the_architecture_names_and_nothing_else(run: Run) -> None:
    assert {path.name for path in run.path.iterdir()} == ALL_OF_A_RUN
    assert (run.path / "_SUCCESS").read_bytes() == b""


def test_the_ledger_balances(run: Run) -> None:
    assert_balanced(run)
    total = run.result.ledger["total"]
    assert (total["inputs"], total["duplicate"], total["unreadable"], total["skipped"]) == (23, 2, 1, 1)


def test_the_ledger_says_how_the_group_ended(run: Run) -> None:
    entry = run.result.ledger["groups"]["all"]
    assert entry["iterations"] == len(run.iterations)
    assert entry["stop_reason"] in {UNCHANGED, MAJORITY}
    assert isinstance(entry["floor_applied"], bool)
    assert isinstance(entry["warnings"], list)


@pytest.mark.parametrize(
    ("name", "columns"),
    [("manifest.parquet", manifest_table.COLUMNS), ("iterations.parquet", iterations_table.COLUMNS)],
)
def test_the_tables_have_the_documented_columns(run: Run, name: str, columns: Any) -> None:
    schema = pq.read_schema(run.path / name)
    assert [(field.name, field.type) for field in schema] == [(column.name, column.type) for column in columns]


def test_ids_depend_on_the_relative_names(run: Run) -> None:
    assert run.manifest["sample_id"].tolist() == [sample_id(name) for name in run.manifest["file_name"]]


def test_the_manifest_has_the_facts_of_every_file(run: Run) -> None:
    for row in run.manifest.to_dict("records"):
        content = (run.source / str(row["file_name"])).read_bytes()
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
def test_a_duplicate_shares_the_verdict_of_the_first_copy(run: Run, copy: str, first: str) -> None:
    rows = run.manifest.set_index("file_name").to_dict("index")
    assert rows[copy]["decision"] == "duplicate"
    assert rows[copy]["duplicate_of"] == rows[first]["sample_id"]
    for column in ("label", "margin", "anomaly_score", "iteration"):
        assert rows[copy][column] == rows[first][column]


def test_the_clean_list_names_the_clean_images_and_no_others(run: Run) -> None:
    listed = pd.read_csv(run.path / "clean.csv", keep_default_na=False)
    kept = run.manifest[run.manifest["decision"] == "clean"]
    assert listed["image_path"].tolist() == kept["image_path"].tolist()
    assert list(listed.columns) == ["sample_id", "image_path", "file_name", "group"]
    assert all(Path(path).is_file() for path in listed["image_path"])


def test_the_resolved_configuration_gives_the_same_configuration_back(run: Run) -> None:
    assert parse_config((run.path / "config.yaml").read_text()) == config()


def test_the_record_names_the_run_its_inputs_and_its_software(run: Run) -> None:
    record = json.loads((run.path / "run.json").read_text())
    assert (record["state"], record["run_id"]) == ("done", run.result.run_id)
    assert record["source"] == str(run.source)
    assert record["config_digest"] == config().digest() == run.manifest["config_digest"].unique().item()
    assert record["weights_digest"] == run.manifest["weights_digest"].unique().item()
    assert set(run.manifest["run_id"]) == {run.result.run_id}
    assert {"python", "paire", "torch", "zarr"} <= set(record["versions"])
    assert sum(record["hosts"].values()) == 1


def test_the_log_is_one_json_object_per_line(run: Run) -> None:
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert lines
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    assert any("published" in line["message"] for line in lines)


def test_features_of_readable_images_are_stored_and_of_others_zero(run: Run) -> None:
    features = run.array("features/all")
    assert features.dtype == np.float16
    catalog = pd.read_parquet(run.path / "catalog.parquet")
    unreadable = catalog.loc[catalog["file_name"] == "empty.png", "row"].tolist()
    assert np.flatnonzero(np.abs(features).max(axis=(1, 2, 3)) == 0).tolist() == unreadable


# --- every decision again, with NumPy alone


def test_every_decision_follows_from_distances_and_thresholds(run: Run) -> None:
    distance, threshold = run.array("distances/all/distance"), run.array("distances/all/threshold")
    rows = pd.read_parquet(run.path / "catalog.parquet").merge(run.manifest, on="sample_id", suffixes=("", "_"))
    rows = rows[rows["row"].notna() & rows["decision"].isin(["clean", "anomalous"])]
    found = distance[rows["row"].astype(int)]
    assert not np.isnan(found).any()
    assert not run.iterations["floor_applied"].iloc[-1]
    clean_images = (found < threshold).all(axis=(1, 2))
    assert (rows["decision"] == "clean").tolist() == clean_images.tolist()
    assert clean_images.any()
    assert not clean_images.all()
    np.testing.assert_array_equal(rows["anomaly_score"], found.max(axis=(1, 2)))
    np.testing.assert_array_equal(rows["margin"], (found / threshold).max(axis=(1, 2)))
    places = (np.arange(len(rows)), rows["worst_row"].astype(int), rows["worst_col"].astype(int))
    np.testing.assert_array_equal(rows["distance"], found[places])
    np.testing.assert_array_equal(rows["threshold"], threshold[places[1:]])


def test_images_that_took_no_part_have_no_distances(run: Run) -> None:
    distance = run.array("distances/all/distance")
    rows = pd.read_parquet(run.path / "catalog.parquet").merge(run.manifest, on="sample_id", suffixes=("", "_"))
    judged = rows["decision"].isin(["clean", "anomalous"])
    absent = rows[rows["row"].notna() & ~judged]["row"].astype(int)
    assert len(absent) == 3
    assert np.isnan(distance[absent]).all()


@pytest.mark.parametrize(("name", "settings"), [("run", ()), ("settled", (SETTLED,))])
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


@pytest.mark.parametrize("name", ["run", "settled"])
def test_the_published_gaussians_are_those_of_the_clean_images(request: pytest.FixtureRequest, name: str) -> None:
    run: Run = request.getfixturevalue(name)
    features, kept = run.array("features/all").astype(np.float64), run.array("distances/all/clean")[-1]
    gaussians = GaussianMap.open(str(run.path / "model"))
    assert gaussians.groups == ("all",)
    readable = np.abs(features).max(axis=(1, 2, 3)) > 0
    expected = reference.distances(features[readable], kept[readable], parameters())
    np.testing.assert_allclose(gaussians.distances("all", features[readable]), expected, rtol=1e-6)


# --- whose directory it is


def test_the_same_command_again_computes_nothing(run: Run) -> None:
    before = digests(run.path)
    again = clean(str(run.source), str(run.path), config())
    assert again.was_done
    assert (again.run_id, again.ledger) == (run.result.run_id, run.result.ledger)
    assert digests(run.path) == before
    assert not run.result.was_done


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(("cluster.threads_per_worker=2",), id="another cluster"),
        pytest.param(("features.device=cpu",), id="another device"),
        pytest.param(("input.max_unreadable_fraction=0.5",), id="another failure budget"),
    ],
)
def test_what_does_not_change_the_result_does_not_make_another_run(run: Run, settings: tuple[str, ...]) -> None:
    assert clean(str(run.source), str(run.path), config(*settings)).was_done


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        pytest.param(("trim.eta=2.6",), r"trim\.eta: 2\.3 -> 2\.6", id="one option"),
        pytest.param(("trim.tau=1.2", "gaussian.ridge=1"), r"gaussian\.ridge.*trim\.tau", id="two options"),
        pytest.param(("features.seed=1",), r"features\.seed: 0 -> 1.*weights", id="other weights"),
        pytest.param(("input.group_by={part}_*.png",), r"input\.group_by", id="other groups"),
    ],
)
def test_another_configuration_is_refused_by_naming_what_differs(
    run: Run, settings: tuple[str, ...], named: str
) -> None:
    before = digests(run.path)
    with pytest.raises(RunConflictError, match=named):
        clean(str(run.source), str(run.path), config(*settings))
    assert digests(run.path) == before


def test_another_archive_is_refused_by_naming_both(run: Run, tmp_path: Path) -> None:
    write_parts(tmp_path, 4)
    with pytest.raises(RunConflictError, match=f"source: '{run.source}' -> '{tmp_path}'") as caught:
        clean(str(tmp_path), str(run.path), config())
    assert "archive:" in str(caught.value)


def test_an_archive_that_has_changed_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "archive"
    write_parts(source, 4)
    quick_run_on(source, tmp_path / "run")
    (source / "new.png").write_bytes(png(part_pixels(99)))
    with pytest.raises(RunConflictError, match="archive:"):
        quick_run_on(source, tmp_path / "run")


def file_of_mine(out: Path) -> None:
    out.mkdir()
    (out / "mine.txt").write_text("mine")


def broken_record(out: Path) -> None:
    out.mkdir()
    (out / "run.json").write_text("{")


def foreign_record(out: Path) -> None:
    out.mkdir()
    (out / "run.json").write_text('{"name": "another program\'s"}')


def a_file(out: Path) -> None:
    out.write_text("mine")


@pytest.mark.parametrize("make", [file_of_mine, broken_record, foreign_record, a_file])
def test_a_directory_that_is_no_run_is_refused_and_left_as_it_is(
    archive: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "out")
    before = digests(tmp_path)
    with pytest.raises(RunConflictError, match=r"Give --out"):
        quick_run_on(archive, tmp_path / "out")
    assert digests(tmp_path) == before


def test_an_empty_directory_may_become_a_run(tmp_path: Path) -> None:
    write_parts(tmp_path / "archive", 4)
    (tmp_path / "run").mkdir()
    assert_balanced(quick_run_on(tmp_path / "archive", tmp_path / "run"))


@pytest.mark.parametrize(
    ("module", "stage"),
    [(pipeline.judge, "build_ledger"), (pipeline.run, "extract_features")],
    ids=["judge", "extract"],
)
def test_an_interrupted_run_is_finished_by_the_same_command(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, stage: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, stage, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_on(run.source, tmp_path / "run")
    assert not (tmp_path / "run" / "_SUCCESS").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "running"
    begun = json.loads((tmp_path / "run" / "run.json").read_text())["run_id"]
    finished = run_on(run.source, tmp_path / "run")
    assert not finished.result.was_done
    assert finished.result.run_id == begun
    assert {path.name for path in finished.path.iterdir()} == ALL_OF_A_RUN
    pd.testing.assert_frame_equal(
        finished.manifest.drop(columns="run_id"), run.manifest.drop(columns="run_id"), check_exact=True
    )


def test_a_ledger_that_does_not_balance_is_not_published(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(*args: Any, **options: Any) -> pd.DataFrame:
        return build_manifest(*args, **options).iloc[1:].reset_index(drop=True)

    monkeypatch.setattr(pipeline.judge, "build_manifest", forgetful)
    with pytest.raises(LedgerError, match="1 lost"):
        quick_run_on(archive, tmp_path / "run")
    assert not {"_SUCCESS", "manifest.parquet", "ledger.json"} & {path.name for path in (tmp_path / "run").iterdir()}


def test_an_unfinished_run_scores_nothing(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.judge, "write_ledger", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quick_run_on(archive, tmp_path / "run")
    with pytest.raises(GaussianMapError, match="not finished"):
        score(str(tmp_path / "run" / "model"), str(archive), str(tmp_path / "scores"), config())


# --- results that are not to be trusted

GUARDED = "guard.accept_untrustworthy=false"
GROW = "trim.strategy=grow"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of two products in one group."""
    source = tmp_path_factory.mktemp("mixed") / "archive"
    write_parts(source, 30)
    for number in range(30):
        (source / f"other_{number:02d}.png").write_bytes(png(other_pixels(number)))
    return source


@pytest.fixture(scope="module")
def refused(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the directory of a run that was not published, not to be changed, and the error it ended with."""
    out = tmp_path_factory.mktemp("refused") / "run"
    with pytest.raises(UntrustworthyError) as caught:
        quick_run_on(mixed, out, GUARDED)
    return out, str(caught.value)


def state_of(run: Path) -> tuple[str, bool]:
    record = json.loads((run / "run.json").read_text())
    return record["state"], record["accepted_untrustworthy"]


@pytest.mark.parametrize("strategy", ["paire", "grow", "concentrate", "none"])
def test_a_good_archive_is_published_without_a_finding(tmp_path: Path, strategy: str) -> None:
    write_parts(tmp_path / "archive", 110, 5)
    finished = run_on(tmp_path / "archive", tmp_path / "run", GUARDED, f"trim.strategy={strategy}")
    entry = finished.result.ledger["groups"]["all"]
    assert entry["findings"] == []
    assert entry["contamination"]["lower"] <= 5 / 115 <= entry["contamination"]["upper"]
    assert state_of(finished.path) == ("done", False)
    assert {path.name for path in finished.path.iterdir()} == ALL_OF_A_RUN


def test_two_products_in_a_group_are_judged_and_written_but_not_published(refused: tuple[Path, str]) -> None:
    out, message = refused
    assert {path.name for path in out.iterdir()} == ALL_OF_A_RUN - {"_SUCCESS"}
    assert state_of(out) == ("untrustworthy", False)
    entry = json.loads((out / "ledger.json").read_text())["groups"]["all"]
    found = next(finding for finding in entry["findings"] if finding["condition"] == "kinds")
    assert found["stops"]
    assert found["sentence"] in entry["warnings"]
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert any(line["level"] == "warning" and found["sentence"] in line["message"] for line in lines)
    assert "group 'all': " in message
    assert "--accept-untrustworthy" in message


def test_a_model_that_is_not_to_be_trusted_scores_nothing(
    refused: tuple[Path, str], mixed: Path, tmp_path: Path
) -> None:
    with pytest.raises(GaussianMapError, match="not finished"):
        score(str(refused[0] / "model"), str(mixed), str(tmp_path / "scores"), config())


def test_the_same_command_again_is_refused_at_once(
    refused: tuple[Path, str], mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, message = refused
    before = digests(out)
    monkeypatch.setattr(pipeline.run, "open_cluster", None)  # not to be called
    with pytest.raises(UntrustworthyError) as caught:
        quick_run_on(mixed, out, GUARDED)
    assert str(caught.value) == message
    assert digests(out) == before


def test_accepting_it_later_publishes_what_is_there_and_computes_nothing(
    refused: tuple[Path, str], mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(refused[0], tmp_path / "run"))
    before = digests(out)
    monkeypatch.setattr(pipeline.run, "open_cluster", None)  # not to be called
    accepted = quick_run_on(mixed, out)
    assert accepted.result.was_done
    assert accepted.result.ledger == json.loads((out / "ledger.json").read_text())
    assert {name for name, digest in digests(out).items() if before.get(name) != digest} == {"run.json", "_SUCCESS"}
    assert state_of(out) == ("done", True)
    assert quick_run_on(mixed, out, GUARDED).result.was_done


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param((), id="everything"),
        pytest.param((GUARDED, "guard.accept_conditions=kinds,contamination"), id="its conditions"),
    ],
)
def test_a_run_may_be_accepted_beforehand(
    mixed: Path, refused: tuple[Path, str], tmp_path: Path, settings: tuple[str, ...]
) -> None:
    finished = quick_run_on(mixed, tmp_path / "run", *settings)
    assert {path.name for path in finished.path.iterdir()} == ALL_OF_A_RUN
    assert state_of(finished.path) == ("done", True)
    assert finished.result.ledger == json.loads((refused[0] / "ledger.json").read_text())


def test_other_conditions_than_those_accepted_stop_the_run(
    refused: tuple[Path, str], mixed: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(refused[0], tmp_path / "run"))
    with pytest.raises(UntrustworthyError):
        quick_run_on(mixed, out, GUARDED, "guard.accept_conditions=images,positions")
    assert not (out / "_SUCCESS").exists()


def test_an_archive_too_small_to_judge_is_not_to_be_trusted(tmp_path: Path) -> None:
    write_parts(tmp_path / "archive", 2)
    with pytest.raises(UntrustworthyError, match="2 different readable images; at least 3 are needed"):
        quick_run_on(tmp_path / "archive", tmp_path / "run", GUARDED)
    assert (tmp_path / "run" / "manifest.parquet").exists()


def test_a_small_group_beside_large_ones_is_a_warning(tmp_path: Path) -> None:
    write_parts(tmp_path / "archive" / "large", 100)
    write_parts(tmp_path / "archive" / "small", 8, first_seed=500)
    write_parts(tmp_path / "archive" / "tiny", 2, first_seed=600)
    settings = (GUARDED, GROW, "input.group_by={line}/*")
    finished = quick_run_on(tmp_path / "archive", tmp_path / "run", *settings)
    groups = finished.result.ledger["groups"]
    assert groups["large"]["findings"] == []
    for name in ("small", "tiny"):
        assert [(found["condition"], found["stops"]) for found in groups[name]["findings"]] == [("images", False)]
    assert groups["tiny"]["contamination"] is None
    assert state_of(finished.path) == ("done", False)


# --- the failure budget


@pytest.fixture
def half_broken(tmp_path: Path) -> Path:
    source = tmp_path / "archive"
    write_parts(source, 6)
    for number in range(5):
        (source / f"torn_{number}.png").write_bytes(png(part_pixels(number))[:100])
    return source


def test_more_unreadable_files_than_the_budget_end_the_run(half_broken: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UnreadableBudgetError, match=r"5 of 11 images.*'torn_0\.png'.*max_unreadable_fraction"
    ) as caught:
        quick_run_on(half_broken, tmp_path / "run")
    assert caught.value.exit_code == EXIT_UNREADABLE == 3
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last["level"] == "error"
    assert "UnreadableBudgetError" in last["traceback"]
    assert not (tmp_path / "run" / "_SUCCESS").exists()


def test_a_larger_budget_finishes_the_same_run(half_broken: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreadableBudgetError):
        quick_run_on(half_broken, tmp_path / "run")
    finished = quick_run_on(half_broken, tmp_path / "run", "input.max_unreadable_fraction=0.5")
    assert finished.result.ledger["total"]["unreadable"] == 5
    assert_balanced(finished)


def test_exactly_the_budget_is_allowed(half_broken: Path, tmp_path: Path) -> None:
    (half_broken / "torn_0.png").unlink()
    finished = quick_run_on(half_broken, tmp_path / "run", "input.max_unreadable_fraction=0.4")
    assert finished.result.ledger["total"]["unreadable"] == 4


# --- odd archives


def test_groups_are_judged_each_by_its_own_gaussians(tmp_path: Path) -> None:
    source = tmp_path / "archive"
    write_parts(source / "line 1" / "cam", 9, 1)
    write_parts(source / "Línea 2" / "cam", 3, first_seed=50)
    write_parts(source / "tiny" / "cam", 2, first_seed=80)
    (source / "stray.png").write_bytes(png(part_pixels(7)))
    finished = quick_run_on(source, tmp_path / "run", "input.group_by={line}/{camera}/**")
    assert_balanced(finished)
    groups = finished.result.ledger["groups"]
    assert set(groups) == {"line 1/cam", "Línea 2/cam", "tiny/cam", "all"}
    assert groups["Línea 2/cam"]["clean"] == 3
    assert groups["tiny/cam"]["skipped"] == 2
    assert groups["tiny/cam"]["stop_reason"] == "not judged"
    assert decisions(finished)["stray.png"] == "skipped"
    assert GaussianMap.open(str(finished.path / "model")).groups == ("Línea 2/cam", "line 1/cam")
    assert finished.array(f"features/{storage_name('line 1/cam')}").shape[0] == 10
    assert finished.iterations.groupby("group")["iteration"].max().to_dict().keys() == {"line 1/cam", "Línea 2/cam"}


def test_equal_files_in_two_groups_are_no_duplicates(tmp_path: Path) -> None:
    source = tmp_path / "archive"
    write_parts(source / "a", 3)
    write_parts(source / "b", 3)
    finished = quick_run_on(source, tmp_path / "run", "input.group_by={line}/*")
    assert set(decisions(finished).values()) == {"clean"}


def test_a_group_of_three_is_kept_whole(tmp_path: Path) -> None:
    write_parts(tmp_path / "archive", 2, 1)
    finished = quick_run_on(tmp_path / "archive", tmp_path / "run")
    assert_balanced(finished)
    assert set(decisions(finished).values()) == {"clean"}
    assert finished.result.ledger["groups"]["all"]["warnings"]


def test_one_image_is_a_row_with_a_reason(tmp_path: Path) -> None:
    write_parts(tmp_path / "archive", 1)
    finished = quick_run_on(tmp_path / "archive", tmp_path / "run")
    assert_balanced(finished)
    row = finished.manifest.iloc[0]
    assert row["decision"] == "skipped"
    assert "at least 3 are needed" in row["reason"]
    assert len(pd.read_csv(finished.path / "clean.csv")) == 0
    assert GaussianMap.open(str(finished.path / "model")).groups == ()


def test_copies_of_one_image_are_not_judged(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    for number in range(5):
        (tmp_path / "archive" / f"{number}.png").write_bytes(png(part_pixels(1)))
    finished = quick_run_on(tmp_path / "archive", tmp_path / "run")
    assert_balanced(finished)
    assert [decisions(finished)[f"{number}.png"] for number in range(5)] == ["skipped", *["duplicate"] * 4]


def test_nothing_but_unreadable_files_is_a_manifest_of_reasons(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    for name, content in (("a.png", b""), ("b.jpg", b"text"), ("c.png", png(part_pixels(0))[:60])):
        (tmp_path / "archive" / name).write_bytes(content)
    finished = quick_run_on(tmp_path / "archive", tmp_path / "run", "input.max_unreadable_fraction=1")
    assert_balanced(finished)
    assert set(finished.manifest["decision"]) == {"unreadable"}
    assert (finished.manifest["reason"].str.len() > 0).all()


def test_every_kind_of_unreadable_file_is_a_row_with_its_reason(tmp_path: Path) -> None:
    source = tmp_path / "archive"
    write_parts(source, 5)
    (source / "zero.png").write_bytes(b"")
    (source / "truncated.png").write_bytes(png(part_pixels(0))[:2000])
    (source / "truncated.jpg").write_bytes(png(part_pixels(0), "JPEG")[:700])
    (source / "text.jpg").write_text("camera 3 timed out")
    (source / "bomb.png").write_bytes(png(np.zeros((1000, 1000), np.uint8)))
    (source / "broken link.png").symlink_to(source / "nowhere.png")
    settings = ("input.max_unreadable_fraction=1", "input.max_pixels=999999")
    finished = quick_run_on(source, tmp_path / "run", *settings)
    rows = finished.manifest.set_index("file_name")["reason"].to_dict()
    assert {name: rows[name] for name in ("zero.png", "text.jpg", "bomb.png", "broken link.png")} == {
        "zero.png": "the file is empty (0 bytes)",
        "text.jpg": "not an image in any of PNG, JPEG, BMP, TIFF, WEBP",
        "bomb.png": "1000 x 1000 pixels are more than input.max_pixels = 999999",
        "broken link.png": "can not be read: no such file",
    }
    assert all(rows[name].startswith("can not be decoded: ") for name in ("truncated.png", "truncated.jpg"))
    total = finished.result.ledger["total"]
    assert (total["inputs"], total["unreadable"], total["clean"] + total["anomalous"]) == (11, 6, 5)


def commented(pixels: NDArray[np.uint8], comment: str, path: Path) -> None:
    """Write pixels with a comment, so that equal pixels are different bytes."""
    info = PngInfo()
    info.add_text("comment", comment)
    Image.fromarray(pixels).save(path, pnginfo=info)


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(part_pixels(3), id="a part"),
        pytest.param(np.zeros((64, 64, 3), np.uint8), id="black"),
        pytest.param(np.full((64, 64, 3), (255, 0, 0), np.uint8), id="one channel alone"),
    ],
)
def test_images_of_equal_pixels_are_all_clean(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    (tmp_path / "archive").mkdir()
    for number in range(12):
        commented(pixels, str(number), tmp_path / "archive" / f"{number:02d}.png")
    finished = quick_run_on(tmp_path / "archive", tmp_path / "run")
    assert_balanced(finished)
    assert set(decisions(finished).values()) == {"clean"}
    assert np.isfinite(finished.manifest["anomaly_score"]).all()
    assert np.isinf(finished.array("distances/all/threshold")).all()


def test_one_image_unlike_many_equal_ones_is_found(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    for number in range(12):
        commented(part_pixels(3), str(number), tmp_path / "archive" / f"{number:02d}.png")
    (tmp_path / "archive" / "other.png").write_bytes(png(part_pixels(3, defect=True)))
    finished = quick_run_on(tmp_path / "archive", tmp_path / "run")
    assert_balanced(finished)
    assert decisions(finished)["other.png"] == "anomalous"
    assert list(decisions(finished).values()).count("clean") == 12


def test_uniform_images_of_different_greys_are_judged_without_an_error(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    for number in range(12):
        (tmp_path / "archive" / f"{number:02d}.png").write_bytes(png(np.full((64, 64), 100 + number, np.uint8)))
    finished = quick_run_on(tmp_path / "archive", tmp_path / "run")
    assert_balanced(finished)
    assert set(decisions(finished).values()) <= {"clean", "anomalous"}
    assert np.isfinite(finished.manifest["anomaly_score"]).all()


def test_a_constant_colour_channel_is_judged_without_an_error(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    for number in range(10):
        pixels = part_pixels(number, defect=number == 0)
        pixels[..., 1] = 7
        (tmp_path / "archive" / f"{number}.png").write_bytes(png(pixels))
    finished = quick_run_on(tmp_path / "archive", tmp_path / "run")
    assert_balanced(finished)
    assert np.isfinite(finished.manifest["anomaly_score"]).all()


def test_strange_names_come_through_to_manifest_list_and_scores(tmp_path: Path) -> None:
    source = tmp_path / "archive 1 #%~"
    source.mkdir()
    strange = ["two\nlines.png", "größe 写真.png", 'it\'s "q".png', "~#%.png", "a::b.png", "[x]{y}.png", "c\rr.png"]
    for number, name in enumerate(strange):
        (source / name).write_bytes(png(part_pixels(number)))
    finished = quick_run_on(source, tmp_path / "run ::1", "trim.tau=1e9")
    assert_balanced(finished)
    assert decisions(finished) == dict.fromkeys(sorted(strange), "clean")
    listed = pd.read_csv(finished.path / "clean.csv", keep_default_na=False, lineterminator="\n")
    assert {Path(path).name for path in listed["image_path"]} == set(strange)
    rows = rows_of(scored(finished, source, tmp_path / "scores"), source)
    assert all(row["reason"] == "" for row in rows.values())
    assert set(rows) == set(strange)


def test_an_index_of_files_that_are_not_there_is_a_manifest_of_reasons(tmp_path: Path) -> None:
    write_parts(tmp_path, 4)
    names = [*(f"good_{number:03d}.png" for number in range(4)), "missing.png", "", "good_000.png", "nowhere/x.png"]
    index = tmp_path / "index.csv"
    pd.DataFrame({"image_path": names}).to_csv(index, index=False)
    finished = quick_run_on(index, tmp_path / "run", "input.max_unreadable_fraction=0.5")
    assert_balanced(finished)
    rows = finished.manifest.set_index("sample_id")
    assert rows.loc[sample_id("missing.png"), "reason"] == "can not be read: no such file"
    assert sorted(finished.manifest["decision"]) == [*["clean"] * 4, *["skipped"] * 2, *["unreadable"] * 2]


def test_nothing_is_written_when_the_source_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        quick_run_on(tmp_path / "nowhere", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_when_the_backbone_is_wrong(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"features\.nodes"):
        quick_run_on(archive, tmp_path / "run", "features.nodes=layer9")
    assert not (tmp_path / "run").exists()


# --- scoring


def scored(run: Run, source: Path, out: Path, *settings: str, **options: Any) -> pd.DataFrame:
    """Score with a configuration that says nothing of the features, as a user would."""
    cluster = ("cluster.workers=1", "cluster.threads_per_worker=1", "cluster.processes=false")
    return score(str(run.path / "model"), str(source), str(out), parse_config(None, (*cluster, *settings)), **options)


def rows_of(scores: pd.DataFrame, source: Path) -> dict[str, dict[Hashable, Any]]:
    names = [str(Path(path).relative_to(source)) for path in scores["image_path"]]
    return dict(zip(names, scores.to_dict("records"), strict=True))


def test_training_images_score_what_the_manifest_says(settled: Run, tmp_path: Path) -> None:
    scores = scored(settled, settled.source, tmp_path)
    manifest = settled.manifest
    assert scores["image_path"].tolist() == manifest["image_path"].tolist()
    readable = manifest["anomaly_score"].notna()
    for column in ("anomaly_score", "margin", "worst_row", "worst_col"):
        found, expected = scores.loc[readable, column].astype(float), manifest.loc[readable, column].astype(float)
        np.testing.assert_allclose(found, expected, rtol=1e-9, err_msg=column)
    is_anomalous = scores.loc[readable, "is_anomalous"].astype(bool)
    assert is_anomalous.tolist() == (manifest.loc[readable, "label"] == "abnormal").tolist()


def test_scores_are_written_as_they_are_returned(settled: Run, tmp_path: Path) -> None:
    scores = scored(settled, settled.source, tmp_path)
    schema = pq.read_schema(tmp_path / "scores.parquet")
    assert [(field.name, field.type) for field in schema] == [(c.name, c.type) for c in scores_table.COLUMNS]
    written = pd.read_parquet(tmp_path / "scores.parquet")
    assert written["anomaly_score"].dropna().tolist() == scores["anomaly_score"].dropna().tolist()


def test_what_can_not_be_scored_has_a_reason(settled: Run, tmp_path: Path) -> None:
    rows = rows_of(scored(settled, settled.source, tmp_path), settled.source)
    assert rows["empty.png"]["reason"] == "the file is empty (0 bytes)"
    assert "extension" in rows["notes.txt"]["reason"]
    for name, row in rows.items():
        has_score = row["anomaly_score"] is not None and not math.isnan(row["anomaly_score"])
        assert has_score == (row["reason"] == ""), name
        assert has_score == (name not in {"empty.png", "notes.txt"})


def test_heat_maps_cover_each_image_that_was_scored(settled: Run, tmp_path: Path) -> None:
    source = tmp_path / "new"
    write_parts(source, 2, 1)
    (source / "two\nlines.png").write_bytes(png(part_pixels(5)[:, :40]))
    (source / "torn.png").write_bytes(b"")
    scored(settled, source, tmp_path / "scores", maps=True)
    sizes = {}
    for path in (tmp_path / "scores" / "maps").iterdir():
        with Image.open(path) as image:
            sizes[path.name] = image.size
    names = ("good_000.png", "good_001.png", "bad_000.png", "two\nlines.png")
    assert sizes == {f"{storage_name(name)}.png": (40 if "lines" in name else 64, 64) for name in names}


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run over two groups."""
    folder = tmp_path_factory.mktemp("lines")
    write_parts(folder / "archive" / "a", 5)
    write_parts(folder / "archive" / "b", 5, first_seed=50)
    return quick_run_on(folder / "archive", folder / "run", "input.group_by={line}/*")


def test_images_are_scored_under_the_group_of_their_path(lines: Run, tmp_path: Path) -> None:
    (tmp_path / "new" / "c").mkdir(parents=True)
    (tmp_path / "new" / "a").mkdir()
    for place in ("a/1.png", "c/1.png"):
        (tmp_path / "new" / place).write_bytes(png(part_pixels(200)))
    scores = scored(lines, tmp_path / "new", tmp_path / "scores", "input.group_by={line}/*")
    rows = rows_of(scores, tmp_path / "new")
    assert rows["a/1.png"]["group"] == "a"
    assert rows["a/1.png"]["reason"] == ""
    assert rows["c/1.png"]["reason"] == "the map has no group 'c'"
    assert pd.isna(rows["c/1.png"]["anomaly_score"])


def test_a_named_group_scores_everything_under_its_gaussians(lines: Run, tmp_path: Path) -> None:
    write_parts(tmp_path / "new", 2, first_seed=300)
    under = {name: scored(lines, tmp_path / "new", tmp_path / name, group=name) for name in ("a", "b")}
    assert set(under["a"]["group"]) == {"a"}
    assert under["a"]["anomaly_score"].tolist() != under["b"]["anomaly_score"].tolist()


@pytest.mark.parametrize("group", ["c", None])
def test_images_of_no_known_group_are_an_error_that_names_the_groups(
    lines: Run, tmp_path: Path, group: str | None
) -> None:
    write_parts(tmp_path / "new", 1)
    with pytest.raises(GaussianMapError, match=r"'a', 'b'"):
        scored(lines, tmp_path / "new", tmp_path / "scores", group=group)


def test_the_only_group_of_a_map_needs_no_name(tmp_path: Path, lines: Run) -> None:
    only = quick_run_on(lines.source / "a", tmp_path / "run", "input.group_by={part}_*.png")
    scores = scored(only, lines.source / "b", tmp_path / "scores")
    assert set(scores["group"]) == {"good"}
    assert scores["anomaly_score"].notna().all()


def test_scores_do_not_go_into_a_run_directory(settled: Run) -> None:
    with pytest.raises(RunConflictError, match="run directory"):
        scored(settled, settled.source, settled.path)


def test_other_features_than_the_map_was_fitted_with_are_refused(settled: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"features\.pool_stride = 2.*fitted with 8"):
        scored(settled, settled.source, tmp_path, "features.pool_stride=2")


def test_a_run_made_anew_at_the_same_place_is_scored_by_its_new_map(tmp_path: Path) -> None:
    write_parts(tmp_path / "first", 5)
    write_parts(tmp_path / "second", 6, first_seed=100)
    write_parts(tmp_path / "new", 2, first_seed=200)
    quick_run_on(tmp_path / "first", tmp_path / "run")
    scored(quick_run_on(tmp_path / "first", tmp_path / "run"), tmp_path / "new", tmp_path / "a")
    (tmp_path / "run").rename(tmp_path / "old run")
    again = quick_run_on(tmp_path / "second", tmp_path / "run")
    elsewhere = quick_run_on(tmp_path / "second", tmp_path / "elsewhere")
    found, expected = (scored(run, tmp_path / "new", tmp_path / run.path.name / "..") for run in (again, elsewhere))
    assert found["anomaly_score"].tolist() == expected["anomaly_score"].tolist()


def test_a_weights_file_made_anew_at_the_same_place_is_used(tmp_path: Path) -> None:
    write_parts(tmp_path / "archive", 4)
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
