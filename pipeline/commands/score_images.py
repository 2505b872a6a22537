"""Scoring new images on the cluster under a published Gaussian map."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from distributed import get_worker
from zarr.codecs import Crc32cCodec

from pipeline.cluster.cluster import Cluster
from pipeline.cluster.progress import Phase
from pipeline.cluster.tasks import TaskWindow
from schemas.config import Config
from schemas.names import storage_name
from schemas.records.image import ImageRef
from schemas.stores.features import FeatureGeometry
from schemas.tables import scores as scores_table
from workers.features.extractor import shared_extractor
from workers.images.decode import decode_image
from workers.map.heatmap import heat_map_png
from workers.map.reader import GaussianMap
from workers.map.scorer import Scores, score_block
from workers.storage.directory import Directory, read_bytes

# Images scored by one task: large enough to read a streamed map rarely.
BLOCK_IMAGES = 256

PROGRESS_TOPIC = "paire-scored"


@dataclass(frozen=True)
class MapOutputs:
    """Where the maps of scored images go; None stores none.

    Attributes
    ----------
    anomaly_maps
        The Zarr group for the distances at each position, laid out as ``schemas.tables.scores`` says; it is made anew.
    heat_maps
        The directory for pictures of them over the images.
    """

    anomaly_maps: Directory | None = None
    heat_maps: Directory | None = None


NO_MAPS = MapOutputs()


def score_images(
    cluster: Cluster,
    catalog: pd.DataFrame,
    gaussian_map: GaussianMap,
    config: Config,
    phase: Phase,
    outputs: MapOutputs = NO_MAPS,
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
    outputs
        Which maps to store, and where.

    Returns
    -------
    pandas.DataFrame
        With the columns of ``schemas.tables.scores``, one row per input in catalog order.
    """
    window = TaskWindow(cluster.client, cluster.workers, cluster.timeout_s)
    rows = catalog[["image_path", "group", "reason"]].copy()
    for column in scores_table.COLUMNS:
        if column.name not in rows:
            rows[column.name] = None
    rows = rows.astype(object)
    blocks = []
    candidates = catalog[catalog["row"].notna()]
    if outputs.anomaly_maps:
        outputs.anomaly_maps.zarr_group("", "w")
    cluster.client.subscribe_topic(PROGRESS_TOPIC, lambda event: phase.advance(int(event[1])))
    try:
        for group, part in candidates.groupby("group", sort=True):
            if group not in gaussian_map.groups:
                rows.loc[part.index, "reason"] = f"the map has no group {group!r}"
                phase.advance(len(part))
                continue
            if outputs.anomaly_maps:
                _create_array(outputs.anomaly_maps, str(group), len(part), gaussian_map.description.geometry)
            # Numbered anew: the images of several groups may be scored under one.
            refs = [ImageRef(row, path) for row, path in enumerate(part["image_path"])]
            for start in range(0, len(part), BLOCK_IMAGES):
                block = part.iloc[start : start + BLOCK_IMAGES]
                task = window.submit(
                    _score_task,
                    refs[start : start + BLOCK_IMAGES],
                    str(group),
                    gaussian_map.url,
                    config,
                    cluster.threads,
                    outputs,
                    _heat_map_names(block),
                )
                blocks.append((block.index, task))
        results = window.gather([task for _, task in blocks])
    finally:
        cluster.client.unsubscribe_topic(PROGRESS_TOPIC)
    for (index, _), part_scores in zip(blocks, results, strict=True):
        rows.loc[index, part_scores.columns] = part_scores.set_index(index).astype(object)
    phase.complete_to(len(candidates))
    return rows.reindex(columns=[column.name for column in scores_table.COLUMNS])


def _create_array(anomaly_maps: Directory, group: str, images: int, geometry: FeatureGeometry) -> None:
    """Create the array of a group's anomaly maps, each of whose chunks one task writes."""
    anomaly_maps.zarr_group("", "r+").create_array(
        storage_name(group),
        shape=(images, geometry.rows, geometry.columns),
        chunks=(min(BLOCK_IMAGES, images), geometry.rows, geometry.columns),
        dtype="float64",
        compressors=Crc32cCodec(),
        fill_value=np.nan,
        attributes={"group": group},
    )


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
    outputs: MapOutputs,
    names: list[str],
) -> pd.DataFrame:
    """Score one block, and store its maps; ``names`` are those of its heat maps."""
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
            "width": [outcome.width for outcome in outcomes],
            "height": [outcome.height for outcome in outcomes],
            "row": [image.row if outputs.anomaly_maps else None for image in block],
        },
        dtype=object,
    )
    frame.loc[~readable, :] = None
    frame["reason"] = [outcome.reason for outcome in outcomes]
    if outputs.anomaly_maps:
        known = np.where(readable[:, np.newaxis, np.newaxis], scores.anomaly_maps, np.nan)
        array = outputs.anomaly_maps.zarr_group("", "r+")[storage_name(group)]
        array[block[0].row : block[-1].row + 1] = known  # type: ignore[index]
    if outputs.heat_maps:
        reference = _reference_distance(gaussian_map, group, scores)
        for index in np.flatnonzero(readable):
            picture = _draw(block[index].path, scores.anomaly_maps[index], config, reference)
            outputs.heat_maps.write(names[index], picture)
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
