"""The truth about inputs: which label and which mask belong to which image."""

import logging
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
import pandas as pd
from PIL import Image

from schemas.arrays import Mask
from schemas.errors import SourceError
from schemas.tables.manifest import SKIPPED, UNREADABLE
from workers.images.decode import FORMATS
from workers.sources.index_file import CSV_EXTENSION, folder_of
from workers.sources.labelled import read_labelled
from workers.sources.listing import list_sound_files
from workers.storage.directory import Directory, read_bytes

logger = logging.getLogger("paire")

# The plain name comes last: in a folder with images and masks it names the image itself.
MASK_ENDINGS: Final = ("_mask.png", "_GT.png", ".png")


@dataclass(frozen=True)
class Coverage:
    """Which inputs and labels were compared, as numbers of images.

    Attributes
    ----------
    labels, unmatched_labels
        Distinct images in the labels file, and those that match no input.
    unlabelled
        Judged inputs without a label.
    duplicates
        Labelled inputs that are duplicates.
    unreadable, skipped
        Inputs that were not judged, labelled or not; they are left out.
    without_mask
        Anomalous images without a mask, left out of the pixel metrics; 0 when no masks were given.
    """

    labels: int
    unmatched_labels: int
    unlabelled: int
    duplicates: int
    unreadable: int
    skipped: int
    without_mask: int


@dataclass(frozen=True)
class Comparison:
    """The labelled and judged inputs, with ``is_anomalous`` and ``mask`` (a location or None)."""

    images: pd.DataFrame
    coverage: Coverage
    has_masks: bool


def compare(inputs: pd.DataFrame, labels: str, masks: str | None) -> Comparison:
    """Join inputs and labels, and find the masks of the anomalous images."""
    truth = read_labelled(labels)
    matched = _match(inputs, truth, labels)
    judged = inputs["left_out"] == ""
    images = inputs[judged & matched.notna()]
    own = truth.loc[matched[images.index].astype(int)].set_axis(images.index)
    images = images.assign(
        is_anomalous=own["label_index"] == 1, mask=own["mask_path"].where(own["mask_path"] != "", None)
    )
    images = images.drop(columns="left_out")
    has_masks = masks is not None or bool(images["mask"].notna().any())
    if masks is not None:
        images = _with_masks(images, masks)
    without = images["is_anomalous"] & images["mask"].isna()
    coverage = Coverage(
        labels=len(truth),
        unmatched_labels=len(truth) - matched.nunique(),
        unlabelled=int((judged & matched.isna()).sum()),
        duplicates=int(images["is_duplicate"].sum()),
        unreadable=int((inputs["left_out"] == UNREADABLE).sum()),
        skipped=int((inputs["left_out"] == SKIPPED).sum()),
        without_mask=int(without.sum()) if has_masks else 0,
    )
    _warn(coverage, images.loc[without, "image_path"])
    return Comparison(images, coverage, has_masks)


def _match(inputs: pd.DataFrame, truth: pd.DataFrame, labels: str) -> "pd.Series[float]":
    """Return the row of each input's label; NaN for an input without a label.

    Locations are matched first. What is left on both sides is matched by name relative to the labels.
    """
    is_table = labels.lower().endswith(CSV_EXTENSION)
    base = folder_of(labels) if is_table else Directory.at(labels).url
    rows = {_plain(location): row for row, location in truth["image_path"].items()}
    matched = inputs["image_path"].map(_plain).map(rows)
    used = set(matched.dropna())
    names = {posixpath.relpath(location, _plain(base)): row for location, row in rows.items() if row not in used}
    matched = matched.fillna(inputs["file_name"].map(names))
    if matched.isna().all():
        location, first = truth["image_path"].iloc[0], inputs.iloc[0]
        name = posixpath.relpath(_plain(location), _plain(base))
        raise SourceError(
            f"none of the {len(truth)} labels of {labels!r} matches any of the {len(inputs)} inputs. The first label "
            f"was looked for as image_path {location!r} and as file_name {name!r}; "
            f"the first input has image_path {first['image_path']!r} and file_name {first['file_name']!r}. Write "
            "image_path relative to the labels file, absolute, or as in the manifest."
        )
    return matched


