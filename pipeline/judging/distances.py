"""The distances of a product group: where the passes write them, and what is kept beside them and read from them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from zarr.codecs import Crc32cCodec

from pipeline.judging.group import Group
from schemas.arrays import Floats, Indices, Mask
from schemas.records.run import CLEAN_SETS, DISTANCE, REPRESENTATIVE, THRESHOLD
from workers.features.arrays import ArrayRef, read_distances
from workers.passes.by_products import band_rows, uses_products
from workers.storage.directory import Directory
from workers.verdict.selection import Evidence, gather_evidence

# The array of distances that decide nothing, beside those that do.
SCRATCH = "scratch"


@dataclass(frozen=True)
class GroupDistances:
    """A group's part of a run's ``distances/``; images that do not take part have NaN."""

    directory: Directory
    group: Group

    def store_verdict(self, thresholds: Floats, history: Mask, fitted_for: Indices, *, smoothing: int) -> None:
        """Keep, beside the distances, what else the verdicts follow from: the fields of a `Trimming`, and `fitted_for`.

        ``fitted_for`` (images,) int64 is the row of the image that a near-duplicate is judged with, and never better
        than; any other image has its own row. ``smoothing`` becomes an attribute.
        """
        node = self.directory.zarr_group("", "r+")
        kept = ((THRESHOLD, thresholds), (CLEAN_SETS, history), (REPRESENTATIVE, fitted_for))
        for name, values in kept:
            node.create_array(name, data=values, compressors=Crc32cCodec(), overwrite=True)
        node.attrs["smoothing"] = smoothing

    def evidence(self, thresholds: Floats, fitted_for: Indices, *, smoothing: int) -> Evidence:
        """Return each image's evidence from the stored distances, read one segment of images at a time."""
        distances, place = self.array(DISTANCE), np.cumsum(self.group.measured) - 1
        own = Evidence.concatenate(
            [
                gather_evidence(read_distances(distances, segment), thresholds, smoothing=smoothing)
                for segment in self.group.segments()
            ]
        )
        return own.shared(place[fitted_for[self.group.measured]])

    def array(self, name: str) -> ArrayRef:
        """Return an array (images, rows, columns) float64 by its name."""
        return ArrayRef(self.directory, "", name)

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """Create an array of distances that exists while the block runs, and give its name."""
        self.create(SCRATCH)
        try:
            yield SCRATCH
        finally:
            self.directory.remove(SCRATCH)

    def create(self, name: str) -> None:
        """Create an array of distances, NaN everywhere; chunks are what one task writes."""
        images, columns = len(self.group.measured), self.group.geometry.columns
        measured, rows = self.group.count, 1
        if uses_products(measured, self.group.geometry.channels):
            rows = band_rows(measured, self.group.geometry.rows, columns)
        self.directory.zarr_group("", "a").create_array(
            name,
            shape=(images, self.group.geometry.rows, columns),
            chunks=(min(self.group.config.gaussian.segment_images, images), rows, columns),
            dtype="float64",
            compressors=Crc32cCodec(),
            fill_value=np.nan,
            overwrite=True,
        )
