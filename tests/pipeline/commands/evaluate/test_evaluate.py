"""A finished run against true labels and masks: a tiny run with known defects, by hand and by command."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from click.testing import CliRunner
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.cli.main import cli
from pipeline.commands.clean import clean
from pipeline.commands.evaluate.evaluate import evaluate, evaluate_run
from pipeline.commands.evaluate.evaluation import OVERALL, Evaluation
from pipeline.commands.evaluate.metrics import aupro, count_pixels, merge_pixels
from pipeline.commands.evaluate.truth import Coverage
from schemas.errors import DamagedArrayError, SourceError
from schemas.names import storage_name
from schemas.tables.manifest import CLEAN
from tests.support.archives import part_pixels, png, tiny_config, write_parts
from workers.map.scorer import upsample
from workers.storage.directory import Directory

FIRST, SECOND = "Line 1", "line-2"
GOOD, DEFECTIVE, GOOD_COPIES = 40, 6, 5
NORMAL = GOOD + GOOD_COPIES - 1  # one has no label
UNKNOWN = "good_039.png"
CLUSTER = ("cluster.workers=1", "cluster.threads_per_worker=1", "cluster.processes=false")

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class TinyRun:
    """A finished run over two groups, of which only the first has defects, with labels and masks beside the source."""

    source: Path
    run: Directory
    labels: Path
    masks: Path

    def evaluate(self) -> Evaluation:
        return evaluate_run(self.run, str(self.labels), masks=str(self.masks))

    def manifest(self, group: str) -> pd.DataFrame:
        """Return the labelled images of a group with their truth, by file name."""
        manifest = pd.read_parquet(Path(self.run.url) / "manifest.parquet")
        truth = pd.read_csv(self.labels).set_index("image_path")["label_index"]
        manifest["truth"] = manifest["file_name"].map(truth) == 1
        return manifest[(manifest["group"] == group) & manifest["file_name"].isin(truth.index)]


def defect_mask(number: int) -> Mask:
    """Return the pixels of the bar on the part of that number."""
    seed = 10_000 + number
    return np.asarray((part_pixels(seed, defect=True) != part_pixels(seed)).any(axis=2))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    folder = tmp_path_factory.mktemp("evaluate")
    source, masks = folder / "archive", folder / "masks"
    bad = write_parts(source / FIRST, GOOD, DEFECTIVE)
    write_parts(source / SECOND, 12, first_seed=500)
    (source / FIRST / "bad_copy.png").write_bytes((source / FIRST / bad[0]).read_bytes())
    for number in range(GOOD_COPIES):
        shutil.copy(source / FIRST / f"good_{number:03d}.png", source / FIRST / f"good_{number:03d}_copy.png")
    (source / FIRST / "torn.png").write_bytes(b"\x89PNG")
    (source / FIRST / "note.txt").write_text("not an image")
    (masks / FIRST).mkdir(parents=True)
    for number, name in enumerate(bad):
        (masks / FIRST / name).write_bytes(png(np.uint8(255) * defect_mask(number)))
    (masks / FIRST / "bad_copy.png").write_bytes(png(np.uint8(255) * defect_mask(0)))
    names = [path.relative_to(source).as_posix() for path in sorted(source.glob("*/*.png"))]
    listed = [name for name in names if not name.endswith(UNKNOWN)]
    rows = [(name, int("/bad" in name)) for name in listed] + [(f"{FIRST}/gone.png", 1)]
    labels = source / "labels.csv"
    pd.DataFrame(rows, columns=["image_path", "label_index"]).to_csv(labels, index=False)
    config = tiny_config("input.group_by={line}/**", "input.max_unreadable_fraction=1")
    clean(str(source), str(folder / "run"), config)
    return TinyRun(source, Directory.at(folder / "run"), labels, masks)


@pytest.fixture
def copied(tiny: TinyRun, tmp_path: Path) -> TinyRun:
    """Return the same run in a directory that a test may change."""
    shutil.copytree(tiny.run.url, tmp_path / "run")
    return TinyRun(tiny.source, Directory.at(tmp_path / "run"), tiny.labels, tiny.masks)


def test_the_figures_of_a_group_are_those_of_its_manifest_rows(tiny: TinyRun) -> None:
    figures = next(figures for figures in tiny.evaluate().groups if figures.group == FIRST)
    rows = tiny.manifest(FIRST)
    rows = rows[rows["decision"] != "unreadable"]
    is_clean = rows["decision"] == CLEAN
    assert (figures.n_normal, figures.n_anomalous) == (NORMAL, DEFECTIVE + 1)
    assert figures.n_clean == is_clean.sum()
    assert figures.n_clean_anomalous == (is_clean & rows["truth"]).sum()
    assert figures.purity == (~rows["truth"][is_clean]).mean()
    assert figures.kept_share == is_clean[~rows["truth"]].mean()
    assert figures.recall == (~is_clean[rows["truth"]]).mean()
    assert figures.image_auroc == pytest.approx(roc_auc_score(rows["truth"], rows["anomaly_score"]))
    assert figures.average_precision == pytest.approx(average_precision_score(rows["truth"], rows["anomaly_score"]))


def test_a_duplicate_of_a_clean_image_is_not_clean(tiny: TinyRun) -> None:
    rows = tiny.manifest(FIRST)
    duplicates = rows[rows["decision"] == "duplicate"]
    assert (duplicates["label"] == "normal").any()
    figures = next(figures for figures in tiny.evaluate().groups if figures.group == FIRST)
    assert figures.n_clean == ((rows["label"] == "normal") & ~rows.index.isin(duplicates.index)).sum()


def test_a_group_of_one_class_has_no_ranking_metrics_but_a_purity(tiny: TinyRun) -> None:
    figures = next(figures for figures in tiny.evaluate().groups if figures.group == SECOND)
    assert figures.n_anomalous == 0
    assert figures.n_pixel_images == figures.n_normal == 12
    assert (figures.image_auroc, figures.average_precision, figures.pixel_auroc, figures.aupro) == (None,) * 4
    assert figures.recall is None
    assert figures.purity == 1


def test_overall_counts_add_up_and_ranking_metrics_are_the_mean_over_groups_that_have_them(tiny: TinyRun) -> None:
    evaluation = tiny.evaluate()
    first, second = evaluation.groups
    assert evaluation.overall.group == OVERALL
    for name in ("n_normal", "n_anomalous", "n_clean", "n_clean_anomalous", "n_pixel_images"):
        assert getattr(evaluation.overall, name) == getattr(first, name) + getattr(second, name)
    kept = sum((figures.kept_share or 0) * figures.n_normal for figures in (first, second))
    assert evaluation.overall.kept_share == pytest.approx(kept / evaluation.overall.n_normal)
    assert evaluation.overall.image_auroc == first.image_auroc


def test_pixel_metrics_are_those_of_the_stored_distances_upsampled_to_the_masks(tiny: TinyRun) -> None:
    figures = next(figures for figures in tiny.evaluate().groups if figures.group == FIRST)
    catalog = pd.read_parquet(Path(tiny.run.url) / "catalog.parquet").set_index("sample_id")["row"]
    distances = zarr.open_array(f"{tiny.run.url}/distances/{storage_name(FIRST)}/distance", mode="r")
    scores, masks = [], []
    for image in tiny.manifest(FIRST).query("decision != 'unreadable'").to_dict("records"):
        representative = image["sample_id"] if pd.isna(image["duplicate_of"]) else image["duplicate_of"]
        scores.append(upsample(np.asarray(distances[int(catalog[representative])]), 64, 64))
        number = 0 if "copy" in image["file_name"] else int(image["file_name"][-7:-4])
        masks.append(defect_mask(number) if image["truth"] else np.zeros((64, 64), dtype=bool))
    assert figures.n_pixel_images == len(scores)
    assert figures.pixel_auroc == pytest.approx(roc_auc_score(np.ravel(masks), np.ravel(scores)), abs=1e-3)
    levels = np.unique(scores)
    exact = count_pixels(scores[0], masks[0], levels)
    for upsampled, mask in zip(scores[1:], masks[1:], strict=True):
        exact = merge_pixels(exact, count_pixels(upsampled, mask, levels))
    assert figures.aupro == pytest.approx(aupro(exact), abs=1e-3)


def test_what_was_not_compared_is_counted_and_said(tiny: TinyRun, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="paire"):
        coverage = tiny.evaluate().coverage
    labels = len(pd.read_csv(tiny.labels))
    # Skipped are the note and the labels, which lie in the archive, too.
    assert coverage == Coverage(
        labels=labels,
        unmatched_labels=1,
        unlabelled=1,
        duplicates=GOOD_COPIES + 1,
        unreadable=1,
        skipped=2,
        without_mask=0,
    )
    assert f"1 of {labels} labels match no input" in caplog.text
    assert "1 inputs have no label" in caplog.text
    assert "1 unreadable and 2 skipped" in caplog.text


def test_the_last_pass_is_the_published_clean_set(tiny: TinyRun) -> None:
    evaluation = tiny.evaluate()
    passes = pd.read_parquet(Path(tiny.run.url) / "iterations.parquet")
    assert evaluation.by_iteration[["group", "iteration"]].to_numpy().tolist() == sorted(
        passes[["group", "iteration"]].to_numpy().tolist()
    )
    for figures in evaluation.groups:
        last = evaluation.by_iteration[evaluation.by_iteration["group"] == figures.group].iloc[-1]
        for name in ("n_clean", "n_clean_anomalous", "purity", "kept_share"):
            assert last[name] == getattr(figures, name)


def test_purity_and_kept_share_follow_the_stored_clean_sets(copied: TinyRun) -> None:
    catalog = pd.read_parquet(Path(copied.run.url) / "catalog.parquet").dropna(subset="row")
    rows = catalog[catalog["group"] == FIRST].set_index("file_name")["row"].astype(int)
    sets = np.zeros((2, len(rows)), dtype=bool)
    sets[0, rows[[f"{FIRST}/good_000.png", f"{FIRST}/good_001.png", f"{FIRST}/bad_000.png"]]] = True
    sets[1] = True  # even what takes no part: a duplicate stays excluded whatever its row says
    group = copied.run.zarr_group(f"distances/{storage_name(FIRST)}", "r+")
    group.create_array("clean", data=sets, overwrite=True)
    first, second = copied.evaluate().by_iteration.query(f"group == '{FIRST}'").to_dict("records")
    assert (first["iteration"], first["n_clean"], first["n_clean_anomalous"]) == (1, 3, 1)
    assert (first["purity"], first["kept_share"]) == (2 / 3, 2 / NORMAL)
    assert first["recall"] == DEFECTIVE / (DEFECTIVE + 1)
    assert (second["n_clean"], second["kept_share"]) == (GOOD - 1 + DEFECTIVE, (GOOD - 1) / NORMAL)


def test_passes_are_left_out_where_their_clean_sets_are_not_stored(copied: TinyRun) -> None:
    copied.run.remove(f"distances/{storage_name(FIRST)}/clean")
    evaluation = copied.evaluate()
    assert set(evaluation.by_iteration["group"]) == {SECOND}
    copied.run.remove(f"distances/{storage_name(SECOND)}/clean")
    assert copied.evaluate().by_iteration.empty
    assert [figures.purity for figures in copied.evaluate().groups] == [f.purity for f in evaluation.groups]


def test_without_masks_there_are_no_pixel_metrics(tiny: TinyRun) -> None:
    evaluation = evaluate_run(tiny.run, str(tiny.labels))
    assert [(f.pixel_auroc, f.aupro, f.n_pixel_images) for f in evaluation.groups] == [(None, None, 0)] * 2
    assert all(curves.pro is None for curves in evaluation.curves.values())
    assert evaluation.coverage.without_mask == 0


@pytest.mark.parametrize("written", ["absolute", "relative to the labels", "file_name"])
def test_labels_match_by_location_or_by_name(tiny: TinyRun, tmp_path: Path, written: str) -> None:
    labels = pd.read_csv(tiny.labels)
    place = tmp_path / "labels.csv"
    if written == "absolute":
        labels["image_path"] = [str(tiny.source / name) for name in labels["image_path"]]
    elif written == "relative to the labels":
        place = tiny.source.parent / "labels elsewhere.csv"
        labels["image_path"] = [f"./{tiny.source.name}/{name}" for name in labels["image_path"]]
    labels.to_csv(place, index=False)
    found, expected = evaluate_run(tiny.run, str(place)), evaluate_run(tiny.run, str(tiny.labels))
    assert (found.groups, found.coverage) == (expected.groups, expected.coverage)


def test_a_label_that_matches_by_location_is_not_used_again_by_name(copied: TinyRun, tmp_path: Path) -> None:
    name = f"{copied.source.name}/{FIRST}/bad_000.png"
    manifest = pd.read_parquet(Path(copied.run.url) / "manifest.parquet")
    manifest.loc[manifest["group"] == SECOND, "file_name"] = name
    manifest.to_parquet(Path(copied.run.url) / "manifest.parquet")
    labels = copied.source.parent / "one label.csv"
    labels.write_text(f"image_path,label_index\n{name},1\n")
    evaluation = evaluate_run(copied.run, str(labels))
    assert [(figures.group, figures.n_anomalous) for figures in evaluation.groups] == [(FIRST, 1)]
    labels.write_text(f"image_path,label_index\n{name},1\n{copied.source.name}/{FIRST}/bad_001.png,1\n")
    manifest.loc[manifest["group"] == FIRST, "image_path"] = "moved"
    manifest.to_parquet(Path(copied.run.url) / "manifest.parquet")
    assert [figures.group for figures in evaluate_run(copied.run, str(labels)).groups] == [SECOND]


def test_damaged_distances_are_an_error_that_says_what_to_do(copied: TinyRun) -> None:
    for chunk in Path(copied.run.url).glob("distances/*/distance/c/*/*/*"):
        chunk.write_bytes(chunk.read_bytes()[::-1])
    with pytest.raises(DamagedArrayError, match=r"distances/.* is damaged .*paire recut"):
        copied.evaluate()


def test_a_run_that_is_not_finished_is_refused(copied: TinyRun) -> None:
    copied.run.remove("_SUCCESS")
    with pytest.raises(SourceError, match="not a finished run"):
        copied.evaluate()


def test_the_result_is_json_with_null_for_what_is_not_defined(tiny: TinyRun) -> None:
    evaluation = tiny.evaluate()
    result = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert [group["group"] for group in result["groups"]] == [FIRST, SECOND]
    assert result["groups"][1]["image_auroc"] is None
    assert result["by_iteration"][-1]["recall"] is None
    assert result["overall"]["purity"] == evaluation.overall.purity
    assert result["coverage"]["unmatched_labels"] == 1
    assert result["curves"][SECOND]["roc"] is None
    roc = result["curves"][FIRST]["roc"]
    assert (roc["x"][0], roc["y"][-1], len(roc["x"])) == (0, 1, len(roc["y"]))
    assert result["curves"][FIRST]["pro"]["x"][-1] == 0.3


def test_the_table_has_a_row_for_each_group_and_one_for_all(tiny: TinyRun) -> None:
    table = tiny.evaluate().table()
    assert table["group"].tolist() == [FIRST, SECOND, OVERALL]
    assert table.loc[0, "n_normal"] == NORMAL
    assert table["image_auroc"].isna().tolist() == [False, True, False]
    assert table["image_auroc"].dtype == np.float64


def test_a_run_is_evaluated_as_a_run(tiny: TinyRun, copied: TinyRun) -> None:
    assert evaluate(tiny.run.url, str(tiny.labels)).groups == evaluate_run(tiny.run, str(tiny.labels)).groups
    copied.run.remove("_SUCCESS")
    with pytest.raises(SourceError, match="not a finished run: _SUCCESS is missing"):
        evaluate(copied.run.url, str(copied.labels))


def test_the_commands_evaluate_a_test_set_with_its_masks(tiny: TinyRun, tmp_path: Path) -> None:
    out, masks = str(tmp_path / "scores"), str(tiny.masks)
    settings = [part for setting in CLUSTER for part in ("--set", setting)]
    model, group_by = str(Path(tiny.run.url) / "model"), ["--group-by", "{line}/**"]
    source = str(tiny.source)
    ended = CliRunner().invoke(cli, ["score", model, source, "--out", out, "--anomaly-maps", *group_by, *settings])
    assert ended.exit_code == 0, ended.output
    ended = CliRunner().invoke(cli, ["evaluate", out, "--labels", str(tiny.labels), "--masks", masks, "--json"])
    assert ended.exit_code == 0, ended.output
    first = json.loads(ended.stdout)["groups"][0]
    # Every image has a score of its own here, also a duplicate.
    assert (first["group"], first["n_pixel_images"]) == (FIRST, NORMAL + DEFECTIVE + 1)
    assert first["image_auroc"] > 0.9
    assert first["pixel_auroc"] > 0.8


def test_the_command_prints_and_writes_the_evaluation(tiny: TinyRun, tmp_path: Path) -> None:
    out = str(tmp_path / "evaluation")
    ended = CliRunner().invoke(cli, ["evaluate", tiny.run.url, "--labels", str(tiny.labels), "--json", "--out", out])
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout) == json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert "purity" in ended.stderr
    assert (tmp_path / "evaluation" / "curves.png").read_bytes().startswith(b"\x89PNG")
    written = pd.read_csv(tmp_path / "evaluation" / "evaluation.csv")
    assert written["n_anomalous"].tolist() == [DEFECTIVE + 1, 0, DEFECTIVE + 1]
