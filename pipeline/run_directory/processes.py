"""Which process this is, and whether another one lives. An id alone cannot tell: systems and machines reuse it."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

# Fields of /proc/PID/stat after the command's name: the state, and the start in clock ticks since boot.
_STATE, _STARTED = 0, 19
_DEAD = {"Z", "X"}


@dataclass(frozen=True)
class ProcessId:
    """A process, told from all others that have or had its id."""

    host: str
    place: str  # where the id holds: the boot and the process namespace; empty if unknown
    pid: int
    started: str  # in clock ticks since boot; empty if unknown

    @classmethod
    def own(cls) -> "ProcessId":
        """Return this process."""
        return cls(socket.gethostname(), _place(), os.getpid(), _started(os.getpid()) or "")

    @property
    def is_dead(self) -> bool:
        """Whether it has certainly ended; False if this machine cannot tell."""
        return bool(self.place) and self.place == _place() and _started(self.pid) != self.started


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Return when a process started; None if there is no such process, or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[_STATE] in _DEAD else fields[_STARTED]
