"""The whole job: strings the stages together over one run directory, and does nothing else."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.catalog import build_catalog
from pipeline.cluster import Cluster, open_cluster
from pipeline.extract import check_extractor, extract_features
from pipeline.grow import concentrate, grow
from pipeline.locations import absolute_source, with_absolute_weights
from pipeline.log import recorded
from pipeline.manifest import GroupVerdict, Judgement, build_manifest, take_census
from pipeline.progress import Phase, Reporter
from pipeline.publish import write_iterations, write_ledger, write_manifest, write_table
from pipeline.record import claim, new_record, write_record
from pipeline.statistics import GroupStatistics, PassResult
from pipeline.trim import CYCLE, MAX_ITERATIONS, Mask, Trimming, trim
from schemas import catalog as catalog_table
from schemas import run as layout
from schemas.config import Config, FeaturesConfig
from schemas.errors import (
    UnreadableBudgetError,
)
from schemas.features import FeatureGeometry
from schemas.image import ImageOutcome
from schemas.ledger import build_ledger
from schemas.run import RunRecord
from workers.extractor import PatchExtractor
from workers.gaussian_map import MapDescription, create_group_map, create_map, write_thresholds
from workers.selection import MIN_FITTED
from workers.storage import Directory

logger = logging.getLogger("paire")

# A smaller share of clean images than this is worth a warning: the paper's rule keeps about half.
FEW_CLEAN = 0.25


@dataclass(frozen=True)
class CleanResult:
    """What ``paire clean`` ended with.

    Attributes
    ----------
    run
        URL of the run directory.
    run_id
        The run.
    ledger
        As in ``ledger.json``.
    was_done
        The run had been finished before; nothing was computed.
    """

    run: str
    run_id: str
    ledger: dict[str, Any]
    was_done: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return dataclasses.asdict(self)


def clean(
    source: str, out: str, config: Config, *, scheduler: str | None = None, reporter: Reporter | None = None
) -> CleanResult:
    """Clean an archive: say of every image whether other models may train on it, and publish the Gaussian map.

    Parameters
    ----------
    source
        Folder, fsspec URL, or ``.csv`` / ``.parquet`` index.
    out
        The run directory, path or URL.
    config
        The configuration.
    scheduler
        Address of a Dask scheduler; None starts a local cluster unless the environment or configuration names one.
    reporter
        Shows progress; None shows none.

    Raises
    ------
    PaireError
        Whatever the user can mend; see ``schemas.errors``.
    """
    reporter = reporter or Reporter()
    run, source = Directory.at(out), absolute_source(source)
    config = with_absolute_weights(config)
    catalog = build_catalog(source, config.input)
    logger.info(
        "catalog: %d inputs, %d to read, in %d groups",
        len(catalog),
        catalog["row"].notna().sum(),
        catalog["group"].nunique(),
    )
    geometry, weights_digest = _inspect_backbone(config.features)
    if config.features.weights == "random":
        logger.warning(
            "features.weights = 'random': the backbone has never seen an image. Good for trying the pipeline; "
            "never trust such a manifest."
        )
    record = new_record(source, catalog, config, weights_digest)
    record = claim(run, record)
    if run.exists(layout.SUCCESS):
        logger.info("%s is done already; nothing to do", run.url)
        return CleanResult(run.url, record.run_id, json.loads(run.read(layout.LEDGER)), was_done=True)
    with recorded(run):
        run.write(layout.CONFIG, config.to_yaml().encode())
        write_table(run, layout.CATALOG, catalog, catalog_table.COLUMNS)
        with open_cluster(config.cluster, scheduler) as cluster:
            record = dataclasses.replace(record, hosts=cluster.hosts)
            job = _CleanJob(run, catalog, config, cluster, geometry, record, reporter)
            ledger = job.run()
    # Last, and after the log: whoever sees it may read everything.
    run.write(layout.SUCCESS, b"")
    return CleanResult(run.url, record.run_id, ledger)


class _CleanJob:
    """The stages of one run, with what they share."""

    def __init__(
        self,
        run: Directory,
        catalog: pd.DataFrame,
        config: Config,
        cluster: Cluster,
        geometry: FeatureGeometry,
        record: RunRecord,
        reporter: Reporter,
    ) -> None:
        self._run = run
        self._catalog = catalog
        self._config = config
        self._cluster = cluster
        self._geometry = geometry
        self._record = record
        self._reporter = reporter

    def run(self) -> dict[str, Any]:
        """Run all stages; returns the ledger."""
        outcomes = self._extract()
        self._run.zarr_group(layout.DISTANCES, "w")
        model = self._run / layout.MODEL
        create_map(
            model,
            MapDescription(
                run_id=self._record.run_id,
                config_digest=self._record.config_digest,
                features=self._config.features,
                weights_digest=self._record.weights_digest,
                geometry=self._geometry,
                estimator=self._config.estimator(),
                smoothing=self._config.smoothing(),
                sixteen_bit_white=self._config.input.sixteen_bit_white,
            ),
        )
        verdicts: dict[str, GroupVerdict] = {}
        endings: dict[str, dict[str, Any]] = {}
        iterations: list[dict[str, Any]] = []
        for group, images in outcomes.items():
            verdicts[group], trimming = self._judge(group, images, model)
            endings[group] = _ending(trimming, verdicts[group])
            iterations += [
                {"group": group, **dataclasses.asdict(step)} for step in (trimming.iterations if trimming else ())
            ]
        return self._publish(verdicts, iterations, endings)

    def _extract(self) -> dict[str, list[ImageOutcome]]:
        candidates = int(self._catalog["row"].notna().sum())
        digest = self._record.weights_digest
        check_extractor(self._cluster, self._config, digest)
        with self._reporter.phase("extract", candidates) as phase:
            outcomes = extract_features(
                self._cluster,
                self._catalog,
                self._run / layout.FEATURES,
                self._geometry,
                self._config,
                digest,
                phase,
            )
        _check_budget(outcomes, self._catalog, self._config.input.max_unreadable_fraction)
        return outcomes

    def _judge(
        self, group: str, outcomes: list[ImageOutcome], model: Directory
    ) -> tuple[GroupVerdict, Trimming | None]:
        """Run the passes over one group and publish its Gaussians."""
        census = take_census(outcomes)
        count = int(census.measured.sum())
        if count < MIN_FITTED:
            reason = (
                f"group {group!r} has {count} different readable images; at least {MIN_FITTED} are needed to judge any"
            )
            logger.warning("%s: none of them is judged", reason)
            return GroupVerdict(outcomes, census, not_judged=reason), None
        statistics = GroupStatistics(
            self._cluster,
            group,
            census.measured,
            self._geometry,
            self._config,
            self._run / layout.FEATURES,
            self._run / layout.DISTANCES,
        )

        trimming = self._find_clean_set(group, census.measured, statistics)
        statistics.store_verdict(trimming.thresholds, trimming.history)
        evidence = statistics.evidence(trimming.thresholds, smoothing=self._config.smoothing())

        thresholds = trimming.thresholds
        if self._config.trim.strategy in {"paire", "trim-once"} and (trimming.clean != trimming.fitted).any():
            # The paper's thresholds belong to one fit, and the set that is published was not fitted yet.
            with self._rows_phase(f"{group}: calibrate") as phase:
                thresholds = statistics.calibrate(trimming.clean, phase=phase)
        create_group_map(model, group, self._geometry, int(trimming.clean.sum()))
        with self._rows_phase(f"{group}: publish") as phase:
            statistics.publish(trimming.clean, model, phase=phase)
        write_thresholds(model, group, thresholds)
        verdict = GroupVerdict(outcomes, census, Judgement(trimming.clean, trimming.last_changed, evidence))
        return verdict, trimming

    def _find_clean_set(self, group: str, measured: Mask, statistics: GroupStatistics) -> Trimming:
        """Run the passes of the configured strategy."""
        options, grid = self._config.trim, (self._geometry.rows, self._geometry.columns)

        def measure(fitted: Mask, number: int) -> PassResult:
            with self._rows_phase(f"{group}: pass {number}") as phase:
                return statistics.measure(fitted, is_first=number == 1, phase=phase)

        def score(fitted: Mask, number: int) -> NDArray[np.float64]:
            smoothing = self._config.smoothing() if options.strategy == "grow" else None
            with self._rows_phase(f"{group}: pass {number}") as phase:
                return statistics.score(fitted, smoothing=smoothing, phase=phase)

        if options.strategy == "grow":
            return grow(score, measured, options, grid=grid, name=group)
        if options.strategy == "concentrate":
            return concentrate(score, statistics.thresholds_at, measured, options, grid=grid, name=group)
        return trim(measure, measured, options, name=group)

    def _publish(
        self,
        verdicts: Mapping[str, GroupVerdict],
        iterations: list[dict[str, Any]],
        endings: Mapping[str, dict[str, Any]],
    ) -> dict[str, Any]:
        manifest = build_manifest(
            self._catalog,
            verdicts,
            self._geometry,
            run_id=self._record.run_id,
            config_digest=self._record.config_digest,
            weights_digest=self._record.weights_digest,
        )
        ledger = build_ledger(manifest, self._catalog, endings)
        write_iterations(self._run, iterations)
        write_manifest(self._run, manifest)
        write_ledger(self._run, ledger)
        write_record(self._run, dataclasses.replace(self._record, state=layout.DONE))
        logger.info("published %s", self._run.url)
        return ledger

    def _rows_phase(self, name: str) -> AbstractContextManager[Phase]:
        return self._reporter.phase(name, self._geometry.rows, "rows", brief=True)


def _inspect_backbone(features: FeaturesConfig) -> tuple[FeatureGeometry, str]:
    """Build the backbone here once, so that what is wrong with it is said before anything is spent."""
    extractor = PatchExtractor(features.model_copy(update={"device": "cpu"}))
    return extractor.geometry, extractor.weights_digest


def _check_budget(outcomes: Mapping[str, list[ImageOutcome]], catalog: pd.DataFrame, budget: float) -> None:
    """Raise when more images are unreadable than the failure budget allows."""
    unreadable = [(group, outcome) for group, images in outcomes.items() for outcome in images if outcome.reason]
    total = sum(len(images) for images in outcomes.values())
    if not unreadable:
        return
    logger.warning("%d of %d images are unreadable; the manifest says why", len(unreadable), total)
    if len(unreadable) <= budget * total:
        return
    group, first = unreadable[0]
    place = (catalog["group"] == group) & (catalog["row"] == first.row)
    raise UnreadableBudgetError(
        f"{len(unreadable)} of {total} images are unreadable, more than input.max_unreadable_fraction = {budget:g} "
        f"allows; the first is {catalog.loc[place, 'file_name'].iloc[0]!r}: {first.reason}. Check the source, or "
        "raise the budget with --set input.max_unreadable_fraction=1."
    )


def _ending(trimming: Trimming | None, verdict: GroupVerdict) -> dict[str, Any]:
    """Return how a group ended, for the ledger."""
    if trimming is None:
        return {"iterations": 0, "stop_reason": "not judged", "floor_applied": False, "warnings": [verdict.not_judged]}
    last = trimming.iterations[-1]
    warnings = []
    if last.floor_applied:
        warnings.append(
            "the floor chose the clean set: fewer images than trim.min_clean_fraction passed all thresholds"
        )
    if trimming.stop_reason in {CYCLE, MAX_ITERATIONS}:
        warnings.append(f"the clean set did not settle: {trimming.stop_reason}")
    if last.n_clean < FEW_CLEAN * int(verdict.census.measured.sum()):
        warnings.append(
            f"only {last.n_clean} images are clean: check that the group holds one product in one pose, or try "
            "trim.strategy=grow"
        )
    if not last.n_positions_trimmed:
        warnings.append("no position has a threshold: no image was found to differ from the others")
    return {
        "iterations": len(trimming.iterations),
        "stop_reason": trimming.stop_reason,
        "floor_applied": last.floor_applied,
        "warnings": warnings,
    }
