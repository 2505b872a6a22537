"""Opening the published Gaussian map to score new images; `workers.map.writer` writes it.

An altered map gives other scores and looks as good as before. So every read is compared with the checksums that the
writer stored, see ``schemas.stores.gaussian_map``.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from schemas.config import FeaturesConfig
from schemas.errors import GaussianMapError
from schemas.names import storage_name
from schemas.records.run import SUCCESS
from schemas.stores.features import FeatureGeometry
from schemas.stores.gaussian_map import (
    CHECKSUM,
    CHECKSUMS,
    CHUNK_ROWS,
    DTYPES,
    FACTOR,
    FORMAT,
    FORMAT_VERSION,
    GROUPS,
    MEAN,
    PRIMAL,
    REFERENCE,
    REFERENCES,
    RIDGE,
    ROWS,
    SMOOTHING,
    THRESHOLDS,
    VARIANCE,
    attributes_checksum,
    checksum,
)
from workers.gaussian.fit import DualGaussian, Gaussian, PrimalGaussian
from workers.gaussian.neighbours import neighbour_distances
from workers.storage.directory import Directory, damage_as

FLOAT64 = "float64"

# The largest map of a group that a scorer keeps in memory; it streams larger maps row by row.
CACHED_BYTES = 2 * 1024**3


class Position(NamedTuple):
    """What a map knows of one position."""

    gaussian: Gaussian
    references: NDArray[np.float32] | None  # (references, channels)

    def distances(self, samples: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the distances (images,) of features (images, channels)."""
        distances = self.gaussian.mahalanobis(samples)
        return distances if self.references is None else distances * neighbour_distances(samples, self.references)


@dataclass(frozen=True)
class MapDescription:
    """What a map says about itself: the attributes of its Zarr group."""

    run_id: str  # the run that published it
    config_digest: str  # of that run
    features: FeaturesConfig  # configuration of the patch features that it was fitted on
    weights_digest: str  # sha256 of the backbone's weights
    geometry: FeatureGeometry
    estimator: str
    sixteen_bit_white: int = 65535  # value of a 16-bit grey image that was shown as white

    def to_attributes(self) -> dict[str, Any]:
        """Return JSON-ready attributes."""
        features = self.features.model_dump(mode="json", exclude={"device"})
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self), "features": features}

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any]) -> "MapDescription":
        """Read the attributes back; raises KeyError, TypeError or ValueError if they are not a map's."""
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


