"""A run's rule applied once more without some of the images that it kept, so that those can stand for new ones.

An image that the Gaussians were fitted on is close to them because it was, and would say nothing of a defect in it:
under the paper's ridge all fitted images lie at one distance, whatever they show. So the images that defects are
planted into are left out of a fit of the same kind, on all others that were kept, and its thresholds are found by the
rule of the run's strategy, from the distances under that very fit:

- ``grow``: the law of the scores of the fitted images, each measured without itself, at ``target_false_reject``. Each
  position is fitted on the images nearest there, as the run's map is.
- ``concentrate``: robust deviations above the median of such scores.
- ``paire`` and ``trim-once``: the slopes of the sorted distances beyond the fitted images, as the run finds the
  thresholds of the map that it publishes.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from pipeline.cluster.cluster import Cluster
from pipeline.cluster.progress import Phase, Reporter
from pipeline.judging.statistics import GroupStatistics
from pipeline.judging.strategies.grow import robust_limit
from schemas.arrays import Floats, Mask
from schemas.config import Config
from schemas.errors import SourceError
from schemas.records import run as layout
from workers.map.reader import GaussianMap
from workers.map.writer import complete_map, create_map, write_thresholds
from workers.storage.directory import Directory

# Strategies with a rule that can be tried; `none` keeps everything.
RULES: Final = ("paire", "trim-once", "concentrate", "grow")
# Those whose thresholds say nothing of the images that were fitted.
KEEPS_FITTED: Final = ("paire", "trim-once")


@dataclass(frozen=True)
class Holdout:
    """A group's Gaussian map without some of its kept images.

    Attributes
    ----------
    model
        URL of the map.
    fitted
        Images it was fitted on.
    positions_with_threshold
        Positions at which anything can be rejected.
    """

    model: str
    fitted: int
    positions_with_threshold: int


def require_rule(config: Config) -> None:
    """Check that the run's strategy has a rule that rejects images.

    Raises
    ------
    SourceError
        When it has none.
    """
    if config.trim.strategy not in RULES:
        raise SourceError(
            f"the run was made with trim.strategy = {config.trim.strategy!r}, which keeps every image: there is no "
            f"rule to try. Give a run of another strategy: {', '.join(RULES)}."
        )


def fit_holdout(
    group: str,
    measured: Mask,
    fitted: Mask,
    *,
    features: Directory,
    scratch: Directory,
    published: GaussianMap,
    config: Config,
    cluster: Cluster,
    reporter: Reporter,
) -> Holdout:
    """Fit on some of a group's images, find the thresholds by the run's rule, and write both as a map.

    Parameters
    ----------
    group
        Product group.
    measured
        (images,) bool: the images that took part in the run.
    fitted
        (images,) bool: those that the run fitted its map on, without those that are held out.
    features
        The run's feature store; only read.
    scratch
        Where to write; a group before this one is replaced.
    published
        The run's own map.
    config
        The configuration of the run.
    cluster, reporter
        As for the jobs.
    """
    geometry = published.description.geometry
    smoothing, nearest = published.smoothing(group), published.nearest(group)
    model = scratch / layout.MODEL
    scratch.remove(layout.DISTANCES)
    distances = scratch / layout.DISTANCES
    with GroupStatistics(cluster, group, measured, geometry, config, features, distances) as statistics:
        with reporter.phase(f"{group}: hold out", geometry.rows, "rows", brief=True) as phase:
            thresholds = _thresholds(statistics, fitted, config, phase, smoothing=smoothing, nearest=nearest)
        create_map(model, published.description)
        statistics.create_map(fitted, model, nearest=nearest)
        count = statistics.count_fitted(fitted, nearest=nearest)
        with reporter.phase(f"{group}: hold out, publish", geometry.rows, "rows", brief=True) as phase:
            checksums = statistics.publish(fitted, model, nearest=nearest, phase=phase)
    write_thresholds(model, group, thresholds, checksums=checksums, smoothing=smoothing, nearest=nearest)
    complete_map(model)
    scratch.write(layout.SUCCESS, b"")  # for whoever opens the map
    return Holdout(model.url, count, int(np.isfinite(thresholds).sum()))


def _thresholds(
    statistics: GroupStatistics, fitted: Mask, config: Config, phase: Phase, *, smoothing: int, nearest: float
) -> Floats:
    """Return the thresholds (rows, columns) of the strategy's rule under a fit on some images."""
    match config.trim.strategy:
        case "paire" | "trim-once":
            return statistics.measure(fitted, is_first=False, phase=phase).thresholds
        case "concentrate":
            scores = statistics.score(fitted, smoothing=None, phase=phase)
            return statistics.thresholds_at(robust_limit(scores[fitted], config.trim.deviations))
        case "grow":
            return statistics.calibrate_law(fitted, smoothing=smoothing, nearest=nearest, phase=phase)
        case other:
            raise AssertionError(f"no rule of strategy {other!r}")
