"""The lease: which command works in a run directory. The command holds it, renews it and gives it back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class LeaseRecord:
    """One lease, in ``lease/0001.json`` and so on; the one with the highest number counts."""

    owner: str  # random name of the command that holds it
    host: str  # name of its machine, for people
    place: str  # where its process id is valid: boot of the machine and namespace of processes
    pid: int
    started: str  # time since boot at which the process started, as the system counts it
    beat: int = 0  # grows while the owner lives
    released: bool = False  # the owner has given it back

    def to_bytes(self) -> bytes:
        """Return the lease as JSON."""
        return (json.dumps(asdict(self)) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> LeaseRecord:
        """Read a lease back; raises `ValueError` if the bytes are not a lease."""
        try:
            record = cls(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise ValueError(f"not a lease ({type(error).__name__}: {error})") from error
        for field in fields(cls):
            if type(getattr(record, field.name)).__name__ != field.type:
                raise ValueError(f"not a lease ({field.name} is not {field.type})")
        return record


def lease_name(number: int) -> str:
    """Return the file name of a lease; numbers above 9999 have more digits."""
    return f"{number:04d}.json"
