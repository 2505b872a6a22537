"""One command at work in a run directory at a time, on disk and in object stores, whatever clocks say.

Leases are numbered files; the last one counts. The lease goes to the command that creates the next number first. Only
its owner writes it again: with a larger beat to renew it, and marked as released to give it back.

A command watches a lease that is not released, unless its owner is a dead process of this machine. A live owner soon
writes another beat. An owner that writes none for `TAKEOVER_S` seconds of the watcher's monotonic clock loses its
lease. An owner that was asleep or cut off sees the next number before it renews, or sees that it could not renew for
about that long, and stops.
"""

import logging
import signal
import threading
import time
from dataclasses import asdict, replace
from types import TracebackType
from uuid import uuid4

from pipeline.run_directory.processes import ProcessId
from schemas.errors import RunConflictError, StorageError
from schemas.records.lease import LeaseRecord, lease_name
from schemas.records.run import LEASE
from workers.storage.directory import Directory

logger = logging.getLogger("paire")

BEAT_S = 5.0  # between two renewals
TAKEOVER_S = 60.0  # without a beat, a dozen renewals, before a watcher takes over
GLANCE_S = 0.5  # between two looks of a watcher


class Lease:
    """The right to work in a run directory while a ``with`` block runs.

    Raises
    ------
    RunConflictError
        On entry, if another command is at work there; on exit, if another one has taken over.
    StorageError
        If the lease cannot be written; on exit, if renewing failed for so long that another may have taken over.
    """

    def __init__(self, run: Directory) -> None:
        self._run, self._leases = run, run / LEASE
        self._record = LeaseRecord(owner=uuid4().hex, **asdict(ProcessId.own()))
        self._number, self._is_last = 0, False
        self._failure: OSError | StorageError | None = None
        self._ended, self._lost = threading.Event(), threading.Event()
        self._renewing = threading.Thread(target=self._renew_until_ended, name="renew-lease", daemon=True)

    def __enter__(self) -> "Lease":
        self._number = self._acquire()
        self._holder = threading.get_ident()
        self._renewing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._renewing.join()
        if self._lost.is_set():
            raise self._taken_over() from error
        try:
            if self._is_last:
                self._run.remove(LEASE)
            else:
                self._leases.write(lease_name(self._number), replace(self._record, released=True).to_bytes())
        except (OSError, StorageError) as failure:
            logger.warning("%s: the lease could not be given back (%s); it runs out by itself", self._run.url, failure)

    def end_for_good(self) -> None:
        """Remove all leases on exit: nothing is left to do in the directory."""
        self._is_last = True

    def require(self) -> None:
        """Raise RunConflictError if another command has taken over, StorageError if one may have."""
        if self._lost.is_set():
            raise self._taken_over()

    def _taken_over(self) -> RunConflictError | StorageError:
        if self._failure is not None:
            return StorageError(
                f"the lease of {self._run.url} could not be renewed for {TAKEOVER_S - 2 * BEAT_S:g} s, so another "
                f"command may take over: {self._failure}"
            )
        return RunConflictError(
            f"another command took over {self._run.url}, because this one gave no sign of life for {TAKEOVER_S:g} s. "
            "Let that one finish it."
        )

    def _acquire(self) -> int:
        number = 0
        while True:
            number, found = self._last(number)
            if found is not None and not _is_over(found):
                self._watch(number, found)
            try:
                self._leases.create(lease_name(number + 1), self._record.to_bytes())
            except FileExistsError:
                continue
            return number + 1

    def _last(self, number: int) -> tuple[int, bytes | None]:
        """Return the number and content of the last lease, searching from a known number."""
        content = self._read(number) if number else None
        while (following := self._read(number + 1)) is not None:
            number, content = number + 1, following
        return number, content

    def _read(self, number: int) -> bytes | None:
        try:
            return self._leases.read(lease_name(number))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _watch(self, number: int, content: bytes) -> None:
        """Wait until a lease is over; raise RunConflictError if its owner lives."""
        owner = _owner(content)
        if owner is not None and _is_here(owner):
            raise self._conflict(owner)
        logger.info(
            "%s: another command was at work here%s; waiting at most %g s for a sign of life",
            self._run.url,
            f", process {owner.pid} on {owner.host}" if owner else "",
            TAKEOVER_S,
        )
        watched = time.monotonic()
        while time.monotonic() - watched < TAKEOVER_S:
            time.sleep(GLANCE_S)
            now = self._read(number)
            if now is None or _is_over(now) or self._read(number + 1) is not None:
                return
            beating = _owner(now)
            if now != content and beating is not None:
                raise self._conflict(beating)
        logger.warning("%s: no sign of life for %g s; taking over", self._run.url, TAKEOVER_S)

    def _conflict(self, owner: LeaseRecord) -> RunConflictError:
        return RunConflictError(
            f"another command is at work in {self._run.url}: process {owner.pid} on {owner.host}. Wait until it "
            "ends, or end it, then run this one again."
        )

    def _renew_until_ended(self) -> None:
        """Renew the lease every few seconds; interrupt the job when that fails for too long."""
        renewed = time.monotonic()
        while not self._ended.wait(BEAT_S):
            self._record = replace(self._record, beat=self._record.beat + 1)
            try:
                if self._read(self._number + 1) is None:
                    self._leases.write(lease_name(self._number), self._record.to_bytes())
                    renewed = time.monotonic()
                    continue
            except (OSError, StorageError) as error:
                logger.warning("%s: the lease could not be renewed (%s)", self._run.url, error)
                if time.monotonic() - renewed < TAKEOVER_S - 2 * BEAT_S:
                    continue
                self._failure = error
            self._lost.set()
            # Only a signal ends a wait for workers. Jobs in other threads stop at their next `require`.
            if self._holder == threading.main_thread().ident:
                signal.pthread_kill(self._holder, signal.SIGINT)
            return


def refuse_if_at_work(run: Directory) -> None:
    """Raise RunConflictError if a live process of this machine is at work in a run directory, without waiting."""
    lease = Lease(run)
    _, content = lease._last(0)
    owner = None if content is None or _is_over(content) else _owner(content)
    if owner is not None and _is_here(owner):
        raise lease._conflict(owner)


def _owner(content: bytes) -> LeaseRecord | None:
    """Parse a lease; None for a torn one, whose owner died while writing or is writing it now."""
    try:
        return LeaseRecord.from_bytes(content)
    except ValueError:
        return None


def _process(owner: LeaseRecord) -> ProcessId:
    return ProcessId(owner.host, owner.place, owner.pid, owner.started)


def _is_over(content: bytes) -> bool:
    """Tell whether a lease is released, or its owner certainly dead."""
    owner = _owner(content)
    return owner is not None and (owner.released or _process(owner).is_dead)


def _is_here(owner: LeaseRecord) -> bool:
    """Tell whether an owner is on this machine, where one that `_is_over` did not find dead certainly lives."""
    return bool(owner.place) and owner.place == ProcessId.own().place
