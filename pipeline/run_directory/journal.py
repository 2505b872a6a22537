"""The finished passes of a group's judging, so that an interrupted job continues after the last one.

The job replays the strategy. Every pass has a number; the journal keeps its outcome under that number, with a digest
of everything that the outcome depends on. A finished pass returns its outcome at once; the first unfinished one is
computed whole. So the stored distances are always those of the last pass that ran, as without the interruption. When a
group is finished, its ending replaces its passes, see `pipeline.judging.result`.

Entries are NumPy archives of plain arrays with checksums; nothing in them is ever executed.
"""

import hashlib
import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.storage.directory import Directory

Arrays = Mapping[str, NDArray[Any]]

ENDING = "ending.npz"

_KEY = "key"


class StaleJournalError(Exception):
    """The journal belongs to another judging or is damaged; the caller must judge the group again."""


class Journal:
    """The journal of one group; ``group`` is a digest of its images, and entries of another digest are stale."""

    def __init__(self, directory: Directory, group: str) -> None:
        self._directory, self._group = directory, group
        self._number, self._key = 0, ""

    @property
    def is_begun(self) -> bool:
        """Whether at least one pass is finished."""
        return self._directory.exists(_name(1))

    def clear(self) -> None:
        """Remove all entries."""
        self._directory.remove("")
        self._number = 0

    def recall(self, kind: str, fitted: NDArray[np.bool_], **parameters: object) -> dict[str, NDArray[Any]] | None:
        """Return the outcome of the next pass; None if it is not finished, and the caller must compute and `note` it.

        The arguments are everything that the outcome depends on.

        Raises
        ------
        StaleJournalError
            If the entry is of another pass, or cannot be read.
        """
        self._key = self._digest(kind, fitted.tobytes(), parameters)
        self._number += 1
        return self._read(_name(self._number), self._key)

    def expects(self, kind: str, fitted: NDArray[np.bool_], **parameters: object) -> bool:
        """Tell whether this is the next pass and it is finished; raises StaleJournalError like `recall`."""
        found = self._read(_name(self._number + 1), self._digest(kind, fitted.tobytes(), parameters))
        return found is not None

    def note(self, outcome: Arrays) -> None:
        """Keep the outcome of the pass that was recalled last; all its distances must be stored already."""
        self._write(_name(self._number), self._key, outcome)

    def ending(self) -> dict[str, NDArray[Any]] | None:
        """Return how the group's judging ended, or None."""
        return self._read(ENDING, self._group)

    def note_ending(self, ending: Arrays) -> None:
        """Keep how the group's judging ended, in place of its passes."""
        self._write(ENDING, self._group, ending)
        for number in range(self._number, 0, -1):
            self._directory.remove(_name(number))

    def _digest(self, kind: str, fitted: bytes, parameters: Mapping[str, object]) -> str:
        said = json.dumps([self._group, kind, parameters], sort_keys=True).encode()
        return hashlib.sha256(said + b"\0" + fitted).hexdigest()

    def _write(self, name: str, key: str, arrays: Arrays) -> None:
        content = BytesIO()
        members: dict[str, Any] = {_KEY: np.array(key), **arrays}
        np.savez(content, **members)
        self._directory.write(name, content.getvalue())

    def _read(self, name: str, key: str) -> dict[str, NDArray[Any]] | None:
        try:
            content = self._directory.read(name)
        except FileNotFoundError:
            return None
        try:
            with np.load(BytesIO(content), allow_pickle=False) as stored:
                arrays = {each: stored[each] for each in stored.files}
        except Exception as error:  # archives and their codecs raise anything on torn bytes
            raise StaleJournalError(f"{self._directory.url}/{name} cannot be read") from error
        if arrays.pop(_KEY, np.array("")).tolist() != key:
            raise StaleJournalError(f"{self._directory.url}/{name} is of another pass")
        return arrays


def _name(number: int) -> str:
    return f"{number:04d}.npz"
