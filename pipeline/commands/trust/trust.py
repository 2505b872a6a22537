"""The trust test: defects of known size and contrast, planted into kept images, and how many the run's rule finds.

The question is: if such a defect had been in my archive, would this run have rejected the image? The test measures:

- A seeded sample of each group's kept images is held out. The Gaussians are fitted again on all other kept images, and
  the run's own rule sets the thresholds (`pipeline.commands.trust.holdout`). Under that fit the sample is scored like
  new images. Recall is the share of planted images beyond a threshold; the false-reject rate is the share of the same
  images beyond a threshold without a planted defect.
- Planted images are scored one by one: each is the only one with a defect, so the archive does not get dirtier.

The test does not measure:

- Defects that the iteration lets into its fit, which then judges them. `grow` leaves each image out of its own
  distance, so a held-out image represents a fitted one well. The thresholds of `paire` and `trim-once` have a meaning
  only outside the fit, and a fitted image is kept whatever it shows. For these strategies, recall is that of the last
  pass and of the published map, and an upper bound of the manifest's.
- Good images that the run rejected: the sample holds only kept images, so the false-reject rate misses the others.
- Defects of other kinds than those planted.

The sample is at most a fifth of the kept images, so that the fit without it is nearly the run's own.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import pandas as pd

from pipeline.cluster.cluster import Cluster, open_cluster
from pipeline.cluster.progress import Phase, Reporter
from pipeline.cluster.tasks import TaskWindow
from pipeline.commands.trust.holdout import Holdout, fit_holdout, require_rule
from pipeline.commands.trust.pictures import Example, draw_examples, draw_recall
from pipeline.commands.trust.sample import MIN_IMAGES, Sample, draw_samples
from pipeline.intake.extract import check_extractor
from pipeline.intake.locations import with_absolute_weights
from pipeline.judging.group import Group
from pipeline.judging.strategies.base import AMBIGUOUS
from pipeline.judging.strategies.registry import STRATEGIES
from pipeline.run_directory.finished import FinishedRun, warn_if_untrustworthy
from pipeline.run_directory.versions import run_of_version
from schemas.config import Config
from schemas.errors import ConfigError, RunConflictError, SourceError, StorageError
from schemas.records import run as layout
from schemas.tables.columns import csv_for_people
from workers.features.extractor import shared_extractor
from workers.map.reader import GaussianMap
from workers.storage.directory import Directory
from workers.storage.settings import use_storage
from workers.trust.recall import CONFIDENCE, CONTRASTS, DEFECTS, SIZES, GroupTrust
from workers.trust.trial import LeftOutError, Subject, Trials, read_ground, run_trials

logger = logging.getLogger("paire")

DEFAULT_IMAGES: Final = 32
# At this rate of false rejects and above, recall says little about the defects.
MANY_FALSE_REJECTS: Final = 0.2
# Images of one task: with all their defects about as many as in a block of `paire score`.
TASK_IMAGES: Final = 4

# Options of the machine: the test may run on another one than the run.
MAY_DIFFER: Final = ("features.weights", "features.device")

FOLDER: Final = layout.TRUST
RESULT, TABLE, PLOT, EXAMPLES = "trust.json", "trust.csv", "trust.png", "examples.png"
SCRATCH: Final = "scratch"
UNDER_WAY: Final = "a trust test is under way"


@dataclass(frozen=True)
class TrustResult:
    """What ``paire trust`` found.

    Attributes
    ----------
    run, run_id, strategy
        The run that was tested.
    out
        Directory of the result.
    overall
        All groups together.
    groups
        Each group that was tested.
    not_tried
        The other groups, and why they were not tested.
    left_out
        ``file_name, group, reason`` of images of the sample that could not be read as the run read them.
    """

    run: str
    run_id: str
    strategy: str
    out: str
    seed: int
    overall: GroupTrust
    groups: tuple[GroupTrust, ...]
    not_tried: dict[str, str]
    left_out: tuple[dict[str, str], ...]

    def table(self) -> pd.DataFrame:
        """Return one row per kind, size and contrast: for all groups together, then for each of several groups."""
        parts = [self.overall, *(self.groups if len(self.groups) > 1 else ())]
        return pd.DataFrame([row for part in parts for row in part.rows()])

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "run": self.run,
            "run_id": self.run_id,
            "strategy": self.strategy,
            "out": self.out,
            "seed": self.seed,
            "sizes": list(SIZES),
            "contrasts": CONTRASTS,
            "confidence": CONFIDENCE,
            "overall": self.overall.to_json(),
            "groups": [part.to_json() for part in self.groups],
            "not_tried": self.not_tried,
            "left_out": list(self.left_out),
        }


def trust(
    run: str,
    config: Config,
    *,
    out: str | None = None,
    group: str | None = None,
    images: int = DEFAULT_IMAGES,
    seed: int = 0,
    scheduler: str | None = None,
    reporter: Reporter | None = None,
) -> TrustResult:
    """Plant defects into images that a finished run kept, and measure what its rule catches.

    Parameters
    ----------
    run
        The run directory, or that of a version cut from it; path or URL; published, or found untrustworthy. The test
        does not change the run.
    config
        Cluster options, and ``features.weights`` and ``features.device`` if they differ now. All other options are the
        run's.
    out
        Directory for ``trust.json`` (written last), ``trust.csv``, ``trust.png`` and ``examples.png``; by default
        ``trust`` in the run directory. It must be empty or not exist, because no earlier result is replaced.
    group
        Test only this product group; by default all groups that kept enough images.
    images
        Kept images of each group to plant defects into; at most a fifth of a group's kept images are used.
    seed
        Seed of the sample, the places and the shapes.
    scheduler, reporter
        As for `pipeline.commands.clean.clean`.

    Raises
    ------
    ConfigError
        When an option is out of range, or differs from the run's.
    SourceError
        When the run is not finished, lacks its features, has no such group or no group with enough kept images, or
        when no image of the sample can be read as the run read it.
    RunConflictError
        When the output directory is not empty.
    PaireError
        For every other error that the user can fix; see ``schemas.errors``.
    """
    reporter = reporter or Reporter()
    use_storage(config.storage)
    if images < MIN_IMAGES or seed < 0:
        raise ConfigError(
            f"--images {images}, --seed {seed}: give at least {MIN_IMAGES} images, because the recall of fewer says "
            "nothing, and a seed of 0 or more."
        )
    finished = FinishedRun.open(run)
    features = _feature_store(finished)
    config = _run_options(finished, config)
    require_rule(config)
    warn_if_untrustworthy(finished.directory)
    published = finished.gaussian_map
    books = finished.ledger["groups"].items()
    unclear = frozenset(name for name, entry in books if entry["stop_reason"] == AMBIGUOUS)
    samples, not_tried = draw_samples(finished, group, images, seed)
    directory = _claim_output(finished, out)
    scratch = directory / SCRATCH
    try:
        with open_cluster(config.cluster, scheduler) as cluster:
            check_extractor(cluster, config, finished.record.weights_digest)
            job = _TrustJob(features, scratch, published, unclear, config, cluster, seed, reporter)
            tried = [job.try_group(sample) for sample in samples]
        result = _summarise(finished, directory, tried, not_tried, seed)
        directory.write(TABLE, csv_for_people(result.table()))
        directory.write(PLOT, draw_recall(result.overall, result.groups))
        directory.write(EXAMPLES, draw_examples(list(_examples(tried, config, seed))))
        directory.write(RESULT, (json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n").encode())
    finally:
        scratch.remove("")
    return result


@dataclass(frozen=True)
class _Tried:
    """A group's sample, the map that it was scored under, and the outcomes."""

    sample: Sample
    holdout: Holdout
    trials: Trials


