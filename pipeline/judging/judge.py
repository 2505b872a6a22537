"""From stored features to a published verdict: what the jobs that judge an archive share.

`clean` comes here with features that it has just extracted, `recut` with those of an earlier run. Nothing below knows
which, so the same features and the same options always give the same verdicts.
"""

import dataclasses
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.cluster.cluster import Cluster
from pipeline.cluster.progress import Phase, Reporter
from pipeline.cluster.tasks import open_window, results_in_order
from pipeline.costs.footprint import Layout
from pipeline.costs.schedule import apart_up_to
from pipeline.judging.examination import Examination, Examiner, weigh_small_groups
from pipeline.judging.manifest import Census, GroupVerdict, Judgement, build_manifest, take_census
from pipeline.judging.near_duplicates import find_near_duplicates
from pipeline.judging.result import Ending, digest_outcomes
from pipeline.judging.statistics import GroupStatistics, PassResult
from pipeline.judging.strategies.grow import concentrate, grow
from pipeline.judging.strategies.paire import AMBIGUOUS, CYCLE, MAX_ITERATIONS, Trimming, trim
from pipeline.run_directory.journal import Journal, StaleJournalError
from pipeline.run_directory.tables import write_iterations, write_ledger, write_manifest
from schemas.arrays import Floats, Indices, Mask
from schemas.config import Config
from schemas.errors import DamagedArrayError
from schemas.names import storage_name
from schemas.records import run as layout
from schemas.records.image import ImageOutcome
from schemas.records.ledger import build_ledger
from schemas.records.run import RunRecord
from schemas.stores.features import FeatureGeometry
from schemas.stores.gaussian_map import FORMAT_VERSION
from workers.guard.findings import not_judged
from workers.map.reader import MapDescription
from workers.map.writer import complete_map, create_map, write_thresholds
from workers.storage.directory import Directory
from workers.verdict.selection import MIN_FITTED

logger = logging.getLogger("paire")

Outcomes = Mapping[str, list[ImageOutcome]]

# In the journal, once the stores are there; a map of another format is begun anew.
BEGUN = f"begun.{FORMAT_VERSION}"

# The paper's rule stops at a majority; where no more than this share is clean, good images have been lost.
FEW_CLEAN = 0.5


