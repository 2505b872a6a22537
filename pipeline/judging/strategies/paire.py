"""The fourth stage: the iteration. Each pass fits on the clean set, measures all images, and selects anew.

This file holds what all strategies share, and the paper's own (section 3.3.1) with its ablations; `grow.py` has those
that go beyond it.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.arrays import Floats, Mask
from schemas.config import TrimConfig
from workers.verdict.selection import select

logger = logging.getLogger("paire")


UNCHANGED = "unchanged"
MAJORITY = "majority clean"
CYCLE = "cycle"
MAX_ITERATIONS = "maximum of iterations"
SINGLE = "single pass"
NO_TRIMMING = "no trimming"
AMBIGUOUS = "no clear boundary"


class Measurement(Protocol):
    """What the iteration needs to know of a pass."""

    @property
    def thresholds(self) -> Floats:
        """(rows, columns) float64."""

    @property
    def margin(self) -> Floats:
        """(images,) float64."""


@dataclass(frozen=True)
class Iteration:
    """One pass, as ``iterations.parquet`` records it."""

    iteration: int
    n_fitted: int
    n_clean: int
    n_added: int
    n_removed: int
    n_positions_trimmed: int
    floor_applied: bool
    seconds: float


@dataclass(frozen=True)
class Trimming:
    """How a group's clean set came out.

    Attributes
    ----------
    clean
        (images,) bool.
    fitted
        (images,) bool: the images that the last pass fitted on.
    published
        (images,) bool: the images to fit the Gaussian map on.
    last_changed
        (images,) int16: the last pass that changed the image's verdict; 0 for never.
    thresholds
        (rows, columns) float64: those of the last pass, which decided.
    smoothing
        Side of the square of positions that log distances are averaged over before they meet the thresholds.
    nearest
        Share of them that each position of the map is fitted on: those nearest there.
    history
        (passes, images) bool: the clean set after each pass.
    iterations
        The passes.
    stop_reason
        Why there was no further one.
    """

    clean: Mask
    fitted: Mask
    published: Mask
    last_changed: NDArray[np.int16]
    thresholds: Floats
    history: Mask
    iterations: tuple[Iteration, ...]
    stop_reason: str
    smoothing: int = 1
    nearest: float = 1.0

    @property
    def floor_applied(self) -> bool:
        """Whether the floor chose the clean set: in the last pass that changed it, if any did."""
        changing = [step for step in self.iterations if step.n_added or step.n_removed]
        return (changing or list(self.iterations))[-1].floor_applied


@dataclass
class PassLog:
    """The passes so far, and the clean set they led to.

    Attributes
    ----------
    measured
        (images,) bool: the images that take part.
    name
        What to call the group in the log.
    clean
        (images,) bool: the present clean set; all images that take part, before the first pass.
    """

    measured: Mask
    name: str
    clean: Mask = field(init=False)

    def __post_init__(self) -> None:
        self.clean = self.measured
        self._fitted = self.measured
        self._history: list[Mask] = []
        self._iterations: list[Iteration] = []
        self._last_changed = np.zeros(len(self.measured), np.int16)
        self._seen = {_digest(self.clean)}
        self._started = time.monotonic()

    @property
    def number(self) -> int:
        """The number of the next pass, from 1."""
        return len(self._iterations) + 1

    @property
    def last(self) -> Iteration:
        """The last pass."""
        return self._iterations[-1]

    def record(
        self, clean: Mask, *, positions_trimmed: int, floor_applied: bool = False, fitted: Mask | None = None
    ) -> bool:
        """Take note of a pass and its clean set; returns whether that set had been seen before.

        Parameters
        ----------
        clean
            (images,) bool: the clean set.
        positions_trimmed
            Positions that had a threshold.
        floor_applied
            Whether the floor chose the clean set.
        fitted
            (images,) bool: the images that were fitted; None for the clean set before.
        """
        self._fitted = self.clean if fitted is None else fitted
        added, removed = clean & ~self.clean, self.clean & ~clean
        self._last_changed[added | removed] = self.number
        self._iterations.append(
            Iteration(
                iteration=self.number,
                n_fitted=int(self._fitted.sum()),
                n_clean=int(clean.sum()),
                n_added=int(added.sum()),
                n_removed=int(removed.sum()),
                n_positions_trimmed=positions_trimmed,
                floor_applied=floor_applied,
                seconds=time.monotonic() - self._started,
            )
        )
        self.clean = clean
        self._history.append(clean)
        self._started = time.monotonic()
        was_seen = _digest(clean) in self._seen
        self._seen.add(_digest(clean))
        self._show()
        return was_seen

    def result(
        self,
        thresholds: Floats,
        stop_reason: str,
        *,
        published: Mask | None = None,
        smoothing: int = 1,
        nearest: float = 1.0,
    ) -> Trimming:
        """Return how it ended, see `Trimming`; the clean set is published where nothing else is said."""
        return Trimming(
            clean=self.clean,
            fitted=self._fitted,
            published=self.clean if published is None else published,
            last_changed=self._last_changed,
            thresholds=thresholds,
            history=np.stack(self._history),
            iterations=tuple(self._iterations),
            stop_reason=stop_reason,
            smoothing=smoothing,
            nearest=nearest,
        )

    def _show(self) -> None:
        step = self.last
        logger.info(
            "%s: pass %d: %d of %d clean (+%d -%d), %d positions trimmed%s",
            self.name,
            step.iteration,
            step.n_clean,
            int(self.measured.sum()),
            step.n_added,
            step.n_removed,
            step.n_positions_trimmed,
            ", floor applied" if step.floor_applied else "",
            extra={"group": self.name},
        )


def trim(
    measure: Callable[[Mask, int], Measurement], measured: Mask, config: TrimConfig, *, name: str = ""
) -> Trimming:
    """Iterate until the clean set is settled; one pass for ``trim-once``, and none that excludes for ``none``.

    It is settled when a pass leaves it unchanged, when more than ``stop_fraction`` of the images are clean (the
    paper's stop), when a set seen before comes back, or after ``max_iterations``.

    Parameters
    ----------
    measure
        Runs one pass: takes the images to fit on and the pass number from 1.
    measured
        (images,) bool: the images that take part.
    config
        The trimming's parameters.
    name
        What to call the group in the log.
    """
    log = PassLog(measured, name)
    while True:
        result = measure(log.clean, log.number)
        if config.strategy == "none":
            log.record(measured, positions_trimmed=0)
            return log.result(np.full_like(result.thresholds, np.inf), NO_TRIMMING)
        selection = select(result.margin, measured, config)
        was_seen = log.record(
            selection.clean,
            positions_trimmed=int(np.isfinite(result.thresholds).sum()),
            floor_applied=selection.floor_applied,
        )
        reason = _stop_reason(log, was_seen, config)
        if reason:
            return log.result(result.thresholds, reason)


def _stop_reason(log: PassLog, was_seen: bool, config: TrimConfig) -> str | None:
    if not log.last.n_added and not log.last.n_removed:
        return UNCHANGED
    if config.strategy == "trim-once":
        return SINGLE
    if log.last.n_clean > config.stop_fraction * int(log.measured.sum()):
        return MAJORITY
    if was_seen:
        return CYCLE
    if log.last.iteration >= config.max_iterations:
        return MAX_ITERATIONS
    return None


def _digest(mask: Mask) -> bytes:
    return hashlib.sha256(np.packbits(mask).tobytes()).digest()
