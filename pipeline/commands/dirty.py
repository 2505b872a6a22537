"""Dirty training sets: labelled data with a known share of anomalies mixed in (paper, section 4.1).

Cleaning can only be measured if it is known which images should be removed. A seed decides every draw, so that results
can be reproduced.
"""

import dataclasses
import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable
from decimal import ROUND_HALF_DOWN, Decimal
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from schemas.errors import ConfigError, RunConflictError, SourceError
from schemas.names import storage_name
from workers.images.decode import FORMATS
from workers.sources.labelled import CSV, TEST, TRAIN, LabelledSource, find_labelled
from workers.storage.directory import Directory, is_url, read_bytes, split_location

# Table 1 of the paper rounds to the nearest count, halves down, except here: (category, training images, share).
# (It also prints 122 for capsule at 10 %, where the normal images fell by 22, as the rule says.)
TABLE_1_EXCEPTIONS = {("bottle", 209, 0.05): 11, ("cable", 224, 0.10): 23, ("grid", 264, 0.05): 14}

# Without splits in the CSV, this share of its normal images goes into the test set. Without overlap, this share of each
# kind of defect stays there: with fewer anomalies, the figures on the test set would be noise.
HELD_OUT_SHARE = 0.25

# The elements of the square's symmetry group other than the identity: flips and rotations by quarter turns.
TRANSFORMATIONS = tuple(Image.Transpose)

# Pillow writes these as PNG without changing a value.
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "I;16B"}

TRAIN_FILE, TRAIN_LABELS_FILE = "train.csv", "train_labels.csv"
TEST_FILE, TEST_LABELS_FILE = "test.csv", "test_labels.csv"
RECORD_FILE = "dirty.json"
AUGMENTED_FOLDER = "augmented"

_INPUT_COLUMNS = ["image_path", "group"]
_LABEL_COLUMNS = ["image_path", "label_index", "defect", "mask_path"]


@dataclasses.dataclass(frozen=True)
class DirtyCounts:
    """Numbers of images in a dirty set.

    Attributes
    ----------
    train_normals, train_anomalies
        In the training set; their sum is the size of the source's training set.
    removed_normals
        Normal training images of the source that anomalies replace.
    present_anomalies, planted_anomalies, augmented_anomalies
        Where the training anomalies come from: the source's training set, its test set, rotated or flipped copies.
    test_normals, test_anomalies
        In the test set.
    """

    train_normals: int
    train_anomalies: int
    removed_normals: int
    present_anomalies: int
    planted_anomalies: int
    augmented_anomalies: int
    test_normals: int
    test_anomalies: int


