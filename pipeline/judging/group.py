"""One product group: what the passes, the guard and the trust test all need to know about it."""

from collections.abc import Iterator
from dataclasses import dataclass

from schemas.arrays import Mask
from schemas.config import Config
from schemas.names import storage_name
from schemas.stores.features import FeatureGeometry
from workers.features.arrays import ArrayRef, Segment, cut_segments
from workers.storage.directory import Directory


@dataclass(frozen=True)
class Group:
    """A product group."""

    name: str
    measured: Mask  # (images,): those that take part; unreadable images and byte copies keep their rows and do not
    store: Directory  # the feature store, with the group's array (images, rows, columns, channels)
    geometry: FeatureGeometry
    config: Config

    @property
    def count(self) -> int:
        """Number of images that take part."""
        return int(self.measured.sum())

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of positions."""
        return self.geometry.rows, self.geometry.columns

    @property
    def features(self) -> ArrayRef:
        """The group's array in the feature store."""
        return ArrayRef(self.store, "", storage_name(self.name))

    def segments(self) -> Iterator[Segment]:
        """Yield the segments of images that take part."""
        return cut_segments(self.measured, self.config.gaussian.segment_images)
