"""Which process this is, and whether another one lives: told by more than its id, which others may have had or have."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

# In /proc/PID/stat, counted from after the command's name: the state, and the start in clock ticks since boot.
_STATE, _STARTED = 0, 19
_DEAD = {"Z", "X"}


@dataclass(frozen=True)
class ProcessId:
    """A process.

    Attributes
    ----------
    host
        Name of its machine.
    place
        Where its id means something: the boot of a machine and a namespace of its processes; empty where that is not
        known.
    pid
        Its id there.
    started
        When it started, as the system counts it; empty where that is not known.
    """

    host: str
    place: str
    pid: int
    started: str

    @classmethod
    def own(cls) -> "ProcessId":
        """Return this process."""
        return cls(socket.gethostname(), _place(), os.getpid(), _started(os.getpid()) or "")

    @property
    def is_dead(self) -> bool:
        """Whether it has certainly ended; False where this machine cannot tell."""
        return bool(self.place) and self.place == _place() and _started(self.pid) != self.started


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return when a process started; None when there is none of that id, or only what it left for its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] in _DEAD else fields[_STARTED]
