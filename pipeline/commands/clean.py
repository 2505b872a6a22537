"""The cleaning job: runs all stages over one run directory."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.cluster.cluster import Cluster, open_cluster
from pipeline.cluster.progress import Reporter
from pipeline.intake.catalog import build_catalog
from pipeline.intake.extract import check_extractor, extract_features
from pipeline.intake.locations import absolute_source, with_absolute_weights
from pipeline.judging.judge import Judge
from pipeline.run_directory.lease import Lease, refuse_if_at_work
from pipeline.run_directory.record import claim, new_record, start_over
from pipeline.run_directory.release import reconsider, remove_leftovers
from pipeline.run_directory.session import Session, work_in
from pipeline.run_directory.tables import read_ledger
from schemas.config import Config
from schemas.errors import UnreadableBudgetError
from schemas.records import run as layout
from schemas.records.image import ImageOutcome
from schemas.records.run import RunRecord
from schemas.stores.features import FeatureGeometry
from workers.features.extractor import PatchExtractor
from workers.storage.directory import Directory
from workers.storage.settings import use_storage

logger = logging.getLogger("paire")


@dataclass(frozen=True)
class CleanResult:
    """What ``paire clean`` ended with."""

    run: str  # URL of the run directory
    run_id: str
    ledger: dict[str, Any]  # as in ``ledger.json``
    was_done: bool = False  # finished before; nothing was computed

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return dataclasses.asdict(self)


def clean(
    source: str,
    out: str,
    config: Config,
    *,
    scheduler: str | None = None,
    reporter: Reporter | None = None,
    opened: Callable[[], Cluster] | None = None,
    fresh: bool = False,
) -> CleanResult:
    """Clean an archive: decide for every image whether it is safe to train on, and publish the Gaussian map.

    The same job finishes an unfinished run; it does not repeat extracted images, finished passes or finished groups.

    Parameters
    ----------
    source
        Folder, fsspec URL, or ``.csv`` / ``.parquet`` index.
    out
        The run directory, path or URL.
    scheduler
        Address of a Dask scheduler; None starts a local cluster unless the environment or configuration names one.
    opened
        From `pipeline.cluster.cluster.opening_cluster`, if the caller opens the cluster; the caller also closes it.
    fresh
        Start over: remove the run in ``out``, whatever its configuration and archive.

    Raises
    ------
    RunConflictError
        If the directory belongs to another job, or another command is at work in it.
    UntrustworthyError
        If the breakdown guard does not trust the result and ``guard`` does not accept it. All but ``_SUCCESS`` is
        written then, and the same job with ``guard.accept_untrustworthy`` publishes it as it is.
    PaireError
        For everything else that the user can mend; see ``schemas.errors``.
    """
    reporter = reporter or Reporter()
    use_storage(config.storage)
    run, source = Directory.at(out), absolute_source(source)
    config = with_absolute_weights(config)
    refuse_if_at_work(run)
    catalog = build_catalog(source, config.input)
    logger.info(
        "catalog: %d inputs, %d to read, in %d groups",
        len(catalog),
        catalog["row"].notna().sum(),
        catalog["group"].nunique(),
    )
    config, geometry, weights_digest = _inspect_backbone(config)
    if config.features.weights == "random":
        logger.warning(
            "features.weights = 'random': the backbone has never seen an image. Use it to try the pipeline; never "
            "trust its manifest."
        )
    wanted = new_record(source, catalog, config, weights_digest)
    record = claim(run, wanted, fresh=fresh)
    if not fresh and run.exists(layout.SUCCESS) and not run.exists(layout.LEASE):
        return _done(run, record)
    with Lease(run) as lease:
        # Again: another command may have been at work until now.
        record = start_over(run, wanted) if fresh else claim(run, wanted)
        if run.exists(layout.SUCCESS):
            lease.end_for_good()
            remove_leftovers(run)
            return _done(run, record)
        if record.state == layout.UNTRUSTWORTHY:
            lease.end_for_good()
            accepted = reconsider(run, record, config.guard)
            assert accepted is not None
            return CleanResult(run.url, record.run_id, accepted, was_done=True)
        cluster = _being_opened(opened) if opened else open_cluster(config.cluster, scheduler)
        with work_in(run, lease, record, config, catalog, cluster, versions=wanted.versions) as session:
            outcomes = _extract(session, geometry, weights_digest, reporter)
            lease.require()
            features, journal = run / layout.FEATURES, run / layout.JOURNAL
            judge = Judge(run, features, geometry, config, session.record, session.cluster, reporter, journal)
            ledger = session.ledger = judge.judge(catalog, outcomes)
    return CleanResult(run.url, record.run_id, ledger)


@contextmanager
def _being_opened(opened: Callable[[], Cluster]) -> Iterator[Cluster]:
    """Wait for a cluster that the caller opens and closes, once the run directory says whose it is."""
    yield opened()


def _done(run: Directory, record: RunRecord) -> CleanResult:
    logger.info("%s is done already; nothing to do", run.url)
    return CleanResult(run.url, record.run_id, read_ledger(run), was_done=True)


def _extract(
    session: Session, geometry: FeatureGeometry, weights_digest: str, reporter: Reporter
) -> dict[str, list[ImageOutcome]]:
    """Complete the feature store and return the outcome of each image; raise if too many are unreadable."""
    cluster, run, config, catalog = session.cluster, session.run, session.config, session.catalog
    check_extractor(cluster, config, weights_digest)
    # Only now: the workers have loaded the backbone, which is part of the memory that they hold.
    session.require_memory(geometry, extracts=True)
    with reporter.phase("extract", int(catalog["row"].notna().sum())) as phase:
        outcomes = extract_features(
            cluster,
            catalog,
            run / layout.FEATURES,
            geometry,
            config,
            weights_digest,
            phase,
            receipts=run / layout.RECEIPTS,
        )
    _check_budget(outcomes, catalog, config.input.max_unreadable_fraction)
    return outcomes


def _inspect_backbone(config: Config) -> tuple[Config, FeatureGeometry, str]:
    """Build the backbone here once, so that wrong weights fail before any work is done.

    Returns the configuration with the model's own defaults for what is not set, and so on record.
    """
    extractor = PatchExtractor(config.features.model_copy(update={"device": "cpu"}))
    features = extractor.config.model_copy(update={"device": config.features.device})
    return config.model_copy(update={"features": features}), extractor.geometry, extractor.weights_digest


def _check_budget(outcomes: Mapping[str, list[ImageOutcome]], catalog: pd.DataFrame, budget: float) -> None:
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
