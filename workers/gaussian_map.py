"""The published Gaussian map: written row by row by a run, opened by whoever scores new images."""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import ValidationError

from schemas.config import FeaturesConfig
from schemas.errors import GaussianMapError
from schemas.features import FeatureGeometry
from schemas.gaussian_map import (
    DUAL,
    FACTOR,
    FORMAT,
    FORMAT_VERSION,
    MEAN,
    NEAREST,
    PRIMAL,
    RIDGE,
    SMOOTHING,
    THRESHOLDS,
    VARIANCE,
)
from schemas.names import storage_name
from schemas.run import SUCCESS
from workers.gaussian import DualGaussian, FittedGaussian, Gaussian, PrimalGaussian, uses_dual
from workers.storage import Directory

# Chunks up to a size that object stores like.
CHUNK_BYTES = 16 * 1024**2

# The largest map of a group that a scorer keeps in memory; larger ones are streamed row by row.
CACHED_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class MapDescription:
    """What a map says of itself: the attributes of its Zarr group.

    Attributes
    ----------
    run_id, config_digest
        The run that published it.
    features
        The configuration of the patch features it was fitted on.
    weights_digest
        sha256 of the backbone's weights.
    geometry
        The grid of positions.
    estimator
        The covariance estimator.
    sixteen_bit_white
        The value of a 16-bit grey image that was shown as white.
    """

    run_id: str
    config_digest: str
    features: FeaturesConfig
    weights_digest: str
    geometry: FeatureGeometry
    estimator: str
    sixteen_bit_white: int = 65535

    def to_attributes(self) -> dict[str, Any]:
        """Return JSON-ready attributes."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "run_id": self.run_id,
            "config_digest": self.config_digest,
            "features": self.features.model_dump(mode="json", exclude={"device"}),
            "weights_digest": self.weights_digest,
            "geometry": dataclasses.asdict(self.geometry),
            "estimator": self.estimator,
            "sixteen_bit_white": self.sixteen_bit_white,
        }

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any]) -> "MapDescription":
        """Read the attributes back; raises KeyError, TypeError or ValueError when they are not a map's."""
        if attributes.get("format") != FORMAT or attributes.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format {attributes.get('format')!r} version {attributes.get('format_version')!r}")
        return cls(
            run_id=str(attributes["run_id"]),
            config_digest=str(attributes["config_digest"]),
            features=FeaturesConfig.model_validate(attributes["features"]),
            weights_digest=str(attributes["weights_digest"]),
            geometry=FeatureGeometry(**attributes["geometry"]),
            estimator=str(attributes["estimator"]),
            sixteen_bit_white=int(attributes["sixteen_bit_white"]),
        )


def create_map(directory: Directory, description: MapDescription) -> None:
    """Create an empty map, replacing one that is there."""
    directory.zarr_group("", "w").attrs.update(description.to_attributes())


