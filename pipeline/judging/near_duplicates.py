"""Between the second and the third stage: which images of a group are near-duplicates of others, as Dask tasks."""

import logging

import numpy as np

from pipeline.cluster.cluster import Cluster
from pipeline.cluster.tasks import open_window
from pipeline.judging.group import Group
from schemas.arrays import Indices
from workers.verdict.near_duplicates import find_representatives, sketch_segment

logger = logging.getLogger("paire")

# All pairs are compared. In a larger group a defect supports itself only with dozens of copies: more than n / D.
MOST_IMAGES = 100_000


def find_near_duplicates(cluster: Cluster | None, group: Group) -> Indices:
    """Return (images,) int64: the row of the first image that each one is a near-duplicate of, or its own row.

    ``trim.near_duplicates`` is how close they are; 0 finds none.
    """
    first, closeness = np.arange(len(group.measured)), group.config.trim.near_duplicates
    if not closeness:
        return first
    if group.count > MOST_IMAGES:
        message = "%s: near-duplicates are not looked for among more than %d images"
        logger.info(message, group.name, MOST_IMAGES, extra={"group": group.name})
        return first
    window = open_window(cluster)
    sketches = [window.submit(sketch_segment, group.features, segment) for segment in group.segments()]
    found = window.submit(find_representatives, sketches, closeness)
    rows = np.flatnonzero(group.measured)
    first[rows] = rows[window.gather([found])[0]]
    return first