@dataclass(frozen=True)
class Judge:
    """Judges every group of an archive and publishes what it found.

    Attributes
    ----------
    run
        The directory to publish into; the record and the catalog are there already.
    features
        The feature store to judge from.
    geometry
        The grid of positions of those features.
    config
        The configuration.
    record
        Whose verdicts they are.
    cluster
        Where to compute; None for here.
    reporter
        Shows progress.
    journal
        Where to keep which passes and groups are finished, so that the same job goes on after them; None for nowhere.
    """

    run: Directory
    features: Directory
    geometry: FeatureGeometry
    config: Config
    record: RunRecord
    cluster: Cluster | None
    reporter: Reporter
    journal: Directory | None = None

    def judge(self, catalog: pd.DataFrame, outcomes: Outcomes) -> dict[str, Any]:
        """Judge all groups; write distances, Gaussian map, iterations, manifest and ledger.

        Parameters
        ----------
        catalog
            The inputs, with the columns of ``schemas.tables.catalog``.
        outcomes
            Group to what reading its candidates established, in row order.

        Returns
        -------
        dict
            The ledger.

        Raises
        ------
        LedgerError
            When the books do not balance; then there is neither manifest nor ledger.
        """
        self._prepare()
        apart = self._groups_apart(outcomes)
        found = self._judge_apart({group: images for group, images in outcomes.items() if group in apart})
        found |= self._judge_in_turn({group: images for group, images in outcomes.items() if group not in apart})
        return self._publish(catalog, {group: found[group] for group in outcomes})

    def _prepare(self) -> None:
        """Create empty stores, unless the job goes on with those that it has begun."""
        if self.journal is not None and self.journal.exists(BEGUN):
            return
        if self.journal is not None:
            self.journal.remove("")
        self.run.zarr_group(layout.DISTANCES, "w")
        create_map(self._model, self._map_description())
        if self.journal is not None:
            self.journal.write(BEGUN, b"")

    def _groups_apart(self, outcomes: Outcomes) -> set[str]:
        """Return the groups to judge side by side, each in one task."""
        sizes = {group: len(images) for group, images in outcomes.items()}
        workers = 1 if self.cluster is None else self.cluster.workers
        largest = apart_up_to(list(sizes.values()), Layout.of(self.geometry, self.config), workers)
        return {group for group, size in sizes.items() if size <= largest}

    def _judge_in_turn(self, outcomes: Outcomes) -> dict[str, Ending]:
        """Judge groups one after another, each by many tasks."""
        return {group: self._judge_group(group, images) for group, images in outcomes.items()}

    def _judge_apart(self, outcomes: Outcomes) -> dict[str, Ending]:
        """Judge groups side by side, each in one task; what they log comes in their order."""
        if not outcomes:
            return {}
        alone = dataclasses.replace(self, cluster=None, reporter=Reporter())
        level, endings = logger.getEffectiveLevel(), {}
        with self.reporter.phase("judge", len(outcomes), "groups", brief=True) as phase:
            tasks = ((alone, group, images, level) for group, images in outcomes.items())
            judged = results_in_order(open_window(self.cluster), _judge_alone, tasks, lambda _: phase.advance())
            for group, (ending, records) in zip(outcomes, judged, strict=True):
                endings[group] = ending
                for record in records:
                    logger.handle(record)
        return endings

    def _judge_group(self, group: str, outcomes: list[ImageOutcome]) -> Ending:
        """Judge one group, from where an earlier command ended."""
        if self.journal is None:
            return self._judge_from(None, group, outcomes)
        journal = Journal(self.journal / storage_name(group), digest_outcomes(outcomes))
        try:
            kept = journal.ending()
            if kept is not None:
                return Ending.from_arrays(kept, outcomes)
            ending = self._judge_from(journal, group, outcomes)
        except (StaleJournalError, DamagedArrayError) as error:
            logger.warning("%s: judged anew, because %s", group, error, extra={"group": group})
            journal.clear()
            ending = self._judge_from(journal, group, outcomes)
        journal.note_ending(ending.to_arrays())
        return ending

    def _judge_from(self, journal: Journal | None, group: str, outcomes: list[ImageOutcome]) -> Ending:
        """Find one group's clean set, gather the evidence, publish the Gaussians."""
        census = take_census(outcomes)
        count = int(census.measured.sum())
        if count < MIN_FITTED:
            reason = (
                f"group {group!r} has {count} different readable images; at least {MIN_FITTED} are needed to judge any"
            )
            logger.warning("%s: none of them is judged", reason, extra={"group": group})
            examination = Examination(None, (not_judged(reason),))
            return Ending(GroupVerdict(outcomes, census, not_judged=reason), None, examination)
        found = find_near_duplicates(self.cluster, group, census.measured, self.config, self.features)
        representative = found if self.config.trim.fits_distinct_images else np.arange(len(found))
        with self._statistics(group, census, journal) as statistics:
            trimming = self._find_clean_set(group, census.measured, representative, statistics)
            statistics.distances.store_verdict(
                trimming.thresholds, trimming.history, representative, smoothing=trimming.smoothing
            )
            evidence = statistics.distances.evidence(trimming.thresholds, representative, smoothing=trimming.smoothing)
            self._publish_gaussians(group, statistics, trimming)
            judgement = Judgement(trimming.clean, trimming.last_changed, evidence, representative)
            examination = self._examine(group, census.measured, trimming, statistics)
        copies = int((found != np.arange(len(found))).sum())
        return Ending(GroupVerdict(outcomes, census, judgement), trimming, examination, copies)

    def _statistics(self, group: str, census: Census, journal: Journal | None) -> GroupStatistics:
        return GroupStatistics(
            self.cluster,
            group,
            census.measured,
            self.geometry,
            self.config,
            self.features,
            self.run / layout.DISTANCES,
            journal,
        )

    def _find_clean_set(
        self, group: str, measured: Mask, representative: Indices, statistics: GroupStatistics
    ) -> Trimming:
        """Run the passes of the configured strategy."""
        options, grid = self.config.trim, (self.geometry.rows, self.geometry.columns)

        def measure(fitted: Mask, number: int) -> PassResult:
            with self._rows_phase(f"{group}: pass {number}", "pass") as phase:
                return statistics.measure(fitted, is_first=number == 1, phase=phase)

        def score(fitted: Mask, number: int, *, smoothing: int, nearest: float = 1.0) -> Floats:
            with self._rows_phase(f"{group}: pass {number}", "pass") as phase:
                return statistics.score(fitted, smoothing=smoothing, nearest=nearest, phase=phase)

        def deviate(fitted: Mask, number: int) -> Floats:
            with self._rows_phase(f"{group}: pass {number}", "pass") as phase:
                return statistics.score(fitted, smoothing=None, phase=phase)

        if options.strategy == "grow":
            return grow(score, measured, options, grid=grid, representative=representative, name=group)
        if options.strategy == "concentrate":
            return concentrate(deviate, statistics.thresholds_at, measured, options, grid=grid, name=group)
        return trim(measure, measured, options, name=group)

    def _publish_gaussians(self, group: str, statistics: GroupStatistics, trimming: Trimming) -> None:
        """Fit once more and write the group's part of the Gaussian map."""
        fitted, thresholds, how = trimming.published, trimming.thresholds, {"nearest": trimming.nearest}
        if self.config.trim.strategy in {"paire", "trim-once"} and (fitted != trimming.fitted).any():
            # The paper's thresholds belong to one fit, and the set that is published was not fitted yet.
            with self._rows_phase(f"{group}: calibrate", "calibrate") as phase:
                thresholds = statistics.calibrate(fitted, phase=phase)
        elif statistics.count_fitted(fitted, **how) < int(fitted.sum()):
            # New images are judged by the law of distances under this fit.
            with self._rows_phase(f"{group}: calibrate", "calibrate") as phase:
                thresholds = statistics.calibrate_law(fitted, smoothing=trimming.smoothing, phase=phase, **how)
        if not statistics.was_published(fitted, **how):
            statistics.create_map(fitted, self._model, **how)
        with self._rows_phase(f"{group}: publish", "publish") as phase:
            checksums = statistics.publish(fitted, self._model, phase=phase, **how)
        write_thresholds(self._model, group, thresholds, checksums=checksums, smoothing=trimming.smoothing, **how)

    def _examine(self, group: str, measured: Mask, trimming: Trimming, statistics: GroupStatistics) -> Examination:
        """Let the breakdown guard look at how a group came out."""
        examiner = Examiner(self.cluster, self.run, self.features, self.geometry, self.config, self.reporter)
        examination = examiner.examine(group, measured, trimming, statistics)
        for finding in examination.findings:
            logger.warning("%s: %s", group, finding.sentence, extra={"group": group})
        return examination

    def _publish(self, catalog: pd.DataFrame, endings: Mapping[str, Ending]) -> dict[str, Any]:
        """Complete the map and write the tables and the books."""
        complete_map(self._model)
        manifest = build_manifest(
            catalog,
            {group: ending.verdict for group, ending in endings.items()},
            self.geometry,
            run_id=self.record.run_id,
            config_digest=self.record.config_digest,
            weights_digest=self.record.weights_digest,
        )
        examinations = weigh_small_groups(
            {group: ending.examination for group, ending in endings.items()},
            {group: int(ending.verdict.census.measured.sum()) for group, ending in endings.items()},
        )
        ledger = build_ledger(
            manifest,
            catalog,
            {group: {**_ledger_entry(ending), **examinations[group].to_json()} for group, ending in endings.items()},
        )
        write_iterations(self.run, [row for group, ending in endings.items() for row in ending.iterations(group)])
        write_manifest(self.run, manifest)
        write_ledger(self.run, ledger)
        return ledger

    @property
    def _model(self) -> Directory:
        return self.run / layout.MODEL

    def _map_description(self) -> MapDescription:
        return MapDescription(
            run_id=self.record.run_id,
            config_digest=self.record.config_digest,
            features=self.config.features,
            weights_digest=self.record.weights_digest,
            geometry=self.geometry,
            estimator=self.config.estimator(),
            sixteen_bit_white=self.config.input.sixteen_bit_white,
        )

    def _rows_phase(self, name: str, kind: str) -> AbstractContextManager[Phase]:
        return self.reporter.phase(name, self.geometry.rows, "rows", kind=kind, brief=True)


