"""The whole scoring job: lists new images, opens the map, scores on the cluster, writes the tables."""

import pandas as pd

from pipeline.cluster.cluster import open_cluster
from pipeline.cluster.progress import Reporter
from pipeline.commands.score_images import MapOutputs, score_images
from pipeline.intake.catalog import build_catalog
from pipeline.intake.extract import check_extractor
from pipeline.intake.locations import absolute_source, with_absolute_weights
from pipeline.run_directory.tables import write_table
from schemas.config import Config
from schemas.errors import ConfigError, GaussianMapError, RunConflictError
from schemas.names import DEFAULT_GROUP
from schemas.records import run as layout
from schemas.tables import scores as scores_table
from workers.map.reader import GaussianMap
from workers.map.scorer import scoring_config
from workers.storage.directory import Directory
from workers.storage.settings import use_storage


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
        As for `clean`.
    out
        Directory for ``scores.parquet``, ``maps/`` and ``anomaly_maps/``; see ``schemas.tables.scores``.
    config
        Input and cluster options, ``features.weights`` and ``features.device``; all else is the map's.
    group
        Score everything under this group's Gaussians; None takes the groups of the source, or the map's only one.
    maps
        Also write a heat map over each image.
    anomaly_maps
        Also store the distances at each position, for pixel metrics and thresholds of one's own.
    scheduler, reporter
        As for `clean`.

    Returns
    -------
    pandas.DataFrame
        What was written to ``scores.parquet``.

    Raises
    ------
    PaireError
        Whatever the user can mend; see ``schemas.errors``.
    """
    reporter = reporter or Reporter()
    use_storage(config.storage)
    directory, source = Directory.at(out), absolute_source(source)
    if directory.exists(layout.RUN_RECORD):
        raise RunConflictError(f"{directory.url} is a run directory. Give the scores a directory of their own.")
    gaussian_map = _open_map(model)
    config = _scoring_options(gaussian_map, config)
    catalog = _assign_group(build_catalog(source, config.input), gaussian_map, group, source)
    outputs = MapOutputs(
        anomaly_maps=directory / scores_table.ANOMALY_MAPS if anomaly_maps else None,
        heat_maps=directory / scores_table.HEAT_MAPS if maps else None,
    )
    with open_cluster(config.cluster, scheduler) as cluster:
        check_extractor(cluster, config, gaussian_map.description.weights_digest)
        if anomaly_maps:
            directory.remove(scores_table.SCORES)  # old ones would name rows of maps that are not theirs
        with reporter.phase("score", int(catalog["row"].notna().sum())) as phase:
            scores = score_images(cluster, catalog, gaussian_map, config, phase, outputs)
    write_table(directory, scores_table.SCORES, scores, scores_table.COLUMNS)
    return scores


def _open_map(model: str) -> GaussianMap:
    """Open a map by its own directory or by its run's."""
    directory = Directory.at(model)
    return GaussianMap.open((directory / layout.MODEL).url if directory.exists(layout.RUN_RECORD) else directory.url)


def _scoring_options(gaussian_map: GaussianMap, config: Config) -> Config:
    """Return the configuration for scoring: the map's features, the caller's everything else."""
    mine, maps = config.features, gaussian_map.description.features
    bound = [
        name
        for name in sorted(mine.model_fields_set - {"weights", "device"})
        if getattr(mine, name) != getattr(maps, name)
    ]
    if bound:
        raise ConfigError(
            f"features.{bound[0]} = {getattr(mine, bound[0])!r}, but the map {gaussian_map.url} was fitted with "
            f"{getattr(maps, bound[0])!r}. Leave it out; a map scores only features of its own kind."
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
            f"no image of {source} is in a group of the map {gaussian_map.url}. Its groups: {known}. Use --group to "
            "name one, or --group-by to tell them by path."
        )
    return catalog
