"""The contact sheet of a run: which images it shows, and how they are read.

A sheet shows at most `KEPT` + 2 `REJECTED` + 2 `PAIRS` images, however many the run has.
"""

import dataclasses
import hashlib
import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.commands.sheet.drawing import Box, Sheet, Tile, draw_sheet, thumbnail
from pipeline.run_directory.finished import FinishedRun, warn_if_untrustworthy
from pipeline.run_directory.log import one_line
from schemas.config import InputConfig
from schemas.errors import ConfigError
from schemas.tables.manifest import ANOMALOUS, CLEAN, DECISIONS
from workers.images.decode import UndecodableError, decode_image
from workers.storage.directory import Directory, is_url, read_bytes

KEPT: Final = 20
# Twice: those with the largest margins, and as many spread over the others.
REJECTED: Final = 6
PAIRS: Final = 3

SUFFIX: Final = ".png"


@dataclass(frozen=True)
class SheetResult:
    """What ``paire sheet`` drew.

    Attributes
    ----------
    out
        The picture.
    kept, rejected
        Images shown of each decision.
    pairs
        Copies and near-duplicates shown beside their originals.
    blank
        Images that can no longer be read, each a blank tile with the reason.
    """

    out: str
    kept: int
    rejected: int
    pairs: int
    blank: int

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return dataclasses.asdict(self)


def sheet(run: str, out: str, *, seed: int = 0) -> SheetResult:
    """Draw the contact sheet of a judged run, also of an untrustworthy one, as a PNG.

    Parameters
    ----------
    run
        Run directory, path or URL.
    out
        The file to write, path or URL; an existing one is replaced.
    seed
        Draws the kept images and the pairs.

    Raises
    ------
    ConfigError
        When ``out`` does not end in ``.png``, or ``seed`` is negative.
    SourceError
        When ``run`` is not a judged run.
    StorageError
        When ``out`` cannot be written, or the store of the images does not answer.
    """
    if not out.lower().endswith(SUFFIX):
        raise ConfigError(f"--out {out!r}: expected the name of a {SUFFIX} file. Give one, like sheet{SUFFIX}.")
    if seed < 0:
        raise ConfigError(f"--seed {seed}: expected 0 or more.")
    finished = FinishedRun.open(run)
    warn_if_untrustworthy(finished.directory)
    manifest, read = finished.manifest, _Reader(finished.config.input)
    kept, rejected, pairs = choose_kept(manifest, seed), choose_rejected(manifest), choose_pairs(manifest, seed)
    drawn = Sheet(
        title=_title(finished.record.source),
        counts={name: int((manifest["decision"] == name).sum()) for name in DECISIONS},
        kept=[read(row) for row in _rows(kept)],
        rejected=[_with_margin(read(row), row) for row in _rows(rejected)],
        pairs=[_pair(row, manifest, read) for row in _rows(pairs)],
        pair_count=int(_is_copy(manifest).sum()),
    )
    folder, name = _split(out)
    folder.write(name, draw_sheet(drawn))
    return SheetResult(f"{folder.url}/{name}", len(kept), len(rejected), len(pairs), drawn.blank)


def choose_kept(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Draw kept images, one from each of `KEPT` equal parts of the manifest ordered by group."""
    kept = manifest[manifest["decision"] == CLEAN].sort_values("group", kind="stable")
    return _draw(kept, KEPT, seed)


def choose_rejected(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the `REJECTED` largest margins, and as many spread evenly over the others down to the smallest."""
    rejected = manifest[manifest["decision"] == ANOMALOUS].sort_values("margin", ascending=False, kind="stable")
    worst, others = rejected[:REJECTED], rejected[REJECTED:]
    ranks = np.unique(np.linspace(0, len(others) - 1, min(REJECTED, len(others))).round().astype(int))
    return pd.concat([worst, others.iloc[ranks]])


def choose_pairs(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Draw images that are copies or near-duplicates of another one."""
    return _draw(manifest[_is_copy(manifest)], PAIRS, seed)


def _is_copy(manifest: pd.DataFrame) -> "pd.Series[bool]":
    return manifest["duplicate_of"].notna() | manifest["near_duplicate_of"].notna()


def _draw(rows: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Draw one row from each of ``count`` equal parts."""
    rng = np.random.default_rng(seed)
    parts = np.array_split(np.arange(len(rows)), min(count, len(rows)) or 1)
    return rows.iloc[[int(rng.choice(part)) for part in parts if len(part)]]


def _rows(frame: pd.DataFrame) -> list[dict[Hashable, Any]]:
    return frame.to_dict("records")


class _Reader:
    """Reads images as the run did; what has gone wrong since then becomes a blank tile."""

    def __init__(self, inputs: InputConfig) -> None:
        self._inputs = inputs

    def __call__(self, row: Mapping[Hashable, Any]) -> Tile:
        name = one_line(str(row["file_name"]))
        try:
            image, box = self._image(row), _box(row)
        except (OSError, ValueError, MemoryError) as error:  # not StorageError: then no image can be read
            return Tile(name, reason=_reason(error))
        return Tile(name, thumbnail(image), size=image.size, box=box)

    def _image(self, row: Mapping[Hashable, Any]) -> Image.Image:
        content = read_bytes(str(row["image_path"]))
        if hashlib.sha256(content).hexdigest() != row["content_sha256"]:
            raise UndecodableError("changed since the run")
        decoded = decode_image(
            content,
            image_size=None,
            max_pixels=self._inputs.max_pixels,
            sixteen_bit_white=self._inputs.sixteen_bit_white,
        )
        return Image.fromarray(np.round(decoded.pixels * 255).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no longer there"
    return one_line(str(error)) if isinstance(error, UndecodableError) else f"cannot be read ({type(error).__name__})"


def _box(row: Mapping[Hashable, Any]) -> Box | None:
    edges = [row[name] for name in ("bbox_x", "bbox_y", "bbox_width", "bbox_height")]
    if any(pd.isna(edge) for edge in edges):
        return None
    x, y, width, height = map(int, edges)
    return x, y, width, height


def _with_margin(tile: Tile, row: Mapping[Hashable, Any]) -> Tile:
    """Return the tile with the margin that the image was rejected for."""
    margin = row["margin"]
    return dataclasses.replace(tile, note="" if pd.isna(margin) else f"{margin:.2f} \u00d7 threshold")


def _pair(row: Mapping[Hashable, Any], manifest: pd.DataFrame, read: _Reader) -> tuple[Tile, Tile]:
    """Return the image that stands for a copy, and the copy."""
    is_exact = pd.notna(row["duplicate_of"])
    original = row["duplicate_of"] if is_exact else row["near_duplicate_of"]
    found = _rows(manifest[manifest["sample_id"] == original][:1])
    first = read(found[0]) if found else Tile(str(original), reason="not in the manifest")
    decision = f"original: {found[0]['decision']}" if found else ""
    kind = "copy, byte for byte" if is_exact else "near-duplicate"
    return dataclasses.replace(first, note=decision), dataclasses.replace(read(row), note=kind)


def _title(source: str) -> str:
    return one_line(source.rstrip("/").rsplit("/", 1)[-1] or source)


def _split(out: str) -> tuple[Directory, str]:
    """Return the directory and the name of the file to write."""
    folder, _, name = (out if is_url(out) else os.path.abspath(out)).rpartition("/")  # noqa: PTH100 - follows no link
    return Directory.at(folder or "/"), name
