"""A run that has judged its images, opened from Python."""

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pandas as pd

from paire.options import config_from
from pipeline.run_directory.finished import FinishedRun
from pipeline.run_directory.tables import read_table
from schemas.config import Config
from schemas.errors import PaireError, SourceError
from schemas.records import run as layout
from schemas.tables import iterations as iterations_table
from schemas.tables.manifest import ANOMALOUS, CLEAN, DECISIONS
from workers.map.reader import GaussianMap
from workers.storage.settings import use_storage


def open_run(
    location: str | os.PathLike[str],
    *,
    storage: Mapping[str, Any] | None = None,
    accept_untrustworthy: bool = False,
) -> "Run":
    """Open a published run, or one of its versions in ``recuts/``.

    Parameters
    ----------
    location
        The run directory, path or URL.
    storage
        How to reach object stores, like ``{"endpoint_url": "https://s3.example.com"}``, from now on in this process.
        None leaves that as it is.
    accept_untrustworthy
        Also open a run that the breakdown guard refused to publish.

    Raises
    ------
    SourceError
        If there is no finished run, its record cannot be read, or the breakdown guard does not trust it.
    ConfigError
        If a storage option is wrong, or another version of paire wrote the run's configuration.
    """
    if storage is not None:
        use_storage(config_from({"storage": storage}).storage)
    finished = FinishedRun.open(os.fspath(location))
    if not (accept_untrustworthy or finished.directory.exists(layout.SUCCESS)):
        raise SourceError(
            f"{finished.directory.url} is not published: the breakdown guard does not trust it, and {layout.LEDGER} "
            "says why. Open it with accept_untrustworthy=True to look at it; do not train on it."
        )
    return Run(finished)


class Run:
    """The result of cleaning an archive; `clean` and `open_run` return it.

    Tables and the map are read on first use and kept: every access returns the same object.

    Attributes
    ----------
    url
        The run directory, absolute path or URL.
    run_id
        UTC start time and a random part.
    config
        The options that the run was made with.
    """

    def __init__(self, finished: FinishedRun) -> None:
        self._finished = finished
        self.url: str = finished.directory.url
        self.run_id: str = finished.record.run_id
        self.config: Config = finished.config

    @property
    def manifest(self) -> pd.DataFrame:
        """One row for each input of the archive; see ``schemas.tables.manifest``."""
        return self._finished.manifest

    @cached_property
    def clean(self) -> pd.DataFrame:
        """The rows of the manifest whose decision is ``clean``, numbered from 0."""
        return self._decided(CLEAN)

    @cached_property
    def rejected(self) -> pd.DataFrame:
        """The rows of the manifest whose decision is ``anomalous``, numbered from 0."""
        return self._decided(ANOMALOUS)

    @cached_property
    def iterations(self) -> pd.DataFrame:
        """One row for each pass over each group; see ``schemas.tables.iterations``."""
        return read_table(self._finished.directory, layout.ITERATIONS, iterations_table.COLUMNS)

    @property
    def ledger(self) -> dict[str, Any]:
        """Counts of decisions, in ``total`` and for each of ``groups``, and what the breakdown guard found."""
        return self._finished.ledger

    @property
    def map(self) -> GaussianMap:
        """The Gaussian map; its arrays are read when it scores."""
        return self._finished.gaussian_map

    def _decided(self, decision: str) -> pd.DataFrame:
        return self.manifest[self.manifest["decision"] == decision].reset_index(drop=True)

    def __repr__(self) -> str:
        record = self._finished.record
        doubt = record.state == layout.UNTRUSTWORTHY or record.accepted_untrustworthy
        try:
            total, groups = self.ledger["total"], len(self.ledger["groups"])
        except PaireError:  # a debugger must be able to show a damaged run
            return f"<paire.Run {self.url!r}>"
        counts = ", ".join(f"{total[name]} {name}" for name in DECISIONS if total[name])
        return (
            f"<paire.Run {self.url!r}: {total['inputs']} inputs in {groups} group{'s' * (groups != 1)}: {counts}"
            f"{'; untrustworthy' * doubt}>"
        )