@dataclass(frozen=True)
class _TrustJob:
    """What all groups share; ``unclear`` are those without a clear boundary."""

    features: Directory
    scratch: Directory
    published: GaussianMap
    unclear: frozenset[str]
    config: Config
    cluster: Cluster
    seed: int
    reporter: Reporter

    def try_group(self, sample: Sample) -> _Tried:
        """Fit without the sample, then plant, extract and score on the cluster, a few images per task."""
        geometry = self.published.description.geometry
        holdout = fit_holdout(
            Group(sample.group, sample.measured, self.features, geometry, self.config),
            sample.fitted(rejected_too=sample.group in self.unclear),
            scratch=self.scratch,
            published=self.published,
            cluster=self.cluster,
            reporter=self.reporter,
        )
        window = TaskWindow(self.cluster.client, self.cluster.workers, self.cluster.timeout_s)
        scored = len(sample.subjects) * (1 + len(DEFECTS))
        tasks = []
        with self.reporter.phase(f"{sample.group}: plant", scored) as phase:
            for start in range(0, len(sample.subjects), TASK_IMAGES):
                block = sample.subjects[start : start + TASK_IMAGES]
                task = window.submit(
                    _trial_task,
                    block,
                    sample.group,
                    holdout.model,
                    self.config,
                    self.published.description.weights_digest,
                    self.seed,
                )
                task.add_done_callback(partial(_advance, phase, len(block) * (1 + len(DEFECTS))))
                tasks.append(task)
            trials = Trials.concatenate(window.gather(tasks))
            phase.complete_to(scored)
        return _Tried(sample, holdout, trials)


def _advance(phase: Phase, count: int, _: object) -> None:
    """Count the images of a finished task."""
    phase.advance(count)


def _feature_store(finished: FinishedRun) -> Directory:
    """Return the feature store behind the verdicts; for a version it is that of the run it was cut from."""
    owner = finished
    if finished.record.base:
        run = run_of_version(finished.directory)
        if run is None:
            raise SourceError(
                f"{finished.directory.url} is a version cut from run {finished.record.base} and needs the features of "
                f"that run. Move it back into that run's {layout.RECUTS}/."
            )
        owner = FinishedRun.open(run.url)
    owner.require_features()
    return owner.features


