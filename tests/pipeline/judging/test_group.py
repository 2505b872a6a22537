"""A group says which of its images take part, in segments that cover each of them once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.judging.group import Group
from schemas.config import parse_config
from schemas.names import storage_name
from schemas.stores.features import FeatureGeometry
from workers.storage.directory import Directory

GEOMETRY = FeatureGeometry(3, 5, 8, grid_rows=16, grid_columns=16, pool_kernel=4, pool_stride=4)


def group_of(measured: list[bool], segment: int = 4) -> Group:
    config = parse_config(None, [f"gaussian.segment_images={segment}"])
    return Group("line/1", np.array(measured, dtype=bool), Directory.at("/nowhere"), GEOMETRY, config)


@given(measured=st.lists(st.booleans(), min_size=1, max_size=40), segment=st.integers(2, 9))
def test_segments_cover_each_image_that_takes_part_once(measured: list[bool], segment: int) -> None:
    group = group_of(measured, segment)
    rows = [row for part in group.segments() for row in part.start + np.flatnonzero(part.mask)]
    assert rows == np.flatnonzero(measured).tolist()
    assert group.count == sum(measured)


def test_its_features_lie_under_its_storage_name() -> None:
    group = group_of([True, False])
    assert group.features.name == storage_name("line/1")
    assert group.grid == (3, 5)
