"""What workers hold by the formulas, against what tasks allocate, and laws of it."""

from pathlib import Path

import numpy as np

from pipeline.costs.footprint import Layout, feature_bytes
from pipeline.costs.working_memory import extraction_memory, judging_memory
from schemas.config import GaussianConfig
from schemas.stores.features import CHUNK_IMAGES, FeatureGeometry
from tests.support.watched import peak_bytes
from workers.features.arrays import ArrayRef, Segment
from workers.gaussian.fit import Fit
from workers.passes.by_features import accumulate_segment
from workers.passes.kept_moments import Change, KeptMoments, fit_row_whitening, kept_values, update_row
from workers.storage.directory import Directory

GEOMETRY = FeatureGeometry(rows=3, columns=5, channels=16, grid_rows=12, grid_columns=20, pool_kernel=4, pool_stride=4)
LAYOUT = Layout(GEOMETRY, itemsize=2, segment_images=300)


def test_memory_of_judging_does_not_grow_with_the_images_beyond_the_dual_form() -> None:
    assert judging_memory(LAYOUT, 1000, 1000, threads=2) == judging_memory(LAYOUT, 1_000_000, 500_000, threads=2)


def test_memory_holds_what_a_task_holds_at_once() -> None:
    moments = GEOMETRY.columns * GEOMETRY.channels**2 * 8
    assert judging_memory(LAYOUT, 1000, 1000, threads=1) > 3 * moments
    assert judging_memory(LAYOUT, 16, 16, threads=1) > 16**2 * 8 * GEOMETRY.columns
    block = feature_bytes(LAYOUT, CHUNK_IMAGES)
    assert extraction_memory(LAYOUT, batch_size=8, image_size=64) > 2 * block


def test_a_row_is_accumulated_and_updated_in_the_memory_that_is_said(tmp_path: Path) -> None:
    images, columns, channels = 2600, 4, 200
    directory, rng = Directory.at(tmp_path), np.random.default_rng(0)
    group, size = directory.zarr_group("", "w"), kept_values(channels)
    values = rng.normal(size=(images, 1, columns, channels)).astype(np.float16)
    group.create_array("features", data=values, chunks=(CHUNK_IMAGES, 1, columns, channels), compressors=None)
    group.create_array("moments", shape=(1, columns, size), chunks=(1, 1, size), dtype="float64", compressors=None)
    features, kept = ArrayRef(directory, "", "features"), KeptMoments(ArrayRef(directory, "", "moments"))
    everything, fewer = np.ones(images, bool), np.arange(images) >= 50
    fit = Fit(GaussianConfig(), "ridge")

    def anew() -> None:
        fit_row_whitening(accumulate_segment(features, 0, Segment(0, images, everything)), fit, [], 0, kept, 1)

    def again() -> None:
        update_row(features, kept, 0, Change(everything, fewer, 1, 2), fit)

    geometry = FeatureGeometry(1, columns, channels, 4, 4 * columns, 4, 4)
    said = judging_memory(Layout(geometry, 2, images // 2), images, images, threads=2)
    for work in (anew, again):
        assert columns * channels**2 * 8 < peak_bytes(work) <= said
