"""One command at work in a run directory at a time, on disk and in object stores, whatever clocks say.

Leases are numbered files; the last one counts. The lease goes to whoever creates the next number first. Only its owner
renews it, by writing it again with a larger beat, and gives it back by saying so in it.

A command that finds a lease, neither given back nor of a dead process of this machine, watches it. An owner that lives
shows another beat soon. One that shows none for `TAKEOVER_S` seconds of the watcher's own monotonic clock has lost its
lease. An owner that was asleep, or cut off, notices the next number, or that it could not renew for that long, and
stops.
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

# An owner renews its lease so often, which a watcher waits for at most a few times ...
BEAT_S = 5.0
# ... and a dozen beats are missing when it is taken for dead.
TAKEOVER_S = 60.0

# A watcher looks so often.
GLANCE_S = 0.5


class Lease:
    """The right to work in a run directory, for as long as the block of a ``with`` runs.

    Parameters
    ----------
    run
        The run directory.

    Raises
    ------
    RunConflictError
        On entering, when another command is at work there; on leaving, when another one has taken over.
    StorageError
        When the lease cannot be written; on leaving, when it could not be renewed for too long.
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
        """Let no lease remain when this one ends: there is nothing left to do in the directory."""
        self._is_last = True

    def require(self) -> None:
        """Raise RunConflictError where another command has taken over."""
        if self._lost.is_set():
            raise self._taken_over()

    def _taken_over(self) -> RunConflictError | StorageError:
        if self._failure is not None:
            return StorageError(
                f"the lease of {self._run.url} could not be renewed for {TAKEOVER_S - 2 * BEAT_S:g} s, after which "
                f"another command may take over: {self._failure}"
            )
        return RunConflictError(
            f"another command took {self._run.url} over, because this one gave no sign of life for {TAKEOVER_S:g} s. "
            "Let that one finish it."
        )

    def _acquire(self) -> int:
        """Return the number of the lease that is ours now."""
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
        """Return the last lease after a number, and what is in it; the number itself where it is the last."""
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
        """Return when a lease is over: given back, or without a beat for too long."""
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
            f"another command is at work in {self._run.url}: process {owner.pid} on {owner.host}. Wait until it has "
            "ended, or end it, then run this one again."
        )

    def _renew_until_ended(self) -> None:
        """Renew the lease every few seconds; interrupt the job when that has failed for too long."""
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
            # A wait for workers ends by a signal only. Jobs in other threads stop where they next look.
            if self._holder == threading.main_thread().ident:
                signal.pthread_kill(self._holder, signal.SIGINT)
            return


def refuse_if_at_work(run: Directory) -> None:
    """Raise at once where a live process of this machine is at work in a run directory; others are not looked for.

    Raises
    ------
    RunConflictError
        When one is.
    """
    lease = Lease(run)
    _, content = lease._last(0)
    owner = None if content is None or _is_over(content) else _owner(content)
    if owner is not None and _is_here(owner):
        raise lease._conflict(owner)


def _owner(content: bytes) -> LeaseRecord | None:
    """Return a lease; None for a torn one, whose owner died or is writing it."""
    try:
        return LeaseRecord.from_bytes(content)
    except ValueError:
        return None


def _process(owner: LeaseRecord) -> ProcessId:
    return ProcessId(owner.host, owner.place, owner.pid, owner.started)


def _is_over(content: bytes) -> bool:
    """Tell whether a lease was given back, or its owner is certainly dead."""
    owner = _owner(content)
    return owner is not None and (owner.released or _process(owner).is_dead)


def _is_here(owner: LeaseRecord) -> bool:
    """Tell whether an owner that is not dead is a process of this machine, which then certainly lives."""
    return bool(owner.place) and owner.place == ProcessId.own().place
