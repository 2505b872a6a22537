"""Which images are held out: kept ones, the same ones for the same seed, never more than a fifth of a group."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.commands.clean import clean
from pipeline.commands.trust.sample import MIN_IMAGES, Sample, draw_samples
from pipeline.run_directory.finished import FinishedRun
from schemas.errors import SourceError
from schemas.tables.manifest import ANOMALOUS, CLEAN
from tests.support.archives import tiny_config, write_parts

FIRST, SECOND, SMALL = "Line 1", "line-2", "line-3"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    folder = tmp_path_factory.mktemp("sample")
    for number, (group, good) in enumerate([(FIRST, 40), (SECOND, 35), (SMALL, 6)]):
        write_parts(folder / "archive" / group, good, 2, first_seed=100 * number)
    first = folder / "archive" / FIRST
    (first / "copy.png").write_bytes((first / "good_000.png").read_bytes())
    (first / "a note.txt").write_text("not an image")
    (first / "good_0000_torn.png").write_bytes(b"\x89PNG")
    config = tiny_config("input.group_by={line}/**", "trim.strategy=grow", "input.max_unreadable_fraction=1")
    clean(str(folder / "archive"), str(folder / "run"), config)
    return FinishedRun.open(str(folder / "run"))


def draw(finished: FinishedRun, *, only: str | None = None, images: int = 32, seed: int = 0) -> dict[str, Sample]:
    return {sample.group: sample for sample in draw_samples(finished, only, images, seed)[0]}


def test_a_sample_is_of_kept_images_at_their_rows_of_the_features(finished: FinishedRun) -> None:
    rows = finished.catalog.set_index("sample_id")["row"]
    manifest = finished.manifest.set_index("sample_id")
    for sample in draw(finished).values():
        assert [rows[subject.sample_id] for subject in sample.subjects] == sample.held_out.tolist()
        assert (np.diff(sample.held_out) > 0).all()
        for subject, name in zip(sample.subjects, sample.names, strict=True):
            entry = manifest.loc[subject.sample_id]
            assert (entry["decision"], entry["group"]) == (CLEAN, sample.group)
            assert (entry["image_path"], entry["content_sha256"], entry["file_name"]) == (*subject[1:], name)
            assert Path(subject.path).exists()


def test_the_masks_are_those_of_the_run(finished: FinishedRun) -> None:
    sample = draw(finished)[FIRST]
    manifest = finished.manifest.assign(
        row=finished.manifest["sample_id"].map(finished.catalog.set_index("sample_id")["row"])
    )
    part = manifest[(manifest["group"] == FIRST) & manifest["row"].notna()].set_index("row")["decision"]
    assert len(sample.measured) == len(part) == 44  # the copy and the torn one have rows, the note has none
    decisions = part.sort_index()
    assert sample.measured.tolist() == decisions.isin([CLEAN, ANOMALOUS]).tolist()
    assert sample.kept.tolist() == (decisions == CLEAN).tolist()
    own = sample.representative == np.arange(44)
    for rejected_too, allowed in ((False, sample.kept), (True, sample.measured)):
        fitted = sample.fitted(rejected_too=rejected_too)
        assert not fitted[sample.held_out].any()
        # Of those with no near-duplicates all others are fitted.
        is_alone = own & (np.bincount(sample.representative, minlength=44) == 1)
        assert (fitted | np.isin(np.arange(44), sample.held_out))[allowed & is_alone].all()
        assert not fitted[~allowed | ~own].any()


def test_nothing_like_a_held_out_image_is_fitted() -> None:
    everything = np.ones(6, bool)
    sample = Sample("part", everything, everything, np.array([1]), np.array([0, 1, 1, 3, 3, 5]), (), ())
    assert sample.fitted(rejected_too=False).tolist() == [True, False, False, True, False, True]


@pytest.mark.parametrize("images", [5, 6, 32])
def test_a_sample_has_the_images_asked_for_but_at_most_a_fifth_of_the_kept(finished: FinishedRun, images: int) -> None:
    for sample in draw(finished, images=images).values():
        assert len(sample.subjects) == min(images, int(sample.kept.sum()) // 5) >= MIN_IMAGES


def test_a_sample_depends_on_seed_and_group_alone(finished: FinishedRun) -> None:
    every, one, other = draw(finished), draw(finished, only=SECOND), draw(finished, only=SECOND, seed=1)
    assert list(one) == [SECOND]
    np.testing.assert_array_equal(every[SECOND].held_out, one[SECOND].held_out)
    assert (other[SECOND].held_out != one[SECOND].held_out).any()


def test_a_group_that_kept_too_few_is_not_tried_and_says_why(
    finished: FinishedRun, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="paire"):
        samples, not_tried = draw_samples(finished, None, 32, 0)
    assert [sample.group for sample in samples] == [FIRST, SECOND]
    assert list(not_tried) == [SMALL]
    assert f"{SMALL}: not tested: {not_tried[SMALL]}" in caplog.text


def test_nothing_to_try_and_an_unknown_group_are_refused(finished: FinishedRun) -> None:
    with pytest.raises(SourceError, match=r"no group of .* can be tested; group 'line-3'"):
        draw_samples(finished, SMALL, 32, 0)
    with pytest.raises(SourceError, match=r"has no group 'line-9'\. Its groups: 'Line 1', 'line-2', 'line-3'"):
        draw_samples(finished, "line-9", 32, 0)


def test_the_tables_of_the_run_are_left_as_they_were(finished: FinishedRun) -> None:
    before = finished.manifest.copy(), finished.catalog.copy()
    draw(finished)
    pd.testing.assert_frame_equal(finished.manifest, before[0])
    pd.testing.assert_frame_equal(finished.catalog, before[1])
