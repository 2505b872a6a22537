"""A defect that is in an archive several times over is still found, from end to end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.commands.clean import clean
from pipeline.judging.strategies.grow import grow
from schemas.config import TrimConfig
from schemas.tables.manifest import ANOMALOUS, CLEAN
from tests.pipeline.judging.strategies.test_grow import GRID, Mask, Synthetic
from tests.support.archives import part_pixels, png, tiny_config, write_parts

IMAGES, COPIES = 120, 12


def with_copies(noise: float) -> tuple[Synthetic, Mask]:
    """Return a group, and which of its images are copies of one with a defect."""
    group = Synthetic(IMAGES, 40, noise)
    is_copy = np.arange(IMAGES) >= IMAGES - COPIES
    group.features[is_copy] = group.features[np.flatnonzero(group.is_bad)[0]]
    group.features[is_copy] += 0.02 * np.random.default_rng(1).normal(size=group.features[is_copy].shape)
    group.is_bad[is_copy] = True
    return group, is_copy


def the_first_of(is_copy: Mask) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    fitted_for = np.arange(IMAGES)
    fitted_for[is_copy] = np.flatnonzero(is_copy)[0]
    return fitted_for


def test_copies_of_a_defect_support_one_another_only_where_each_is_fitted() -> None:
    group, is_copy = with_copies(0.05)
    everything, config = np.ones(IMAGES, bool), TrimConfig(strategy="grow")
    alone = grow(group, everything, config, grid=GRID)
    together = grow(group, everything, config, grid=GRID, fitted_for=the_first_of(is_copy))
    assert alone.clean[is_copy].all()
    assert not together.clean[group.is_bad].any()
    assert together.clean[~group.is_bad].mean() >= 0.95


def test_copies_of_a_clean_image_are_kept() -> None:
    group = Synthetic(IMAGES, 40, 0.05)
    is_copy = np.arange(IMAGES) >= IMAGES - COPIES
    group.features[is_copy] = group.features[np.flatnonzero(~group.is_bad)[0]]
    group.is_bad[is_copy] = False
    trimming = grow(
        group,
        np.ones(IMAGES, bool),
        TrimConfig(strategy="grow"),
        grid=GRID,
        fitted_for=the_first_of(is_copy),
    )
    assert trimming.clean[is_copy].all()
    assert not trimming.fitted[is_copy][1:].any()
    assert not trimming.clean[group.is_bad].any()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 40 parts, and one with a defect that was saved eight times with a little noise."""
    folder = tmp_path_factory.mktemp("copies") / "archive"
    write_parts(folder, good=40)
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = part_pixels(10_000, defect=True) + rng.integers(-1, 2, size=(64, 64, 3))
        (folder / f"saved_{number}.png").write_bytes(png(np.clip(pixels, 0, 255).astype(np.uint8)))
    return folder


def judged(archive: Path, run: Path, closeness: float, strategy: str = "grow") -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return manifest and ledger."""
    clean(str(archive), str(run), tiny_config(f"trim.strategy={strategy}", f"trim.near_duplicates={closeness}"))
    ledger = json.loads((run / "ledger.json").read_text())["groups"]["all"]
    return pd.read_parquet(run / "manifest.parquet").set_index("file_name"), ledger


def test_a_defect_saved_several_times_is_anomalous_and_says_what_it_is_a_copy_of(archive: Path, tmp_path: Path) -> None:
    manifest, ledger = judged(archive, tmp_path / "run", 0.5)
    assert ledger["near_duplicates"] == 7
    saved = manifest[manifest.index.str.startswith("saved")]
    assert saved["decision"].eq(ANOMALOUS).all()
    assert saved["margin"].ge(1).all()
    assert saved["near_duplicate_of"].isna().tolist() == [True] + 7 * [False]
    assert set(saved["near_duplicate_of"].dropna()) == {saved.loc["saved_0.png", "sample_id"]}
    assert saved["reason"].iloc[1:].str.endswith("near-duplicate of 'saved_0.png' and judged no better").all()
    good = manifest[manifest.index.str.startswith("good")]
    assert good["decision"].eq(CLEAN).mean() >= 0.9
    assert good["near_duplicate_of"].isna().all()


def test_with_a_closeness_of_zero_every_image_is_its_own(archive: Path, tmp_path: Path) -> None:
    manifest, ledger = judged(archive, tmp_path / "run", 0.0)
    assert ledger["near_duplicates"] == 0
    assert manifest["near_duplicate_of"].isna().all()
    assert manifest.loc["saved_0.png", "decision"] == CLEAN


def test_the_paper_s_rule_is_left_as_it_is_but_the_ledger_warns(archive: Path, tmp_path: Path) -> None:
    manifest, ledger = judged(archive, tmp_path / "run", 0.5, "paire")
    assert manifest["near_duplicate_of"].isna().all()
    assert ledger["near_duplicates"] == 7
    assert any("7 images are near-duplicates" in warning for warning in ledger["warnings"])
