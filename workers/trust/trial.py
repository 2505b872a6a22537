"""One task of a trust test: images of an archive, each with many planted defects, under one Gaussian map.

A planted image exists only from its planting to its forward pass; only its features are kept, for one task.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.config import Config
from workers.features.extractor import PatchExtractor
from workers.images.decode import DecodedImage, UndecodableError, decode_image
from workers.map.reader import GaussianMap
from workers.map.scorer import score_features
from workers.storage.directory import read_bytes
from workers.trust.planting import Defect, Pixels, Planting, Scene, plant, planted_view


class Subject(NamedTuple):
    """An image of the archive, as in the manifest."""

    sample_id: str
    path: str
    content_sha256: str


class LeftOutError(Exception):
    """An image cannot take part; the message says why."""


@dataclass(frozen=True)
class Trials:
    """The margins of some images, without and with each defect; the margin is the largest distance / threshold."""

    untouched: NDArray[np.float64]  # (images,), without a defect; NaN if the image took no part
    planted: NDArray[np.float64]  # (images, defects)
    contrast: NDArray[np.float64]  # (images, defects): the contrast reached
    reasons: tuple[str, ...]  # why each image took no part; empty if it did

    @classmethod
    def concatenate(cls, parts: Sequence["Trials"]) -> "Trials":
        """Return the trials of several sets of images, in order."""
        return cls(
            np.concatenate([part.untouched for part in parts]),
            np.concatenate([part.planted for part in parts]),
            np.concatenate([part.contrast for part in parts]),
            tuple(reason for part in parts for reason in part.reasons),
        )


@dataclass(frozen=True)
class PlantingGround:
    """An image to plant defects into."""

    scene: Scene  # at its original size
    view: Pixels  # (image_size, image_size, 3): as the run saw it

    def plant(self, subject: Subject, defect: Defect, seed: int) -> tuple[Planting, Pixels]:
        """Return a defect in its place, and the backbone's view of the image with it."""
        # Defects that differ only in contrast share a place and a shape.
        rng = seeded_generator(seed, subject.sample_id, defect.kind, defect.size)
        planting = plant(self.scene, defect, rng)
        height, width = self.scene.grey.shape
        return planting, planted_view(self.view, planting, height=height, width=width)


def read_ground(subject: Subject, config: Config) -> PlantingGround:
    """Read an image again; raises `LeftOutError` if it cannot be read or has changed since the run."""
    try:
        content = read_bytes(subject.path)
    except (OSError, ValueError) as error:
        raise LeftOutError(f"can no longer be read ({type(error).__name__})") from error
    if hashlib.sha256(content).hexdigest() != subject.content_sha256:
        raise LeftOutError("has changed since the run read it (content_sha256 differs)")
    try:
        original, view = (_decode(content, config, size) for size in (None, config.features.image_size))
    except UndecodableError as error:
        raise LeftOutError(str(error)) from error
    return PlantingGround(Scene.of(original.pixels), view.pixels)


def run_trials(
    subjects: Sequence[Subject],
    defects: Sequence[Defect],
    group: str,
    gaussian_map: GaussianMap,
    extractor: PatchExtractor,
    config: Config,
    *,
    seed: int,
) -> Trials:
    """Score some images of a group without and with each defect.

    Parameters
    ----------
    defects
        To plant into each image, one at a time.
    gaussian_map
        Gives the scores; it should not be fitted on these images.
    config
        That of the run.
    seed
        Determines places and shapes.
    """
    shape = len(subjects), 1 + len(defects)
    margin, contrast = np.full(shape, np.nan), np.full(shape, np.nan)
    reasons = [""] * len(subjects)
    features: list[NDArray[Any]] = []
    for index, subject in enumerate(subjects):
        try:
            ground = read_ground(subject, config)
        except LeftOutError as error:
            reasons[index] = str(error)
            continue
        features.append(_extract(ground, subject, defects, contrast[index], extractor, config, seed))
    if features:
        took_part = np.array([not reason for reason in reasons])
        scores = score_features(gaussian_map, group, np.concatenate(features))
        margin[took_part] = scores.margin.reshape(-1, shape[1])
    return Trials(margin[:, 0], margin[:, 1:], contrast[:, 1:], tuple(reasons))


def _extract(
    ground: PlantingGround,
    subject: Subject,
    defects: Sequence[Defect],
    contrast: NDArray[np.float64],
    extractor: PatchExtractor,
    config: Config,
    seed: int,
) -> NDArray[Any]:
    """Return one image's features (1 + defects, rows, columns, channels); fills in the contrasts reached."""

    def views() -> Iterator[Pixels]:
        yield ground.view
        for number, defect in enumerate(defects, start=1):
            planting, view = ground.plant(subject, defect, seed)
            contrast[number] = planting.contrast
            yield view

    upcoming, parts = views(), []
    while batch := list(islice(upcoming, config.features.batch_size)):
        parts.append(extractor.extract(np.stack(batch)))
    return np.concatenate(parts)


def _decode(content: bytes, config: Config, image_size: int | None) -> DecodedImage:
    inputs = config.input
    return decode_image(
        content, image_size=image_size, max_pixels=inputs.max_pixels, sixteen_bit_white=inputs.sixteen_bit_white
    )


def seeded_generator(*names: object) -> np.random.Generator:
    """Return a generator that depends only on these names, not on where or in which order it is requested."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