def create_group_map(directory: Directory, group: str, geometry: FeatureGeometry, fitted: int) -> None:
    """Create the arrays of one product group, to be filled by `write_row`."""
    dual = uses_dual(fitted, geometry.channels)
    rank = max(fitted - 1, 1) if dual else geometry.channels
    node = directory.zarr_group("", "r+").create_group(storage_name(group), overwrite=True)
    node.attrs.update({"group": group, "form": DUAL if dual else PRIMAL, "fitted": fitted})
    grid = (geometry.rows, geometry.columns)
    shapes = {MEAN: (*grid, geometry.channels), FACTOR: (*grid, rank, geometry.channels), THRESHOLDS: grid}
    if dual:
        shapes |= {VARIANCE: (*grid, rank), RIDGE: grid}
    for name, shape in shapes.items():
        # Rows are written by different tasks and streamed by scorers; of small groups one chunk has all of a row.
        position = math.prod(shape[2:]) * np.dtype(np.float64).itemsize
        chunks = (1, min(geometry.columns, max(1, CHUNK_BYTES // position)), *shape[2:])
        node.create_array(name, shape=shape, chunks=chunks, dtype="float64", compressors=None, fill_value=0.0)


def write_row(directory: Directory, group: str, row: int, fitted: tuple[FittedGaussian, ...]) -> int:
    """Write the Gaussians of one row of positions; returns the row as a receipt."""
    gaussians = [one.gaussian for one in fitted]
    node = directory.zarr_group(storage_name(group), "r+")
    factor = np.zeros(_array(node, FACTOR).shape[1:])
    for column, gaussian in enumerate(gaussians):
        if isinstance(gaussian, DualGaussian):
            factor[column, : len(gaussian.directions)] = gaussian.directions
        else:
            factor[column] = gaussian.cholesky
    _array(node, FACTOR)[row] = factor
    _array(node, MEAN)[row] = np.stack([gaussian.mean for gaussian in gaussians])
    if isinstance(gaussians[0], DualGaussian):
        variances, ridges = np.zeros(_array(node, VARIANCE).shape[1:]), np.zeros(len(gaussians))
        for column, gaussian in enumerate(gaussians):
            assert isinstance(gaussian, DualGaussian)
            variances[column, : len(gaussian.variances)] = gaussian.variances
            ridges[column] = gaussian.ridge
        _array(node, VARIANCE)[row] = variances
        _array(node, RIDGE)[row] = ridges
    return row


def write_thresholds(
    directory: Directory, group: str, thresholds: NDArray[np.float64], *, smoothing: int, nearest: float = 1.0
) -> None:
    """Write a product group's thresholds, which completes its map.

    Parameters
    ----------
    directory, group
        The map and the product group.
    thresholds
        (rows, columns) float64.
    smoothing
        Side of the square of positions that log distances are averaged over before they meet the thresholds.
    nearest
        Share of the images that each position was fitted on: those nearest there.
    """
    node = directory.zarr_group(storage_name(group), "r+")
    _array(node, THRESHOLDS)[:] = thresholds
    node.attrs[SMOOTHING], node.attrs[NEAREST] = smoothing, nearest


class GaussianMap:
    """A published map of Gaussians, opened for scoring.

    Attributes
    ----------
    url
        Where it was opened.
    description
        The features it was fitted on.
    groups
        The product groups it can score.
    """

    def __init__(
        self,
        directory: Directory,
        description: MapDescription,
        smoothing: Mapping[str, int],
        nearest: Mapping[str, float],
    ) -> None:
        self.url = directory.url
        self.description = description
        self.groups = tuple(sorted(smoothing))
        self._smoothing, self._nearest = smoothing, nearest
        self._directory = directory
        # As many rows as one group has: blocks arrive sorted by group.
        self._cached_rows = lru_cache(maxsize=description.geometry.rows)(self._read_row)

    @classmethod
    def open(cls, url: str | os.PathLike[str], *, published_only: bool = True) -> "GaussianMap":
        """Open the map at ``RUN/model``.

        Parameters
        ----------
        url
            Path or fsspec URL of the run's ``model`` directory.
        published_only
            Refuse the map of a run that is not published. Whoever passes False has seen that the map is complete, and
            does not score with it what others rely on.

        Raises
        ------
        GaussianMapError
            When there is no map, its run is not published though it has to be, or it is of an unknown format.
        """
        directory = Directory.at(url)
        try:
            root = directory.zarr_group("")
        except (FileNotFoundError, ValueError) as error:
            raise GaussianMapError(
                f"{directory.url} holds no Gaussian map. Give the 'model' directory of a finished run, like "
                "runs/bottle/model."
            ) from error
        if published_only and not Directory.at(directory.url.rsplit("/", 1)[0]).exists(SUCCESS):
            raise GaussianMapError(
                f"{directory.url} belongs to a run that is not finished or not to be trusted (no {SUCCESS} beside it). "
                "Run the same 'paire clean' command again first: it finishes the run, or says why it is not published."
            )
        try:
            description = MapDescription.from_attributes(dict(root.attrs))
            attributes = {str(node.attrs["group"]): node.attrs for _, node in root.groups()}
            smoothing = {group: int(str(of[SMOOTHING])) for group, of in attributes.items()}
            nearest = {group: float(str(of[NEAREST])) for group, of in attributes.items()}
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            raise GaussianMapError(
                f"{directory.url} is not a Gaussian map that this version reads (expected {FORMAT} version "
                f"{FORMAT_VERSION}; {type(error).__name__}: {error}). Use the version of paire that wrote it."
            ) from error
        return cls(directory, description, smoothing, nearest)

    def require_group(self, group: str | None) -> str:
        """Return the group to score under; None is the only one there is.

        Raises
        ------
        GaussianMapError
            When there is no such group, or several to choose from.
        """
        if group in self.groups:
            return str(group)
        known = ", ".join(repr(name) for name in self.groups[:10]) or "none"
        if group is None and len(self.groups) == 1:
            return self.groups[0]
        if group is None:
            problem = "several groups" if self.groups else "no groups, because its run could judge none of its images"
        else:
            problem = f"no group {group!r}"
        raise GaussianMapError(f"the map {self.url} has {problem}. Groups: {known}. Name one of them.")

    def thresholds(self, group: str) -> NDArray[np.float64]:
        """Return the thresholds (rows, columns) float64 of a group."""
        return np.asarray(_array(self._node(group), THRESHOLDS)[:])

    def smoothing(self, group: str) -> int:
        """Return the side of the square of positions that a group's distances are averaged over before thresholds."""
        return self._smoothing[group]

    def nearest(self, group: str) -> float:
        """Return the share of the images that each position of a group was fitted on: those nearest there."""
        return self._nearest[group]

    def distances(self, group: str, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the Mahalanobis distances of patch features to a group's map.

        Parameters
        ----------
        group
            Product group.
        features
            (images, rows, columns, channels), any floating dtype.

        Returns
        -------
        ndarray
            (images, rows, columns) float64.
        """
        distances = np.empty(features.shape[:3])
        for row, gaussians in enumerate(self._rows(group)):
            for column, gaussian in enumerate(gaussians):
                distances[:, row, column] = gaussian.mahalanobis(features[:, row, column])
        return distances

    def _rows(self, group: str) -> Iterator[tuple[Gaussian, ...]]:
        read = self._cached_rows if self._byte_count(group) <= CACHED_BYTES else self._read_row
        for row in range(self.description.geometry.rows):
            yield read(group, row)

    def _read_row(self, group: str, row: int) -> tuple[Gaussian, ...]:
        node = self._node(group)
        means = np.asarray(_array(node, MEAN)[row])
        factors = np.asarray(_array(node, FACTOR)[row])
        if node.attrs["form"] == PRIMAL:
            return tuple(PrimalGaussian(*pair) for pair in zip(means, factors, strict=True))
        variances = np.asarray(_array(node, VARIANCE)[row])
        ridges = np.asarray(_array(node, RIDGE)[row]).tolist()
        return tuple(DualGaussian(*parts) for parts in zip(means, factors, variances, ridges, strict=True))

    def _byte_count(self, group: str) -> int:
        return int(_array(self._node(group), FACTOR).nbytes)

    def _node(self, group: str) -> zarr.Group:
        return self._directory.zarr_group(storage_name(group))


def _array(node: zarr.Group, name: str) -> zarr.Array[Any]:
    try:
        array = node[name]
    except (KeyError, ValueError) as error:
        raise GaussianMapError(
            f"the map {node.store_path} has no array {name!r} that can be read ({type(error).__name__}: {error}). "
            "Restore it, or use another map."
        ) from error
    if not isinstance(array, zarr.Array) or array.dtype.kind != "f":
        raise GaussianMapError(
            f"{name!r} of the map {node.store_path} is no array of numbers. Restore it, or use another map."
        )
    return array