@dataclasses.dataclass(frozen=True)
class DirtySet:
    """What ``paire dirty`` wrote.

    Attributes
    ----------
    source, kind
        The labelled data and its layout: ``mvtec``, ``btad``, ``ksdd2`` or ``csv``.
    train, train_labels, test, test_labels
        Paths of the four lists; ``train`` is a source for ``paire clean``, ``test`` one for ``paire score``.
    roots
        Folders and URLs that hold the listed images: ``input.roots`` for the commands that take the lists.
    counts
        Over all groups.
    groups
        The counts of each group.
    """

    source: str
    kind: str
    noise: float
    seed: int
    overlap: bool
    train: str
    train_labels: str
    test: str
    test_labels: str
    roots: list[str]
    counts: DirtyCounts
    groups: dict[str, DirtyCounts]

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class _Draw:
    """A group's dirty set: rows of the labelled table.

    ``train`` also has ``is_augmented`` and ``transformation``, the index in ``TRANSFORMATIONS`` of the copy to make.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    counts: DirtyCounts


def make_dirty(source: str, out: str, *, noise: float, seed: int = 0, overlap: bool = True) -> DirtySet:
    """Write a dirty training set and its test set as lists of images (paper, section 4.1).

    Of the N training images of a group, ``k = dirty_count(N, noise)`` become anomalous: anomalies drawn from the test
    set replace as many normal images. Anomalies that the training set already holds stay and count towards k. If the
    test set has too few, drawn anomalies are also added rotated and flipped, each copy once. Each group is treated on
    its own; a folder is one group. From a CSV without splits, a quarter of the normal images, drawn at random, and all
    anomalies form the test set.

    With the same seed, a higher noise plants all anomalies that a lower noise plants, and keeps no normal image that
    the lower noise removes.

    Parameters
    ----------
    source
        Labelled data in one of the layouts of `workers.sources.labelled.read_labelled`.
    out
        Directory, path or URL, that is empty or does not exist. Receives ``train.csv`` and ``test.csv``
        (``image_path``, ``group``); ``train_labels.csv`` and ``test_labels.csv`` in the same order (``image_path``,
        ``label_index``, ``defect``, ``mask_path``; the training set also ``is_augmented``); ``augmented/`` with the
        rotated and flipped copies and their masks, as PNG; and ``dirty.json``, written last. All other images stay
        where they are, so that commands need ``roots``. The training set is in random order.
    noise
        Share of anomalies in the training set, from 0 up to but not including 1.
    overlap
        True, as in the paper: the test set is unchanged and holds the planted anomalies too. False: planted anomalies
        leave the test set. A quarter of each kind of defect, at least one image, always stays there, so that every
        kind can be tested; if the others are too few, they are also added rotated and flipped.

    Raises
    ------
    ConfigError
        When the share or the seed is out of range, the training set already has a higher share of anomalies, or the
        directory's protocol is unknown.
    SourceError
        When the source cannot be read, or has too few anomalies even with all their copies.
    RunConflictError
        When the directory is not empty.
    """
    if not 0 <= noise < 1:
        raise ConfigError(
            f"noise = {noise!r} is not a share of a training set. Give 0 <= noise < 1, like 0.1 for 10 %."
        )
    if seed < 0:
        raise ConfigError(f"seed = {seed} is negative. Give 0 or more.")
    directory = _empty_directory(out)
    labelled = find_labelled(source)
    table = labelled.read()
    if labelled.kind == CSV:
        _check_files_exist(table, labelled)
    category = posixpath.basename(labelled.location) if labelled.kind != CSV else ""
    rng = np.random.default_rng(seed)
    draws = {
        str(group): _draw(part, noise=noise, category=category, overlap=overlap, rng=rng)
        for group, part in table.groupby("group", sort=True)
    }
    train = pd.concat([draw.train for draw in draws.values()], ignore_index=True)
    train = train.iloc[rng.permutation(len(train))].reset_index(drop=True)  # the order must not tell the labels
    test = pd.concat([draw.test for draw in draws.values()], ignore_index=True)
    _write_lists(_write_copies(train, directory), test, directory)
    groups = {group: draw.counts for group, draw in draws.items()}
    result = DirtySet(
        source=labelled.location,
        kind=labelled.kind,
        noise=float(noise),
        seed=int(seed),
        overlap=overlap,
        train=f"{directory.url}/{TRAIN_FILE}",
        train_labels=f"{directory.url}/{TRAIN_LABELS_FILE}",
        test=f"{directory.url}/{TEST_FILE}",
        test_labels=f"{directory.url}/{TEST_LABELS_FILE}",
        roots=_roots_of(table["image_path"]),
        counts=_total(list(groups.values())),
        groups=groups,
    )
    directory.write(RECORD_FILE, (json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n").encode())
    return result


def _empty_directory(out: str) -> Directory:
    directory = Directory.at(out)
    try:
        is_empty = directory.is_empty()
    except ValueError as error:
        raise ConfigError(f"directory {out!r}: {error}. Give a path, or an fsspec URL like s3://bucket/dir.") from error
    if not is_empty:
        raise RunConflictError(f"{out!r} is not empty. Give a new directory, or remove this one first.")
    return directory


def dirty_count(images: int, noise: float, category: str = "") -> int:
    """Return how many of a training set's images become anomalous.

    This is ``noise * images`` rounded to the nearest count, halves down: the rule behind Table 1 of the paper, with its
    three exceptions.

    Parameters
    ----------
    images
        Size of the training set.
    category
        Name of its folder. An exception applies if the last word of the name and the size are those of Table 1.
    """
    last_word = re.split(r"[\W_]+", category.lower())[-1]
    exception = TABLE_1_EXCEPTIONS.get((last_word, images, round(float(noise), 9)))
    if exception is not None:
        return exception
    # Decimal, because a float product such as 0.05 * 230 can miss a half.
    return int((Decimal(str(float(noise))) * images).to_integral_value(ROUND_HALF_DOWN))


def _draw(part: pd.DataFrame, *, noise: float, category: str, overlap: bool, rng: np.random.Generator) -> _Draw:
    """Draw the dirty set of one group.

    The number of random draws never depends on the noise, which makes the sets of one seed comparable.
    """
    part = _with_splits(part, rng)
    group = part["group"].iloc[0]
    is_train, is_anomaly = part["split"] == TRAIN, part["label_index"] == 1
    normals, present, test = part[is_train & ~is_anomaly], part[is_train & is_anomaly], part[~is_train]
    wanted = dirty_count(int(is_train.sum()), noise, category)
    missing = wanted - len(present)
    if missing < 0:
        raise ConfigError(
            f"noise = {noise} means {wanted} anomalies among the {is_train.sum()} training images of group {group!r}, "
            f"which already has {len(present)} ({len(present) / is_train.sum():.4g}). Give a higher share."
        )
    if missing >= len(normals):
        raise ConfigError(
            f"noise = {noise} would put {missing} anomalies in place of the {len(normals)} normal training images of "
            f"group {group!r} and leave none. Give a lower share, or more normal images."
        )
    removed = normals.index[rng.permutation(len(normals))[:missing]]
    anomalies = test[test["label_index"] == 1]
    drawable = anomalies.iloc[rng.permutation(len(anomalies))]
    if not overlap:
        drawable = _without_those_that_stay(drawable)
    planted = drawable.iloc[:missing]
    copies = _draw_copies(drawable, missing - len(planted), rng, group)
    if not overlap:
        test = test.drop(index=planted.index)
    train = pd.concat([part[is_train].drop(index=removed), planted]).assign(is_augmented=False, transformation=-1)
    counts = DirtyCounts(
        train_normals=len(normals) - missing,
        train_anomalies=wanted,
        removed_normals=missing,
        present_anomalies=len(present),
        planted_anomalies=len(planted),
        augmented_anomalies=len(copies),
        test_normals=int((test["label_index"] == 0).sum()),
        test_anomalies=int((test["label_index"] == 1).sum()),
    )
    return _Draw(pd.concat([train, copies]).sort_values(["image_path", "transformation"]), test, counts)


def _with_splits(part: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Return the rows with their split, drawn if the source has none."""
    if (part["split"] != "").all():
        return part
    normal = part.index[part["label_index"] == 0]
    held_out = normal[rng.permutation(len(normal))[: max(1, round(HELD_OUT_SHARE * len(normal)))]]
    is_test = part.index.isin(held_out) | (part["label_index"] == 1)
    return part.assign(split=np.where(is_test, TEST, TRAIN))


