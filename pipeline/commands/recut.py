"""The recutting job: another strategy or other parameters over the features of a finished run.

Extraction takes a night; judging takes moments. A recut writes a new version beside the run, which stays unchanged, and
lists the images that it decides differently. The run need not be published: if the breakdown guard does not trust a
result, another strategy on the stored features is the first thing to try. The guard judges the version like any result.
"""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.cluster.cluster import open_cluster
from pipeline.cluster.progress import Reporter
from pipeline.intake.locations import with_absolute_weights
from pipeline.judging.judge import Judge
from pipeline.run_directory.finished import FinishedRun, warn_if_untrustworthy
from pipeline.run_directory.lease import Lease
from pipeline.run_directory.record import new_record, package_versions, read_record
from pipeline.run_directory.release import reconsider
from pipeline.run_directory.session import work_in
from pipeline.run_directory.tables import read_ledger, read_table, write_changes
from pipeline.run_directory.versions import claim_version, find_version, list_versions, run_of_version, version_of
from schemas.config import Config, GuardConfig, flatten
from schemas.errors import ConfigError, SourceError
from schemas.records import run as layout
from schemas.records.run import RunRecord
from schemas.tables import manifest as manifest_table
from schemas.tables.changes import count_changes, find_changes
from workers.storage.directory import Directory
from workers.storage.settings import use_storage

logger = logging.getLogger("paire")


@dataclass(frozen=True)
class RecutResult:
    """What ``paire recut`` ended with."""

    run: str  # URL of the version's directory, or of the run's own if the run has these options
    run_id: str  # the version's own
    version: int  # 0 is the run itself
    base: str  # id of the run that it was cut from
    ledger: dict[str, Any]  # as in ``ledger.json``
    changes: dict[str, Any]  # ``against``, the version compared with, and `schemas.tables.changes.count_changes`
    was_done: bool = False  # finished before; nothing was computed

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return dataclasses.asdict(self)


def recut(
    run: str, wanted: Config, *, against: int = 0, scheduler: str | None = None, reporter: Reporter | None = None
) -> RecutResult:
    """Judge the features of a finished run again; publish the verdicts as a version of it, with what changed.

    The verdicts, the evidence, the passes and the Gaussian map are those of `clean` with the same options. If a version
    has these options already, it is returned, and finished first if needed. If the run itself has them, it is returned;
    an untrustworthy one is refused or accepted as by `clean`.

    Parameters
    ----------
    run
        The run directory, path or URL; published, or found untrustworthy.
    wanted
        The options that it sets replace those of the run; see `recut_config`.
    against
        Number of the version to compare with; 0 is the run itself.

    Raises
    ------
    UntrustworthyError
        As for `clean`; also for the run itself, if it has these options and is not published.
    PaireError
        For everything else that the user can mend; see ``schemas.errors``. At most an unfinished version is written.
    """
    reporter = reporter or Reporter()
    use_storage(wanted.storage)
    base = _open_base(run)
    warn_if_untrustworthy(base.directory)
    config = recut_config(base, wanted)
    before = _manifest_of(base, against)
    record = new_record(base.record.source, base.catalog, config, base.record.weights_digest)
    version, was_done = _find(base, record, config.guard)
    if was_done:
        directory = version_of(base.directory, version)
        logger.info("%s has these settings already; nothing to do", directory.url)
        _, summary = _compare(before, directory, against)
    else:
        base.require_features()
        record = dataclasses.replace(record, base=base.record.run_id)
        version = version or claim_version(base.directory, record)
        directory = version_of(base.directory, version)
        summary = _judge_again(base, config, directory, before, against, scheduler, reporter)
    return RecutResult(
        run=directory.url,
        run_id=read_record(directory).run_id,
        version=version,
        base=base.record.run_id,
        ledger=read_ledger(directory),
        changes=summary,
        was_done=was_done,
    )


