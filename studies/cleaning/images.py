"""Gram matrices and sketches of an archive's images, computed once and kept in a folder."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.config import Config
from schemas.errors import SourceError
from schemas.records.image import ImageRef
from studies.cleaning.gram import Gram, Rows, products_of
from workers.features.block import extract_block
from workers.features.extractor import shared_extractor
from workers.verdict.near_duplicates import SKETCH, Sketches, lattice, sketch

_PRODUCTS, _SKETCHES, _INDEX = "products.npy", "sketches.npy", "index.json"


@dataclass(frozen=True)
class GramFile:
    """Gram matrices and sketches of some images, in a folder that processes share."""

    folder: Path

    @property
    def matrices(self) -> Gram:
        """The inner products of the images, mapped from the file."""
        return Gram(_load(self.folder / _PRODUCTS), int(_index(self.folder)["channels"]))

    @property
    def sketches(self) -> Sketches:
        """(images, 256) float32: sketches that find near-duplicates."""
        sketches: Sketches = np.load(self.folder / _SKETCHES)
        return sketches

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of positions."""
        rows, columns = _index(self.folder)["grid"]
        return rows, columns

    def rows(self, digests: Iterable[str]) -> Rows:
        """Return the rows (images,) int64 of some images in the matrices."""
        place = _index(self.folder)["place"]
        return np.array([place[digest] for digest in digests], dtype=np.int64)


def prepare_gram(paths: Mapping[str, str], folder: Path, config: Config) -> GramFile:
    """Extract the features of images and write their Gram matrices, unless they are in the folder already.

    Parameters
    ----------
    paths
        Digest of each image to its path.
    folder
        Gets a folder for these images under this configuration.
    config
        The features' configuration.

    Raises
    ------
    SourceError
        When an image cannot be read.
    PaireError
        When the backbone cannot be built.
    """
    digests = sorted(paths)
    extractor = shared_extractor(config.features)
    made_of = {
        "images": digests,
        "weights": extractor.weights_digest,
        "features": _options(config),
        "sketch": [SKETCH, "float32"],
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    target = GramFile(folder / key[:16])
    if (target.folder / _INDEX).is_file():
        return target
    features = extract([paths[digest] for digest in digests], config)
    count, rows, columns, channels = features.shape
    target.folder.mkdir(parents=True, exist_ok=True)
    products = np.lib.format.open_memmap(
        target.folder / _PRODUCTS, "w+", dtype=np.float64, shape=(rows * columns, count, count)
    )
    products_of(features.reshape(count, rows * columns, channels), products)
    products.flush()
    np.save(target.folder / _SKETCHES, sketch(features[:, lattice(rows)]))
    # Written last: where this file exists, the others do.
    index = {"digests": digests, "grid": [rows, columns], "channels": channels}
    (target.folder / _INDEX).write_text(json.dumps(index), encoding="utf-8")
    return target


def extract(paths: list[str], config: Config) -> NDArray[Any]:
    """Return the features (images, rows, columns, channels) of image files.

    Raises
    ------
    SourceError
        When one of them cannot be read: a figure must not come from an incomplete set.
    """
    refs = [ImageRef(row, path) for row, path in enumerate(paths)]
    extractor = shared_extractor(config.features)
    block, outcomes = extract_block(refs, extractor, inputs=config.input, features=config.features, readers=2)
    for outcome in outcomes:
        if not outcome.is_readable:
            raise SourceError(f"{paths[outcome.row]!r} can not be read: {outcome.reason}. Replace it or leave it out.")
    return block


def weights_digest(config: Config) -> str:
    """Return the sha256 of the backbone's weights."""
    return shared_extractor(config.features).weights_digest


def _options(config: Config) -> dict[str, Any]:
    return config.features.model_dump(mode="json", exclude={"device", "weights"}) | config.input.model_dump(mode="json")


@cache
def _load(path: Path) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.load(path, mmap_mode="r")
    return values


@cache
def _index(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    return index | {"place": {digest: row for row, digest in enumerate(index["digests"])}}
