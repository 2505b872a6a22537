"""The cleaning job, as Python callers start it."""

import multiprocessing
import os
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from paire.options import config_from
from paire.run import Run, open_run
from pipeline.cluster.progress import Reporter
from pipeline.commands.clean import clean as run_job
from schemas.config import Config
from schemas.errors import ClusterError, ConfigError


def clean(
    source: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    config: Config | None = None,
    scheduler: str | None = None,
    progress: bool = False,
    fresh: bool = False,
    **sections: Mapping[str, Any] | None,
) -> Run:
    """Clean an archive and return the published run.

    The same call finishes an unfinished run; it opens a finished one without computing anything. A script must make
    the call below ``if __name__ == "__main__":``, because every local worker process imports the script.

    Parameters
    ----------
    source
        Folder, fsspec URL, or ``.csv`` / ``.parquet`` index.
    out
        The run directory, path or URL.
    config
        All options at once, instead of ``sections``.
    scheduler
        Address of a Dask scheduler, like ``tcp://host:8786``. None starts a local cluster, unless
        ``DASK_SCHEDULER_ADDRESS`` or the options name a scheduler.
    progress
        Show progress bars on a terminal. Log lines go to the logger ``paire`` either way.
    fresh
        Start over: remove whatever run is in ``out``.
    **sections
        Options by section, like ``trim={"strategy": "grow"}``.

    Raises
    ------
    ConfigError
        If an option is unknown, of the wrong type or out of range, or ``config`` and ``sections`` are both given.
    UntrustworthyError
        If the breakdown guard does not trust the result. All of it is written except ``_SUCCESS``; the same call
        with ``guard={"accept_untrustworthy": True}`` publishes it.
    RunConflictError
        If ``out`` belongs to another job, or another command is at work in it.
    ClusterError
        If the cluster cannot be reached or does not start.
    PaireError
        For everything else that the caller can mend; see ``schemas.errors``.
    """
    _refuse_while_a_worker_starts()
    result = run_job(
        os.fspath(source),
        os.fspath(out),
        _chosen(config, sections),
        scheduler=scheduler,
        reporter=Reporter(Console(stderr=True)) if progress else None,
        fresh=fresh,
    )
    return open_run(result.run)


def _refuse_while_a_worker_starts() -> None:
    # The attribute by which multiprocessing itself notices that a process is still importing the script.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ClusterError(
            "paire.clean was called while a worker process was importing your script. Put the call below "
            "'if __name__ == \"__main__\":', or compute without processes: cluster={'processes': False}."
        )


def _chosen(config: Config | None, sections: Mapping[str, Mapping[str, Any] | None]) -> Config:
    if config is None:
        return config_from(sections)
    if sections:
        raise ConfigError(f"config and {', '.join(sections)} are both given. Give a Config or sections, not both.")
    if not isinstance(config, Config):
        raise ConfigError(
            f"config is of type {type(config).__name__}, expected paire.Config. Give a dictionary for each section "
            "instead, like trim={'eta': 2.6}."
        )
    return config
