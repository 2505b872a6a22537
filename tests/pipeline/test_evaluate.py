"""A run and a test set against true labels and masks: a tiny run with known defects, and hand-made scores."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import zarr
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.cli import cli
from pipeline.curves import draw_curves
from pipeline.evaluate import evaluate, evaluate_run, evaluate_test
from pipeline.evaluation import OVERALL, Evaluation, Figures, GroupCurves
from pipeline.run import clean
from pipeline.truth import Coverage
from schemas import scores as scores_table
from schemas.errors import SourceError
from schemas.manifest import CLEAN
from schemas.names import storage_name
from schemas.scores import ANOMALY_MAPS, SCORES
from schemas.tables import to_arrow
from tests.archives import part_pixels, png, tiny_config, write_parts
from tests.workers.folders import lock
from workers.metrics import Curve, aupro, count_pixels, merge_pixels
from workers.scorer import upsample
from workers.storage import Directory

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


def test_a_run_that_is_not_finished_is_refused(copied: TinyRun) -> None:
    copied.run.remove("_SUCCESS")
    with pytest.raises(SourceError, match="no finished run"):
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


# From here on: scores and maps made by hand.


def scored(folder: Path, names: Mapping[str, float | None], **columns: Sequence[Any]) -> pd.DataFrame:
    """Return a table of scores of images in a folder, which need not be there; None is an image without a score."""
    frame = pd.DataFrame({column.name: None for column in scores_table.COLUMNS}, index=range(len(names))).astype(object)
    frame["image_path"] = [str(folder / name) for name in names]
    frame["group"] = "all"
    frame["anomaly_score"] = list(names.values())
    frame["is_anomalous"] = [None if score is None else score >= 10 for score in names.values()]
    frame["reason"] = ["" if score is not None else "torn" for score in names.values()]
    return frame.assign(**columns)


def labelled(folder: Path, rows: Mapping[str, int], **columns: Sequence[Any]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({"image_path": list(rows), "label_index": list(rows.values()), **columns})
    frame.to_csv(folder / "labels.csv", index=False)
    return str(folder / "labels.csv")


def no_maps(position: int) -> None:
    return None


def corner_map(*, hot: bool) -> NDArray[np.float64]:
    """Return distances (4, 4), 1 everywhere but in the first corner where it is hot."""
    distances = np.ones((4, 4))
    distances[0, 0] = 50.0 if hot else 1.0
    distances.flags.writeable = False
    return distances


def corner_mask(size: int = 16) -> Mask:
    mask = np.zeros((size, size), dtype=bool)
    mask[: size // 4, : size // 4] = True
    return mask


def write_grey(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels.astype(np.uint8)))


def test_a_test_sets_figures_from_its_scores(tmp_path: Path) -> None:
    names = {"a.png": 1.0, "b.png": 12.0, "c.png": 30.0, "d.png": 11.0, "torn.png": None, "unlabelled.png": 3.0}
    labels = labelled(tmp_path, {"a.png": 0, "b.png": 0, "c.png": 1, "d.png": 1, "torn.png": 1, "gone.png": 0})
    evaluation = evaluate_test(scored(tmp_path, names), no_maps, labels)
    figures = evaluation.groups[0]
    assert (figures.n_normal, figures.n_anomalous, figures.n_clean, figures.n_clean_anomalous) == (2, 2, 1, 0)
    assert (figures.image_auroc, figures.purity, figures.kept_share, figures.recall) == (0.75, 1.0, 0.5, 1.0)
    assert evaluation.by_iteration.empty
    assert evaluation.coverage == Coverage(
        labels=6, unmatched_labels=1, unlabelled=1, duplicates=0, unreadable=1, skipped=0, without_mask=0
    )
    json.dumps(evaluation.to_json(), allow_nan=False)


def test_overall_ranking_metrics_are_means_because_groups_share_no_scale(tmp_path: Path) -> None:
    names = {"a.png": 1.0, "b.png": 2.0, "c.png": 200.0, "d.png": 100.0, "e.png": 5.0}
    labels = labelled(tmp_path, {"a.png": 0, "b.png": 1, "c.png": 0, "d.png": 1, "e.png": 0})
    evaluation = evaluate_test(scored(tmp_path, names, group=["x", "x", "y", "y", "z"]), no_maps, labels)
    assert [figures.image_auroc for figures in evaluation.groups] == [1.0, 0.0, None]
    assert [figures.average_precision for figures in evaluation.groups] == [1.0, 0.5, None]
    assert (evaluation.overall.image_auroc, evaluation.overall.average_precision) == (0.5, 0.75)
    assert (evaluation.overall.n_normal, evaluation.overall.n_clean) == (3, 3)


@pytest.mark.parametrize(
    "name",
    ["c_mask.png", "c.png", "c_GT.png", "images/c_mask.png", "images/c.png", "images/c_GT.png"],
)
def test_masks_are_found_by_name(tmp_path: Path, name: str) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    write_grey(images / "a.png", np.zeros((16, 16)))
    write_grey(masks / name, 255 * corner_mask())
    labels = labelled(tmp_path, {"images/a.png": 0, "images/c.png": 1})
    evaluation = evaluate_test(
        scored(images, {"a.png": 1.0, "c.png": 50.0}),
        lambda place: corner_map(hot=place == 1),
        labels,
        masks=str(masks),
    )
    figures = evaluation.groups[0]
    assert figures.n_pixel_images == 2
    assert figures.pixel_auroc is not None
    assert figures.pixel_auroc > 0.95
    assert figures.aupro is not None
    assert figures.aupro > 0.9


def test_a_mask_below_the_images_folder_goes_before_one_of_the_same_name(tmp_path: Path) -> None:
    write_grey(tmp_path / "masks" / "scratch" / "000_mask.png", corner_mask())
    write_grey(tmp_path / "masks" / "000_mask.png", ~corner_mask())
    labels = labelled(tmp_path, {"test/scratch/000.png": 1})
    scores = scored(tmp_path / "test" / "scratch", {"000.png": 50.0})
    evaluation = evaluate_test(scores, lambda _: corner_map(hot=True), labels, masks=str(tmp_path / "masks"))
    assert evaluation.groups[0].pixel_auroc == pytest.approx(1, abs=0.05)


def test_an_image_is_never_its_own_mask(tmp_path: Path) -> None:
    write_grey(tmp_path / "c.png", np.full((16, 16), 90))
    labels = labelled(tmp_path, {"c.png": 1})
    scores = scored(tmp_path, {"c.png": 50.0})
    with pytest.raises(SourceError, match=r"none of the 2 files .* is a mask .*c_mask\.png, .*c_GT\.png"):
        evaluate_test(scores, lambda _: corner_map(hot=True), labels, masks=str(tmp_path))
    write_grey(tmp_path / "c_GT.png", corner_mask())
    evaluation = evaluate_test(scores, lambda _: corner_map(hot=True), labels, masks=str(tmp_path))
    assert evaluation.groups[0].pixel_auroc == pytest.approx(1, abs=0.05)


def test_masks_named_by_the_labels_need_no_folder_and_go_before_one(tmp_path: Path) -> None:
    write_grey(tmp_path / "anywhere" / "truth.png", corner_mask())
    write_grey(tmp_path / "masks" / "c.png", ~corner_mask())
    write_grey(tmp_path / "a.png", np.zeros((16, 16)))
    labels = labelled(tmp_path, {"a.png": 0, "c.png": 1}, mask_path=["", "anywhere/truth.png"])
    scores = scored(tmp_path, {"a.png": 1.0, "c.png": 50.0})
    for masks in (None, str(tmp_path / "masks")):
        evaluation = evaluate_test(scores, lambda place: corner_map(hot=place == 1), labels, masks=masks)
        assert evaluation.groups[0].pixel_auroc == pytest.approx(1, abs=0.05)


def test_an_anomalous_image_without_a_mask_is_left_out_of_the_pixel_metrics_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_grey(tmp_path / "masks" / "c.png", corner_mask())
    labels = labelled(tmp_path, {"c.png": 1, "lost.png": 1})
    scores = scored(tmp_path, {"c.png": 50.0, "lost.png": 40.0})
    with caplog.at_level(logging.WARNING, logger="paire"):
        evaluation = evaluate_test(scores, lambda _: corner_map(hot=True), labels, masks=str(tmp_path / "masks"))
    assert evaluation.coverage.without_mask == 1
    assert (evaluation.groups[0].n_anomalous, evaluation.groups[0].n_pixel_images) == (2, 1)
    assert str(tmp_path / "lost.png") in caplog.text


def test_an_image_without_a_map_is_left_out_of_the_pixel_metrics(tmp_path: Path) -> None:
    for name in ("c.png", "d.png"):
        write_grey(tmp_path / "masks" / name, corner_mask())
    labels = labelled(tmp_path, {"c.png": 1, "d.png": 1})
    scores = scored(tmp_path, {"c.png": 50.0, "d.png": 40.0})
    maps = {0: corner_map(hot=True)}
    evaluation = evaluate_test(scores, maps.get, labels, masks=str(tmp_path / "masks"))
    assert (evaluation.groups[0].n_pixel_images, evaluation.coverage.without_mask) == (1, 0)
    evaluation = evaluate_test(scores, no_maps, labels, masks=str(tmp_path / "masks"))
    assert (evaluation.groups[0].n_pixel_images, evaluation.groups[0].aupro) == (0, None)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_any_colour_that_is_not_zero_is_anomalous_but_transparency_is_not(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.where(corner_mask(), np.uint8(255), np.uint8(0)))
    mask = Image.fromarray(corner_mask().astype(np.uint16)) if mode == "I;16" else grey.convert(mode)
    mask.save(tmp_path / "c_mask.png")
    labels = labelled(tmp_path, {"c.png": 1})
    evaluation = evaluate_test(
        scored(tmp_path, {"c.png": 50.0}), lambda _: corner_map(hot=True), labels, masks=str(tmp_path)
    )
    points = evaluation.curves["all"].pro
    assert points is not None
    # All normal pixels and all anomalous ones are there: as with the plain mask.
    write_grey(tmp_path / "c_mask.png", corner_mask())
    plain = evaluate_test(
        scored(tmp_path, {"c.png": 50.0}), lambda _: corner_map(hot=True), labels, masks=str(tmp_path)
    )
    assert evaluation.groups == plain.groups


def test_a_normal_image_counts_at_its_own_size(tmp_path: Path) -> None:
    calls: list[int] = []

    def maps(place: int) -> NDArray[np.float64]:
        calls.append(place)
        return corner_map(hot=place == 1)

    write_grey(tmp_path / "a.png", np.zeros((8, 200)))
    write_grey(tmp_path / "c_mask.png", corner_mask())
    labels = labelled(tmp_path, {"a.png": 0, "c.png": 1})
    evaluation = evaluate_test(scored(tmp_path, {"a.png": 1.0, "c.png": 50.0}), maps, labels, masks=str(tmp_path))
    assert evaluation.groups[0].n_pixel_images == 2
    assert sorted(calls) == [0, 0, 1, 1]
    # By hand: 1600 pixels of the normal image at distance 1, and the second image's own.
    hot = upsample(corner_map(hot=True), 16, 16)
    truth = np.concatenate([np.zeros(1600, dtype=bool), corner_mask().ravel()])
    expected = roc_auc_score(truth, np.concatenate([np.ones(1600), hot.ravel()]))
    assert evaluation.groups[0].pixel_auroc == pytest.approx(expected, abs=1e-3)


def test_no_label_that_matches_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    labels = labelled(tmp_path / "labels", {"wrong/a.png": 0})
    with pytest.raises(SourceError) as caught:
        evaluate_test(scored(tmp_path, {"a.png": 1.0}), no_maps, labels)
    for expected in (str(tmp_path / "labels" / "wrong" / "a.png"), "'wrong/a.png'", str(tmp_path / "a.png")):
        assert expected in str(caught.value)


@pytest.mark.parametrize("rows", [{"a.png": 2}, {"a.png": "bad"}])
def test_a_label_that_is_neither_0_nor_1_is_an_error(tmp_path: Path, rows: dict[str, int]) -> None:
    with pytest.raises(SourceError, match="label_index"):
        evaluate_test(scored(tmp_path, {"a.png": 1.0}), no_maps, labelled(tmp_path, rows))


def test_a_mask_that_can_not_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "c_mask.png").write_bytes(b"no image")
    labels = labelled(tmp_path, {"c.png": 1})
    with pytest.raises(SourceError, match=r"c_mask\.png"):
        evaluate_test(scored(tmp_path, {"c.png": 50.0}), lambda _: corner_map(hot=True), labels, masks=str(tmp_path))


@pytest.mark.parametrize("labels", [{"c.png": 1}, {"c.png": 0}])
def test_masks_that_are_not_there_are_an_error_also_where_none_is_needed(
    tmp_path: Path, labels: dict[str, int]
) -> None:
    place, scores = labelled(tmp_path, labels), scored(tmp_path, {"c.png": 50.0})
    for masks in (f"{tmp_path}/nowhere", "memory://nowhere"):
        with pytest.raises(SourceError, match="nowhere"):
            evaluate_test(scores, no_maps, place, masks=masks)


@pytest.mark.parametrize("locked", ["masks", "masks/cut"])
def test_masks_that_may_not_be_listed_are_an_error_and_not_fewer_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    write_grey(tmp_path / "masks" / "c_mask.png", corner_mask())
    write_grey(tmp_path / "masks" / "cut" / "d_mask.png", corner_mask())
    labels = labelled(tmp_path, {"c.png": 1, "d.png": 1})
    lock(monkeypatch, tmp_path / locked)
    with pytest.raises(SourceError, match=r"can not be listed \(PermissionError\)"):
        evaluate_test(scored(tmp_path, {"c.png": 50.0, "d.png": 40.0}), no_maps, labels, masks=str(tmp_path / "masks"))


def test_a_normal_image_whose_size_is_unknown_and_that_is_gone_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_grey(tmp_path / "c_mask.png", corner_mask())
    labels = labelled(tmp_path, {"a.png": 0, "c.png": 1})
    scores = scored(tmp_path, {"a.png": 1.0, "c.png": 50.0})
    with pytest.raises(SourceError, match=r"normal image '.*a\.png', whose size .*FileNotFoundError"):
        evaluate_test(scores, lambda _: corner_map(hot=True), labels, masks=str(tmp_path))


def test_labels_and_masks_may_be_urls() -> None:
    store = Directory("memory://evaluate")
    store.write("labels.csv", b"image_path,label_index\na.png,0\nbad/c.png,1\n")
    store.write("masks/bad/c_mask.png", png(corner_mask().astype(np.uint8)))
    store.write("a.png", png(np.zeros((16, 16), np.uint8)))
    scores = scored(Path(), {"a": 1.0, "c": 50.0}, image_path=[f"{store.url}/a.png", f"{store.url}/bad/c.png"])
    evaluation = evaluate_test(
        scores, lambda place: corner_map(hot=place == 1), f"{store.url}/labels.csv", masks=f"{store.url}/masks"
    )
    assert evaluation.groups[0].n_pixel_images == 2
    assert evaluation.groups[0].pixel_auroc == pytest.approx(1, abs=0.05)


def test_with_nothing_judged_every_figure_is_undefined(tmp_path: Path) -> None:
    evaluation = evaluate_test(scored(tmp_path, {"a.png": None}), no_maps, labelled(tmp_path, {"a.png": 1}))
    assert evaluation.groups == ()
    assert evaluation.coverage.unreadable == 1
    assert (evaluation.overall.purity, evaluation.overall.image_auroc) == (None, None)
    assert evaluation.table()["group"].tolist() == [OVERALL]
    json.dumps(evaluation.to_json(), allow_nan=False)


# Scores as `paire score` writes them.


def write_scores(folder: Path, scores: pd.DataFrame, maps: Mapping[str, NDArray[np.float64]]) -> Directory:
    """Write a table of scores and the anomaly maps of each group."""
    directory = Directory.at(folder)
    directory.write(SCORES, b"")
    pq.write_table(to_arrow(scores, scores_table.COLUMNS), folder / SCORES)
    if maps:
        directory.zarr_group(ANOMALY_MAPS, "w")
    for group, values in maps.items():
        directory.zarr_group(ANOMALY_MAPS, "r+").create_array(storage_name(group), data=values, chunks=(2, 4, 4))
    return directory


@pytest.fixture
def test_set(tmp_path: Path) -> tuple[Directory, str, str]:
    """Return scores of six images in two groups, with maps of all but the torn one, their labels and their masks."""
    for name in ("b.png", "c.png", "e.png"):
        write_grey(tmp_path / "masks" / name, corner_mask())
    names = {"a.png": 1.0, "b.png": 50.0, "torn.png": None, "c.png": 40.0, "d.png": 2.0, "e.png": 60.0}
    labels = labelled(tmp_path, {name: int(name in {"b.png", "c.png", "e.png"}) for name in names})
    groups = [FIRST, FIRST, FIRST, FIRST, SECOND, SECOND]
    rows = [0, 1, None, 3, 0, 1]
    scores = scored(tmp_path, names, group=groups, row=rows, width=[16] * 6, height=[16] * 6)
    maps = {
        FIRST: np.stack([corner_map(hot=False), corner_map(hot=True), np.full((4, 4), np.nan), corner_map(hot=True)]),
        SECOND: np.stack([corner_map(hot=False), corner_map(hot=True)]),
    }
    return write_scores(tmp_path / "scores", scores, maps), labels, str(tmp_path / "masks")


def test_stored_scores_and_maps_have_the_figures_of_those_in_memory(test_set: tuple[Directory, str, str]) -> None:
    directory, labels, masks = test_set
    hot = [False, True, None, True, False, True]

    def maps(position: int) -> NDArray[np.float64] | None:
        is_hot = hot[position]
        return None if is_hot is None else corner_map(hot=is_hot)

    expected = evaluate_test(pd.read_parquet(BytesIO(directory.read(SCORES))), maps, labels, masks=masks)
    found = evaluate(directory, labels, masks=masks)
    assert found.to_json() == expected.to_json()
    assert [(figures.image_auroc, figures.n_pixel_images) for figures in found.groups] == [(1.0, 3), (1.0, 2)]
    assert found.overall.pixel_auroc == pytest.approx(1, abs=0.05)


def test_the_sizes_of_normal_images_come_from_the_scores_where_they_have_them(
    test_set: tuple[Directory, str, str],
) -> None:
    directory, labels, masks = test_set  # the normal images themselves are not there
    assert evaluate(directory, labels, masks=masks).overall.n_pixel_images == 5


def test_without_maps_there_are_no_pixel_metrics_and_masks_are_refused(test_set: tuple[Directory, str, str]) -> None:
    directory, labels, masks = test_set
    scores = pd.read_parquet(BytesIO(directory.read(SCORES)))
    for bare in (scores.assign(row=None), scores.drop(columns=["row", "width", "height"])):  # also an older version's
        bare.to_parquet(f"{directory.url}/{SCORES}")
        evaluation = evaluate(directory, labels)
        assert [figures.image_auroc for figures in evaluation.groups] == [1.0, 1.0]
        assert evaluation.overall.pixel_auroc is None
        with pytest.raises(SourceError, match=r"no anomaly maps.*--anomaly-maps.*--masks"):
            evaluate(directory, labels, masks=masks)


def test_masks_in_the_labels_are_left_aside_with_a_warning_where_there_are_no_maps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_grey(tmp_path / "c_mask.png", corner_mask())
    labels = labelled(tmp_path, {"a.png": 0, "c.png": 1}, mask_path=["", "c_mask.png"])
    directory = write_scores(tmp_path / "scores", scored(tmp_path, {"a.png": 1.0, "c.png": 50.0}), {})
    with caplog.at_level(logging.WARNING, logger="paire"):
        evaluation = evaluate(directory, labels)
    assert (evaluation.overall.image_auroc, evaluation.overall.aupro) == (1.0, None)
    assert "no anomaly maps" in caplog.text


@pytest.mark.parametrize("damage", ["group gone", "all gone", "too short"])
def test_maps_that_the_scores_name_and_that_are_gone_are_an_error_that_names_their_group(
    test_set: tuple[Directory, str, str], damage: str
) -> None:
    directory, labels, masks = test_set
    name = f"{ANOMALY_MAPS}/{storage_name(FIRST)}"
    directory.remove(ANOMALY_MAPS if damage == "all gone" else name)
    if damage == "too short":
        directory.zarr_group(ANOMALY_MAPS, "r+").create_array(storage_name(FIRST), data=np.ones((3, 4, 4)))
    with pytest.raises(SourceError, match=rf"lacks maps of group '{FIRST}'.*--anomaly-maps"):
        evaluate(directory, labels, masks=masks)


def test_what_is_neither_a_run_nor_scores_is_an_error_that_names_both(tmp_path: Path) -> None:
    labels = labelled(tmp_path, {"a.png": 0})
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SourceError, match=r"neither _SUCCESS nor scores\.parquet"):
            evaluate(Directory.at(place), labels)


def test_a_run_is_evaluated_as_a_run(tiny: TinyRun, copied: TinyRun) -> None:
    assert evaluate(tiny.run, str(tiny.labels)).groups == evaluate_run(tiny.run, str(tiny.labels)).groups
    copied.run.remove("_SUCCESS")
    with pytest.raises(SourceError, match="no finished run: it has no _SUCCESS"):
        evaluate(copied.run, str(copied.labels))


def test_scores_that_are_none_are_an_error_that_names_them(tmp_path: Path) -> None:
    labels, directory = labelled(tmp_path, {"a.png": 0}), Directory.at(tmp_path / "scores")
    directory.write(SCORES, b"no table")
    with pytest.raises(SourceError, match=r"scores\.parquet can not be read as a table"):
        evaluate(directory, labels)
    pd.DataFrame({"image_path": ["a.png"]}).to_parquet(tmp_path / "scores" / SCORES)
    with pytest.raises(SourceError, match=r"scores\.parquet has no column 'group'"):
        evaluate(directory, labels)


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


# The picture.


def pixels_of(picture: bytes) -> NDArray[np.uint8]:
    with Image.open(BytesIO(picture)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def hand_made(groups: Sequence[str], *, area: float | None = 0.8) -> Evaluation:
    """Return an evaluation whose groups have the same figures and curves one below the other."""
    figures = [Figures(name, 9, 1, 8, 0, 1.0, 8 / 9, 1.0, area, area, area, area, 10) for name in groups]
    passes = pd.DataFrame(
        [
            {"group": name, "iteration": number, "purity": 1 - 0.1 / number, "kept_share": 0.2 * number}
            for name in groups
            for number in (1, 2, 3)
        ],
        columns=["group", "iteration", "purity", "kept_share"],
    )
    overall = Figures(OVERALL, 9, 1, 8, 0, 1.0, 8 / 9, 1.0, area, area, area, area, 10)
    curves = {}
    for place, name in enumerate(groups):
        line = None if area is None else Curve(np.array([0.0, 0.1, 0.3]), np.array([0.0, 0.8, 1.0]) - 0.03 * place)
        curves[name] = GroupCurves(line, line, line)
    return Evaluation(tuple(figures), overall, passes, curves, Coverage(10, 0, 0, 0, 0, 0, 0))


def pixels_in(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
    return int((picture == colour).all(axis=2).sum())


def test_the_curves_of_a_run_are_drawn_alike_each_time(tiny: TinyRun) -> None:
    evaluation = tiny.evaluate()
    picture = draw_curves(evaluation)
    assert picture == draw_curves(evaluation)
    height, width, _ = pixels_of(picture).shape
    assert width > height > 800


def test_each_group_has_a_colour_of_its_own_until_there_are_too_many() -> None:
    blue, vermilion = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
    one, two, many = (
        pixels_of(draw_curves(hand_made([f"line {number}" for number in range(count)]))) for count in (1, 2, 20)
    )
    assert [pixels_in(one, colour) > 0 for colour in (blue, vermilion)] == [True, False]
    assert [pixels_in(two, colour) > 0 for colour in (blue, vermilion)] == [True, True]
    # The diagonal of the ROC panel is grey, too, but no curve of so few groups.
    grey = [pixels_in(picture, (0xBB, 0xBB, 0xBB)) for picture in (two, many)]
    assert grey[1] > 2 * grey[0] > 0


@pytest.mark.parametrize("groups", [[], ["a"], ["_hidden", "$\\frac$ & %", "日本", "x" * 300]])
@pytest.mark.parametrize("area", [None, 0.5])
def test_groups_without_curves_and_with_any_name_are_drawn(groups: list[str], area: float | None) -> None:
    empty = pixels_of(draw_curves(hand_made([], area=None)))
    picture = pixels_of(draw_curves(hand_made(groups, area=area)))
    assert picture.shape == empty.shape
    assert np.array_equal(picture, empty) == (not groups)


def test_the_command_prints_and_writes_the_evaluation(tmp_path: Path) -> None:
    bad = write_parts(tmp_path / "archive", good=20, defective=2)
    clean(str(tmp_path / "archive"), str(tmp_path / "run"), tiny_config())
    names = sorted(path.name for path in (tmp_path / "archive").iterdir())
    truth = pd.DataFrame({"image_path": names, "label_index": [int(name in bad) for name in names]})
    truth.to_csv(tmp_path / "archive" / "labels.csv", index=False)
    labels, out = str(tmp_path / "archive" / "labels.csv"), str(tmp_path / "evaluation")
    ended = CliRunner().invoke(cli, ["evaluate", str(tmp_path / "run"), "--labels", labels, "--json", "--out", out])
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout) == json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert "purity" in ended.stderr
    assert (tmp_path / "evaluation" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert pd.read_csv(tmp_path / "evaluation" / "evaluation.csv")["n_anomalous"].tolist() == [2]