def _without_those_that_stay(anomalies: pd.DataFrame) -> pd.DataFrame:
    """Return test anomalies without the last ones of each kind: those stay in the test set."""
    kinds = anomalies.groupby("defect")["defect"]
    staying = (HELD_OUT_SHARE * kinds.transform("size")).round().clip(lower=1)
    return anomalies[kinds.cumcount(ascending=False) >= staying]


def _draw_copies(anomalies: pd.DataFrame, count: int, rng: np.random.Generator, group: str) -> pd.DataFrame:
    """Draw ``count`` different pairs of an anomaly and a transformation."""
    pairs = rng.permutation(len(anomalies) * len(TRANSFORMATIONS))
    if count > len(pairs):
        raise SourceError(
            f"group {group!r} has {len(anomalies)} test anomalies to draw from and {len(pairs)} rotated and flipped "
            f"copies of them: {count - len(pairs)} images too few. Give a lower noise, or more anomalies; without "
            "overlap a quarter of each kind stays in the test set."
        )
    which, transformation = np.divmod(pairs[:count], len(TRANSFORMATIONS))
    return anomalies.iloc[which].assign(is_augmented=True, transformation=transformation)


def _write_copies(train: pd.DataFrame, directory: Directory) -> pd.DataFrame:
    """Write the rotated and flipped copies, and return the rows with the paths of the copies."""
    paths, masks = train["image_path"].tolist(), train["mask_path"].tolist()
    try:
        for number, row in enumerate(np.flatnonzero(train["is_augmented"])):
            transformation = TRANSFORMATIONS[train["transformation"].iloc[row]]
            stem = posixpath.splitext(posixpath.basename(paths[row]))[0]
            way = transformation.name.lower().replace("_", "-")
            defect = train["defect"].iloc[row]
            name = f"{AUGMENTED_FOLDER}/{storage_name(f'{number:05d}-{defect}-{stem}-{way}')}"
            paths[row] = _write_copy(paths[row], directory, f"{name}.png", transformation)
            if masks[row]:
                masks[row] = _write_copy(masks[row], directory, f"{name}_mask.png", transformation)
    except SourceError:
        directory.remove(AUGMENTED_FOLDER)  # so that the command can be repeated
        raise
    return train.assign(image_path=paths, mask_path=masks)


