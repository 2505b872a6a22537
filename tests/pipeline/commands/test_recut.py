"""Recutting: the same verdicts as a whole new run, beside a run that stays as it is, and what changed."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import zarr

import pipeline.commands.recut
import pipeline.costs.check
import pipeline.judging.judge
from pipeline.commands.clean import clean
from pipeline.commands.evaluate.evaluate import evaluate_run
from pipeline.commands.recut import RecutResult, recut, recut_config
from pipeline.commands.score import score
from pipeline.run_directory.finished import FinishedRun
from pipeline.run_directory.record import read_record
from schemas.config import parse_config
from schemas.errors import ClusterError, ConfigError, SourceError, UntrustworthyError
from schemas.records import run as layout
from schemas.tables import changes as changes_table
from tests.support.archives import part_pixels, png, tiny_config, write_parts
from tests.support.runs import ALL_OF_A_VERSION, digests, state_of
from workers.storage.directory import Directory

GROUPS = "input.group_by={line}/*"
# 2 x 2 positions
BASE = ("features.pool_kernel=16", "features.pool_stride=16", GROUPS)
ETA = "trim.eta=1.2"  # low: more positions trim than with the default
NONE = "trim.strategy=none"
ACCEPT = "guard.accept_untrustworthy=true"  # tiny groups


def arrays(folder: Path) -> dict[str, Any]:
    """Return every array of a Zarr group, and the attributes of the group and its groups, without the run's id."""
    root = zarr.open_group(folder, mode="r")
    found: dict[str, Any] = {"": {**root.attrs.asdict(), "run_id": None, "checksum": None}}
    for name, node in root.members(max_depth=None):
        found[name] = np.asarray(node[:]) if isinstance(node, zarr.Array) else node.attrs.asdict()
    return found


def manifest(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "manifest.parquet")


def recut_to(run: Path, *settings: str, against: int = 0) -> RecutResult:
    return recut(str(run), parse_config(None, (*settings, ACCEPT)), against=against)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive with copies, what cannot be read, what is skipped, and a group too small to be judged."""
    folder = tmp_path_factory.mktemp("archive")
    write_parts(folder / "line1", 16, 3)
    write_parts(folder / "Line 2", 7, 1, first_seed=100)
    write_parts(folder / "tiny", 2, first_seed=200)
    (folder / "line1" / "a copy.png").write_bytes((folder / "line1" / "good_003.png").read_bytes())
    (folder / "line1" / "bad copy.png").write_bytes((folder / "line1" / "bad_001.png").read_bytes())
    (folder / "tiny" / "copy.png").write_bytes((folder / "tiny" / "good_000.png").read_bytes())
    (folder / "Line 2" / "empty.png").write_bytes(b"")
    (folder / "Line 2" / "torn.png").write_bytes(png(part_pixels(1))[:100])
    (folder / "line1" / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def cleaned(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run, not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "run"
    clean(str(archive), str(run), tiny_config(*BASE))
    return run


@pytest.fixture
def run(cleaned: Path, tmp_path: Path) -> Path:
    """Return a finished run of one's own."""
    return Path(shutil.copytree(cleaned, tmp_path / "run"))


@pytest.fixture(scope="module")
def recutted(cleaned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RecutResult]:
    """Return a run with one version, not to be changed, and what making it returned."""
    run = Path(shutil.copytree(cleaned, tmp_path_factory.mktemp("recut") / "run"))
    return run, recut_to(run, ETA)


