"""From stored features to a published verdict: what the jobs that judge an archive share.

`clean` comes here with features that it has just extracted, `recut` with those of an earlier run. Nothing below knows
which, so the same features and the same options always give the same verdicts.
"""

import dataclasses
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.cluster.cluster import Cluster
from pipeline.cluster.progress import Reporter
from pipeline.cluster.tasks import open_window, results_in_order
from pipeline.costs.footprint import Layout
from pipeline.costs.schedule import apart_up_to
from pipeline.judging.examination import Examination, examine_group, weigh_power, weigh_small_groups
from pipeline.judging.group import Group
from pipeline.judging.manifest import build_manifest
from pipeline.judging.near_duplicates import find_near_duplicates
from pipeline.judging.power import KeptImages, measure_power, paths_by_group
from pipeline.judging.result import GroupResult, digest_outcomes, take_census
from pipeline.judging.statistics import GroupStatistics
from pipeline.judging.strategies.base import AMBIGUOUS, CYCLE, MAX_ITERATIONS, Search, Trimming
from pipeline.judging.strategies.registry import estimator_of, strategy_of
from pipeline.run_directory.journal import Journal, StaleJournalError
from pipeline.run_directory.tables import write_iterations, write_ledger, write_manifest
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

# In the journal, once the stores are there; a map of another format is begun again.
BEGUN = f"begun.{FORMAT_VERSION}"

# The paper's rule stops at a majority; if no more than this share is clean, good images have been lost.
FEW_CLEAN = 0.5


@dataclass(frozen=True)
class Judge:
    """Judges every group of an archive and publishes what it found.

    ``run`` has its record and its catalog already. Without a ``cluster`` everything is computed here. The ``journal``
    keeps which passes and groups are finished, so that the same job goes on after them.
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
        """Judge all groups; write distances, Gaussian map, iterations, manifest and ledger; return the ledger.

        Small groups are judged side by side, each in one task; larger ones in turn, each by many tasks.

        Parameters
        ----------
        catalog
            The inputs, with the columns of ``schemas.tables.catalog``.
        outcomes
            For each group what reading its images established, in row order.

        Raises
        ------
        LedgerError
            When the books do not balance; then there is neither manifest nor ledger.
        """
        self._prepare()
        sizes = [len(images) for images in outcomes.values()]
        workers = 1 if self.cluster is None else self.cluster.workers
        near = strategy_of(self.config).measures_neighbours
        largest = apart_up_to(sizes, Layout.of(self.geometry, self.config, has_references=near), workers)
        found = self._judge_apart({group: images for group, images in outcomes.items() if len(images) <= largest})
        for group, images in outcomes.items():
            if group not in found:
                found[group] = self._judge_group(group, images)
        return self._publish(catalog, self._measure_power(catalog, {group: found[group] for group in outcomes}))

    def _prepare(self) -> None:
        """Create empty stores, unless the job goes on with those of an earlier command."""
        if self.journal is not None and self.journal.exists(BEGUN):
            return
        if self.journal is not None:
            self.journal.remove("")
        self.run.zarr_group(layout.DISTANCES, "w")
        create_map(self._model, self._map_description())
        if self.journal is not None:
            self.journal.write(BEGUN, b"")

    def _judge_apart(self, outcomes: Outcomes) -> dict[str, GroupResult]:
        """Judge groups side by side, each in one task; their log records come in the order of the groups."""
        if not outcomes:
            return {}
        alone = dataclasses.replace(self, cluster=None, reporter=Reporter())
        level, results = logger.getEffectiveLevel(), {}
        with self.reporter.phase("judge", len(outcomes), "groups", brief=True) as phase:
            tasks = ((alone, group, images, level) for group, images in outcomes.items())
            judged = results_in_order(open_window(self.cluster), _judge_alone, tasks, lambda _: phase.advance())
            for group, (result, records) in zip(outcomes, judged, strict=True):
                results[group] = result
                for record in records:
                    logger.handle(record)
        return results

    def _judge_group(self, group: str, outcomes: list[ImageOutcome]) -> GroupResult:
        """Judge one group from where an earlier command stopped."""
        if self.journal is None:
            return self._judge_from(None, group, outcomes)
        journal = Journal(self.journal / storage_name(group), digest_outcomes(outcomes))
        try:
            kept = journal.ending()
            if kept is not None:
                return GroupResult.from_arrays(kept, outcomes)
            result = self._judge_from(journal, group, outcomes)
        except (StaleJournalError, DamagedArrayError) as error:
            logger.warning("%s: judged again, because %s", group, error, extra={"group": group})
            journal.clear()
            result = self._judge_from(journal, group, outcomes)
        journal.note_ending(result.to_arrays())
        return result

    def _judge_from(self, journal: Journal | None, name: str, outcomes: list[ImageOutcome]) -> GroupResult:
        """Find one group's clean set, gather the evidence, publish the Gaussians."""
        census = take_census(outcomes)
        count = int(census.measured.sum())
        if count < MIN_FITTED:
            reason = (
                f"group {name!r} has {count} different readable images; at least {MIN_FITTED} are needed to judge any"
            )
            logger.warning("%s: none of them is judged", reason, extra={"group": name})
            examination = Examination(None, (not_judged(reason),))
            return GroupResult(outcomes, census, examination, not_judged=reason)
        group = Group(name, census.measured, self.features, self.geometry, self.config)
        strategy, first = strategy_of(self.config), find_near_duplicates(self.cluster, group)
        is_own = first == np.arange(len(first))
        fitted_for = first if strategy.fits_distinct_images else np.arange(len(first))
        distances = self.run / layout.DISTANCES
        with GroupStatistics(self.cluster, group, distances, self.reporter, journal) as statistics:
            search = Search(group.measured, self.config.trim, group.grid, fitted_for, name)
            trimming = strategy.find(statistics, search)
            statistics.distances.store_verdict(
                trimming.thresholds, trimming.history, fitted_for, smoothing=trimming.smoothing
            )
            evidence = statistics.distances.evidence(trimming.thresholds, fitted_for, smoothing=trimming.smoothing)
            thresholds = strategy.map_thresholds(statistics, trimming)
            near = strategy.measures_neighbours
            checksums = statistics.publish(trimming.published, self._model, neighbours=near)
            write_thresholds(
                self._model,
                name,
                thresholds,
                checksums=checksums,
                smoothing=trimming.smoothing,
            )
            examination = examine_group(self.cluster, group, trimming, statistics)
        return GroupResult(
            outcomes, census, examination, trimming, evidence, fitted_for, near_duplicates=int((~is_own).sum())
        )

    def _measure_power(self, catalog: pd.DataFrame, results: Mapping[str, GroupResult]) -> dict[str, GroupResult]:
        """Return the results with what the map of each group sees of planted defects, and what follows from it."""
        paths = paths_by_group(catalog)
        powers = measure_power(
            self.cluster,
            {
                group: KeptImages(result.trimming.clean, result.outcomes, paths[group])
                for group, result in results.items()
                if result.trimming is not None
            },
            self._model,
            self.config,
            self.record.weights_digest,
            self.reporter,
            self.journal,
        )
        examined = weigh_power({group: result.examination for group, result in results.items()}, powers)
        return {group: dataclasses.replace(result, examination=examined[group]) for group, result in results.items()}

    def _publish(self, catalog: pd.DataFrame, results: Mapping[str, GroupResult]) -> dict[str, Any]:
        """Complete the map and write the tables and the books."""
        complete_map(self._model)
        manifest = build_manifest(
            catalog,
            results,
            self.geometry,
            run_id=self.record.run_id,
            config_digest=self.record.config_digest,
            weights_digest=self.record.weights_digest,
        )
        examinations = weigh_small_groups(
            {group: result.examination for group, result in results.items()},
            {group: int(result.census.measured.sum()) for group, result in results.items()},
        )
        ledger = build_ledger(
            manifest,
            catalog,
            {group: {**_ledger_entry(result), **examinations[group].to_json()} for group, result in results.items()},
        )
        write_iterations(self.run, [row for group, result in results.items() for row in result.iterations(group)])
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
            estimator=estimator_of(self.config),
            sixteen_bit_white=self.config.input.sixteen_bit_white,
        )