class GaussianMap:
    """A published map of Gaussians, opened for scoring at ``url``; ``groups`` are the product groups it can score."""

    def __init__(
        self,
        directory: Directory,
        description: MapDescription,
        groups: Mapping[str, Mapping[str, Any]],
        *,
        cached_bytes: int = CACHED_BYTES,
    ) -> None:
        self.url = directory.url
        self.description = description
        self.groups = tuple(sorted(groups))
        self._attributes = groups
        self._directory = directory
        self._cached_bytes = cached_bytes
        # Holds the rows of one group, because blocks arrive sorted by group.
        self._cached_rows = lru_cache(maxsize=description.geometry.rows)(self._read_rows)

    @classmethod
    def open(cls, url: str | os.PathLike[str], *, published_only: bool = True) -> "GaussianMap":
        """Open the map at ``RUN/model``.

        Parameters
        ----------
        url
            Path or fsspec URL of the run's ``model`` directory.
        published_only
            Refuse the map of a run that is not published. With False, the caller must know that the map is complete,
            and must not give its scores to others.

        Raises
        ------
        GaussianMapError
            When there is no map, its run is not published, its format is unknown, or it is not as its run wrote it.
        """
        directory = Directory.at(url)
        with damage_as(
            lambda error: GaussianMapError(
                f"{directory.url} is not a Gaussian map ({type(error).__name__}). Give the 'model' directory of a "
                "finished run, like runs/bottle/model."
            )
        ):
            root = directory.zarr_group("")
        if published_only and not Directory.at(directory.url.rsplit("/", 1)[0]).exists(SUCCESS):
            raise GaussianMapError(
                f"{directory.url} belongs to a run that is not finished or not trustworthy (no {SUCCESS} beside it). "
                "Run the same 'paire clean' command again: it finishes the run, or says why it is not published."
            )
        attributes = root.attrs.asdict()
        try:
            description = MapDescription.from_attributes(attributes)
        except Exception as error:
            raise GaussianMapError(
                f"{directory.url} is not a Gaussian map that this version can read (expected {FORMAT} version "
                f"{FORMAT_VERSION}; {type(error).__name__}: {error}). Use the version of paire that wrote it."
            ) from error
        if attributes_checksum(attributes) != attributes.get(CHECKSUM):
            raise _damaged(directory, "its attributes")
        with damage_as(lambda _: _damaged(directory, "its groups")):
            return cls(directory, description, _groups(root, attributes))

    @classmethod
    def of_group(cls, directory: Directory, group: str) -> "GaussianMap":
        """Open one finished group of a map that is still being written: for the run itself, which knows how far it is.

        Only this group is read, whatever the number of groups, and no row is kept in memory.

        Raises
        ------
        GaussianMapError
            When there is no such group, or it is not as the run wrote it.
        """
        with damage_as(lambda _: _damaged(directory, f"group {group!r}")):
            description = MapDescription.from_attributes(directory.zarr_group("").attrs.asdict())
            attributes = directory.zarr_group(storage_name(group)).attrs.asdict()
            _compare(attributes["group"], group)
            return cls(directory, description, {group: attributes}, cached_bytes=0)

    def require_group(self, group: str | None) -> str:
        """Return the group to score under, by default the only one; raises `GaussianMapError` without such a group."""
        if group in self.groups:
            return str(group)
        known = ", ".join(repr(name) for name in self.groups[:10]) or "none"
        if group is None and len(self.groups) == 1:
            return self.groups[0]
        if group is None:
            problem = "several groups" if self.groups else "no groups, because its run could not judge any image"
        else:
            problem = f"no group {group!r}"
        raise GaussianMapError(f"the map {self.url} has {problem}. Groups: {known}. Name one of them.")

    def thresholds(self, group: str) -> NDArray[np.float64]:
        """Return the thresholds (rows, columns) float64 of a group."""
        with damage_as(lambda _: _damaged(self._directory, f"the thresholds of group {group!r}")):
            geometry = self.description.geometry
            array = array_of(self._node(group), THRESHOLDS, (geometry.rows, geometry.columns))
            thresholds: NDArray[np.float64] = np.ascontiguousarray(array[:])
            _compare(checksum([thresholds]), self._attributes[group][CHECKSUMS][THRESHOLDS])
            return thresholds

    def smoothing(self, group: str) -> int:
        """Return the side of the square of positions to average a group's log distances over before thresholds."""
        return int(self._attributes[group][SMOOTHING])

    def measures_neighbours(self, group: str) -> bool:
        """Tell whether a group's distances are multiplied by those to its reference images."""
        return bool(self._attributes[group][REFERENCES])

    def distances(self, group: str, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return distances (images, rows, columns) float64 of features (images, rows, columns, channels).

        They are Mahalanobis distances, times the neighbour distance where the map has reference images. Raises
        `GaussianMapError` if the map is not as its run wrote it.
        """
        distances = np.empty(features.shape[:3])
        for row, positions in enumerate(self._rows(group)):
            for column, position in enumerate(positions):
                distances[:, row, column] = position.distances(features[:, row, column])
        return distances

    def _rows(self, group: str) -> Iterator[tuple[Position, ...]]:
        geometry, together = self.description.geometry, int(self._attributes[group].get(CHUNK_ROWS, 1))
        each = sum(byte_count_of(shape, DTYPES.get(name, FLOAT64)) for name, shape in self._shapes(group).items())
        byte_count = geometry.rows * geometry.columns * each
        read = self._cached_rows if byte_count <= self._cached_bytes else self._read_rows
        for start in range(0, geometry.rows, together):
            yield from read(group, start, min(start + together, geometry.rows))

    def _read_rows(self, group: str, start: int, stop: int) -> list[tuple[Position, ...]]:
        numbers = f"row {start}" if stop - start == 1 else f"rows {start} to {stop - 1}"
        geometry = self.description.geometry
        with damage_as(lambda _: _damaged(self._directory, f"{numbers} of group {group!r}")):
            node = self._node(group)
            arrays = {
                name: np.ascontiguousarray(array_of(node, name, (geometry.rows, geometry.columns, *shape))[start:stop])
                for name, shape in self._shapes(group).items()
            }
            found = [checksum(values[row] for values in arrays.values()) for row in range(stop - start)]
            _compare(found, self._attributes[group][CHECKSUMS][ROWS][start:stop])
        return [_positions({name: values[row] for name, values in arrays.items()}) for row in range(stop - start)]

    def _shapes(self, group: str) -> dict[str, tuple[int, ...]]:
        attributes = self._attributes[group]
        geometry, references = self.description.geometry, attributes[REFERENCES]
        return position_shapes(geometry, attributes["form"], attributes["fitted"], references)

    def _node(self, group: str) -> zarr.Group:
        return self._directory.zarr_group(storage_name(group))


def _positions(arrays: Mapping[str, NDArray[Any]]) -> tuple[Position, ...]:
    """Return the positions of a row from arrays whose first axis is the column."""
    gaussians: list[Gaussian]
    if VARIANCE not in arrays:
        gaussians = [PrimalGaussian(*pair) for pair in zip(arrays[MEAN], arrays[FACTOR], strict=True)]
    else:
        parts = (arrays[MEAN], arrays[FACTOR], arrays[VARIANCE], arrays[RIDGE].tolist())
        gaussians = [DualGaussian(*each) for each in zip(*parts, strict=True)]
    references = arrays.get(REFERENCE, [None] * len(gaussians))
    return tuple(Position(*pair) for pair in zip(gaussians, references, strict=True))


def position_shapes(
    geometry: FeatureGeometry, form: str, fitted: int, references: int = 0
) -> dict[str, tuple[int, ...]]:
    """Return the shape that each array of the Gaussians, and of ``references`` reference images, has at a position."""
    channels = geometry.channels
    near = {REFERENCE: (references, channels)} if references else {}
    if form == PRIMAL:
        return {MEAN: (channels,), FACTOR: (channels, channels), **near}
    rank = max(fitted - 1, 1)
    return {MEAN: (channels,), FACTOR: (rank, channels), VARIANCE: (rank,), RIDGE: (), **near}


def byte_count_of(shape: tuple[int, ...], dtype: str = FLOAT64) -> int:
    """Return the bytes of an array of a shape."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def _groups(root: zarr.Group, attributes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the attributes of every product group; raises ValueError if they differ from those of the complete map."""
    found = {str(node.attrs["group"]): node.attrs.asdict() for _, node in root.groups()}
    _compare({group: attributes_checksum(each) for group, each in found.items()}, attributes[GROUPS])
    return found


def _damaged(directory: Directory, what: str) -> GaussianMapError:
    return GaussianMapError(
        f"{what} in the Gaussian map {directory.url} cannot be read as written: a file is damaged, missing, "
        "or from another map. Restore the map from a copy, or make it again with 'paire recut' or 'paire clean'."
    )


def _compare(found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"checksum {found}, expected {expected}")


def array_of(node: zarr.Group, name: str, shape: tuple[int, ...] | None = None) -> zarr.Array[Any]:
    """Return an array of a group; raises ValueError unless it has its type, and the shape, if one is given."""
    array, dtype = node[name], DTYPES.get(name, FLOAT64)
    if not isinstance(array, zarr.Array) or array.dtype != np.dtype(dtype) or array.shape != (shape or array.shape):
        raise ValueError(f"{name} is not an array of {dtype} {shape or ''}")
    return array
