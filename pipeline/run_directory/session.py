"""One command at work in a run directory: its lease, log, record and cluster, from the first file to ``_SUCCESS``."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import pandas as pd

from pipeline.cluster.cluster import Cluster
from pipeline.costs.check import require_memory
from pipeline.run_directory.lease import Lease
from pipeline.run_directory.log import recorded
from pipeline.run_directory.record import write_record
from pipeline.run_directory.release import conclude, release
from pipeline.run_directory.tables import write_table
from schemas.config import Config
from schemas.errors import StorageError
from schemas.records import run as layout
from schemas.records.run import RunRecord
from schemas.stores.features import FeatureGeometry
from schemas.tables import catalog as catalog_table
from workers.storage.directory import Directory

logger = logging.getLogger("paire")


@dataclasses.dataclass
class Session:
    """What a command works with; it must set ``ledger``, which decides whether the run is published."""

    run: Directory
    record: RunRecord
    config: Config
    catalog: pd.DataFrame
    cluster: Cluster
    ledger: Mapping[str, Any] | None = None

    def require_memory(self, geometry: FeatureGeometry, *, extracts: bool) -> None:
        """Raise ClusterError unless the workers have the memory that the groups need."""
        candidates = self.catalog[self.catalog["row"].notna()]
        sizes = candidates.groupby("group").size().tolist()
        require_memory(self.cluster, sizes, geometry, self.config, extracts=extracts)


@contextmanager
def work_in(
    run: Directory,
    lease: Lease,
    record: RunRecord,
    config: Config,
    catalog: pd.DataFrame,
    cluster: AbstractContextManager[Cluster],
    *,
    versions: Mapping[str, str],
) -> Iterator[Session]:
    """Work in a run directory while the block runs, then publish the result if the breakdown guard trusts it.

    Parameters
    ----------
    lease
        Held by this command.
    record
        The record in the directory.
    cluster
        Opened for the block only.
    versions
        Of the packages now; a warning names those that are not the record's.

    Raises
    ------
    UntrustworthyError
        If the guard does not trust the result and its options do not accept it; all but ``_SUCCESS`` is written then.
    """
    with _noted_if_interrupted(run, record), recorded(run):
        run.write(layout.CONFIG, config.to_yaml().encode())
        write_table(run, layout.CATALOG, catalog, catalog_table.COLUMNS)
        _warn_of_other_versions(record, versions)
        with cluster as opened:
            record = dataclasses.replace(record, state=layout.RUNNING, hosts=opened.hosts)
            write_record(run, record)
            session = Session(run, record, config, catalog, opened)
            yield session
        assert session.ledger is not None
        lease.require()
        conclude(run, record, session.ledger, config.guard)
    lease.end_for_good()
    # Last, and after the log: _SUCCESS says that everything may be read.
    release(run, session.ledger, config.guard)


@contextmanager
def _noted_if_interrupted(run: Directory, record: RunRecord) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        with suppress(StorageError):
            write_record(run, dataclasses.replace(record, state=layout.INTERRUPTED))
        raise


def _warn_of_other_versions(record: RunRecord, versions: Mapping[str, str]) -> None:
    others = [
        f"{name} {record.versions.get(name)} then, {version} now"
        for name, version in versions.items()
        if record.versions.get(name) != version
    ]
    if others:
        logger.warning("this run was begun with other versions, which can change results: %s", "; ".join(others))
