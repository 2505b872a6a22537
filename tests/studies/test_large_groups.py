"""The study of large groups: what its generator draws is what it says, and its figures compare with that truth."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from pipeline.cluster.cluster import Cluster, open_cluster
from schemas.names import DEFAULT_GROUP, storage_name
from studies.large_groups import compare, forget, require_space, study
from studies.large_groups_report import DOCUMENT, RESULTS, SERIES, Series, table, write_report
from studies.synthetic_features import (
    COPY_NOISE,
    IMAGE_EFFECT,
    OVERLAP,
    SHIFTS,
    Archive,
    Features,
    Truth,
    catalog_and_outcomes,
    plan,
    write_features,
)
from tests.support.archives import tiny_config
from workers.storage.directory import Directory

SMALL = Archive(images=60, channels=8, side=4)
ONE_THREAD = ("cluster.workers=1", "cluster.threads_per_worker=1", "cluster.processes=false")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(tiny_config().cluster) as opened:
        yield opened


def whitened(archive: Archive, truth: Truth) -> NDArray[np.float64]:
    """Return the features (images, rows, columns, channels) as white noise again, from the generator's own mixing."""
    features = Features(archive, truth)
    values = features.block(0, archive.images).astype(np.float64)
    flat = values.reshape(archive.images, archive.positions, archive.channels).swapaxes(0, 1)
    white = np.linalg.solve(features._mixing.astype(np.float64).swapaxes(1, 2), (flat - features._mean).swapaxes(1, 2))
    result: NDArray[np.float64] = white.transpose(2, 0, 1).reshape(values.shape)
    return result


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_the_planted_share_is_planted_in_all_sizes_alike(share: float) -> None:
    truth = plan(Archive(images=500, planted=share))
    assert truth.is_defective.sum() == 500 * share
    counts = [int((truth.shift == shift).sum()) for shift in SHIFTS]
    assert counts == [500 * share / len(SHIFTS)] * len(SHIFTS)
    assert (truth.shift[~truth.is_defective] == 0).all()


@pytest.mark.parametrize("recurring", [False, True])
def test_repeated_defects_are_copies_of_one_image_or_recur_on_different_parts(recurring: bool) -> None:
    truth = plan(Archive(images=200, planted=0.2, repeats=4, recurring=recurring))
    for defect in range(10):
        of_it = truth.defect == defect
        assert of_it.sum() == 4
        assert len(set(truth.source[of_it])) == (4 if recurring else 1)
        assert truth.is_copy[of_it].sum() == (0 if recurring else 3)
    assert not set(truth.source[truth.is_defective]) & set(truth.source[~truth.is_defective])


def test_copies_of_good_images_are_so_many_and_each_is_of_one_that_is_no_copy() -> None:
    truth = plan(Archive(images=400, copies=0.3))
    assert truth.is_copy.sum() == round(0.3 * 360)
    originals = truth.source[~truth.is_copy & ~truth.is_defective]
    assert len(set(originals)) == len(originals)
    assert set(truth.source[truth.is_copy]) <= set(originals)


def test_good_features_are_white_noise_with_the_correlations_that_are_said() -> None:
    archive = Archive(images=600, channels=8, side=4, planted=0.0)
    white = whitened(archive, plan(archive))
    flat = white.reshape(-1, archive.channels)
    assert flat.mean(axis=0) == pytest.approx(0, abs=0.15)
    assert np.cov(flat.T) == pytest.approx(np.eye(archive.channels), abs=0.15)
    neighbours = (white[:, :, 1:] * white[:, :, :-1]).mean()
    assert neighbours == pytest.approx(IMAGE_EFFECT + (1 - IMAGE_EFFECT) * (OVERLAP - 1) / OVERLAP, abs=0.05)
    assert (white[:, 0, 0] * white[:, 3, 3]).mean() == pytest.approx(IMAGE_EFFECT, abs=0.08)


def test_heavy_tails_have_unit_variance_and_more_far_images() -> None:
    def squared(tails: int) -> NDArray[np.float64]:
        archive = Archive(images=3000, channels=4, side=1, planted=0.0, tails=tails)
        means: NDArray[np.float64] = np.square(whitened(archive, plan(archive))).mean(axis=(1, 2, 3))
        return means

    assert squared(5).mean() == pytest.approx(1, abs=0.15)
    assert np.quantile(squared(5), 0.99) > 1.5 * np.quantile(squared(0), 0.99)


@pytest.mark.parametrize("extent", [1, 3])
def test_a_defect_shifts_its_square_by_its_mahalanobis_distance_and_nothing_else(extent: int) -> None:
    archive = Archive(images=60, channels=8, side=4, planted=0.3, extent=extent)
    truth = plan(archive)
    good = Truth(truth.source, truth.is_copy, np.full(60, -1), np.zeros(60))
    moved = np.linalg.norm(whitened(archive, truth) - whitened(archive, good), axis=-1)
    for image, shift in enumerate(truth.shift):
        shifted = moved[image] > 1e-3
        assert shifted.sum() == (extent**2 if shift else 0)
        assert moved[image][shifted] == pytest.approx(shift * math.sqrt(archive.channels), rel=1e-3)


