"""Whose run directory it is: the record of a run, claimed before anything else is written."""

import importlib.metadata
import json
import platform
import secrets
from datetime import UTC, datetime

import pandas as pd

from schemas.config import Config, flatten
from schemas.errors import RunConflictError
from schemas.records import run as layout
from schemas.records.run import RunRecord
from schemas.tables.catalog import catalog_digest
from workers.storage.directory import Directory

VERSIONED_PACKAGES = ("paire", "dask", "distributed", "numpy", "pillow", "scipy", "torch", "torchvision", "zarr")


def new_record(source: str, catalog: pd.DataFrame, config: Config, weights_digest: str) -> RunRecord:
    """Return the record of a run that starts now."""
    return RunRecord(
        run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}",
        state=layout.RUNNING,
        source=source,
        options=flatten(config.decisive()),
        config_digest=config.digest(),
        catalog_digest=catalog_digest(catalog),
        weights_digest=weights_digest,
        versions={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in VERSIONED_PACKAGES},
        },
    )


def claim(run: Directory, record: RunRecord, *, fresh: bool = False) -> RunRecord:
    """Make the directory this run's, or return the record of the same job that it is already.

    Parameters
    ----------
    run
        The run directory.
    record
        Of the run that is to be there.
    fresh
        Let it be any job's, whose record is returned: it is to be started over.

    Raises
    ------
    RunConflictError
        When it belongs to another job, or is not empty and no run at all.
    """
    if not run.exists(layout.RUN_RECORD):
        if not run.is_empty():
            raise RunConflictError(
                f"{run.url} is not empty and holds no run (no {layout.RUN_RECORD}). Give --out a new directory."
            )
        try:
            create_record(run, record)
        except FileExistsError as error:
            raise RunConflictError(f"another run has just claimed {run.url}. Give --out another directory.") from error
        return record
    try:
        owner = read_record(run)
    except ValueError as error:
        raise RunConflictError(f"{error}. Give --out a new directory.") from error
    differences = owner.differences(record)
    if differences and not fresh:
        raise RunConflictError(
            f"{run.url} belongs to run {owner.run_id} with another configuration or archive: "
            f"{'; '.join(differences)}. Give --out a new directory, run with the old configuration, or start over with "
            "--fresh, which removes that run."
        )
    return owner


def start_over(run: Directory, record: RunRecord) -> RunRecord:
    """Remove all that a run has left in its directory and make it another's, whose record is returned.

    Other files stay. The record is replaced last, so that the directory always belongs to a run, and the
    proof that it is finished goes first.
    """
    for name in (layout.SUCCESS, *layout.MADE_BY_RUNS):
        run.remove(name)
    write_record(run, record)
    return record


def read_record(run: Directory) -> RunRecord:
    """Return the record of a run directory.

    Raises
    ------
    FileNotFoundError
        When there is none.
    ValueError
        When it is not a run's.
    """
    try:
        return RunRecord.from_bytes(run.read(layout.RUN_RECORD))
    except ValueError as error:
        raise ValueError(f"{run.url}/{layout.RUN_RECORD} cannot be read as a run record ({error})") from error


def create_record(run: Directory, record: RunRecord) -> None:
    """Write the record of a directory that has none; of several commands at once, one succeeds.

    Raises
    ------
    FileExistsError
        When there is one.
    """
    run.create(layout.RUN_RECORD, _record_bytes(record))


def write_record(run: Directory, record: RunRecord) -> None:
    """Replace the record of a run directory that is ours."""
    run.write(layout.RUN_RECORD, _record_bytes(record))


def _record_bytes(record: RunRecord) -> bytes:
    return (json.dumps(record.to_json(), indent=2, ensure_ascii=False) + "\n").encode()
