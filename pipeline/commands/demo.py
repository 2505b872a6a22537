"""The demo: a synthetic archive with known defects, which shows a whole run in seconds without data or network."""

import csv
import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from schemas.errors import RunConflictError
from schemas.records.run import MANIFEST, RUN_RECORD
from schemas.tables.manifest import CLEAN

ARCHIVE = "archive"
TRUTH = "truth.csv"

SEED = 20220313  # the paper's day of publication
GOOD, DEFECTIVE = 120, 12
SIZE = 256
DEFECT_KINDS = ("scratch", "stain", "missing hole", "chip")

# Random weights need no download and see these coarse defects well enough. Never use them for a real manifest.
DEMO_SETTINGS = (
    "features.backbone=resnet18",
    "features.weights=random",
)


@dataclass(frozen=True)
class DemoVerdict:
    """How well a run found the archive's known defects.

    Attributes
    ----------
    defects, found
        Number of images with a planted defect, and of those that are not in the clean list.
    good, kept
        Number of good images, and of those that are in the clean list.
    """

    defects: int
    found: int
    good: int
    kept: int

    @property
    def all_found(self) -> bool:
        """Whether no planted defect is in the clean list."""
        return self.found == self.defects

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return dataclasses.asdict(self)

    def in_words(self) -> str:
        """Return one line for people."""
        found = "all" if self.all_found else "NOT ALL"
        return (
            f"Verdict: {found} planted defects found ({self.found} of {self.defects}); "
            f"{self.kept} of {self.good} good images kept ({100 * self.kept / self.good:.0f} %)."
        )


def make_archive(directory: Path) -> Path:
    """Write the archive below ``directory``, and beside it a ``truth.csv`` that the run never sees.

    The archive holds pictures of a machined part, some with a defect, and what real archives also hold: an exact copy,
    a truncated file, an empty file, a text file with the extension of an image, and a note.

    Raises
    ------
    RunConflictError
        When the directory holds something else.
    """
    archive = directory / ARCHIVE
    if directory.exists() and not directory.is_dir():
        raise RunConflictError(f"{directory} is a file. Give --out a new directory.")
    if directory.exists() and any(directory.iterdir()):
        if not (directory / TRUTH).exists():
            raise RunConflictError(f"{directory} is not empty and holds no demo. Give --out a new directory.")
        shutil.rmtree(archive, ignore_errors=True)
        if (directory / "run" / RUN_RECORD).exists():
            shutil.rmtree(directory / "run")
    archive.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    kinds = rng.permutation([""] * GOOD + [DEFECT_KINDS[i % len(DEFECT_KINDS)] for i in range(DEFECTIVE)])
    truth = []
    for number, kind in enumerate(kinds):
        name = f"part_{number:04d}.png"
        _draw_part(rng, str(kind)).save(archive / name)
        truth.append((name, str(kind)))
    _add_dirt(archive)
    with (directory / TRUTH).open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "defect"), *truth])
    return archive


def verdict_on(directory: Path) -> DemoVerdict:
    """Compare the run's manifest with the truth."""
    truth = pd.read_csv(directory / TRUTH, keep_default_na=False)
    manifest = pd.read_parquet(directory / "run" / MANIFEST)
    clean = set(manifest.loc[manifest["decision"] == CLEAN, "file_name"])
    is_clean, is_good = truth["file_name"].isin(clean), truth["defect"] == ""
    return DemoVerdict(
        defects=int((~is_good).sum()),
        found=int((~is_good & ~is_clean).sum()),
        good=int(is_good.sum()),
        kept=int((is_good & is_clean).sum()),
    )


def _add_dirt(archive: Path) -> None:
    """Add files that are not pictures of a part."""
    intact = (archive / "part_0000.png").read_bytes()
    (archive / "part_0000 (copy).png").write_bytes(intact)
    (archive / "part_9001.png").write_bytes(intact[: len(intact) // 2])
    (archive / "part_9002.png").write_bytes(b"")
    (archive / "part_9003.jpg").write_bytes(b"camera 3 timed out\n")
    (archive / "NOTES.txt").write_text("Line 2 was cleaned on Tuesday.\n")


def _draw_part(rng: np.random.Generator, defect: str) -> Image.Image:
    """Draw a machined ring with bolt holes on a brushed plate, as one fixed camera would see it."""
    shift = rng.normal(0, 0.6, 2)
    image = Image.new("L", (SIZE, SIZE), 96)
    draw = ImageDraw.Draw(image)
    centre = SIZE / 2 + shift
    for radius, grey in ((104, 176), (92, 160), (40, 70)):
        _disc(draw, centre, radius, grey)
    missing = int(rng.integers(6)) if defect == "missing hole" else -1
    for hole in range(6):
        if hole != missing:
            angle = np.pi * hole / 3
            _disc(draw, centre + 66 * np.array([np.cos(angle), np.sin(angle)]), 11, 52)
    if defect in {"scratch", "stain", "chip"}:
        _plant(draw, rng, defect, centre)
    image = image.filter(ImageFilter.GaussianBlur(1.0))
    return Image.fromarray(_photographed(np.asarray(image, np.float64), rng))


def _plant(draw: ImageDraw.ImageDraw, rng: np.random.Generator, defect: str, centre: NDArray[np.float64]) -> None:
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    if defect == "scratch":
        start = centre + 50 * direction
        across = np.array([-direction[1], direction[0]]) * 34
        draw.line([*(start - across), *(start + across)], fill=235, width=3)
    elif defect == "stain":
        _disc(draw, centre + 78 * direction, float(rng.uniform(8, 12)), 92)
    else:
        _disc(draw, centre + 104 * direction, float(rng.uniform(13, 17)), 96)


def _disc(draw: ImageDraw.ImageDraw, centre: NDArray[np.float64], radius: float, grey: int) -> None:
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=grey)


def _photographed(grey: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Add a lamp that flickers, brushing marks and sensor noise."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5
    lamp = 1 + rng.normal(0, 0.01) + 0.1 * rows + rng.normal(0, 0.008) * columns
    brushing = rng.normal(0, 1.2, (SIZE, 1)) * (np.abs(rows) < 0.5)
    noise = rng.normal(0, 2.0, (SIZE, SIZE))
    photographed: NDArray[np.uint8] = np.clip(np.round(grey * lamp + brushing + noise), 0, 255).astype(np.uint8)
    return photographed