def recut_config(base: FinishedRun, wanted: Config) -> Config:
    """Return the run's configuration with the options that ``wanted`` sets in ``gaussian``, ``trim`` and ``cluster``.

    A recut extracts no features but those of planted defects, so it ignores the options of ``input`` and ``features``
    that no result depends on. The section ``guard`` comes from ``wanted`` alone: a person who accepted the run has not
    seen the version.

    Raises
    ------
    ConfigError
        If ``wanted`` changes an option that the features depend on.
    """
    wanted = with_absolute_weights(wanted)
    mine, decisive = base.config, flatten(base.config.decisive())
    for change in base.changed_options(wanted, ("input", "features")):
        if change.name in decisive:
            raise ConfigError(
                f"{change.name} = {change.wanted!r}, but the features of {base.directory.url} were made with "
                f"{change.was!r}. Leave it out, or make a new run with `paire clean`."
            )
    updates = {
        section: getattr(mine, section).model_copy(update=getattr(wanted, section).model_dump(exclude_unset=True))
        for section in ("gaussian", "trim", "cluster")
    }
    return mine.model_copy(update={**updates, "guard": wanted.guard})


def _open_base(location: str) -> FinishedRun:
    base = FinishedRun.open(location)
    if base.record.base:
        run = run_of_version(base.directory)
        origin = run.url if run else f"run {base.record.base}"
        raise SourceError(
            f"{base.directory.url} is a version cut from {origin} and has no features of its own. Recut the run "
            f"itself; to start from this version's options add --config {base.directory.url}/{layout.CONFIG}."
        )
    return base


def _manifest_of(base: FinishedRun, number: int) -> pd.DataFrame:
    if number == 0:
        return base.manifest
    directory = version_of(base.directory, number)
    if number < 0 or not directory.exists(layout.SUCCESS):
        finished = [
            str(known)
            for known in list_versions(base.directory)
            if version_of(base.directory, known).exists(layout.SUCCESS)
        ]
        raise ConfigError(
            f"--against {number}: {base.directory.url} has no finished version with this number. Finished versions: "
            f"{', '.join(['0 (the run itself)', *finished])}."
        )
    return read_table(directory, layout.MANIFEST, manifest_table.COLUMNS)


def _find(base: FinishedRun, record: RunRecord, guard: GuardConfig) -> tuple[int, bool]:
    """Return the version that has a job's options, 0 for the run itself or none yet, and whether it is finished."""
    if not base.record.differences(record):
        reconsider(base.directory, base.record, guard)
        return 0, True
    number = find_version(base.directory, dataclasses.replace(record, base=base.record.run_id)) or 0
    if not number:
        return 0, False
    version = version_of(base.directory, number)
    return number, version.exists(layout.SUCCESS) or reconsider(version, read_record(version), guard) is not None


def _judge_again(
    base: FinishedRun,
    config: Config,
    directory: Directory,
    before: pd.DataFrame,
    against: int,
    scheduler: str | None,
    reporter: Reporter,
) -> dict[str, Any]:
    """Fill a version's directory, which has its record already; return the counts of its changes."""
    record, cluster = read_record(directory), open_cluster(config.cluster, scheduler)
    with (
        Lease(directory) as lease,
        work_in(directory, lease, record, config, base.catalog, cluster, versions=package_versions()) as session,
    ):
        session.require_memory(base.geometry, extracts=False)
        journal = directory / layout.JOURNAL
        judge = Judge(
            directory, base.features, base.geometry, config, session.record, session.cluster, reporter, journal
        )
        session.ledger = judge.judge(base.catalog, base.outcomes)
        changes, summary = _compare(before, directory, against)
        write_changes(directory, changes, summary)
        total = summary["total"]
        logger.info(
            "compared with %s: %d added, %d removed, %d unchanged",
            version_of(base.directory, against).url,
            total["added"],
            total["removed"],
            total["unchanged"],
        )
    return summary


def _compare(before: pd.DataFrame, directory: Directory, against: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return which decisions of a version differ from those before, and how many."""
    changes = find_changes(before, read_table(directory, layout.MANIFEST, manifest_table.COLUMNS))
    return changes, {"against": against, **count_changes(changes, before)}