def _judge_alone(
    judge: Judge, group: str, outcomes: list[ImageOutcome], level: int
) -> tuple[Ending, list[logging.LogRecord]]:
    """Judge a group as one task; returns what was logged besides, to be shown where the job runs."""
    with _withheld(level) as records:
        return judge._judge_group(group, outcomes), records


@contextmanager
def _withheld(level: int) -> Iterator[list[logging.LogRecord]]:
    """Collect what this thread logs from a level on, instead of handling it."""
    records: list[logging.LogRecord] = []
    thread = threading.get_ident()

    def collect(record: logging.LogRecord) -> bool:
        if threading.get_ident() != thread:
            return True
        records.append(record)
        return False

    before = logger.level
    logger.addFilter(collect)
    logger.setLevel(level)
    try:
        yield records
    finally:
        logger.setLevel(before)
        logger.removeFilter(collect)


def _ledger_entry(ending: Ending) -> dict[str, Any]:
    """Return how a group ended, for the ledger."""
    verdict, trimming = ending.verdict, ending.trimming
    if trimming is None:
        return {
            "iterations": 0,
            "stop_reason": "not judged",
            "floor_applied": False,
            "near_duplicates": 0,
            "warnings": [verdict.not_judged],
        }
    return {
        "iterations": len(trimming.iterations),
        "stop_reason": trimming.stop_reason,
        "floor_applied": trimming.floor_applied,
        "near_duplicates": ending.near_duplicates,
        "warnings": [
            *_warnings(trimming, verdict.census),
            *_warn_of_near_duplicates(verdict.judgement, ending.near_duplicates),
            *(finding.sentence for finding in ending.examination.findings),
        ],
    }


