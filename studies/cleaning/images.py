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
from workers.features.block import extract_block, read_image
from workers.features.extractor import shared_extractor
from workers.trust.power import DEFECTS, MEDIUM, plant_both
from workers.verdict.near_duplicates import SKETCH, Sketches, lattice, sketch

# Images that defects are planted into, those with the smallest digests: at least some of them are kept in every case.
GROUND = 96

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

    @property
    def ground(self) -> list[str]:
        """The digests of the images that defects are planted into."""
        digests: list[str] = _index(self.folder)["digests"]
        return digests[:GROUND]

    def planted_rows(self, digests: Iterable[str]) -> Rows:
        """Return the rows (images, 2) int64 of images of the ground with a strong and with a medium defect."""
        index = _index(self.folder)
        first = np.array([len(index["digests"]) + 2 * index["place"][digest] for digest in digests], dtype=np.int64)
        return np.stack([first, first + 1], axis=1)

    def contrast(self, digests: Iterable[str]) -> NDArray[np.float64]:
        """Return the contrasts (images, 2) that these defects reached."""
        index = _index(self.folder)
        return np.array([index["contrast"][index["place"][digest]] for digest in digests]).reshape(-1, 2)


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
    ground = digests[:GROUND]
    extractor = shared_extractor(config.features)
    made_of = {
        "images": digests,
        "weights": extractor.weights_digest,
        "features": _options(config),
        "sketch": [SKETCH, "float32"],
        "planted": [[str(defect) for defect in DEFECTS], MEDIUM, GROUND],
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    target = GramFile(folder / key[:16])
    if (target.folder / _INDEX).is_file():
        return target
    planted, contrast = plant_into([paths[digest] for digest in ground], ground, config)
    features = np.concatenate([extract([paths[digest] for digest in digests], config), planted])
    count, rows, columns, channels = features.shape
    target.folder.mkdir(parents=True, exist_ok=True)
    products = np.lib.format.open_memmap(
        target.folder / _PRODUCTS, "w+", dtype=np.float64, shape=(rows * columns, count, count)
    )
    products_of(features.reshape(count, rows * columns, channels), products)
    products.flush()
    np.save(target.folder / _SKETCHES, sketch(features[:, lattice(rows)]))
    # Written last: where this file exists, the others do.
    index = {"digests": digests, "grid": [rows, columns], "channels": channels, "contrast": contrast}
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
            raise SourceError(f"{paths[outcome.row]!r} has no features: {outcome.reason}. Replace it or leave it out.")
    return block


def plant_into(paths: list[str], digests: list[str], config: Config) -> tuple[NDArray[Any], list[list[float]]]:
    """Return the features (2 x images, rows, columns, channels) of images with a strong and with a medium defect.

    The contrasts that the defects of each image reached come with them. Raises `SourceError` like `extract`.
    """
    extractor, views, contrasts = shared_extractor(config.features), [], []
    for number, (path, digest) in enumerate(zip(paths, digests, strict=True)):
        outcome, decoded = read_image(ImageRef(number, path), config.input, config.features)
        if decoded is None:
            raise SourceError(f"{path!r} has no pixels: {outcome.reason}. Replace it or leave it out.")
        plantings = plant_both(decoded.pixels, digest, DEFECTS[number % len(DEFECTS)])
        views += [planting.on(decoded.pixels) for planting in plantings]
        contrasts.append([planting.contrast for planting in plantings])
    size = config.features.batch_size
    parts = [extractor.extract(np.stack(views[start : start + size])) for start in range(0, len(views), size)]
    return np.concatenate(parts), contrasts


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
