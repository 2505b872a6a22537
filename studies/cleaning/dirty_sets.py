"""Dirty sets by content: which images each trains on and tests, named by the digests of their files.

The sets are those that `paire dirty` writes, with its rotated and flipped copies.
"""

import hashlib
import itertools
import shutil
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.commands.dirty import TEST_LABELS_FILE, TRAIN_FILE, TRAIN_LABELS_FILE, make_dirty

LABELS_FILE = "labels.csv"

OVERLAP, NO_OVERLAP = "overlap", "no overlap"


@dataclass(frozen=True, order=True)
class Case:
    """The parameters of one dirty set: archive, protocol, noise and seed."""

    archive: str
    protocol: str
    noise: float
    seed: int


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels.

    Attributes
    ----------
    digests
        sha256 of each image's file.
    is_anomalous
        (images,) bool.
    """

    digests: tuple[str, ...]
    is_anomalous: NDArray[np.bool_]

    def distinct(self) -> "LabelledImages":
        """Return the images without byte-identical copies, which take no part in a cleaning; the first one stays."""
        first = ~pd.Series(self.digests).duplicated().to_numpy()
        return LabelledImages(tuple(itertools.compress(self.digests, first)), self.is_anomalous[first])

    def in_order(self) -> "LabelledImages":
        """Return the images in the order of their digests, which is the same for all sets of the same images."""
        order = np.argsort(self.digests)
        return LabelledImages(tuple(self.digests[place] for place in order), self.is_anomalous[order])


@dataclass(frozen=True)
class DirtySet:
    """A dirty training set and its test set.

    Attributes
    ----------
    train_list
        The training set as a source of ``paire clean``.
    roots
        The folders that hold its images.
    paths
        Digest to the path of an image with that digest.
    """

    case: Case
    train: LabelledImages
    test: LabelledImages
    train_list: Path
    roots: tuple[str, ...]
    paths: dict[str, str]

    def digest(self) -> str:
        """Return the sha256 of the set's contents."""
        lists = [
            f"{digest} {int(label)}"
            for images in (self.train, self.test)
            for digest, label in zip(images.digests, images.is_anomalous, strict=True)
        ]
        return hashlib.sha256("\n".join([str(len(self.train.digests)), *lists]).encode()).hexdigest()


def list_cases(archives: Sequence[str], noises: Sequence[float], seeds: int, *, made: Container[str]) -> Iterator[Case]:
    """Yield every case, seed by seed, so that an interrupted study still covers everything else.

    Without noise nothing is planted, and both protocols give the same set: it is yielded once, as no overlap. So are
    the sets of archives that are ``made`` from others: what overlap adds is known from those.
    """
    for seed, archive, noise in itertools.product(range(seeds), archives, noises):
        yield Case(archive, NO_OVERLAP, noise, seed)
        if noise and archive not in made:
            yield Case(archive, OVERLAP, noise, seed)


def source_of(location: Path) -> Path:
    """Return the source of labels: the labels file in a folder that has one, otherwise the location itself."""
    return location / LABELS_FILE if (location / LABELS_FILE).is_file() else location


def draw(case: Case, source: Path, folder: Path) -> DirtySet:
    """Draw a dirty set into a folder, and replace an earlier one.

    Raises
    ------
    PaireError
        When `pipeline.commands.dirty.make_dirty` fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    made = make_dirty(str(source), str(folder), noise=case.noise, seed=case.seed, overlap=case.protocol == OVERLAP)
    paths: dict[str, str] = {}
    train, test = (_read(folder / name, paths) for name in (TRAIN_LABELS_FILE, TEST_LABELS_FILE))
    return DirtySet(case, train, test, folder / TRAIN_FILE, tuple(made.roots), paths)


def _read(labels: Path, paths: dict[str, str]) -> LabelledImages:
    table = pd.read_csv(labels)
    digests = [_digest(path) for path in table["image_path"]]
    paths.update(zip(digests, table["image_path"], strict=True))
    return LabelledImages(tuple(digests), table["label_index"].to_numpy() == 1)


@cache
def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