def _plain(location: str) -> str:
    return location.removeprefix("file://")


def _warn(coverage: Coverage, without_mask: "pd.Series[str]") -> None:
    """Warn of labels and inputs that were not compared."""
    if coverage.unmatched_labels:
        logger.warning("%d of %d labels match no input", coverage.unmatched_labels, coverage.labels)
    if coverage.unlabelled:
        logger.warning("%d inputs have no label and are left out", coverage.unlabelled)
    if coverage.unreadable or coverage.skipped:
        logger.warning(
            "%d unreadable and %d skipped inputs were not judged and are left out",
            coverage.unreadable,
            coverage.skipped,
        )
    if coverage.without_mask:
        logger.warning(
            "%d anomalous images have no mask and are left out of the pixel metrics; the first: %s",
            coverage.without_mask,
            without_mask.iloc[0],
        )


def _with_masks(images: pd.DataFrame, masks: str) -> pd.DataFrame:
    """Return the images with masks from a folder for the anomalous ones that have none in the labels."""
    try:
        files = {file.name: file.location for file in list_sound_files(masks)}
    except ValueError as error:
        raise SourceError(f"the masks {masks!r} cannot be listed ({error}). Check the path.") from error
    if not files:
        raise SourceError(f"the masks {masks!r} hold no files. Check the path.")
    wanted = images["is_anomalous"] & images["mask"].isna()
    found = images.loc[wanted, "image_path"].map(lambda path: _find_mask(path, files))
    if len(found) and found.isna().all():
        looked = ", ".join(_mask_names(found_for := str(images.loc[wanted, "image_path"].iloc[0])))
        raise SourceError(
            f"none of the {len(files)} files in {masks!r} is a mask of any of the {len(found)} anomalous images. For "
            f"{found_for!r} the names looked for are: {looked}. Rename the masks, or give mask_path in the labels."
        )
    return images.assign(mask=images["mask"].where(~wanted, found))


def _find_mask(image_path: str, files: Mapping[str, str]) -> str | None:
    """Return the location of an image's mask among files by relative name, never the image itself."""
    candidates = (files[name] for name in _mask_names(image_path) if name in files)
    return next((location for location in candidates if _plain(location) != _plain(image_path)), None)


def _mask_names(image_path: str) -> list[str]:
    """Return the relative names that the mask of an image may have, the most specific first."""
    parent, name = posixpath.split(_plain(image_path))
    stem = posixpath.splitext(name)[0]
    folder = posixpath.basename(parent)
    return [f"{prefix}{stem}{ending}" for prefix in (f"{folder}/", "") for ending in MASK_ENDINGS]


def read_mask(location: str) -> Mask:
    """Return a mask (height, width) bool: True where any colour is not zero."""
    try:
        with Image.open(BytesIO(read_bytes(location))) as image:
            # Palettes become colours. Transparency is dropped: it is not a label.
            values = np.asarray(image.convert("RGB") if image.mode in {"P", "PA", "LA", "RGBA", "RGBX"} else image)
    except Exception as error:
        detail = " ".join(str(error).split())
        raise SourceError(
            f"the mask {location!r} cannot be read: {detail} ({type(error).__name__}). Replace it, or remove it from "
            "the masks and the labels."
        ) from error
    return np.asarray(values.any(axis=2) if values.ndim == 3 else values != 0)


def normal_mask(image: Mapping[Any, Any]) -> Mask:
    """Return the all-zero mask (height, width) bool of a normal image."""
    width, height = image["width"], image["height"]
    if pd.isna(width) or pd.isna(height):
        width, height = _size_of(str(image["image_path"]))
    return np.zeros((int(height), int(width)), bool)


def _size_of(image_path: str) -> tuple[int, int]:
    """Return the width and height of an image without EXIF orientation: only the number of pixels matters."""
    try:
        with Image.open(BytesIO(read_bytes(image_path)), formats=FORMATS) as opened:
            return opened.size
    except Exception as error:
        detail = " ".join(str(error).split())
        raise SourceError(
            f"the normal image {image_path!r}, whose size the pixel metrics need, cannot be read: {detail} "
            f"({type(error).__name__}). Restore it, or remove it from the labels."
        ) from error