def _run_options(finished: FinishedRun, wanted: Config) -> Config:
    """Return the run's configuration with the caller's cluster, weights and device; refuse other changes."""
    wanted, mine = with_absolute_weights(wanted), finished.config
    for change in finished.changed_options(wanted, ("input", "features", "gaussian", "trim")):
        if change.name not in MAY_DIFFER:
            raise ConfigError(
                f"{change.name} = {change.wanted!r}, but {finished.directory.url} was made with {change.was!r}. Leave "
                "the option out: a run is tested as it is."
            )
    here = {key: getattr(wanted.features, key) for key in wanted.features.model_fields_set & {"weights"}}
    features = mine.features.model_copy(update={"device": wanted.features.device, **here})
    return mine.model_copy(update={"features": features, "cluster": wanted.cluster})


def _claim_output(finished: FinishedRun, out: str | None) -> Directory:
    """Return the directory to write into, after claiming it while it was empty."""
    directory = finished.directory / FOLDER if out is None else Directory.at(out)
    try:
        if not directory.is_empty():
            raise RunConflictError(
                f"{directory.url} is not empty, and earlier results are not replaced. Give --out a new directory."
            )
        directory.create(f"{SCRATCH}/{UNDER_WAY}", b"")
    except ValueError as error:
        raise ConfigError(f"--out {out!r}: {error}. Give a path or URL that can be written to.") from error
    except RunConflictError:
        raise
    except (OSError, StorageError) as error:
        raise RunConflictError(
            f"{directory.url} cannot be written to ({type(error).__name__}). Give --out a writable directory."
        ) from error
    return directory


def _trial_task(
    subjects: Sequence[Subject], group: str, map_url: str, config: Config, weights_digest: str, seed: int
) -> Trials:
    """Plant into a few images of a group, and score them."""
    extractor = shared_extractor(config.features, weights_digest)
    return run_trials(subjects, DEFECTS, group, GaussianMap.open(map_url), extractor, config, seed=seed)


def _summarise(
    finished: FinishedRun, directory: Directory, tried: Sequence[_Tried], not_tried: dict[str, str], seed: int
) -> TrustResult:
    """Count what was caught, and warn of what was left out; refuse a test without a single readable image."""
    left_out = [
        {"file_name": name, "group": one.sample.group, "reason": reason}
        for one in tried
        for name, reason in zip(one.sample.names, one.trials.reasons, strict=True)
        if reason
    ]
    for entry in left_out:
        logger.warning("%s: left out: %s %s", entry["group"], entry["file_name"], entry["reason"])
    unread = {one.sample.group for one in tried if all(one.trials.reasons)}
    if len(unread) == len(tried):
        first = left_out[0]
        raise SourceError(
            f"none of the {len(left_out)} images that were drawn can be read as the run read them; the first, "
            f"{first['file_name']!r}, {first['reason']}. Restore the archive, or clean it again."
        )
    ledger = finished.ledger
    groups = tuple(
        _counted(finished.config.trim.strategy, ledger["groups"][one.sample.group], one)
        for one in tried
        if one.sample.group not in unread
    )
    return TrustResult(
        run=finished.directory.url,
        run_id=finished.record.run_id,
        strategy=finished.config.trim.strategy,
        out=directory.url,
        seed=seed,
        overall=GroupTrust.together(groups),
        groups=groups,
        not_tried=not_tried | dict.fromkeys(sorted(unread), "none of its images can be read as the run read them"),
        left_out=tuple(left_out),
    )


def _counted(strategy: str, books: Mapping[str, Any], tried: _Tried) -> GroupTrust:
    """Count a group's trials, with notes on what weakens its figures; ``books`` is its part of the ledger."""
    group, notes = tried.sample.group, []
    if books["floor_applied"]:
        notes.append("the floor, not the thresholds, chose the run's clean set; only the thresholds are tested")
    if STRATEGIES[strategy].keeps_fitted:
        notes.append("the run keeps every image of its deciding fit: recall is that of all other images")
    if not tried.holdout.positions_with_threshold:
        notes.append("no position has a threshold, so nothing can be rejected")
    counted = GroupTrust.of(group, tried.holdout.fitted, tried.trials)
    if (counted.untouched.value or 0.0) >= MANY_FALSE_REJECTS:
        notes.append(
            f"{counted.untouched.count} of {counted.untouched.of} untouched images are rejected: compare recall with "
            "that, not with 0"
        )
    for note in notes:
        logger.warning("%s: %s", group, note)
    return dataclasses.replace(counted, notes=tuple(notes))


def _examples(tried: Sequence[_Tried], config: Config, seed: int) -> Iterator[Example]:
    """Yield each defect planted into an image of the sample; one image shows a defect at all its contrasts."""
    known = [
        (one.sample.subjects[index], one.trials.planted[index])
        for one in tried
        for index, reason in enumerate(one.trials.reasons)
        if not reason
    ]
    for number, defect in enumerate(DEFECTS):
        subject, margins = known[number // len(CONTRASTS) % len(known)]
        try:
            ground = read_ground(subject, config)
        except LeftOutError:
            continue  # the image has disappeared since it was scored
        planting, view = ground.plant(subject, defect, seed)
        height, width = ground.scene.grey.shape
        yield Example.of(defect, planting, view, float(margins[number]), height=height, width=width)
