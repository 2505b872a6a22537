"""What shortcuts of extraction would change: bfloat16 arithmetic, and JPEG files decoded at a reduced scale.

A shortcut can be the default only if decisions stay the same. So an archive is cleaned with and without it, and
features and decisions are compared. Storing features as float32 instead of float16 changes them by rounding alone, and
shows how many changed decisions mean nothing.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from PIL import Image

import workers.images.decode
from benchmarks.extraction import BACKBONES
from benchmarks.results import Record, record
from pipeline.commands.clean import clean
from pipeline.commands.demo import make_archive
from pipeline.commands.recut import recut
from schemas.config import Config, parse_config
from schemas.records.image import ImageRef
from schemas.records.run import FEATURES, MANIFEST
from workers.features.block import extract_block
from workers.features.extractor import shared_extractor
from workers.images.decode import DecodedImage, prepare_pixels

BACKBONE = "squeezenet1_1"
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp"}
QUALITY = 92
# Sides of the JPEG files (None: as the images are), and the backbone's input, which is half of that or less.
FILES: tuple[tuple[int | None, int], ...] = ((None, 128), (1024, 256))
# Images whose extraction is timed.
TIMED = 64
# The first strategy extracts; the others judge its features.
STRATEGIES = ("grow", "paire")

_EXPLANATION = f"""Features and decisions with a shortcut against those without it, with `{BACKBONE}`. JPEG files of
quality {QUALITY}: as large as the images are, or enlarged. Deviation: the root mean square of a feature's change over
that of its deviation from the images' mean. CPU time: over that without the shortcut; bfloat16 pays only where the
processor has its instructions. Decisions: images whose decision changed, by strategy. Stored as float32:
no shortcut, a change by rounding alone; what changes no more decisions than that is equivalent. A reduced scale is
JPEG's own, by powers of two, to no less than the backbone's input."""


@dataclass(frozen=True)
class Variant:
    """A way to extract."""

    name: str
    settings: tuple[str, ...] = ()
    is_reduced: bool = False


PLAIN = Variant("as it is")
VARIANTS = (
    Variant("stored as float32", ("features.dtype=float32",)),
    Variant("bfloat16", ("features.precision=bf16",)),
    Variant("JPEG at a reduced scale", is_reduced=True),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument("--archives", nargs="+", type=Path, default=[], help="folders; default: synthetic pictures")
    parser.add_argument("--leave-out", default="ground_truth", help="folders of this name hold no images")
    parser.add_argument("--images", type=int, default=150, help="most images of each archive, evenly spread")
    parser.add_argument("--weights", default="random", help="weights of the backbone: a file, or random")


def measure(arguments: argparse.Namespace, command: str) -> Record:
    """Compare every shortcut on every archive."""
    rows: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        archives = arguments.archives or [make_archive(Path(folder) / "synthetic")]
        for number, archive in enumerate(archives):
            images = _images(archive, arguments.leave_out, arguments.images)
            for side, size in FILES:
                place = Path(folder) / f"{number}-{size}"
                _write_jpeg(images, place / "archive", side)
                pixels = "own size" if side is None else f"{side} px"
                name = "synthetic" if not arguments.archives else archive.name
                case = {"archive": name, "JPEG files": pixels, "input": f"{size} px", "images": str(len(images))}
                for row in _compare(place, size, arguments.weights):
                    rows.append(case | row)
                    print(rows[-1], flush=True)
    return record("Shortcuts of extraction", _EXPLANATION, rows, command=command)


def _images(archive: Path, leave_out: str, count: int) -> list[Path]:
    """Return at most ``count`` images below a folder, evenly spread."""
    found = sorted(
        path for path in archive.rglob("*") if path.suffix.lower() in SUFFIXES and leave_out not in path.parts
    )
    readable = [path for path in found if _is_readable(path)]
    if len(readable) <= count:
        return readable
    return [readable[place] for place in np.linspace(0, len(readable) - 1, count).round().astype(int)]


def _is_readable(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError):  # the second of a damaged PNG
        return False
    return True


def _write_jpeg(images: Sequence[Path], folder: Path, side: int | None) -> None:
    folder.mkdir(parents=True)
    for number, path in enumerate(images):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        if side is not None:
            image = image.resize((side, side), Image.Resampling.LANCZOS)
        image.save(folder / f"{number:04d}.jpg", quality=QUALITY)


def _compare(folder: Path, size: int, weights: str) -> Iterator[dict[str, str]]:
    """Yield a row for each shortcut."""
    features, decisions, plain_cpu = _extract_and_judge(folder, "plain", PLAIN, size, weights)
    scale = np.sqrt(np.mean((features - features.mean(axis=0)) ** 2, dtype=np.float64))
    for number, variant in enumerate(VARIANTS):
        others, decided, cpu = _extract_and_judge(folder, f"variant-{number}", variant, size, weights)
        change = np.sqrt(np.mean((others - features) ** 2, dtype=np.float64))
        changed = {
            f"decisions, {name}": f"{np.mean(decisions[name] != decided[name]):.1%}" for name in sorted(decisions)
        }
        yield {
            "shortcut": variant.name,
            "CPU time of extraction": f"{cpu / plain_cpu:.2f}",
            "change over deviation": f"{change / scale:.2g}",
            **changed,
        }


def _extract_and_judge(
    folder: Path, name: str, variant: Variant, size: int, weights: str
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.object_]], float]:
    """Return features (images, rows, columns, channels), decisions (images,) of each strategy, and CPU seconds."""
    run = folder / name
    settings = (
        f"features.backbone={BACKBONE}",
        f"features.nodes={','.join(BACKBONES[BACKBONE])}",
        f"features.weights={weights}",
        f"features.image_size={size}",
        f"trim.strategy={STRATEGIES[0]}",
        "guard.accept_untrustworthy=true",
        # In this process, where decoding can be replaced.
        "cluster.workers=1",
        "cluster.processes=false",
        *variant.settings,
    )
    config = parse_config(None, settings)
    with reduced_decoding(size) if variant.is_reduced else nullcontext():
        clean(str(folder / "archive"), str(run), config)
        cpu = min(_cpu_seconds(folder / "archive", config) for _ in range(3))
    decisions = {STRATEGIES[0]: _decisions(str(run))}
    for strategy in STRATEGIES[1:]:
        again = parse_config(None, (f"trim.strategy={strategy}", "guard.accept_untrustworthy=true"))
        decisions[strategy] = _decisions(recut(str(run), again).run)
    (array,) = (array for _, array in zarr.open_group(run / FEATURES, mode="r").arrays())
    return np.asarray(array, np.float32), decisions, cpu


def _cpu_seconds(archive: Path, config: Config) -> float:
    """Return the CPU seconds of reading, decoding and extracting some images."""
    refs = [ImageRef(row, str(path)) for row, path in enumerate(sorted(archive.iterdir())[:TIMED])]
    extractor = shared_extractor(config.features)
    before = time.process_time()
    extract_block(refs, extractor, inputs=config.input, features=config.features, readers=2)
    return time.process_time() - before


def _decisions(run: str) -> NDArray[np.object_]:
    manifest = pd.read_parquet(f"{run}/{MANIFEST}").sort_values("file_name")
    return np.asarray(manifest["decision"].to_numpy(object))


def reduced_decoding(size: int) -> AbstractContextManager[object]:
    """Decode JPEG files at a reduced scale while the block runs."""

    def prepare(image: Image.Image, *, image_size: int | None, sixteen_bit_white: int) -> DecodedImage:
        image.draft(None, (size, size))
        return prepare_pixels(image, image_size=image_size, sixteen_bit_white=sixteen_bit_white)

    return mock.patch.object(workers.images.decode, "prepare_pixels", prepare)