def _write_copy(path: str, directory: Directory, name: str, transformation: Image.Transpose) -> str:
    """Write one file's copy and return its path."""
    try:
        with Image.open(BytesIO(read_bytes(path)), formats=FORMATS) as image:
            if image.mode in {"I", "F"} and image.format != "PNG":
                raise ValueError("32-bit pixels do not fit into a PNG")
            upright = ImageOps.exif_transpose(image)
            copy = upright if upright.mode in _PNG_MODES else upright.convert("RGB")
            buffer = BytesIO()
            copy.transpose(transformation).save(buffer, "PNG")
    except Exception as error:
        raise SourceError(
            f"{path!r} cannot be rotated or flipped ({type(error).__name__}), which a noise this high needs. Give a "
            "lower noise, or replace the image."
        ) from error
    directory.write(name, buffer.getvalue())
    return f"{directory.url}/{name}"


def _roots_of(paths: Iterable[str]) -> list[str]:
    """Return folders that hold all images: one on the disk, and one for each bucket or server."""
    folders = defaultdict(list)
    for path in paths:
        protocol, separator, place = path.partition("://") if is_url(path) else ("", "", path)
        folders[protocol + separator, place.split("/")[0]].append(posixpath.dirname(place))
    return [protocol + posixpath.commonpath(of_one) for (protocol, _), of_one in sorted(folders.items())]


def _write_lists(train: pd.DataFrame, test: pd.DataFrame, directory: Directory) -> None:
    for name, table, columns in (
        (TRAIN_FILE, train, _INPUT_COLUMNS),
        (TRAIN_LABELS_FILE, train, [*_LABEL_COLUMNS, "is_augmented"]),
        (TEST_FILE, test, _INPUT_COLUMNS),
        (TEST_LABELS_FILE, test, _LABEL_COLUMNS),
    ):
        directory.write(name, table[columns].to_csv(index=False).encode())


def _check_files_exist(table: pd.DataFrame, source: LabelledSource) -> None:
    """Refuse a CSV that names missing local files, before anything is written."""
    for column in ("image_path", "mask_path"):
        for path in table[column]:
            if path and not is_url(path) and not split_location(path)[0].isfile(path):
                raise SourceError(
                    f"{column} {path!r} in {source.location!r} is not a file. Paths are relative to the CSV; correct "
                    "or remove the row."
                )


def _total(counts: list[DirtyCounts]) -> DirtyCounts:
    names = [field.name for field in dataclasses.fields(DirtyCounts)]
    return DirtyCounts(**{name: sum(getattr(part, name) for part in counts) for name in names})
