"""Scores of new images under a published Gaussian map (paper, section 3.4)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.config import Config
from schemas.records.image import ImageOutcome, ImageRef
from workers.features.block import extract_block
from workers.features.extractor import PatchExtractor, shared_extractor
from workers.images.decode import DecodedImage, decode_image, prepare_pixels
from workers.map.reader import GaussianMap
from workers.storage.directory import read_bytes
from workers.verdict.selection import gather_evidence

ImageLike = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]


@dataclass(frozen=True)
class Scores:
    """The scores of some images, in the order given.

    Attributes
    ----------
    anomaly_score
        (images,) float64: the largest Mahalanobis distance; higher is worse.
    margin
        (images,) float64: the largest distance / threshold.
    is_anomalous
        (images,) bool: the margin is 1 or more.
    worst_row, worst_col
        (images,) int16: the position with the largest margin.
    anomaly_maps
        (images, rows, columns) float64: the distances.
    """

    anomaly_score: NDArray[np.float64]
    margin: NDArray[np.float64]
    is_anomalous: NDArray[np.bool_]
    worst_row: NDArray[np.int16]
    worst_col: NDArray[np.int16]
    anomaly_maps: NDArray[np.float64]

    def pixel_maps(self, width: int, height: int) -> NDArray[np.float32]:
        """Return the anomaly maps, upsampled bilinearly to (images, height, width) float32."""
        maps = np.empty((len(self.anomaly_maps), height, width), np.float32)
        for index, anomaly_map in enumerate(self.anomaly_maps):
            maps[index] = upsample(anomaly_map, width, height)
        return maps


class ImageScorer:
    """Scores images with one product group's Gaussians.

    Examples
    --------
    >>> scorer = ImageScorer(GaussianMap.open("runs/bottle/model"))  # doctest: +SKIP
    >>> scorer.score(["a.png", "b.png"]).anomaly_score  # doctest: +SKIP
    """

    def __init__(
        self, gaussian_map: GaussianMap, group: str | None = None, *, weights: str | None = None, device: str = "auto"
    ) -> None:
        """Load the backbone that the map was fitted with.

        Parameters
        ----------
        group
            The product group; optional if the map has only one.
        weights
            Where the backbone's weights are now, if they have moved.
        device
            ``auto``, ``cpu`` or ``cuda``.

        Raises
        ------
        GaussianMapError
            When the map does not have the group.
        WeightsError
            When the weights differ from those of the map.
        """
        self.group = gaussian_map.require_group(group)
        self._map = gaussian_map
        config = scoring_config(gaussian_map, Config(), weights=weights, device=device)
        self._features, self._inputs = config.features, config.input
        self._extractor = shared_extractor(self._features, gaussian_map.description.weights_digest)

    def score(self, images: Sequence[ImageLike]) -> Scores:
        """Score some images.

        Parameters
        ----------
        images
            Paths, URLs, encoded bytes, Pillow images, or arrays (height, width[, 3 or 4]) of uint8 or uint16.

        Raises
        ------
        UndecodableError
            When one of them is not an image.
        OSError
            When one of them cannot be read.
        """
        size = self._features.batch_size
        parts = [
            self._extractor.extract(np.stack([self._decode(image).pixels for image in images[start : start + size]]))
            for start in range(0, len(images), size)
        ]
        features = np.concatenate(parts) if parts else np.empty(self._extractor.geometry.array_shape(0), np.float32)
        return score_features(self._map, self.group, features)

    def _decode(self, image: ImageLike) -> DecodedImage:
        size, max_pixels, white = self._features.image_size, self._inputs.max_pixels, self._inputs.sixteen_bit_white
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        if isinstance(image, Image.Image):
            return prepare_pixels(image, image_size=size, sixteen_bit_white=white)
        content = image if isinstance(image, bytes) else read_bytes(os.fspath(image))
        return decode_image(content, image_size=size, max_pixels=max_pixels, sixteen_bit_white=white)


def scoring_config(
    gaussian_map: GaussianMap, config: Config, *, weights: str | None = None, device: str = "auto"
) -> Config:
    """Return the configuration with everything that must be as it was when the map was fitted."""
    description = gaussian_map.description
    features = description.features.model_copy(update={"device": device, **({"weights": weights} if weights else {})})
    inputs = config.input.model_copy(update={"sixteen_bit_white": description.sixteen_bit_white})
    return config.model_copy(update={"features": features, "input": inputs})


def score_features(gaussian_map: GaussianMap, group: str, features: NDArray[Any]) -> Scores:
    """Score patch features (images, rows, columns, channels)."""
    maps = gaussian_map.distances(group, features)
    evidence = gather_evidence(maps, gaussian_map.thresholds(group), smoothing=gaussian_map.smoothing(group))
    return Scores(
        anomaly_score=evidence.score,
        margin=evidence.margin,
        is_anomalous=evidence.margin >= 1.0,
        worst_row=evidence.row,
        worst_col=evidence.column,
        anomaly_maps=maps,
    )


def score_block(
    images: Sequence[ImageRef],
    group: str,
    gaussian_map: GaussianMap,
    extractor: PatchExtractor,
    config: Config,
    *,
    readers: int,
) -> tuple[Scores, list[ImageOutcome]]:
    """Read and score a block of images; an unreadable image has a reason in its outcome and a meaningless score."""
    features, outcomes = extract_block(
        images, extractor, inputs=config.input, features=config.features, readers=readers
    )
    return score_features(gaussian_map, group, features), outcomes


def upsample(anomaly_map: NDArray[np.float64], width: int, height: int) -> NDArray[np.float32]:
    """Return an anomaly map (rows, columns) upsampled bilinearly to (height, width) float32 (paper, Figure 7)."""
    image = Image.fromarray(anomaly_map.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
