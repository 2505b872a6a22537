"""A run's rule applied once more without some of the images that it kept, so that those can stand for new ones.

An image that the Gaussians were fitted on is close to them because it was, and would say nothing of a defect in it:
under the paper's ridge all fitted images lie at one distance, whatever they show. So the images that defects are
planted into are left out of a fit of the same kind, on all others that were kept, and its thresholds are found by the
rule of the run's strategy, from the distances under that very fit:

- ``grow``: the law of the scores of the fitted images, each measured without itself, at ``target_false_reject``.
- ``concentrate``: robust deviations above the median of such scores.
- ``paire`` and ``trim-once``: the slopes of the sorted distances beyond the fitted images, as the run finds the
  thresholds of the map that it publishes.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.cluster.cluster import Cluster
from pipeline.cluster.progress import Reporter
from pipeline.judging.group import Group
from pipeline.judging.statistics import GroupStatistics
from pipeline.judging.strategies.registry import STRATEGIES, strategy_of
from schemas.arrays import Mask
from schemas.config import Config
from schemas.errors import SourceError
from schemas.records import run as layout
from workers.map.reader import GaussianMap
from workers.map.writer import complete_map, create_map, write_thresholds
from workers.storage.directory import Directory


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
    """Check that the run's strategy has a rule that rejects images; raise SourceError where it has none."""
    if not strategy_of(config).rejects:
        others = ", ".join(name for name, strategy in STRATEGIES.items() if strategy.rejects)
        raise SourceError(
            f"the run was made with trim.strategy = {config.trim.strategy!r}, which keeps every image: there is no "
            f"rule to try. Give a run of another strategy: {others}."
        )


def fit_holdout(
    group: Group,
    fitted: Mask,
    *,
    scratch: Directory,
    published: GaussianMap,
    cluster: Cluster,
    reporter: Reporter,
) -> Holdout:
    """Fit on some of a group's images, find the thresholds by the run's rule, and write both as a map.

    Parameters
    ----------
    fitted
        (images,) bool: those that the run fitted its map on, without those that are held out.
    scratch
        Where to write; a group before this one is replaced.
    published
        The run's own map.
    """
    smoothing, near = published.smoothing(group.name), published.measures_neighbours(group.name)
    model, rule = scratch / layout.MODEL, strategy_of(group.config)
    scratch.remove(layout.DISTANCES)
    with GroupStatistics(cluster, group, scratch / layout.DISTANCES, reporter) as statistics:
        thresholds = rule.holdout_thresholds(statistics, fitted, group.config.trim, smoothing=smoothing)
        create_map(model, published.description)
        checksums = statistics.publish(fitted, model, neighbours=near)
    write_thresholds(model, group.name, thresholds, checksums=checksums, smoothing=smoothing)
    complete_map(model)
    scratch.write(layout.SUCCESS, b"")  # for whoever opens the map
    return Holdout(model.url, int(fitted.sum()), int(np.isfinite(thresholds).sum()))
