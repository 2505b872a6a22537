"""The demo's archive, made the same every time, and the verdict on what a run found in it."""

import csv
import hashlib
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from pipeline.commands.demo import ARCHIVE, DEFECT_KINDS, DEFECTIVE, GOOD, TRUTH, DemoVerdict, make_archive, verdict_on
from schemas.errors import RunConflictError
from schemas.records.run import MANIFEST, RUN_RECORD
from workers.images.decode import UndecodableError, decode_image


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a demo whose archive is made and not yet cleaned."""
    directory = tmp_path_factory.mktemp("demo") / "demo-run"
    assert make_archive(directory) == directory / ARCHIVE
    return directory


def contents(archive: Path) -> dict[str, str]:
    """Return the sha256 of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(archive.iterdir())}


def truth_of(directory: Path) -> dict[str, str]:
    with (directory / TRUTH).open(newline="") as file:
        return {row["file_name"]: row["defect"] for row in csv.DictReader(file)}


def write_manifest(directory: Path, decisions: dict[str, str]) -> None:
    """Write as much of a manifest as the verdict needs."""
    (directory / "run").mkdir(exist_ok=True)
    frame = pd.DataFrame({"file_name": list(decisions), "decision": list(decisions.values())})
    frame.to_parquet(directory / "run" / MANIFEST)


def test_the_archive_is_the_same_byte_for_byte(demo: Path, tmp_path: Path) -> None:
    again = make_archive(tmp_path / "again")
    assert contents(again) == contents(demo / ARCHIVE)
    assert (tmp_path / "again" / TRUTH).read_bytes() == (demo / TRUTH).read_bytes()


def test_the_truth_lies_outside_the_archive(demo: Path) -> None:
    assert sorted(path.name for path in demo.iterdir()) == sorted([ARCHIVE, TRUTH])
    words = {word for kind in DEFECT_KINDS for word in (kind, *kind.split())}
    assert not [path for path in (demo / ARCHIVE).rglob("*") for word in words if word in path.name]


def test_the_truth_names_every_picture_of_a_part(demo: Path) -> None:
    truth = truth_of(demo)
    assert len(truth) == GOOD + DEFECTIVE
    assert sum(defect == "" for defect in truth.values()) == GOOD
    assert set(truth.values()) == {"", *DEFECT_KINDS}
    assert set(truth) <= set(contents(demo / ARCHIVE))


def test_good_and_defective_parts_are_in_no_order(demo: Path) -> None:
    defective = [number for number, defect in enumerate(truth_of(demo).values()) if defect]
    assert defective != list(range(defective[0], defective[0] + DEFECTIVE))


def test_every_part_is_a_picture_of_its_own(demo: Path) -> None:
    found = contents(demo / ARCHIVE)
    parts = [found[name] for name in truth_of(demo)]
    assert len(set(parts)) == len(parts)
    with Image.open(demo / ARCHIVE / "part_0000.png") as image:
        assert image.size == (256, 256)


def test_the_archive_holds_what_real_archives_also_hold(demo: Path) -> None:
    found = contents(demo / ARCHIVE)
    dirt = set(found) - set(truth_of(demo))
    assert dirt == {"part_0000 (copy).png", "part_9001.png", "part_9002.png", "part_9003.jpg", "NOTES.txt"}
    assert found["part_0000 (copy).png"] == found["part_0000.png"]


@pytest.mark.parametrize("name", ["part_9001.png", "part_9002.png", "part_9003.jpg"])
def test_the_dirt_that_calls_itself_an_image_cannot_be_read(demo: Path, name: str) -> None:
    with pytest.raises(UndecodableError):
        decode_image((demo / ARCHIVE / name).read_bytes(), image_size=64, max_pixels=10**6)


def test_an_earlier_demo_is_replaced(demo: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(demo, tmp_path / "demo")
    before = contents(directory / ARCHIVE)
    (directory / ARCHIVE / "added.png").write_bytes(b"")
    (directory / "run").mkdir(exist_ok=True)
    (directory / "run" / RUN_RECORD).write_text("{}")
    make_archive(directory)
    assert contents(directory / ARCHIVE) == before
    assert not (directory / "run").exists()


@pytest.mark.parametrize("name", ["precious.txt", "archive/precious.png", "run/run.json"])
def test_a_directory_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    precious = tmp_path / name
    precious.parent.mkdir(exist_ok=True)
    precious.write_bytes(b"mine")
    with pytest.raises(RunConflictError, match=r"Give --out a new directory"):
        make_archive(tmp_path)
    assert precious.read_bytes() == b"mine"
    assert not (tmp_path / TRUTH).exists()


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_bytes(b"mine")
    with pytest.raises(RunConflictError, match="demo"):
        make_archive(tmp_path / "demo")


def test_the_verdict_counts_found_defects_and_kept_good_images(tmp_path: Path) -> None:
    (tmp_path / TRUTH).write_text("file_name,defect\n1.png,\n2.png,\n3.png,\n4.png,chip\n5.png,stain\n6.png,chip\n")
    decisions = dict(
        zip(
            ("1.png", "2.png", "3.png", "4.png", "5.png", "6.png", "copy of 1.png", "NOTES.txt"),
            ("clean", "anomalous", "duplicate", "anomalous", "clean", "unreadable", "clean", "skipped"),
            strict=True,
        )
    )
    write_manifest(tmp_path, decisions)
    verdict = verdict_on(tmp_path)
    assert verdict == DemoVerdict(defects=3, found=2, good=3, kept=1)
    assert not verdict.all_found
    assert verdict.in_words() == ("Verdict: NOT ALL planted defects found (2 of 3); 1 of 3 good images kept (33 %).")


def test_the_verdict_on_a_perfect_run(demo: Path) -> None:
    write_manifest(demo, {name: "anomalous" if defect else "clean" for name, defect in truth_of(demo).items()})
    verdict = verdict_on(demo)
    assert verdict.to_json() == {"defects": DEFECTIVE, "found": DEFECTIVE, "good": GOOD, "kept": GOOD}
    assert verdict.all_found
    assert verdict.in_words() == (
        f"Verdict: all planted defects found ({DEFECTIVE} of {DEFECTIVE}); {GOOD} of {GOOD} good images kept (100 %)."
    )
