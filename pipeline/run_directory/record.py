"""The record that says which run a directory belongs to; a command writes it before anything else."""

import importlib.metadata
import json
import platform
import secrets
from contextlib import suppress
from datetime import UTC, datetime

import pandas as pd

from schemas.config import Config, flatten
from schemas.errors import RunConflictError
from schemas.records import run as layout
from schemas.records.run import RunRecord
from schemas.tables.catalog import catalog_digest
from workers.storage.directory import Directory

VERSIONED_PACKAGES = ("paire", "dask", "distributed", "numpy", "pillow", "scipy", "torch", "torchvision", "zarr")
OPTIONAL_PACKAGES = ("timm",)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results can depend on."""
    packages = {name: importlib.metadata.version(name) for name in VERSIONED_PACKAGES}
    for name in OPTIONAL_PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {"python": platform.python_version(), **packages}


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
        versions=package_versions(),
    )


def claim(run: Directory, record: RunRecord, *, fresh: bool = False) -> RunRecord:
    """Write the record into an empty directory, or return the record of the same job that is there already.

    With ``fresh``, return the record of any job: the caller starts over.

    Raises
    ------
    RunConflictError
        If the directory belongs to another job, or holds other files but no run.
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
    """Remove everything that a run made, replace its record and return the new one; other files stay.

    ``_SUCCESS`` goes first, and the record is replaced last, so that the directory always belongs to a run.
    """
    for name in (layout.SUCCESS, *layout.MADE_BY_RUNS):
        run.remove(name)
    write_record(run, record)
    return record


def read_record(run: Directory) -> RunRecord:
    """Return the record of a run directory; raises FileNotFoundError without one, ValueError if it is malformed."""
    try:
        return RunRecord.from_bytes(run.read(layout.RUN_RECORD))
    except ValueError as error:
        raise ValueError(f"{run.url}/{layout.RUN_RECORD} cannot be read as a run record ({error})") from error


def create_record(run: Directory, record: RunRecord) -> None:
    """Write the first record of a directory; raises FileExistsError for all but one of several commands."""
    run.create(layout.RUN_RECORD, _record_bytes(record))


def write_record(run: Directory, record: RunRecord) -> None:
    """Replace the record of a run directory whose lease this command holds."""
    run.write(layout.RUN_RECORD, _record_bytes(record))


def _record_bytes(record: RunRecord) -> bytes:
    return (json.dumps(record.to_json(), indent=2, ensure_ascii=False) + "\n").encode()
