"""The trust test from a finished run to its figures: a tiny archive, real planting, every way to be refused."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

import pipeline.commands.trust.trust
from pipeline.commands.clean import clean
from pipeline.commands.recut import recut
from pipeline.commands.trust.trust import EXAMPLES, FOLDER, PLOT, RESULT, TABLE, TrustResult, trust
from schemas.config import parse_config
from schemas.errors import ConfigError, RunConflictError, SourceError, WeightsError
from schemas.tables.manifest import CLEAN
from tests.support.archives import tiny_config, write_parts
from workers.trust.recall import DEFECTS

LARGE, SMALL = "Line 1", "line-2"
GOOD, DEFECTIVE, FEW = 40, 3, 6
CLUSTER = ("cluster.workers=1", "cluster.threads_per_worker=1", "cluster.processes=false")
RECUT = (*CLUSTER, "guard.accept_untrustworthy=true")  # tiny groups
HERE = parse_config(None, CLUSTER)
IMAGES = 6


@dataclass(frozen=True)
class TinyRun:
    """A finished run over two groups, one of them too small to be tried."""

    source: Path
    run: Path

    def kept(self, group: str) -> pd.DataFrame:
        manifest = pd.read_parquet(self.run / "manifest.parquet")
        return manifest[(manifest["group"] == group) & (manifest["decision"] == CLEAN)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    folder = tmp_path_factory.mktemp("trust")
    write_parts(folder / "archive" / LARGE, GOOD, DEFECTIVE)
    write_parts(folder / "archive" / SMALL, FEW, first_seed=500)
    config = tiny_config("input.group_by={line}/**", "trim.strategy=grow", "trim.smoothing=3")
    clean(str(folder / "archive"), str(folder / "run"), config)
    return TinyRun(folder / "archive", folder / "run")


@pytest.fixture(scope="module")
def result(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrustResult]:
    out = tmp_path_factory.mktemp("result") / "out"
    before = files_of(tiny.run)
    yield trust(str(tiny.run), HERE, out=str(out), images=IMAGES)
    assert files_of(tiny.run) == before


@pytest.fixture
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, where it is the figures that matter: the pictures take as long as all the rest."""
    for name in ("draw_recall", "draw_examples"):
        monkeypatch.setattr(pipeline.commands.trust.trust, name, lambda *_: b"")


@pytest.fixture
def copied(tiny: TinyRun, tmp_path: Path) -> TinyRun:
    """Return the same run in a directory that a test may change."""
    shutil.copytree(tiny.run, tmp_path / "run")
    return TinyRun(tiny.source, tmp_path / "run")


def test_the_files_say_what_the_result_says(result: TrustResult) -> None:
    out = Path(result.out)
    assert sorted(path.name for path in out.iterdir()) == sorted([RESULT, TABLE, PLOT, EXAMPLES])
    assert json.loads((out / RESULT).read_text()) == json.loads(json.dumps(result.to_json()))
    pd.testing.assert_frame_equal(pd.read_csv(out / TABLE), result.table(), check_dtype=False)
    for name in (PLOT, EXAMPLES):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 500


def test_the_fit_is_on_the_other_kept_images(tiny: TinyRun, result: TrustResult) -> None:
    assert result.overall.untouched.of == IMAGES
    assert result.overall.fitted == len(tiny.kept(LARGE)) - IMAGES


def test_what_is_plain_to_see_is_caught_more_often_than_what_is_not(result: TrustResult) -> None:
    table = result.table()
    assert len(table) == len(DEFECTS)
    assert (table["planted"] == IMAGES).all()
    plain = table[(table["size"] >= 0.08) & (table["contrast"] == "strong")]
    hidden = table[(table["size"] <= 0.02) & (table["contrast"] == "faint")]
    assert plain["recall"].mean() > 0.6
    assert plain["recall"].mean() > hidden["recall"].mean() + 0.3


def test_untouched_images_are_rejected_hardly_ever(result: TrustResult) -> None:
    assert result.overall.untouched.of == IMAGES
    assert result.overall.untouched.count <= 2


