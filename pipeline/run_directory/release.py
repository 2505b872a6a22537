"""Whether to publish a judged run: the last decision, after everything else is written.

A result that the breakdown guard does not trust is complete except for ``_SUCCESS``, which consumers wait for. The
decision needs only the ledger and the options of ``guard``, so a person can look at the result first and accept it
later, and nothing is computed again.
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

NAMED_GROUPS = 3  # in an error message; the ledger has all of them


def conclude(run: Directory, record: RunRecord, ledger: Mapping[str, Any], guard: GuardConfig) -> None:
    """Write the final record of a run: ``done``, or ``untrustworthy`` unless ``guard`` accepts that.

    All files but ``_SUCCESS`` must be written already.
    """
    found, refused = stopping_sentences(ledger), _refused(ledger, guard)
    state = layout.UNTRUSTWORTHY if refused else layout.DONE
    is_accepted = bool(found) and not refused
    if is_accepted:
        logger.warning("%d of %d groups are untrustworthy; the options accept that", len(found), len(ledger["groups"]))
    write_record(run, dataclasses.replace(record, state=state, accepted_untrustworthy=is_accepted))
    if not refused:
        logger.info("published %s", run.url)


def release(run: Directory, ledger: Mapping[str, Any], guard: GuardConfig) -> None:
    """Write ``_SUCCESS``, the last file of a run, and remove what only unfinished runs need; call `conclude` first.

    Raises
    ------
    UntrustworthyError
        If the breakdown guard does not trust the result and ``guard`` does not accept it. ``_SUCCESS`` is missing then.
    """
    refused = _refused(ledger, guard)
    if not refused:
        run.write(layout.SUCCESS, b"")
    # Not earlier: until now a repeated command would have continued from them.
    remove_leftovers(run)
    _remove_partial_files(run)
    if refused:
        raise UntrustworthyError(_refusal(run, refused, len(ledger["groups"])))


def remove_leftovers(run: Directory) -> None:
    """Remove what only unfinished runs need."""
    for name in (layout.JOURNAL, layout.RECEIPTS):
        run.remove(name)


def _remove_partial_files(run: Directory) -> None:
    """Remove the partial files of killed commands; object stores have none."""
    if not is_url(run.url):
        for name in (layout.FEATURES, layout.DISTANCES, layout.MODEL):
            remove_partial_files(f"{run.url}/{name}")
        for path in Path(run.url).glob(f"*{PARTIAL}"):
            path.unlink(missing_ok=True)


def reconsider(run: Directory, record: RunRecord, guard: GuardConfig) -> dict[str, Any] | None:
    """Publish an untrustworthy run if ``guard`` accepts it now; return its ledger, or None for any other run.

    Raises
    ------
    UntrustworthyError
        If it is still not accepted; nothing is written then.
    """
    if record.state != layout.UNTRUSTWORTHY:
        return None
    ledger = read_ledger(run)
    if not _refused(ledger, guard):
        conclude(run, record, ledger, guard)
    release(run, ledger, guard)
    return ledger


def _refused(ledger: Mapping[str, Any], guard: GuardConfig) -> dict[str, list[str]]:
    """Return the untrustworthy groups and why, without what ``guard`` accepts."""
    return {} if guard.accept_untrustworthy else stopping_sentences(ledger, accepted=guard.accept_conditions)


def _refusal(run: Directory, refused: Mapping[str, list[str]], groups: int) -> str:
    named = [f"group {group!r}: {sentences[0]}" for group, sentences in list(refused.items())[:NAMED_GROUPS]]
    more = len(refused) - len(named)
    return " ".join(
        [
            f"{run.url} is not published: {len(refused)} of {groups} groups are untrustworthy.",
            *named,
            *([f"And {more} more; see {layout.LEDGER}."] if more else []),
            f"Everything but {layout.SUCCESS} is written: look at {layout.MANIFEST}; mend the archive or split groups "
            "with --group-by and clean into a new directory; try another strategy with 'paire recut'; or publish the "
            "result as it is: give the same command with --accept-untrustworthy.",
        ]
    )
