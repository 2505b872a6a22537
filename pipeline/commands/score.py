"""The scoring job: list new images, score them on the cluster under a published Gaussian map, write the scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from distributed import get_worker
from zarr.codecs import Crc32cCodec

from pipeline.cluster.cluster import Cluster, open_cluster
from pipeline.cluster.progress import Phase, Reporter
from pipeline.cluster.tasks import TaskWindow
from pipeline.intake.catalog import build_catalog
from pipeline.intake.extract import check_extractor
from pipeline.intake.locations import absolute_source, with_absolute_weights
from pipeline.run_directory.tables import write_table
from schemas.config import Config
from schemas.errors import ConfigError, GaussianMapError, RunConflictError
from schemas.names import DEFAULT_GROUP, storage_name
from schemas.records import run as layout
from schemas.records.image import ImageRef
from schemas.stores.features import FeatureGeometry
from schemas.tables import scores as scores_table
from workers.features.extractor import shared_extractor
from workers.images.decode import decode_image
from workers.map.heatmap import heat_map_png
from workers.map.reader import GaussianMap
from workers.map.scorer import Scores, score_block, scoring_config
from workers.storage.directory import Directory, is_url, read_bytes
from workers.storage.settings import use_storage

# Images of one task: enough that a streamed map is read rarely.
BLOCK_IMAGES = 256

PROGRESS_TOPIC = "paire-scored"


@dataclass(frozen=True)
class _MapOutputs:
    """Where the maps of scored images go: a Zarr group for distances, a directory for pictures; None stores none."""

    anomaly_maps: Directory | None
    heat_maps: Directory | None


def score(
    model: str,
    source: str,
    out: str,
    config: Config,
    *,
    group: str | None = None,
    maps: bool = False,
    anomaly_maps: bool = False,
    scheduler: str | None = None,
    reporter: Reporter | None = None,
) -> pd.DataFrame:
    """Score the images of a source under a published Gaussian map.

    Parameters
    ----------
    model
        The ``model`` directory of a finished run, or the run directory itself; path or URL.
    source
        As for `pipeline.commands.clean.clean`.
    out
        Directory for ``scores.parquet``, ``maps/`` and ``anomaly_maps/``; see ``schemas.tables.scores``.
    config
        Input and cluster options, ``features.weights`` and ``features.device``. All other options are the map's.
    group
        Score every image under this group's Gaussians. Otherwise the source says the groups; a map of one group needs
        none.
    maps
        Also write a heat map over each image.
    anomaly_maps
        Also store the distances at each position, for pixel metrics and the caller's own thresholds.
    scheduler, reporter
        As for `pipeline.commands.clean.clean`.

    Returns
    -------
    pandas.DataFrame
        The content of ``scores.parquet``: one row per input, in catalog order.

    Raises
    ------
    PaireError
        For every error that the user can fix; see ``schemas.errors``.
    """
    reporter = reporter or Reporter()
    use_storage(config.storage)
    directory, source = Directory.at(out), absolute_source(source)
    if directory.exists(layout.RUN_RECORD):
        raise RunConflictError(f"{directory.url} is a run directory. Give --out another directory for the scores.")
    gaussian_map = _open_map(model)
    config = _scoring_options(gaussian_map, config)
    catalog = _assign_group(build_catalog(source, config.input), gaussian_map, group, source)
    outputs = _MapOutputs(
        anomaly_maps=directory / scores_table.ANOMALY_MAPS if anomaly_maps else None,
        heat_maps=directory / scores_table.HEAT_MAPS if maps else None,
    )
    with open_cluster(config.cluster, scheduler) as cluster:
        check_extractor(cluster, config, gaussian_map.description.weights_digest)
        if anomaly_maps:
            directory.remove(scores_table.SCORES)  # old scores would name rows of maps that are about to go
        with reporter.phase("score", int(catalog["row"].notna().sum())) as phase:
            scores = _score_catalog(cluster, catalog, gaussian_map, config, phase, outputs)
    write_table(directory, scores_table.SCORES, scores, scores_table.COLUMNS)
    return scores


def summarise_scores(scores: pd.DataFrame, out: str) -> dict[str, Any]:
    """Return where `score` wrote its table, and how many inputs, scored images and anomalous images are in it."""
    scored = scores[scores["anomaly_score"].notna()]
    return {
        "scores": f"{out.rstrip('/')}/{scores_table.SCORES}" if is_url(out) else str(Path(out) / scores_table.SCORES),
        "inputs": len(scores),
        "scored": len(scored),
        "anomalous": int(scored["is_anomalous"].astype(bool).sum()),
    }


def _open_map(model: str) -> GaussianMap:
    """Open a map by its own directory or by its run's."""
    directory = Directory.at(model)
    return GaussianMap.open((directory / layout.MODEL).url if directory.exists(layout.RUN_RECORD) else directory.url)


