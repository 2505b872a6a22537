"""The fourth stage: the iteration (paper, section 3.3.1). Each pass fits on the clean set, measures all, selects."""

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.config import TrimConfig
from workers.selection import select

logger = logging.getLogger("paire")

Mask = NDArray[np.bool_]

UNCHANGED = "unchanged"
MAJORITY = "majority clean"
CYCLE = "cycle"
MAX_ITERATIONS = "maximum of iterations"


class Measurement(Protocol):
    """What the iteration needs to know of a pass."""

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """(rows, columns) float64."""

    @property
    def margin(self) -> NDArray[np.float64]:
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
    last_changed
        (images,) int16: the last pass that changed the image's verdict; 0 for never.
    thresholds
        (rows, columns) float64: those of the last pass, which decided.
    history
        (passes, images) bool: the clean set after each pass.
    iterations
        The passes.
    stop_reason
        Why there was no further one.
    """

    clean: Mask
    last_changed: NDArray[np.int16]
    thresholds: NDArray[np.float64]
    history: Mask
    iterations: tuple[Iteration, ...]
    stop_reason: str


def trim(
    measure: Callable[[Mask, int], Measurement], measured: Mask, config: TrimConfig, *, name: str = ""
) -> Trimming:
    """Iterate until the clean set is settled.

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
    clean = measured
    last_changed = np.zeros(len(measured), np.int16)
    seen = {_digest(clean)}
    iterations: list[Iteration] = []
    history: list[Mask] = []
    while True:
        started = time.monotonic()
        number = len(iterations) + 1
        result = measure(clean, number)
        selection = select(result.margin, measured, config)
        added, removed = selection.clean & ~clean, clean & ~selection.clean
        last_changed[added | removed] = number
        iterations.append(
            Iteration(
                iteration=number,
                n_fitted=int(clean.sum()),
                n_clean=int(selection.clean.sum()),
                n_added=int(added.sum()),
                n_removed=int(removed.sum()),
                n_positions_trimmed=int(np.isfinite(result.thresholds).sum()),
                floor_applied=selection.floor_applied,
                seconds=time.monotonic() - started,
            )
        )
        clean = selection.clean
        history.append(clean)
        _log(name, iterations[-1], int(measured.sum()))
        reason = _stop_reason(iterations, clean, int(measured.sum()), seen, config)
        if reason:
            return Trimming(
                clean=clean,
                last_changed=last_changed,
                thresholds=result.thresholds,
                history=np.stack(history),
                iterations=tuple(iterations),
                stop_reason=reason,
            )
        seen.add(_digest(clean))


def _stop_reason(
    iterations: list[Iteration], clean: Mask, measured: int, seen: set[bytes], config: TrimConfig
) -> str | None:
    last = iterations[-1]
    if not last.n_added and not last.n_removed:
        return UNCHANGED
    if last.n_clean > config.stop_fraction * measured:
        return MAJORITY
    if _digest(clean) in seen:
        return CYCLE
    if last.iteration >= config.max_iterations:
        return MAX_ITERATIONS
    return None


def _log(name: str, step: Iteration, measured: int) -> None:
    logger.info(
        "%s: pass %d: %d of %d clean (+%d -%d), %d positions trimmed%s",
        name,
        step.iteration,
        step.n_clean,
        measured,
        step.n_added,
        step.n_removed,
        step.n_positions_trimmed,
        ", floor applied" if step.floor_applied else "",
    )


def _digest(mask: Mask) -> bytes:
    return hashlib.sha256(np.packbits(mask).tobytes()).digest()
