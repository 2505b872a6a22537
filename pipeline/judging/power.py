"""How much a run can see, as Dask tasks: strong defects planted into a few kept images of each group.

The tasks of all groups run side by side once every group is judged and its map is written, so that small groups cost no
more than large ones. The images are read from the source again. If that is no longer possible, fewer defects are
planted, and the ledger says why; the run does not fail.
"""

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from pipeline.cluster.cluster import Cluster
from pipeline.cluster.progress import Reporter
from pipeline.cluster.tasks import open_window, results_in_order
from pipeline.judging.result import digest_outcomes
from pipeline.judging.strategies.registry import strategy_of
from pipeline.run_directory.journal import Journal, StaleJournalError
from schemas.arrays import Mask
from schemas.config import Config
from schemas.names import storage_name
from schemas.records.image import ImageOutcome
from workers.guard.findings import MIN_PLANTED
from workers.storage.directory import Directory
from workers.trust.power import DEFECTS, TASK_IMAGES, Plot, Power, add_up, choose_plots, try_plots
from workers.trust.trial import Trials

logger = logging.getLogger("paire")

# Each image of the sample is extracted three times more, without a defect, with a strong and with a medium one: this
# share of the run's images makes a twentieth.
VIEWS = 3
SAMPLED_SHARE = 0.05 / VIEWS

# Each kind and size of defect once.
LEAST_IMAGES = len(DEFECTS)


class KeptImages(NamedTuple):
    """The images of a judged group."""

    clean: Mask  # (images,): those that were kept
    outcomes: Sequence[ImageOutcome]  # in row order
    paths: Sequence[str]  # in row order


def measure_power(
    cluster: Cluster | None,
    groups: Mapping[str, KeptImages],
    model: Directory,
    config: Config,
    weights_digest: str,
    reporter: Reporter,
    journal: Directory | None,
) -> dict[str, Power]:
    """Plant strong defects into kept images of each group, and count those that its map sees.

    The sample follows from the images alone, and the outcome depends neither on the machine nor on the number of
    workers.

    Parameters
    ----------
    groups
        The judged groups, in order.
    model
        The map of the run.
    journal
        Keeps the outcome of each finished group for the same job.
    """
    reason = _reason_for_none(config)
    if reason:
        return dict.fromkeys(groups, Power(note=reason))
    images = sum(len(kept.outcomes) for kept in groups.values())
    counts = share_out({group: int(kept.clean.sum()) for group, kept in groups.items()}, images, config)
    plots = {
        group: choose_plots(kept.clean, kept.outcomes, kept.paths, counts[group]) for group, kept in groups.items()
    }
    chosen = [group for group in groups if plots[group]]
    journals = {group: _Entry(journal, group, groups[group]) for group in chosen}
    trials = {group: journals[group].recall(len(plots[group])) for group in chosen}
    todo = [group for group in chosen if trials[group] is None]
    with reporter.phase("power", sum(len(plots[group]) for group in todo), kind="power") as phase:
        tasks = ((block, group, model, config, weights_digest) for group in todo for block in _blocks(plots[group]))
        answers = results_in_order(open_window(cluster), try_plots, tasks, lambda _: None)
        for group in todo:
            tried = Trials.concatenate([next(answers) for _ in _blocks(plots[group])])
            journals[group].note(tried)
            trials[group] = tried
            phase.advance(len(plots[group]))
    powers = {group: _counted(plots[group], trials.get(group), kept) for group, kept in groups.items()}
    _report(powers.values())
    return powers


def share_out(kept: Mapping[str, int], images: int, config: Config) -> dict[str, int]:
    """Return how many kept images of each group get a defect.

    The run has ``guard.power_images`` of them, or more if it has so many images that this is less than a sixtieth. Each
    group gets eight while there are any left, larger groups first, and what remains is shared by size, up to
    ``guard.power_images`` in each group. Groups that kept fewer than five images get none.

    Parameters
    ----------
    kept
        Group to the number of its images that were kept.
    images
        Number of images of the run.
    """
    most = config.guard.power_images
    budget = max(most, int(SAMPLED_SHARE * images))
    counts = dict.fromkeys(kept, 0)
    for group in sorted(kept, key=lambda name: (-kept[name], hashlib.sha256(name.encode()).digest())):
        count = min(most, LEAST_IMAGES, kept[group])
        if kept[group] >= MIN_PLANTED and count <= budget:
            counts[group], budget = count, budget - count
    total = sum(kept[group] for group, count in counts.items() if count)
    for group, count in counts.items():
        if count:
            counts[group] = min(most, kept[group], count + budget * kept[group] // total)
    return counts


def paths_by_group(catalog: pd.DataFrame) -> dict[str, list[str]]:
    """Return the paths of the images of each group, in row order."""
    rows = catalog[catalog["row"].notna()].sort_values("row")
    return {str(group): part["image_path"].tolist() for group, part in rows.groupby("group")}


def measures_power(config: Config) -> bool:
    """Tell whether a run plants any defect."""
    return not _reason_for_none(config)


def _reason_for_none(config: Config) -> str:
    """Return why no group of a run gets any defect, or nothing."""
    if not config.guard.power_images:
        return "guard.power_images is 0"
    if not strategy_of(config).rejects:
        return f"trim.strategy={config.trim.strategy} rejects no image"
    return ""


def _blocks(plots: Sequence[Plot]) -> list[Sequence[Plot]]:
    """Return the plots in the blocks that are one task each."""
    return [plots[start : start + TASK_IMAGES] for start in range(0, len(plots), TASK_IMAGES)]


def _counted(plots: Sequence[Plot], trials: Trials | None, kept: KeptImages) -> Power:
    """Count the trials of a group, or say why it has none."""
    if trials is not None:
        return Power.of(plots, trials)
    number = int(kept.clean.sum())
    if number < MIN_PLANTED:
        return Power(note=f"only {number} images are kept, and fewer than {MIN_PLANTED} defects say nothing")
    return Power(note="larger groups take all images that a run of this size plants defects into")


def _report(powers: Collection[Power]) -> None:
    """Log what all groups together see, and what was left out."""
    left_out = [power for power in powers if power.left_out]
    if left_out:
        logger.warning(
            "power: %d images get no defect; the first: %s", sum(one.left_out for one in left_out), left_out[0].note
        )
    seen = add_up(powers)
    logger.info("power: %d of %d strong planted defects are seen", seen.count, seen.of)


class _Entry:
    """The trials of one group in the journal, in place of its passes, which are gone once the group is judged."""

    def __init__(self, journal: Directory | None, group: str, kept: KeptImages) -> None:
        self._clean = kept.clean
        self._journal = None
        if journal is not None:
            self._journal = Journal(journal / storage_name(group), digest_outcomes(kept.outcomes))

    def recall(self, images: int) -> Trials | None:
        """Return the trials of so many images, if an earlier command finished them."""
        if self._journal is None:
            return None
        try:
            found = self._journal.recall("power", self._clean, images=images)
        except StaleJournalError:  # another sample, or a pass that an interruption left behind
            return None
        if found is None:
            return None
        reasons = ("",) * len(found["untouched"])
        return Trials(found["untouched"], found["planted"], found["contrast"], reasons)

    def note(self, trials: Trials) -> None:
        """Keep trials, unless an image is missing: it may be there the next time."""
        if self._journal is not None and not any(trials.reasons):
            arrays = {"untouched": trials.untouched, "planted": trials.planted, "contrast": trials.contrast}
            self._journal.note(arrays)
