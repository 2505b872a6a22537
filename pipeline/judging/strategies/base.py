"""What strategies share: the protocol that each one follows, its passes on record, and how its clean set came out."""

import hashlib
import logging
import time
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.costs.footprint import PassKind
from schemas.arrays import Floats, Indices, Mask
from schemas.config import TrimConfig
from workers.verdict.selection import MIN_FITTED, smallest

logger = logging.getLogger("paire")

UNCHANGED = "unchanged"
MAJORITY = "majority clean"
CYCLE = "cycle"
MAX_ITERATIONS = "maximum of iterations"
SINGLE = "single pass"
NO_TRIMMING = "no trimming"
AMBIGUOUS = "no clear boundary"

# A fit that leaves one out needs one sample more.
MIN_START = MIN_FITTED + 1


class PassResult(NamedTuple):
    """What one pass by thresholds found.

    Attributes
    ----------
    thresholds
        (rows, columns) float64.
    margin
        (images,) float64: each image's largest distance / threshold; NaN where it does not take part.
    """

    thresholds: Floats
    margin: Floats


class GroupPasses(Protocol):
    """What a strategy may ask of a group."""

    def run_pass(self, fitted: Mask, number: int) -> PassResult:
        """Fit on some images, measure all, find the thresholds; passes are numbered from 1."""

    def score_pass(self, fitted: Mask, number: int, *, smoothing: int | None, nearest: float = 1.0) -> Floats:
        """Fit on some images, measure all, fitted ones without themselves, and return the scores (images,).

        ``smoothing`` averages log distances over squares of so many positions; None scores by robust deviations at
        each position. ``nearest`` below 1 fits a second time, each position on this share of the nearest images.
        """

    def thresholds_at(self, score: float) -> Floats:
        """Return the distances (rows, columns) that a score in robust deviations means after the last pass."""

    def count_fitted(self, fitted: Mask, *, nearest: float) -> int:
        """Return how many images each position of a map is fitted on."""

    def calibrate(self, fitted: Mask) -> Floats:
        """Return the thresholds (rows, columns) of a pass that leaves the stored distances as they are."""

    def calibrate_law(self, fitted: Mask, *, smoothing: int, nearest: float) -> Floats:
        """Return, as `calibrate` does, thresholds that clean images exceed at ``trim.target_false_reject``."""


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


class Forecast(NamedTuple):
    """What a strategy usually costs, measured on the runs behind ``docs/study/results.csv``.

    Attributes
    ----------
    usual, fewest, most
        Passes: the median, the smallest number and the 90th percentile.
    kept
        The share of the images that it keeps.
    first, later
        What the first pass computes, and each one after it.
    publishing
        The passes that publishing makes besides the fit of the map.
    iterates
        How often it iterates up to ``trim.max_iterations``.
    """

    usual: int
    fewest: int
    most: int
    kept: float
    first: PassKind = PassKind()
    later: PassKind = PassKind()
    publishing: tuple[PassKind, ...] = ()
    iterates: int = 1


class Strategy(Protocol):
    """One way to find the clean set of a group. Each strategy lies in a file of its own; `registry` lists them."""

    @property
    def name(self) -> str:
        """The value of ``trim.strategy``."""

    @property
    def estimator(self) -> str:
        """The covariance estimator that ``gaussian.estimator = auto`` stands for."""

    @property
    def fits_distinct_images(self) -> bool:
        """Whether only one of several near-duplicates is fitted."""

    @property
    def keeps_fitted(self) -> bool:
        """Whether its thresholds say nothing of the images that were fitted."""

    @property
    def rejects(self) -> bool:
        """Whether it has a rule that rejects images."""

    @property
    def forecast(self) -> Forecast:
        """What it usually costs."""

    def find(
        self,
        passes: GroupPasses,
        measured: Mask,
        config: TrimConfig,
        *,
        grid: tuple[int, int],
        fitted_for: Indices,
        name: str = "",
    ) -> Trimming:
        """Find the clean set.

        Parameters
        ----------
        measured
            (images,) bool: the images that take part.
        grid
            Rows and columns of positions.
        fitted_for
            (images,) int64: for each near-duplicate the image that is fitted for it, for any other image itself.
        name
            What to call the group in the log.
        """

    def map_thresholds(self, passes: GroupPasses, trimming: Trimming) -> Floats:
        """Return the thresholds (rows, columns) of the published map, for images that were not fitted."""

    def holdout_thresholds(
        self, passes: GroupPasses, fitted: Mask, config: TrimConfig, *, smoothing: int, nearest: float
    ) -> Floats:
        """Return the thresholds (rows, columns) of this rule under a fit on some of the images that it kept."""


def better_half(scores: Floats, measured: Mask) -> Mask:
    """Return the half of the images with the smallest scores, earlier rows first among equals."""
    return smallest(scores, measured, max(MIN_START, int(measured.sum()) // 2))


def _digest(mask: Mask) -> bytes:
    return hashlib.sha256(np.packbits(mask).tobytes()).digest()
