"""Who is at work in a run directory: the lease that a command holds, renews, and gives back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class LeaseRecord:
    """One lease; ``lease/0001.json`` and so on, of which the last counts.

    Attributes
    ----------
    owner
        Drawn by the command that holds it.
    host
        Name of its machine, for people.
    place
        Where its process id means something: the boot of a machine and a namespace of its processes.
    pid, started
        Its process: the id and the time since boot that it started at, as the system counts it.
    beat
        Grows while the owner lives.
    released
        It was given back.
    """

    owner: str
    host: str
    place: str
    pid: int
    started: str
    beat: int = 0
    released: bool = False

    def to_bytes(self) -> bytes:
        """Return the lease as JSON."""
        return (json.dumps(asdict(self)) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> LeaseRecord:
        """Read a lease back.

        Raises
        ------
        ValueError
            When it is none.
        """
        try:
            record = cls(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise ValueError(f"no lease ({type(error).__name__}: {error})") from error
        for field in fields(cls):
            if type(getattr(record, field.name)).__name__ != field.type:
                raise ValueError(f"no lease ({field.name} is no {field.type})")
        return record


def lease_name(number: int) -> str:
    """Return the name of a lease; a number of more digits just takes them."""
    return f"{number:04d}.json"