def test_a_group_with_too_few_kept_images_is_named(result: TrustResult) -> None:
    assert [group.group for group in result.groups] == [LARGE]
    assert list(result.not_tried) == [SMALL]
    assert "are kept, too few to hold out 5" in result.not_tried[SMALL]


@pytest.mark.usefixtures("_without_pictures")
def test_the_same_command_finds_the_same_also_when_it_repeats_options_of_the_run(
    tiny: TinyRun, result: TrustResult, tmp_path: Path
) -> None:
    same = parse_config(None, (*CLUSTER, "trim.smoothing=3", "features.image_size=64"))
    again = trust(str(tiny.run), same, out=str(tmp_path / "out"), group=LARGE, images=IMAGES)
    assert again.groups == result.groups
    assert again.not_tried == {}


@pytest.mark.usefixtures("_without_pictures")
def test_a_version_cut_from_a_run_is_tried_by_its_own_rule(copied: TinyRun) -> None:
    version = recut(str(copied.run), parse_config(None, (*RECUT, "trim.strategy=concentrate", "trim.max_iterations=2")))
    found = trust(version.run, HERE, images=5)
    assert found.strategy == "concentrate"
    assert found.run_id == version.run_id
    assert Path(found.out) == Path(version.run) / FOLDER
    assert found.overall.untouched.of == 5
    plain = found.table().query("size >= 0.08 and contrast == 'strong'")
    assert plain["recall"].mean() > found.table().query("size <= 0.02 and contrast == 'faint'")["recall"].mean()


@pytest.mark.usefixtures("_without_pictures")
def test_what_makes_the_figures_mean_less_is_said(copied: TinyRun, caplog: pytest.LogCaptureFixture) -> None:
    # With this few images the paper's ridge lets no new image pass, and its floor alone keeps any.
    settings = (*RECUT, "trim.strategy=paire", "trim.min_clean_fraction=0.7")
    version = recut(str(copied.run), parse_config(None, settings))
    with caplog.at_level("WARNING", logger="paire"):
        found = trust(version.run, HERE, images=5)
    assert found.overall.untouched.count == 5
    floor, fitted, rejects = found.overall.notes
    assert "the floor, not the thresholds, chose the run's clean set" in floor
    assert "every image of its deciding fit: recall is that of all other images" in fitted
    assert rejects.startswith("5 of 5 untouched images are rejected")
    assert all(f"{LARGE}: {note}" in caplog.text for note in found.overall.notes)


@pytest.mark.usefixtures("_without_pictures")
def test_changed_and_vanished_images_are_left_out_and_named(
    tiny: TinyRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny.source.parent, tmp_path / "all")
    run, archive = tmp_path / "all" / "run", tmp_path / "all" / "archive"
    manifest = pd.read_parquet(run / "manifest.parquet")
    manifest["image_path"] = manifest["image_path"].str.replace(str(tiny.source), str(archive), regex=False)
    manifest.to_parquet(run / "manifest.parquet")
    for number, path in enumerate(sorted((archive / LARGE).glob("good_*.png"))):
        if number % 2:
            path.unlink()
        elif number % 4:
            path.write_bytes(path.read_bytes() + b"\0")
    with caplog.at_level("WARNING", logger="paire"):
        found = trust(str(run), HERE, images=IMAGES)
    assert 0 < len(found.left_out) < IMAGES
    assert found.overall.untouched.of == IMAGES - len(found.left_out)
    assert set(found.table()["planted"]) == {IMAGES - len(found.left_out)}
    assert {entry["group"] for entry in found.left_out} == {LARGE}
    for entry in found.left_out:
        assert f"{entry['file_name']} {entry['reason']}" in caplog.text


