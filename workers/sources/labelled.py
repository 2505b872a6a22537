"""Labelled image sets as one table, whatever their layout on disk.

The common anomaly detection data sets each have their own tree of folders. Commands that need labels read them here.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from schemas.config import InputConfig
from schemas.errors import SourceError
from schemas.names import DEFAULT_GROUP
from workers.images.decode import FORMATS
from workers.sources.index_file import CSV_EXTENSION, IndexFormat, folder_of, read_index, resolve
from workers.sources.listing import list_sound_files
from workers.storage.directory import is_url, read_bytes, split_location

MVTEC, BTAD, KSDD2, CSV = "mvtec", "btad", "ksdd2", "csv"
TRAIN, TEST = "train", "test"

COLUMNS = ("image_path", "label_index", "defect", "mask_path", "split", "group")

UNNAMED_DEFECT = "anomaly"
"""The kind of defect if the source does not name one."""

# The folder of normal images distinguishes the two trees, which have the same shape.
_NORMAL_FOLDERS = {MVTEC: "good", BTAD: "ok"}
_KSDD2_MASK = re.compile(r"(?P<image>(?:train|test)/[^/]+)_GT\.[^./]+")
# The published KolektorSDD2 archive holds train/10301 (copy).png and train/10301_GT (copy).png by accident.
_STRAY_COPY = re.compile(r".* \(copy\)\.[^./]+")
_IMAGE_EXTENSIONS = tuple(f".{extension}" for extension in InputConfig().extensions)

# Entries of a folder with an unknown layout that the error names.
_ENTRIES_SHOWN = 10

_LOOKED_FOR = (
    "Looked for train/good (an MVTec AD category), train/ok (a BTAD product), train/N_GT.png or test/N_GT.png "
    "(KolektorSDD2), or a .csv file with the columns image_path and label_index"
)

_LABELS = IndexFormat(
    kind="labels file",
    required=("image_path", "label_index"),
    optional=("split", "defect", "mask_path", "group"),
    advice="Write a UTF-8 CSV with the columns 'image_path' and 'label_index': each row names an image and its label, "
    "0 (normal) or 1 (anomalous).",
)


class _Listed(NamedTuple):
    """One labelled image, with the fields of ``COLUMNS``."""

    image_path: str
    label_index: int
    defect: str
    mask_path: str
    split: str
    group: str = DEFAULT_GROUP


@dataclass(frozen=True)
class LabelledSource:
    """A labelled set with a known layout."""

    location: str  # absolute path or URL, without a trailing slash
    kind: str  # ``mvtec``, ``btad``, ``ksdd2`` or ``csv``
    files: tuple[str, ...] = ()  # of a tree: every image, masks included, relative to it and sorted

    def read(self) -> pd.DataFrame:
        """Return the table of `read_labelled`."""
        if self.kind == CSV:
            table = _from_csv(self.location)
        else:
            listed = _from_mask_pairs(self) if self.kind == KSDD2 else _from_defect_folders(self)
            table = pd.DataFrame(list(listed), columns=list(COLUMNS))
        return table.sort_values(["group", "image_path"], ignore_index=True)


def read_labelled(source: str) -> pd.DataFrame:
    """Read a labelled set: an MVTec-style, BTAD-style or KolektorSDD2-style tree, or a labels CSV.

    Parameters
    ----------
    source
        Path or URL of one of

        - an MVTec AD category: ``train/good``, ``test/good``, ``test/<defect>``, ``ground_truth/<defect>/N_mask.png``;
        - a BTAD product: ``train/ok``, ``test/ok``, ``test/ko``, ``ground_truth/ko/N.png``;
        - KolektorSDD2: ``train/N.png`` and ``train/N_GT.png``, the same in ``test``; an image is anomalous if its mask
          has a pixel that is not zero;
        - a CSV with ``image_path`` and ``label_index`` (0 normal, 1 anomalous), optionally ``split`` (train or test),
          ``defect``, ``mask_path`` and ``group``; paths are relative to the CSV, absolute, or URLs.

    Returns
    -------
    pandas.DataFrame
        One row per image, sorted by group and path: ``image_path`` (absolute or URL), ``label_index`` (int64, 0 or 1),
        ``defect`` (its kind; empty for a normal image), ``mask_path`` (absolute or URL; empty for a normal image or
        without a mask), ``split`` (train or test; empty if a CSV has no such column) and ``group``. The images of a CSV
        are not opened and need not exist.

    Raises
    ------
    SourceError
        When the source is missing or unreadable, its layout is unknown, or a label is missing or invalid.
    """
    return find_labelled(source).read()


def find_labelled(source: str) -> LabelledSource:
    """Find the layout of a labelled set from its file names alone.

    Raises `SourceError` if the source does not exist, or its layout is not exactly one of the known ones.
    """
    try:
        fs, root = split_location(source)
    except ValueError as error:
        raise SourceError(f"source {source!r}: {error}. Give a folder or a .csv file.") from error
    location = source.rstrip("/") if is_url(source) else root
    if not fs.exists(root):
        raise SourceError(f"source {source!r} does not exist. Give a folder or a .csv file of labelled images.")
    if fs.isfile(root):
        if root.lower().endswith(CSV_EXTENSION):
            return LabelledSource(location, CSV)
        raise SourceError(f"source {source!r} is a file whose layout is unknown. {_LOOKED_FOR}.")
    names = [file.name for file in list_sound_files(source)]
    files = tuple(name for name in names if name.lower().endswith(_IMAGE_EXTENSIONS))
    kinds = [kind for kind, folder in _NORMAL_FOLDERS.items() if any(f.startswith(f"train/{folder}/") for f in files)]
    kinds += [KSDD2] if any(_KSDD2_MASK.fullmatch(name) for name in files) else []
    if len(kinds) != 1:
        entries = sorted({name.partition("/")[0] for name in names})[:_ENTRIES_SHOWN]
        matches = f"matches {' and '.join(kinds)}" if kinds else "is unknown"
        raise SourceError(
            f"the layout of {source!r} {matches}. {_LOOKED_FOR}; found {', '.join(entries) or 'nothing'}. Give the "
            "folder of one category."
        )
    return LabelledSource(location, kinds[0], files)


def _from_defect_folders(source: LabelledSource) -> Iterator[_Listed]:
    """Read ``train/<kind>/...`` and ``test/<kind>/...``, with masks below ``ground_truth/<kind>``."""
    normal = _NORMAL_FOLDERS[source.kind]
    masks = {
        posixpath.splitext(rest)[0].removesuffix("_mask"): name
        for name in source.files
        for top, _, rest in [name.partition("/")]
        if top == "ground_truth"
    }
    for name in source.files:
        split, *folders, _ = name.split("/")
        if split not in (TRAIN, TEST) or not folders:
            continue
        defect = "" if folders[0] == normal else folders[0]
        mask = masks.get(posixpath.splitext(name)[0].removeprefix("test/"), "") if defect else ""
        yield _Listed(
            f"{source.location}/{name}", int(bool(defect)), defect, f"{source.location}/{mask}" if mask else "", split
        )


def _from_mask_pairs(source: LabelledSource) -> Iterator[_Listed]:
    """Read ``train/N.png`` with ``train/N_GT.png``, and the same in ``test``."""
    masks = {match["image"]: name for name in source.files if (match := _KSDD2_MASK.fullmatch(name))}
    for name in source.files:
        split, _, rest = name.partition("/")
        is_image = split in (TRAIN, TEST) and "/" not in rest and not _KSDD2_MASK.fullmatch(name)
        if not is_image or _STRAY_COPY.fullmatch(rest):
            continue
        stem = posixpath.splitext(name)[0]
        if stem not in masks:
            raise SourceError(
                f"{name!r} in {source.location} has no mask {posixpath.basename(stem)}_GT.png beside it, so its label "
                "is unknown. Add the mask (all zero for a normal image) or remove the image."
            )
        mask = f"{source.location}/{masks[stem]}"
        defect = UNNAMED_DEFECT if _has_defect(mask) else ""
        yield _Listed(f"{source.location}/{name}", int(bool(defect)), defect, mask if defect else "", split)


def _has_defect(mask_path: str) -> bool:
    """Tell whether a mask has a pixel that is not zero."""
    try:
        with Image.open(BytesIO(read_bytes(mask_path)), formats=FORMATS) as mask:
            return bool(np.asarray(mask.convert("L")).any())
    except Exception as error:
        raise SourceError(
            f"the mask {mask_path!r} cannot be read ({type(error).__name__}), so the label of its image is unknown. "
            "Replace the mask, or remove it with the image."
        ) from error


def _from_csv(location: str) -> pd.DataFrame:
    rows, folder = read_index(location, _LABELS), folder_of(location)
    label = pd.to_numeric(rows["label_index"], errors="coerce")
    table = pd.DataFrame(
        {
            "image_path": [resolve(folder, path) for path in rows["image_path"]],
            "label_index": label.where(label.isin([0, 1]), -1).astype("int64"),
            "defect": _column(rows, "defect", UNNAMED_DEFECT).where(label == 1, ""),
            "mask_path": [resolve(folder, path) for path in _column(rows, "mask_path", "").where(label == 1, "")],
            "split": rows.get("split", ""),
            "group": _column(rows, "group", DEFAULT_GROUP),
        }
    )
    _refuse(location, rows, table["image_path"] == "", "image_path", "is empty", "Name an image")
    _refuse(location, rows, ~label.isin([0, 1]), "label_index", "is not a label", "Write 0 (normal) or 1 (anomalous)")
    if "split" in rows.columns:
        unknown = ~table["split"].isin([TRAIN, TEST])
        _refuse(location, rows, unknown, "split", "is not a split", "Write train or test, or leave the column out")
    again = table["image_path"].duplicated()
    _refuse(location, rows, again, "image_path", "is listed more than once", "Keep one row for each image")
    if table.empty:
        raise SourceError(f"the labels {location!r} have no rows. List at least one image.")
    return table


def _column(rows: pd.DataFrame, name: str, default: str) -> pd.Series:
    """Return an optional column, with the default in place of missing values."""
    column = rows[name] if name in rows.columns else pd.Series("", index=rows.index, dtype=str)
    return column.where(column != "", default)


def _refuse(location: str, rows: pd.DataFrame, wrong: pd.Series, name: str, what: str, remedy: str) -> None:
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise SourceError(
            f"row {first} (from 0) of the labels {location!r}: {name} {rows[name][first]!r} {what} "
            f"({int(wrong.sum())} such rows). {remedy}."
        )