def _scoring_options(gaussian_map: GaussianMap, config: Config) -> Config:
    """Return the caller's configuration with the map's features; an option of features that differs is refused."""
    mine, maps = config.features, gaussian_map.description.features
    for name in sorted(mine.model_fields_set - {"weights", "device"}):
        if getattr(mine, name) != getattr(maps, name):
            raise ConfigError(
                f"features.{name} = {getattr(mine, name)!r}, but the map {gaussian_map.url} was fitted with "
                f"{getattr(maps, name)!r}. Leave the option out: a map scores only features of its own kind."
            )
    weights = mine.weights if "weights" in mine.model_fields_set else None
    return with_absolute_weights(scoring_config(gaussian_map, config, weights=weights, device=mine.device))


def _assign_group(catalog: pd.DataFrame, gaussian_map: GaussianMap, group: str | None, source: str) -> pd.DataFrame:
    """Return the catalog with the group that each image is scored under."""
    if group is None and (catalog["group"] == DEFAULT_GROUP).all() and len(gaussian_map.groups) == 1:
        group = gaussian_map.groups[0]
    if group is not None:
        return catalog.assign(group=gaussian_map.require_group(group))
    if not set(catalog["group"]) & set(gaussian_map.groups):
        known = ", ".join(repr(name) for name in gaussian_map.groups[:10]) or "none"
        raise GaussianMapError(
            f"no image of {source} is in a group of the map {gaussian_map.url}, whose groups are: {known}. Name one "
            "with --group, or derive the groups from paths with --group-by."
        )
    return catalog


def _score_catalog(
    cluster: Cluster,
    catalog: pd.DataFrame,
    gaussian_map: GaussianMap,
    config: Config,
    phase: Phase,
    outputs: _MapOutputs,
) -> pd.DataFrame:
    """Return the scores of every input of a catalog, in its order."""
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
            # New row numbers: the images of several groups may be scored under one.
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
                    [f"{storage_name(name)}.png" for name in block["file_name"]],
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
    """Create the array of a group's anomaly maps; each of its chunks is written by one task."""
    anomaly_maps.zarr_group("", "r+").create_array(
        storage_name(group),
        shape=(images, geometry.rows, geometry.columns),
        chunks=(min(BLOCK_IMAGES, images), geometry.rows, geometry.columns),
        dtype="float64",
        compressors=Crc32cCodec(),
        fill_value=np.nan,
        attributes={"group": group},
    )


def _score_task(
    block: list[ImageRef],
    group: str,
    map_url: str,
    config: Config,
    readers: int,
    outputs: _MapOutputs,
    heat_map_names: list[str],
) -> pd.DataFrame:
    """Score one block and store its maps."""
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
            picture = _heat_map(block[index].path, scores.anomaly_maps[index], config, reference)
            outputs.heat_maps.write(heat_map_names[index], picture)
    get_worker().log_event(PROGRESS_TOPIC, len(block))
    return frame


_open_maps: dict[str, GaussianMap] = {}


def _shared_map(url: str) -> GaussianMap:
    """Return this process's map at a URL with the rows that it has read, or a new one if the map there has changed."""
    opened = GaussianMap.open(url)
    kept = _open_maps.get(url)
    if kept is not None and kept.description == opened.description:
        return kept
    _open_maps.clear()  # a worker keeps one map: its rows may be gigabytes
    _open_maps[url] = opened
    return opened


def _reference_distance(gaussian_map: GaussianMap, group: str, scores: Scores) -> float:
    """Return the distance that a heat map shows at half strength: a typical threshold of the group."""
    thresholds = gaussian_map.thresholds(group)
    finite = thresholds[np.isfinite(thresholds)]
    return float(np.median(finite)) if finite.size else max(float(np.median(scores.anomaly_score)), 1e-12)


def _heat_map(path: str, anomaly_map: np.ndarray, config: Config, reference: float) -> bytes:
    inputs = config.input
    image = decode_image(
        read_bytes(path), image_size=None, max_pixels=inputs.max_pixels, sixteen_bit_white=inputs.sixteen_bit_white
    )
    return heat_map_png(image.pixels, anomaly_map, reference=reference)
