"""A small labelled archive in MVTec's layout, for the tests of the study."""

from pathlib import Path

from tests.support.archives import part_pixels, png

TRAIN_GOOD, TEST_GOOD, TEST_BAD = 24, 5, 12


def write_category(folder: Path, *, first_seed: int = 0) -> Path:
    """Write ``train/good``, ``test/good`` and ``test/bar``; one training image is a copy of another."""
    for name, count, seed in (
        ("train/good", TRAIN_GOOD, 0),
        ("test/good", TEST_GOOD, 100),
        ("test/bar", TEST_BAD, 200),
    ):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = part_pixels(first_seed + seed + number, defect=name == "test/bar")
            (folder / name / f"{number:03d}.png").write_bytes(png(pixels))
    first = folder / "train" / "good" / "000.png"
    first.with_name("999.png").write_bytes(first.read_bytes())
    return folder