# --- the promise


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param((ETA, "gaussian.estimator=oas", "trim.stop_fraction=1"), id="paire, other parameters"),
        pytest.param(("trim.strategy=grow", "trim.smoothing=3"), id="grow"),
        pytest.param(
            ("trim.strategy=concentrate", "gaussian.segment_images=5", "trim.max_iterations=3"),
            id="concentrate, other segments",
        ),
        pytest.param((NONE,), id="none"),
    ],
)
def test_a_recut_decides_what_a_whole_new_run_decides_to_the_last_bit(
    archive: Path, run: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    result = recut_to(run, *settings)
    version, fresh = Path(result.run), tmp_path / "fresh"
    expected = clean(str(archive), str(fresh), tiny_config(*BASE, *settings))
    assert version == run / "recuts" / "0001"
    pd.testing.assert_frame_equal(
        manifest(version).drop(columns="run_id"), manifest(fresh).drop(columns="run_id"), check_exact=True
    )
    assert result.ledger == expected.ledger == json.loads((version / "ledger.json").read_text())
    for name in ("clean.csv", "catalog.parquet", "config.yaml"):
        assert (version / name).read_bytes() == (fresh / name).read_bytes(), name
    passes, expected_passes = (
        pd.read_parquet(folder / "iterations.parquet").drop(columns="seconds") for folder in (version, fresh)
    )
    pd.testing.assert_frame_equal(passes, expected_passes)
    for part in ("distances", "model"):
        found, wanted = arrays(version / part), arrays(fresh / part)
        assert found.keys() == wanted.keys()
        assert len(found) > 2
        for name, values in wanted.items():
            np.testing.assert_equal(found[name], values, err_msg=f"{part}/{name}")


def test_neither_the_images_nor_the_backbone_are_needed(
    recutted: tuple[Path, RecutResult], archive: Path, cleaned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = archive.rename(archive.with_name("moved away"))
    try:
        monkeypatch.setattr("workers.features.extractor.PatchExtractor.__init__", None)  # not to be called
        found = recut_to(Path(shutil.copytree(cleaned, tmp_path / "run")), ETA)
    finally:
        moved.rename(archive)
    powers = [entry["power"] for entry in found.ledger["groups"].values()]
    assert any(power["note"].endswith("no such file") for power in powers)
    assert not any(power["planted"] for power in powers)
    assert without_power(found.ledger) == without_power(recutted[1].ledger)


def without_power(ledger: dict[str, Any]) -> dict[str, Any]:
    """Return a ledger without what planted defects said: they need the images."""
    groups = {
        group: {**entry, "power": None, "findings": None, "warnings": None} for group, entry in ledger["groups"].items()
    }
    return {**ledger, "groups": groups}


# --- the version


def test_the_run_stays_as_it_was_published(cleaned: Path, recutted: tuple[Path, RecutResult]) -> None:
    run, _ = recutted
    after = {name: digest for name, digest in digests(run).items() if not name.startswith("recuts/")}
    assert after == digests(cleaned)


def test_a_version_is_a_run_directory_without_features_and_with_what_changed(
    recutted: tuple[Path, RecutResult],
) -> None:
    run, result = recutted
    assert {path.name for path in Path(result.run).iterdir()} == ALL_OF_A_VERSION
    assert [path.name for path in (run / "recuts").iterdir()] == ["0001"]


def test_the_record_names_the_run_that_the_version_was_cut_from(recutted: tuple[Path, RecutResult]) -> None:
    run, result = recutted
    base, record = (json.loads((folder / "run.json").read_text()) for folder in (run, Path(result.run)))
    config = tiny_config(*BASE, ETA)
    assert (record["base"], base["base"]) == (base["run_id"], "")
    assert (result.base, result.run_id) == (base["run_id"], record["run_id"])
    assert record["run_id"] != base["run_id"]
    assert set(manifest(Path(result.run))["run_id"]) == {record["run_id"]}
    assert (record["state"], record["config_digest"]) == ("done", config.digest())
    assert parse_config((Path(result.run) / "config.yaml").read_text()) == config
    for name in ("source", "catalog_digest", "weights_digest"):
        assert record[name] == base[name]
    assert sum(record["hosts"].values()) == 1


def test_the_log_of_a_version_is_its_own(recutted: tuple[Path, RecutResult]) -> None:
    _, result = recutted
    lines = [json.loads(line) for line in (Path(result.run) / "log.jsonl").read_text().splitlines()]
    assert any("pass 1" in line["message"] for line in lines)
    assert [line["message"].split()[0] for line in lines[-3:]] == ["compared", "3", "published"]


def test_a_version_is_scored_and_evaluated_like_a_run(
    recutted: tuple[Path, RecutResult], archive: Path, tmp_path: Path
) -> None:
    version = Path(recutted[1].run)
    for model in (version / "model", version):
        scores = score(str(model), str(archive), str(tmp_path / model.name), tiny_config(*BASE))
        assert set(scores.loc[scores["anomaly_score"].notna(), "group"]) == {"line1", "Line 2"}
    names = [path.relative_to(archive).as_posix() for path in sorted(archive.rglob("*.png"))]
    labels = pd.DataFrame({"image_path": names, "label_index": [int("bad" in name) for name in names]})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    figures = evaluate_run(Directory.at(version), str(tmp_path / "labels.csv")).overall
    assert figures.n_clean == recutted[1].ledger["total"]["clean"]


def test_a_group_that_could_not_be_judged_stays_so(recutted: tuple[Path, RecutResult], cleaned: Path) -> None:
    version = Path(recutted[1].run)
    found, before = (frame[frame["group"] == "tiny"] for frame in (manifest(version), manifest(cleaned)))
    assert sorted(found["decision"]) == ["duplicate", "skipped", "skipped"]
    assert found["reason"].tolist() == before["reason"].tolist()


# --- what changed


def test_the_changes_are_the_inputs_with_another_decision(recutted: tuple[Path, RecutResult], cleaned: Path) -> None:
    version, changes = Path(recutted[1].run), pd.read_parquet(Path(recutted[1].run) / "changes.parquet")
    schema = pq.read_schema(version / "changes.parquet")
    assert [(field.name, field.type) for field in schema] == [(c.name, c.type) for c in changes_table.COLUMNS]
    before, after = (frame.set_index("file_name") for frame in (manifest(cleaned), manifest(version)))
    expected = [name for name in after.index if after.loc[name, "decision"] != before.loc[name, "decision"]]
    assert len(expected) > 0
    assert changes["file_name"].tolist() == expected
    for side, frame in (("before", before), ("after", after)):
        assert changes[f"decision_{side}"].tolist() == frame.loc[expected, "decision"].tolist()
        assert changes[f"reason_{side}"].tolist() == frame.loc[expected, "reason"].tolist()
    listed = pd.read_csv(version / "changes.csv", keep_default_na=False)
    assert listed.to_numpy().tolist() == changes.to_numpy().tolist()


def test_the_counts_of_the_changes_agree_with_both_ledgers(recutted: tuple[Path, RecutResult], cleaned: Path) -> None:
    _, result = recutted
    before = json.loads((cleaned / "ledger.json").read_text())
    assert result.changes["against"] == 0
    assert json.loads((Path(result.run) / "changes.json").read_text()) == result.changes
    sides = [(before["total"], result.ledger["total"], result.changes["total"])]
    sides += [(before["groups"][name], result.ledger["groups"][name], result.changes["groups"][name]) for name in
              ("line1", "Line 2", "tiny")]  # fmt: skip
    for was, now, counts in sides:
        assert now["clean"] == was["clean"] + counts["added"] - counts["removed"]
        assert counts["flipped"] == counts["added"] + counts["removed"]
        assert counts["flipped"] + counts["other"] + counts["unchanged"] == now["inputs"]


def test_a_version_is_compared_with_another_one_where_it_is_named(run: Path) -> None:
    first = recut_to(run, NONE)
    second = recut_to(run, ETA, against=1)
    assert (first.version, second.version, second.changes["against"]) == (1, 2, 1)
    kept = {number: set(pd.read_csv(run / "recuts" / f"{number:04d}" / "clean.csv")["file_name"]) for number in (1, 2)}
    counts = second.changes["total"]
    assert (counts["added"], counts["removed"]) == (len(kept[2] - kept[1]), len(kept[1] - kept[2]))
    before = digests(run)
    with_run = recut_to(run, ETA)
    assert with_run.was_done
    assert with_run.changes["total"]["added"] + with_run.changes["total"]["removed"] > 0
    assert with_run.changes["total"] != counts
    assert digests(run) == before, "the published comparison was written again"


@pytest.mark.parametrize("against", [1, 7, -1])
def test_a_version_that_is_not_there_is_not_compared_with(cleaned: Path, against: int) -> None:
    before = digests(cleaned)
    with pytest.raises(ConfigError, match=rf"--against {against}: .*Finished versions: 0 \(the run itself\)\."):
        recut_to(cleaned, ETA, against=against)
    assert digests(cleaned) == before


# --- which settings


def test_the_run_s_own_settings_are_done_already(cleaned: Path) -> None:
    before = digests(cleaned)
    for settings in ((), ("trim.eta=2.3", "cluster.threads_per_worker=2")):
        result = recut_to(cleaned, *settings)
        assert (result.was_done, result.version, result.run) == (True, 0, str(cleaned))
        assert result.changes["total"]["flipped"] == 0
        assert result.run_id == result.base
    assert digests(cleaned) == before


def test_the_settings_of_a_version_are_done_already(recutted: tuple[Path, RecutResult]) -> None:
    run, first = recutted
    before = digests(run)
    again = recut_to(run, ETA, "cluster.threads_per_worker=2")
    assert again.was_done
    assert not first.was_done
    assert {**again.to_json(), "was_done": False} == first.to_json()
    assert digests(run) == before


def test_settings_are_laid_over_those_of_the_run(cleaned: Path) -> None:
    own = tiny_config(*BASE, "trim.tau=1.1", "gaussian.ridge=0.001")
    base = dataclasses.replace(FinishedRun.open(str(cleaned)), config=own)
    found = recut_config(base, parse_config("trim: {eta: 9}", ["trim.eta=1.2", ACCEPT]))
    assert found == tiny_config(*BASE, "trim.tau=1.1", "gaussian.ridge=0.001", "trim.eta=1.2")


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("features.pool_stride=2", r"features\.pool_stride = 2, .*made with 16.*`paire clean`"),
        ("features.weights=imagenet", r"features\.weights = 'imagenet'.*'random'"),
        ("features.weights=other.pth", r"features\.weights = '/.*other\.pth'.*'random'"),
        ("features.seed=1", r"features\.seed = 1"),
        ("input.group_by=", r"input\.group_by = None.*'\{line\}/\*'"),
        ("input.max_pixels=100", r"input\.max_pixels = 100"),
    ],
)
def test_a_setting_that_the_features_depend_on_needs_a_new_run(cleaned: Path, setting: str, named: str) -> None:
    before = digests(cleaned)
    with pytest.raises(ConfigError, match=named):
        recut_to(cleaned, ETA, setting)
    assert digests(cleaned) == before


