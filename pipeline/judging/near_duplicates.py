"""Between the second and the third stage: which images of a group are near-duplicates of others, as Dask tasks."""

import logging

import numpy as np

from pipeline.cluster.cluster import Cluster
from pipeline.cluster.tasks import open_window
from schemas.arrays import Indices, Mask
from schemas.config import Config
from schemas.names import storage_name
from workers.features.arrays import ArrayRef, cut_segments
from workers.storage.directory import Directory
from workers.verdict.near_duplicates import find_representatives, sketch_segment

logger = logging.getLogger("paire")

# All pairs are compared. In larger groups a defect needs dozens of copies to support itself: more than n / D.
MOST_IMAGES = 100_000


def find_near_duplicates(
    cluster: Cluster | None, group: str, measured: Mask, config: Config, features: Directory
) -> Indices:
    """Return for each image of a group the first that it is a near-duplicate of, itself where there is none.

    Parameters
    ----------
    cluster
        Where to run; None computes everything here.
    group
        Product group.
    measured
        (images,) bool: the images that take part; the others are their own.
    config
        Holds ``trim.near_duplicates``; 0 finds none.
    features
        The feature store.

    Returns
    -------
    ndarray
        (images,) int64: rows of the group.
    """
    representative = np.arange(len(measured))
    if not config.trim.near_duplicates:
        return representative
    if int(measured.sum()) > MOST_IMAGES:
        message = "%s: near-duplicates are not looked for among more than %d images"
        logger.info(message, group, MOST_IMAGES, extra={"group": group})
        return representative
    array = ArrayRef(features, "", storage_name(group))
    window = open_window(cluster)
    sketches = [
        window.submit(sketch_segment, array, segment)
        for segment in cut_segments(measured, config.gaussian.segment_images)
    ]
    found = window.submit(find_representatives, sketches, config.trim.near_duplicates)
    rows = np.flatnonzero(measured)
    representative[rows] = rows[window.gather([found])[0]]
    return representative
