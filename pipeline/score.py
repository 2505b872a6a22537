"""Scoring new images on the cluster under a published Gaussian map."""

import numpy as np
import pandas as pd
from distributed import get_worker

from pipeline.cluster import Cluster
from pipeline.progress import Phase
from pipeline.tasks import TaskWindow
from schemas import scores as scores_table
from schemas.config import Config
from schemas.names import storage_name
from workers.decode import decode_image
from workers.extract import ImageRef
from workers.extractor import shared_extractor
from workers.gaussian_map import GaussianMap
from workers.heatmap import heat_map_png
from workers.scorer import Scores, score_block
from workers.storage import Directory, read_bytes

# Images scored by one task: large enough to read a streamed map rarely.
BLOCK_IMAGES = 256

PROGRESS_TOPIC = "paire-scored"


def score_images(
    cluster: Cluster,
    catalog: pd.DataFrame,
    gaussian_map: GaussianMap,
    config: Config,
    phase: Phase,
    maps: Directory | None = None,
) -> pd.DataFrame:
    """Score every input of a catalog.

    Parameters
    ----------
    cluster
        Where to run.
    catalog
        The inputs.
    gaussian_map
        The map, readable from every worker by its URL.
    config
        The map's features and the caller's input options.
    phase
        Counts images.
    maps
        Where to write heat maps; None writes none.

    Returns
    -------
    pandas.DataFrame
        With the columns of ``schemas.scores``, one row per input in catalog order.
    """
    window = TaskWindow(cluster.client, cluster.workers)
    rows = catalog[["image_path", "group", "reason"]].copy()
    for column in scores_table.COLUMNS:
        if column.name not in rows:
            rows[column.name] = None
    rows = rows.astype(object)
    blocks = []
    candidates = catalog[catalog["row"].notna()]
    cluster.client.subscribe_topic(PROGRESS_TOPIC, lambda event: phase.advance(int(event[1])))
    try:
        for group, part in candidates.groupby("group", sort=True):
            if group not in gaussian_map.groups:
                rows.loc[part.index, "reason"] = f"the map has no group {group!r}"
                phase.advance(len(part))
                continue
            for start in range(0, len(part), BLOCK_IMAGES):
                block = part.iloc[start : start + BLOCK_IMAGES]
                refs = [ImageRef(int(row), path) for row, path in zip(block["row"], block["image_path"], strict=True)]
                names = _heat_map_names(block) if maps else []
                task = window.submit(
                    _score_task, refs, str(group), gaussian_map.url, config, cluster.threads, maps, names
                )
                blocks.append((block.index, task))
        results = window.gather([task for _, task in blocks])
    finally:
        cluster.client.unsubscribe_topic(PROGRESS_TOPIC)
    for (index, _), part_scores in zip(blocks, results, strict=True):
        rows.loc[index, part_scores.columns] = part_scores.set_index(index).astype(object)
    phase.complete_to(len(candidates))
    return rows.reindex(columns=[column.name for column in scores_table.COLUMNS])


def _heat_map_names(block: pd.DataFrame) -> list[str]:
    """Return a file name for each heat map that is safe on any file system and says whose it is."""
    return [f"{storage_name(name)}.png" for name in block["file_name"]]


_open_maps: dict[str, GaussianMap] = {}


def _score_task(
    block: list[ImageRef],
    group: str,
    map_url: str,
    config: Config,
    readers: int,
    maps: Directory | None,
    names: list[str],
) -> pd.DataFrame:
    """Score one block, and draw its heat maps."""
    gaussian_map = _shared_map(map_url)
    extractor = shared_extractor(config.features, gaussian_map.description.weights_digest)
    scores, outcomes = score_block(block, group, gaussian_map, extractor, config, readers=readers)
    readable = np.array([outcome.is_readable for outcome in outcomes])
    frame = pd.DataFrame(
        {
            "anomaly_score": scores.anomaly_score,
            "worst_row": scores.worst_row,
            "worst_col": scores.worst_col,
            "is_anomalous": scores.is_anomalous,
            "margin": scores.margin,
        }
    ).astype(object)
    frame.loc[~readable, :] = None
    frame["reason"] = [outcome.reason for outcome in outcomes]
    if maps:
        reference = _reference_distance(gaussian_map, group, scores)
        for index in np.flatnonzero(readable):
            maps.write(names[index], _draw(block[index].path, scores.anomaly_maps[index], config, reference))
    get_worker().log_event(PROGRESS_TOPIC, len(block))
    return frame


def _shared_map(url: str) -> GaussianMap:
    """Return this process's map at a URL, with the rows that it has read, unless another run has taken its place."""
    opened = GaussianMap.open(url)
    kept = _open_maps.get(url)
    if kept is not None and kept.description == opened.description:
        return kept
    _open_maps.clear()  # a worker keeps one map, whose rows may be gigabytes
    _open_maps[url] = opened
    return opened


def _reference_distance(gaussian_map: GaussianMap, group: str, scores: Scores) -> float:
    """Return the distance that a heat map shows at half strength: a typical threshold of the group."""
    thresholds = gaussian_map.thresholds(group)
    finite = thresholds[np.isfinite(thresholds)]
    return float(np.median(finite)) if finite.size else max(float(np.median(scores.anomaly_score)), 1e-12)


def _draw(path: str, anomaly_map: np.ndarray, config: Config, reference: float) -> bytes:
    inputs = config.input
    image = decode_image(
        read_bytes(path), image_size=None, max_pixels=inputs.max_pixels, sixteen_bit_white=inputs.sixteen_bit_white
    )
    return heat_map_png(image.pixels, anomaly_map, reference=reference)