def test_near_duplicates_differ_by_a_little_noise_everywhere() -> None:
    archive = Archive(images=60, channels=8, side=4, planted=0.2, copies=0.5, repeats=3)
    truth = plan(archive)
    white = whitened(archive, truth)
    copies = np.flatnonzero(truth.is_copy)
    originals = [int(np.flatnonzero((truth.source == truth.source[row]) & ~truth.is_copy)[0]) for row in copies]
    assert len(copies) == 24 + 8
    assert (white[copies] - white[originals]).std() == pytest.approx(COPY_NOISE, rel=0.1)


def test_an_image_does_not_depend_on_the_block_that_it_is_drawn_in() -> None:
    features = Features(SMALL, plan(SMALL))
    assert features.block(0, 60)[17] == pytest.approx(features.block(17, 18)[0], rel=1e-5, abs=1e-5)


def test_the_store_has_the_layout_of_extraction(tmp_path: Path) -> None:
    store = Directory.at(tmp_path)
    write_features(SMALL, plan(SMALL), store, "float16")
    array = store.zarr_group("", "r")[storage_name(DEFAULT_GROUP)]
    assert array.shape == SMALL.geometry.array_shape(60)  # type: ignore[union-attr]
    assert array.chunks == SMALL.geometry.chunk_shape(60)  # type: ignore[union-attr]
    assert array.attrs["group"] == DEFAULT_GROUP
    assert SMALL.stored_bytes("float16") == 60 * 16 * 8 * 2


@pytest.mark.parametrize("represented", [False, True])
def test_found_copies_share_their_originals_content(represented: bool) -> None:
    truth = plan(Archive(images=100, copies=0.4, represented=represented))
    _, outcomes = catalog_and_outcomes(Archive(images=100, represented=represented), truth)
    contents = {outcome.content_sha256 for outcome in outcomes[DEFAULT_GROUP]}
    assert len(contents) == (100 - 36 if represented else 100)


def test_the_comparison_counts_what_was_kept_and_what_a_threshold_at_the_wanted_rate_would_keep() -> None:
    defect = np.array([-1] * 10 + [0, 1, 2])
    truth = Truth(np.arange(13), np.zeros(13, bool), defect, np.array([0.0] * 10 + [0.75, 1.0, 3.0]))
    margins = [*np.linspace(0.1, 1.0, 10), 0.85, 0.2, 5.0]
    labels = ["normal" if margin < 0.95 else "abnormal" for margin in margins]
    found = compare(pd.DataFrame({"label": labels, "margin": margins}), truth, 0.2)
    assert (found["good"], found["good_kept"], found["defective"], found["defects_kept"]) == (10, 9, 3, 2)
    assert [found[f"kept_at_{shift:g}"] for shift in SHIFTS] == [1, 1, 0, 0, 0]
    assert found["purity"] == round(9 / 11, 4)
    # The 80 % quantile of the good margins is 0.82: of the defects, only 0.2 is below.
    assert found["below_target"] == 1
    assert found["margin_auroc"] == pytest.approx((8 + 2 - 0.5 + 10) / 30, abs=0.02)


def test_a_study_adds_a_row_for_each_strategy_once_and_its_table_says_what_came_out(
    cluster: Cluster, tmp_path: Path
) -> None:
    results = tmp_path / "results.csv"
    archive = Archive(images=80, channels=16, side=3, seed=2)
    for _ in range(2):
        study(archive, ["paire", "grow"], ONE_THREAD, cluster, results)
    rows = pd.read_csv(results)
    assert rows["strategy"].tolist() == ["paire", "grow"]
    assert (rows["good"] + rows["defective"] == 80).all()
    assert (rows["floor_passes"] == rows["floor_logged"]).all()
    lines = table(rows.assign(seed=0), Series(("images",), (Archive(images=80, channels=16, side=3),))).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [["| 80", "paire"], ["| 80", "grow"]]
    kept = rows["good_kept"] / rows["good"]
    assert [line.split(" | ")[2] for line in lines[2:]] == [f"{share:.1%}" for share in kept]

    forget(results, [archive], ["grow"])
    assert pd.read_csv(results)["strategy"].tolist() == ["paire"]


def test_too_large_an_archive_is_refused_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="bytes of features; this study writes"):
        require_space(Archive(images=10_000_000), "float16", tmp_path)


def test_no_case_is_too_large_and_every_strategy_is_known() -> None:
    for series in SERIES.values():
        for archive in series.archives:
            require_space(archive, "float16", RESULTS.parents[2])


def test_the_documented_tables_are_those_of_the_results(tmp_path: Path) -> None:
    copy = tmp_path / DOCUMENT.name
    copy.write_text(DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    write_report(pd.read_csv(RESULTS), copy)
    assert copy.read_text(encoding="utf-8") == DOCUMENT.read_text(encoding="utf-8")
