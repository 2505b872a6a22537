"""Sets that are made from real ones, because real archives are rarely aligned: turned, shifted, two products mixed.

Each is a folder of PNG files with a ``labels.csv`` as the real sets have it. The same source always gives the same
pixels.
"""

import posixpath
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from schemas.errors import SourceError
from studies.cleaning.dirty_sets import LABELS_FILE
from workers.sources.labelled import read_labelled

SEED = 0

# An image moves by up to this share of its side, in each direction.
SHIFT = 0.1

Pixels = NDArray[Any]
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def turn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn an image about its centre by any angle; the corners get the median colour of its border."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = tuple(int(value) for value in np.median(border, axis=0))
    return image.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR, fillcolor=colour)


def shift(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shift an image in both directions by up to `SHIFT` of its sides; its edges are repeated."""
    pixels = np.asarray(image)
    most = [round(SHIFT * side) for side in pixels.shape[:2]]
    down, right = (int(rng.integers(0, 2 * one + 1)) for one in most)
    padded = np.pad(pixels, [(one, one) for one in most] + [(0, 0)], mode="edge")
    return Image.fromarray(padded[down : down + pixels.shape[0], right : right + pixels.shape[1]])


def write_changed(source: Path, folder: Path, change: Change) -> None:
    """Write a set whose images are changed, each by random numbers of its own.

    Parameters
    ----------
    source
        A labelled set, as `workers.sources.labelled.read_labelled` takes it.
    folder
        Gets the set, unless it holds one already.

    Raises
    ------
    SourceError
        When the source or one of its images cannot be read.
    """
    _write(read_labelled(str(source)), folder, change)


def make_mixed(sources: Sequence[Path], folder: Path) -> None:
    """Write a set of several products: every second good image of each set, and all their defects.

    Parameters
    ----------
    sources, folder
        As for `write_changed`.

    Raises
    ------
    SourceError
        As for `write_changed`.
    """
    parts = []
    for source in sources:
        table = read_labelled(str(source))
        of_its_kind = table.groupby(["split", "label_index"]).cumcount()
        parts.append(table[(table["label_index"] == 1) | (of_its_kind % 2 == 0)])
    _write(pd.concat(parts, ignore_index=True), folder, lambda image, _: image)


def _write(table: pd.DataFrame, folder: Path, change: Change) -> None:
    """Write the images of a labelled table, and their labels last."""
    if (folder / LABELS_FILE).is_file():
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = [f"images/{number:04d}.png" for number in range(len(table))]
    for number, (name, image) in enumerate(zip(names, _images(table["image_path"].tolist()), strict=True)):
        change(image, np.random.default_rng([SEED, number])).save(folder / name)
    labels = pd.DataFrame({"image_path": names, "label_index": table["label_index"], "split": table["split"]})
    part = folder / f"{LABELS_FILE}.part"
    labels.to_csv(part, index=False)
    part.replace(folder / LABELS_FILE)


def _images(paths: Sequence[str]) -> Iterator[Image.Image]:
    for path in paths:
        try:
            with Image.open(path) as image:
                yield image.convert("RGB")
        except OSError as error:
            raise SourceError(
                f"{posixpath.basename(path)!r} in {posixpath.dirname(path)!r} cannot be read: {error}. Replace it."
            ) from error