def test_an_archive_that_has_gone_is_said_and_leaves_nothing_behind(copied: TinyRun, tmp_path: Path) -> None:
    manifest = pd.read_parquet(copied.run / "manifest.parquet")
    manifest["image_path"] = str(tmp_path / "gone") + manifest["image_path"]
    manifest.to_parquet(copied.run / "manifest.parquet")
    with pytest.raises(SourceError, match=r"none of the 5 images that were drawn .*can no longer be read"):
        trust(str(copied.run), HERE, images=5)
    assert not files_of(copied.run / FOLDER)


def test_an_earlier_result_is_not_replaced(tiny: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RESULT).write_text("mine")
    with pytest.raises(RunConflictError, match="is not empty, and earlier results are not replaced"):
        trust(str(tiny.run), HERE, out=str(tmp_path / "out"))
    with pytest.raises(RunConflictError, match="is not empty"):
        trust(str(tiny.run), HERE, out=str(tiny.run))
    assert files_of(tmp_path / "out") == {RESULT: b"mine"}


def test_an_output_that_cannot_be_made_is_said_before_anything_is_computed(tiny: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunConflictError, match="Give --out a writable directory"):
        trust(str(tiny.run), HERE, out=str(tmp_path / "file" / "out"))
    with pytest.raises(ConfigError, match="Give a path or URL"):
        trust(str(tiny.run), HERE, out="nowhere://bucket/out")


def test_an_unfinished_run_is_refused(copied: TinyRun) -> None:
    (copied.run / "_SUCCESS").unlink()
    with pytest.raises(SourceError, match="is not a finished run"):
        trust(str(copied.run), HERE)


def test_a_run_whose_features_have_gone_is_refused(copied: TinyRun) -> None:
    shutil.rmtree(copied.run / "features")
    with pytest.raises(SourceError, match="features"):
        trust(str(copied.run), HERE)
    assert not (copied.run / FOLDER).exists()


def test_a_version_that_was_moved_out_of_its_run_is_refused(copied: TinyRun, tmp_path: Path) -> None:
    version = recut(str(copied.run), parse_config(None, (*RECUT, "trim.strategy=none")))
    moved = Path(version.run).rename(tmp_path / "moved")
    with pytest.raises(SourceError, match=r"cut from run .* needs the features of that run\. Move it back"):
        trust(str(moved), HERE)


def test_a_strategy_that_keeps_everything_has_no_rule_to_try(copied: TinyRun) -> None:
    version = recut(str(copied.run), parse_config(None, (*RECUT, "trim.strategy=none")))
    with pytest.raises(SourceError, match="keeps every image: there is no rule to try"):
        trust(version.run, HERE)


def test_an_unknown_group_and_one_that_kept_too_few_are_refused(tiny: TinyRun) -> None:
    with pytest.raises(SourceError, match=r"has no group 'line-3'\. Its groups: 'Line 1', 'line-2'"):
        trust(str(tiny.run), HERE, group="line-3")
    with pytest.raises(SourceError, match=r"no group .* can be tested; group 'line-2': \d images are kept"):
        trust(str(tiny.run), HERE, group=SMALL)


@pytest.mark.parametrize(("images", "seed"), [(4, 0), (0, 0), (32, -1)])
def test_too_few_images_and_a_negative_seed_are_refused(tiny: TinyRun, images: int, seed: int) -> None:
    with pytest.raises(ConfigError, match="at least 5 images"):
        trust(str(tiny.run), HERE, images=images, seed=seed)


@pytest.mark.parametrize("setting", ["trim.eta=3", "features.image_size=128", "input.max_pixels=10"])
def test_an_option_set_otherwise_than_in_the_run_is_refused(tiny: TinyRun, setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"{setting.partition('=')[0]} = .* a run is tested as it is"):
        trust(str(tiny.run), parse_config(None, (*CLUSTER, setting)))


def test_other_weights_are_refused(tiny: TinyRun, tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.save(resnet18().state_dict(), tmp_path / "others.pth")
    setting = f"features.weights={tmp_path / 'others.pth'}"
    with pytest.raises(WeightsError, match="is needed"):
        trust(str(tiny.run), parse_config(None, (*CLUSTER, setting)), out=str(tmp_path / "out"))
    assert not files_of(tmp_path / "out")
