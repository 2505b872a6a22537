"""Odd archives through the whole job: whatever an archive holds, every input is a row of the manifest."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.commands.recut import recut
from pipeline.commands.score import score
from schemas.config import parse_config
from schemas.names import sample_id, storage_name
from tests.support.archives import part_pixels, png, write_parts
from tests.support.runs import CLUSTER, Run, assert_balanced, quick_run_on
from workers.map.reader import GaussianMap

EQUAL = {
    "equal part": part_pixels(3),
    "equal black": np.zeros((64, 64, 3), np.uint8),
    "equal red": np.full((64, 64, 3), (255, 0, 0), np.uint8),
}
LARGE, SMALL, TINY = "line 1/cam", "Línea 2/cam", "tiny/cam"


def commented(pixels: NDArray[np.uint8], number: int, folder: Path) -> None:
    """Write pixels with a comment, so that equal pixels are different bytes."""
    info = PngInfo()
    info.add_text("comment", str(number))
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{number:02d}.png", pnginfo=info)


def write_unreadable(folder: Path) -> None:
    """Write every kind of file that cannot be read."""
    folder.mkdir(parents=True)
    (folder / "zero.png").write_bytes(b"")
    (folder / "truncated.png").write_bytes(png(part_pixels(0))[:2000])
    (folder / "truncated.jpg").write_bytes(png(part_pixels(0), "JPEG")[:700])
    (folder / "text.jpg").write_text("camera 3 timed out")
    (folder / "bomb.png").write_bytes(png(np.zeros((1000, 1000), np.uint8)))
    (folder / "broken link.png").symlink_to(folder / "nowhere.png")


def write_cases(source: Path) -> None:
    """Write a group for each case: a group is judged by itself, so that one run is as good as a run for each."""
    write_parts(source / LARGE, 9, 1)
    write_parts(source / SMALL, 3, first_seed=50)
    write_parts(source / TINY, 2, first_seed=80)
    (source / "stray.png").write_bytes(png(part_pixels(7)))
    write_parts(source / "twin a" / "cam", 3)
    write_parts(source / "twin b" / "cam", 3)
    write_parts(source / "three" / "cam", 2, 1)
    (source / "copies" / "cam").mkdir(parents=True)
    for number in range(5):
        (source / "copies" / "cam" / f"{number}.png").write_bytes(png(part_pixels(1)))
    write_unreadable(source / "unreadable" / "cam")
    for name, pixels in EQUAL.items():
        for number in range(12):
            commented(pixels, number, source / name / "cam")
    for number in range(12):
        commented(part_pixels(3), number, source / "one other" / "cam")
    (source / "one other" / "cam" / "other.png").write_bytes(png(part_pixels(3, defect=True)))
    (source / "greys" / "cam").mkdir(parents=True)
    for number in range(12):
        grey = np.full((64, 64), 100 + number, np.uint8)
        (source / "greys" / "cam" / f"{number:02d}.png").write_bytes(png(grey))
    (source / "constant channel" / "cam").mkdir(parents=True)
    for number in range(10):
        pixels = part_pixels(number, defect=number == 0)
        pixels[..., 1] = 7
        (source / "constant channel" / "cam" / f"{number}.png").write_bytes(png(pixels))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run over all cases."""
    folder = tmp_path_factory.mktemp("odd")
    write_cases(folder / "archive")
    settings = ("input.group_by={line}/{camera}/**", "input.max_unreadable_fraction=1", "input.max_pixels=999999")
    return quick_run_on(folder / "archive", folder / "run", *settings)