def _warnings(trimming: Trimming, census: Census) -> list[str]:
    """Say what makes a group's verdicts less trustworthy; empty when nothing does."""
    last, measured, warnings = trimming.iterations[-1], int(census.measured.sum()), []
    if trimming.floor_applied:
        warnings.append(
            "the floor chose the clean set: fewer images than trim.min_clean_fraction passed all thresholds"
        )
    if trimming.stop_reason in {CYCLE, MAX_ITERATIONS}:
        warnings.append(f"the clean set did not settle: {trimming.stop_reason}")
    if trimming.stop_reason == AMBIGUOUS:
        warnings.append(
            "no clear boundary between clean and anomalous images: only the better half is kept, and some of it may be "
            "anomalous"
        )
    elif last.n_clean <= FEW_CLEAN * measured:
        warnings.append(
            f"only {last.n_clean} of {measured} images are clean: check that the group holds one product in one pose, "
            "or try trim.strategy=grow"
        )
    if not last.n_positions_trimmed:
        warnings.append("no position has a threshold: no image was found to differ from the others")
    return warnings


def _warn_of_near_duplicates(judgement: Judgement | None, near_duplicates: int) -> list[str]:
    """Say that there are near-duplicates where the strategy did not count them as one image."""
    assert judgement is not None
    if not near_duplicates or (judgement.representative != np.arange(len(judgement.representative))).any():
        return []
    return [
        f"{near_duplicates} images are near-duplicates of others: a defect that several of them show can pass as "
        "normal; trim.strategy=grow counts them as one"
    ]
