"""Whether a judged run is published: the last word after everything is written, by the findings in its ledger.

A result that the breakdown guard does not trust lies complete in its directory, but without ``_SUCCESS``, which
consumers wait for. The decision needs nothing but the ledger and the options of ``guard``, so that a person can look at
the result first and accept it later, without anything being computed again.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.run_directory.record import write_record
from pipeline.run_directory.tables import read_ledger
from schemas.config import GuardConfig
from schemas.errors import UntrustworthyError
from schemas.records import run as layout
from schemas.records.ledger import stopping_sentences
from schemas.records.run import RunRecord
from workers.storage.directory import Directory, is_url
from workers.storage.local_files import PARTIAL, remove_partial_files

logger = logging.getLogger("paire")

# A message of more groups is read by nobody; all of them are in the ledger.
NAMED_GROUPS = 3


def conclude(run: Directory, record: RunRecord, ledger: Mapping[str, Any], guard: GuardConfig) -> None:
    """Write the final record of a run: ``done``, or ``untrustworthy`` unless that is accepted.

    Parameters
    ----------
    run
        The run directory, in which all else is written.
    record
        The record so far.
    ledger
        The run's books.
    guard
        What is accepted.
    """
    found, refused = stopping_sentences(ledger), _refused(ledger, guard)
    state = layout.UNTRUSTWORTHY if refused else layout.DONE
    is_accepted = bool(found) and not refused
    if is_accepted:
        logger.warning("%d of %d groups are not to be trusted, which is accepted", len(found), len(ledger["groups"]))
    write_record(run, dataclasses.replace(record, state=state, accepted_untrustworthy=is_accepted))
    if not refused:
        logger.info("published %s", run.url)


def release(run: Directory, ledger: Mapping[str, Any], guard: GuardConfig) -> None:
    """Write ``_SUCCESS``, the last file of a run, and remove what only unfinished runs need.

    Parameters
    ----------
    run, ledger, guard
        As for `conclude`, which goes before.

    Raises
    ------
    UntrustworthyError
        When the result is not to be trusted and that is not accepted.
    """
    refused = _refused(ledger, guard)
    if not refused:
        run.write(layout.SUCCESS, b"")
    # Not before: until now they were what a repeated command would go on from.
    remove_leftovers(run)
    _remove_partial_files(run)
    if refused:
        raise UntrustworthyError(_refusal(run, refused, len(ledger["groups"])))


def remove_leftovers(run: Directory) -> None:
    """Remove what only unfinished runs need."""
    for name in (layout.JOURNAL, layout.RECEIPTS):
        run.remove(name)


def _remove_partial_files(run: Directory) -> None:
    """Remove what commands that were killed left of files; object stores have no such files."""
    if not is_url(run.url):
        for name in (layout.FEATURES, layout.DISTANCES, layout.MODEL):
            remove_partial_files(f"{run.url}/{name}")
        for path in Path(run.url).glob(f"*{PARTIAL}"):
            path.unlink(missing_ok=True)


def reconsider(run: Directory, record: RunRecord, guard: GuardConfig) -> dict[str, Any] | None:
    """Publish a run that was found untrustworthy, if that is accepted now.

    Parameters
    ----------
    run
        The run directory.
    record
        Its record.
    guard
        What is accepted now.

    Returns
    -------
    dict or None
        The ledger; None where the run was not found untrustworthy, or not judged to the end.

    Raises
    ------
    UntrustworthyError
        When it is still not accepted; then nothing is written.
    """
    if record.state != layout.UNTRUSTWORTHY:
        return None
    ledger = read_ledger(run)
    if not _refused(ledger, guard):
        conclude(run, record, ledger, guard)
    release(run, ledger, guard)
    return ledger


def _refused(ledger: Mapping[str, Any], guard: GuardConfig) -> dict[str, list[str]]:
    """Return the groups that cannot be trusted and why, without those that are accepted."""
    return {} if guard.accept_untrustworthy else stopping_sentences(ledger, accepted=guard.accept_conditions)


def _refusal(run: Directory, refused: Mapping[str, list[str]], groups: int) -> str:
    """Say which groups cannot be trusted and why, and what to do."""
    named = [f"group {group!r}: {sentences[0]}" for group, sentences in list(refused.items())[:NAMED_GROUPS]]
    more = len(refused) - len(named)
    return " ".join(
        [
            f"{run.url} is not published: {len(refused)} of {groups} groups are not to be trusted.",
            *named,
            *([f"And {more} more; see {layout.LEDGER}."] if more else []),
            f"All is written but {layout.SUCCESS}: look at {layout.MANIFEST}; mend the archive or split groups with "
            "--group-by and clean into a new directory; try another strategy with 'paire recut'; or give the same "
            "command with --accept-untrustworthy, which publishes the result as it is.",
        ]
    )
