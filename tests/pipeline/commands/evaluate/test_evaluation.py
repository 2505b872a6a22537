"""The figures of labelled images, from scores and maps made by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pipeline.commands.evaluate.evaluate import evaluate_test
from pipeline.commands.evaluate.evaluation import OVERALL
from pipeline.commands.evaluate.truth import Coverage
from tests.support.hand_made import corner_map, corner_mask, labelled, no_maps, scored, write_grey
from workers.map.scorer import upsample


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


def test_with_nothing_judged_every_figure_is_undefined(tmp_path: Path) -> None:
    evaluation = evaluate_test(scored(tmp_path, {"a.png": None}), no_maps, labelled(tmp_path, {"a.png": 1}))
    assert evaluation.groups == ()
    assert evaluation.coverage.unreadable == 1
    assert (evaluation.overall.purity, evaluation.overall.image_auroc) == (None, None)
    assert evaluation.table()["group"].tolist() == [OVERALL]
    json.dumps(evaluation.to_json(), allow_nan=False)