def _judge_alone(
    judge: Judge, group: str, outcomes: list[ImageOutcome], level: int
) -> tuple[GroupResult, list[logging.LogRecord]]:
    """Judge a group as one task; return also what was logged, to show it where the job runs."""
    with _withheld(level) as records:
        return judge._judge_group(group, outcomes), records


@contextmanager
def _withheld(level: int) -> Iterator[list[logging.LogRecord]]:
    """Collect what this thread logs at a level or above, instead of handling it."""
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


def _ledger_entry(result: GroupResult) -> dict[str, Any]:
    """Return a group's entry in the ledger."""
    trimming = result.trimming
    if trimming is None:
        return {
            "iterations": 0,
            "stop_reason": "not judged",
            "floor_applied": False,
            "near_duplicates": 0,
            "warnings": [result.not_judged],
        }
    return {
        "iterations": len(trimming.iterations),
        "stop_reason": trimming.stop_reason,
        "floor_applied": trimming.floor_applied,
        "near_duplicates": result.near_duplicates,
        "warnings": [
            *warnings_about(result, trimming),
            *(finding.sentence for finding in result.examination.findings),
        ],
    }


def warnings_about(result: GroupResult, trimming: Trimming) -> list[str]:
    """Return sentences about what makes a group's verdicts less trustworthy."""
    last, measured, warnings = trimming.iterations[-1], int(result.census.measured.sum()), []
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
    fitted_for = result.fitted_for
    fits_each = fitted_for is not None and (fitted_for == np.arange(len(fitted_for))).all()
    if result.near_duplicates and fits_each:
        warnings.append(
            f"{result.near_duplicates} images are near-duplicates of others: a defect that several of them show can "
            "pass as normal; trim.strategy=grow counts them as one"
        )
    return warnings