def test_the_run_s_own_configuration_file_may_be_given(recutted: tuple[Path, RecutResult]) -> None:
    run, first = recutted
    given = parse_config((run / "config.yaml").read_text(), [ETA])
    assert recut(str(run), given).version == first.version
    elsewhere = parse_config(None, [ETA, "features.device=cpu", "input.max_unreadable_fraction=0"])
    assert recut(str(run), elsewhere).version == first.version


# --- unfinished versions


def test_an_unfinished_version_is_started_over_by_the_same_settings_only(
    run: Path, recutted: tuple[Path, RecutResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for module, stage in ((pipeline.judging.judge, "build_ledger"), (pipeline.commands.recut, "write_changes")):
        with monkeypatch.context() as patch:
            patch.setattr(module, stage, interrupt)
            with pytest.raises(KeyboardInterrupt):
                recut_to(run, ETA)
    begun = digests(run / "recuts" / "0001")
    assert "_SUCCESS" not in begun
    assert recut_to(run, NONE).version == 2
    assert digests(run / "recuts" / "0001") == begun
    with pytest.raises(ConfigError, match=r"--against 1.*: 0 \(the run itself\), 2\."):
        recut_to(run, ETA, against=1)
    unfinished = json.loads((run / "recuts" / "0001" / "run.json").read_text())["run_id"]
    finished = recut_to(run, ETA)
    assert (finished.version, finished.run_id, finished.was_done) == (1, unfinished, False)
    assert {path.name for path in (run / "recuts" / "0001").iterdir()} == ALL_OF_A_VERSION
    assert finished.ledger == recutted[1].ledger
    assert finished.changes == recutted[1].changes


# --- what cannot be recut


def test_finished_versions_outlive_the_features(run: Path) -> None:
    first = recut_to(run, NONE)
    shutil.rmtree(run / "features")
    assert recut_to(run, NONE).to_json() == {**first.to_json(), "was_done": True}


def test_a_version_is_recut_through_its_run_and_starts_from_its_options(recutted: tuple[Path, RecutResult]) -> None:
    run, first = recutted
    with pytest.raises(SourceError, match=f"cut from {run} and has no features") as caught:
        recut_to(Path(first.run), "trim.tau=1.1")
    advised = Path(str(caught.value).split("--config ")[1].rstrip("."))
    assert recut(str(run), parse_config(advised.read_text())).version == first.version


# --- untrustworthy versions


def test_who_accepted_the_run_has_not_accepted_the_version_which_is_refused_or_published_without_judging(
    run: Path, recutted: tuple[Path, RecutResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = parse_config(None, [ETA])
    with pytest.raises(UntrustworthyError, match=r"recuts/0001 is not published: 3 of 3 groups"):
        recut(str(run), refused)
    version, before = run / "recuts" / "0001", digests(run)
    assert {path.name for path in version.iterdir()} == ALL_OF_A_VERSION - {"_SUCCESS"}
    assert state_of(version) == ("untrustworthy", False)
    assert json.loads((version / "ledger.json").read_text()) == recutted[1].ledger
    with pytest.raises(ConfigError, match="no finished version"):
        recut(str(run), parse_config(None, [NONE]), against=1)

    shutil.rmtree(run / "features")
    monkeypatch.setattr(pipeline.commands.recut, "Judge", None)  # not to be called
    with pytest.raises(UntrustworthyError):
        recut(str(run), refused)
    accepted = recut_to(run, ETA)
    assert (accepted.was_done, accepted.version, accepted.changes) == (True, 1, recutted[1].changes)
    after = {name: digest for name, digest in digests(run).items() if before.get(name) != digest}
    assert set(after) == {"recuts/0001/run.json", "recuts/0001/_SUCCESS"}
    assert state_of(version) == ("done", True)


def test_a_recut_is_refused_where_the_workers_lack_the_memory_to_judge(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.costs.check, "_limit_and_held", lambda: (1000, 900))
    with pytest.raises(ClusterError, match=r"judging a group of \d+ images .* GiB or more"):
        recut_to(run, "trim.eta=2.7")
    version = run / "recuts" / "0001"
    assert not (version / "manifest.parquet").exists()
    assert not (version / "_SUCCESS").exists()


def test_an_interrupted_recut_says_so_and_the_same_command_finishes_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.judging.judge.Judge, "judge", interrupt)
        with pytest.raises(KeyboardInterrupt):
            recut_to(run, "trim.eta=2.7")
    record = Directory.at(str(run / "recuts" / "0001"))
    assert read_record(record).state == layout.INTERRUPTED
    result = recut_to(run, "trim.eta=2.7")
    assert (result.version, result.was_done) == (1, False)
    assert read_record(record).state == layout.DONE
