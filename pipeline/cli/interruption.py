"""SIGTERM and SIGINT: the first signal ends a command in order and in time, the second one at once.

A scheduler that takes a machine back gives some seconds of notice, then kills. So the first signal drops the running
tasks, while finished work is on disk already. A command that still closes its cluster after `GRACE_S` seconds exits.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from schemas.errors import EXIT_INTERRUPTED

INTERRUPTED = "interrupted; run the same command again to finish."

# Kubernetes and SLURM kill after 30 s, Docker after 10.
GRACE_S = 8.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """While the block runs, raise KeyboardInterrupt in the main thread on the first signal and exit on the second."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = False

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is signal's
        nonlocal received
        if received:
            os._exit(EXIT_INTERRUPTED)
        received = True
        watchdog = threading.Timer(GRACE_S, _exit_late)
        watchdog.daemon = True
        watchdog.start()
        raise KeyboardInterrupt

    before = [signal.signal(number, handle) for number in _SIGNALS]
    try:
        yield
    finally:
        # After a signal the handlers stay until the process ends, so that a second one still ends it at once.
        if not received:
            for number, handler in zip(_SIGNALS, before, strict=True):
                signal.signal(number, handler)


def _exit_late() -> None:
    # Not through the console: the thread that hangs may hold its lock.
    os.write(sys.stderr.fileno(), f"paire: error: {INTERRUPTED}\n".encode())
    os._exit(EXIT_INTERRUPTED)
