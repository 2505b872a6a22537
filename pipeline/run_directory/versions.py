"""The versions cut from a run: which exist, and who may write the next.

They lie in ``RUN/recuts/``, numbered from 1; the run itself counts as version 0. A number belongs to the command that
creates its record first.
"""

import posixpath

from pipeline.run_directory.record import create_record, read_record
from schemas.errors import RunConflictError
from schemas.records import run as layout
from schemas.records.run import RunRecord
from workers.storage.directory import Directory, split_location


def version_of(run: Directory, number: int) -> Directory:
    """Return the directory of a version; number 0 is the run itself."""
    return run / layout.RECUTS / layout.version_name(number) if number else run


def run_of_version(version: Directory) -> Directory | None:
    """Return the run that a version lies in; None if the version was moved out of it."""
    url = version.url.rpartition(f"/{layout.RECUTS}/")[0]
    return Directory.at(url) if url else None


def list_versions(run: Directory) -> dict[int, RunRecord | None]:
    """Return the record of every version by number, None for an unreadable one; the run itself is not among them."""
    fs, path = split_location((run / layout.RECUTS).url)
    fs.invalidate_cache(path)  # clients cache listings, and other commands write versions too
    names = [posixpath.basename(entry) for entry in fs.ls(path, detail=False)] if fs.isdir(path) else []
    numbers = sorted(number for number in map(layout.version_number, names) if number is not None)
    return {number: _record_or_none(version_of(run, number)) for number in numbers}


def find_version(run: Directory, record: RunRecord) -> int | None:
    """Return the version of the same job, finished or not, or None."""
    for number, owner in list_versions(run).items():
        if owner is not None and not owner.differences(record):
            return number
    return None


def claim_version(run: Directory, record: RunRecord) -> int:
    """Create the next version's record and return its number.

    Raises
    ------
    RunConflictError
        If another command has just claimed a version for the same job.
    """
    number = max(list_versions(run), default=0)
    while True:
        number += 1
        version = version_of(run, number)
        try:
            create_record(version, record)
        except FileExistsError as error:
            owner = _record_or_none(version)
            if owner is not None and not owner.differences(record):
                raise RunConflictError(
                    f"another command has just claimed {version.url} with the same settings. Wait for it, then run "
                    "this one again."
                ) from error
        else:
            return number


def _record_or_none(run: Directory) -> RunRecord | None:
    try:
        return read_record(run)
    except (OSError, ValueError):
        return None