@pytest.fixture(scope="module")
def by_the_paper(cases: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run over all cases by the paper's rule."""
    run = shutil.copytree(cases.path, tmp_path_factory.mktemp("paper") / "run")
    version = recut(str(run), parse_config(None, ["trim.strategy=paire", "guard.accept_untrustworthy=true"]))
    return dataclasses.replace(cases, path=Path(version.run))


def rows_of(run: Run, case: str) -> pd.DataFrame:
    """Return a case's rows of the manifest, by the name of the file."""
    rows = run.manifest[run.manifest["group"] == f"{case}/cam"]
    return rows.set_index(rows["file_name"].str.rpartition("/")[2])


def test_the_ledger_balances_in_every_case(cases: Run) -> None:
    assert_balanced(cases)


def test_groups_are_judged_each_by_its_own_gaussians(cases: Run) -> None:
    groups = cases.result.ledger["groups"]
    assert {LARGE, SMALL, TINY, "all"} < set(groups)
    assert groups[SMALL]["clean"] == 3
    assert groups[TINY]["skipped"] == 2
    assert groups[TINY]["stop_reason"] == "not judged"
    assert cases.decisions["stray.png"] == "skipped"
    judged = {name for name, entry in groups.items() if entry["clean"]}
    assert {LARGE, SMALL} <= judged
    assert not {TINY, "all", "copies/cam", "unreadable/cam"} & judged
    assert set(GaussianMap.open(str(cases.path / "model")).groups) == judged
    assert cases.array(f"features/{storage_name(LARGE)}").shape[0] == 10
    assert set(cases.iterations["group"]) == judged


def test_equal_files_in_two_groups_are_no_duplicates(cases: Run) -> None:
    for name in ("twin a", "twin b"):
        assert rows_of(cases, name)["decision"].tolist() == ["clean"] * 3


def test_a_group_of_three_is_kept_whole(cases: Run) -> None:
    assert rows_of(cases, "three")["decision"].tolist() == ["clean"] * 3
    assert cases.result.ledger["groups"]["three/cam"]["warnings"]


def test_copies_of_one_image_are_not_judged(cases: Run) -> None:
    assert rows_of(cases, "copies")["decision"].tolist() == ["skipped", *["duplicate"] * 4]


def test_every_kind_of_unreadable_file_is_a_row_with_its_reason(cases: Run) -> None:
    rows = rows_of(cases, "unreadable")
    assert set(rows["decision"]) == {"unreadable"}
    reasons = {str(name): str(reason) for name, reason in rows["reason"].items()}
    assert {name: reasons.pop(name) for name in ("zero.png", "text.jpg", "bomb.png", "broken link.png")} == {
        "zero.png": "the file is empty (0 bytes)",
        "text.jpg": "not an image in any of PNG, JPEG, BMP, TIFF, WEBP",
        "bomb.png": "1000 x 1000 pixels are more than input.max_pixels = 999999",
        "broken link.png": "cannot be read: no such file",
    }
    assert sorted(reasons) == ["truncated.jpg", "truncated.png"]
    assert all(reason.startswith("cannot be decoded: ") for reason in reasons.values())


@pytest.mark.parametrize("name", EQUAL)
def test_images_of_equal_pixels_are_all_clean(cases: Run, name: str) -> None:
    rows = rows_of(cases, name)
    assert rows["decision"].tolist() == ["clean"] * 12
    assert np.isfinite(rows["anomaly_score"]).all()
    stored = f"distances/{storage_name(f'{name}/cam')}"
    assert (cases.array(f"{stored}/distance") < cases.array(f"{stored}/threshold")).all()


@pytest.mark.parametrize("name", EQUAL)
def test_the_papers_rule_finds_no_threshold_in_equal_pixels(by_the_paper: Run, name: str) -> None:
    assert rows_of(by_the_paper, name)["decision"].tolist() == ["clean"] * 12
    assert np.isinf(by_the_paper.array(f"distances/{storage_name(f'{name}/cam')}/threshold")).all()


def test_one_image_unlike_many_equal_ones_is_found(cases: Run) -> None:
    decisions = rows_of(cases, "one other")["decision"]
    assert decisions.pop("other.png") == "anomalous"
    assert decisions.tolist() == ["clean"] * 12


@pytest.mark.parametrize(("name", "images"), [("greys", 12), ("constant channel", 10)])
def test_what_hardly_varies_is_judged_without_an_error(cases: Run, name: str, images: int) -> None:
    rows = rows_of(cases, name)
    assert len(rows) == images
    assert set(rows["decision"]) <= {"clean", "anomalous"}
    assert np.isfinite(rows["anomaly_score"]).all()


def test_an_archive_of_which_nothing_can_be_judged_is_a_manifest_of_reasons(tmp_path: Path) -> None:
    write_parts(tmp_path / "archive" / "one", 1)
    (tmp_path / "archive" / "none").mkdir()
    for name, content in (("a.png", b""), ("b.jpg", b"text"), ("c.png", png(part_pixels(0))[:60])):
        (tmp_path / "archive" / "none" / name).write_bytes(content)
    settings = ("input.max_unreadable_fraction=1", "input.group_by={line}/*")
    finished = quick_run_on(tmp_path / "archive", tmp_path / "run", *settings)
    assert_balanced(finished)
    by_group = dict(iter(finished.manifest.groupby("group")))
    assert by_group["one"]["decision"].tolist() == ["skipped"]
    assert "at least 3 are needed" in by_group["one"]["reason"].iloc[0]
    assert by_group["none"]["decision"].tolist() == ["unreadable"] * 3
    assert (by_group["none"]["reason"].str.len() > 0).all()
    assert len(pd.read_csv(finished.path / "clean.csv")) == 0
    assert GaussianMap.open(str(finished.path / "model")).groups == ()


def test_strange_names_come_through_to_manifest_list_and_scores(tmp_path: Path) -> None:
    source = tmp_path / "archive 1 #%~"
    source.mkdir()
    strange = [
        "two\nlines.png",
        "größe 写真.png",
        'it\'s "q".png',
        "~#%.png",
        "a::b.png",
        "[x]{y}.png",
        "c\rr.png",
        "=1+1.png",
    ]
    for number, name in enumerate(strange):
        (source / name).write_bytes(png(part_pixels(number)))
    finished = quick_run_on(source, tmp_path / "run ::1", "trim.strategy=none")
    assert_balanced(finished)
    assert finished.decisions == dict.fromkeys(sorted(strange), "clean")
    listed = pd.read_csv(finished.path / "clean.csv", keep_default_na=False, lineterminator="\n")
    assert {Path(path).name for path in listed["image_path"]} == set(strange)
    assert {name.replace("'=1+1", "=1+1") for name in listed["file_name"]} == set(strange)
    assert "=1+1.png" not in set(listed["file_name"])  # a spreadsheet would compute it
    model, out = str(finished.path / "model"), str(tmp_path / "scores")
    scores = score(model, str(source), out, parse_config(None, CLUSTER))
    assert {str(Path(path).relative_to(source)) for path in scores["image_path"]} == set(strange)
    assert (scores["reason"] == "").all()


def test_an_index_of_files_that_are_not_there_is_a_manifest_of_reasons(tmp_path: Path) -> None:
    write_parts(tmp_path, 4)
    names = [*(f"good_{number:03d}.png" for number in range(4)), "missing.png", "", "good_000.png", "nowhere/x.png"]
    index = tmp_path / "index.csv"
    pd.DataFrame({"image_path": names}).to_csv(index, index=False)
    finished = quick_run_on(index, tmp_path / "run", "input.max_unreadable_fraction=0.5")
    assert_balanced(finished)
    rows = finished.manifest.set_index("sample_id")
    assert rows.loc[sample_id("missing.png"), "reason"] == "cannot be read: no such file"
    assert sorted(finished.manifest["decision"]) == [*["clean"] * 4, *["skipped"] * 2, *["unreadable"] * 2]
