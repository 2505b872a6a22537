"""What strategies share: the protocol that each one follows, the log of its passes, the clean set that it found."""

import hashlib
import logging
import time
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.costs.footprint import PassKind
from schemas.arrays import Floats, Indices, Mask
from schemas.config import TrimConfig
from workers.verdict.purity import Purity
from workers.verdict.selection import MIN_FITTED, smallest

logger = logging.getLogger("paire")

UNCHANGED = "unchanged"
MAJORITY = "majority clean"
CYCLE = "cycle"
MAX_ITERATIONS = "maximum of iterations"
SINGLE = "single pass"
NO_TRIMMING = "no trimming"
AMBIGUOUS = "no clear boundary"
GAP = "clear gap"

# A fit that leaves one out needs one sample more.
MIN_START = MIN_FITTED + 1


class PassResult(NamedTuple):
    """What one pass by thresholds found."""

    thresholds: Floats  # (rows, columns)
    margin: Floats  # (images,): each image's largest distance / threshold; NaN if it does not take part


class GroupPasses(Protocol):
    """What a strategy may ask of a group."""

    def run_pass(self, fitted: Mask, number: int) -> PassResult:
        """Fit on some images, measure all, find the thresholds; passes are numbered from 1."""

    def score_pass(self, fitted: Mask, number: int, *, smoothing: int | None, neighbours: bool = False) -> Floats:
        """Fit on some images, measure all, the fitted ones without themselves, and return the scores (images,).

        ``smoothing`` is the side of the square of positions over which log distances are averaged; None scores by
        robust deviations at each position. ``neighbours`` multiplies distances by those to reference images.
        """

    def score_neighbours(self, fitted: Mask, number: int) -> Floats:
        """Return the scores (images,) by the distance to reference images alone, taken from the fitted ones."""

    def thresholds_at(self, score: float) -> Floats:
        """Return the distances (rows, columns) that a score in robust deviations means after the last pass."""

    def calibrate(self, fitted: Mask) -> Floats:
        """Return the thresholds (rows, columns) of a pass that leaves the stored distances as they are."""

    def calibrate_law(self, fitted: Mask, *, smoothing: int, neighbours: bool) -> Floats:
        """Like `calibrate`, but return the thresholds that clean images exceed at ``trim.target_false_reject``."""


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
    """The clean set of a group, and how a strategy found it."""

    clean: Mask  # (images,)
    fitted: Mask  # (images,): what the last pass fitted on
    published: Mask  # (images,): what to fit the Gaussian map on
    last_changed: NDArray[np.int16]  # (images,): the last pass that changed the image's verdict, 0 for never
    thresholds: Floats  # (rows, columns): those of the last pass, which decided
    history: Mask  # (passes, images): the clean set after each pass
    iterations: tuple[Iteration, ...]
    stop_reason: str
    smoothing: int = 1  # side of the square of positions over which log distances are averaged before they are compared
    purity: Purity | None = None  # of the clean set, as the strategy estimates it; None if it cannot

    @property
    def floor_applied(self) -> bool:
        """Whether the floor chose the clean set in the last pass that changed it."""
        changing = [step for step in self.iterations if step.n_added or step.n_removed]
        return (changing or list(self.iterations))[-1].floor_applied


class PassLog:
    """The passes so far, and ``clean``, the present clean set (images,): at first all images that take part."""

    def __init__(self, measured: Mask, name: str) -> None:
        self.measured, self.clean, self._fitted, self._name = measured, measured, measured, name
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
        """Note a pass and its clean set; return whether an earlier pass ended with the same set.

        ``positions_trimmed`` counts the positions that had a threshold. ``fitted`` (images,) is what the pass was
        fitted on; None stands for the clean set before it.
        """
        self._fitted = self.clean if fitted is None else fitted
        added, removed = clean & ~self.clean, self.clean & ~clean
        self._last_changed[added | removed] = self.number
        step = Iteration(
            iteration=self.number,
            n_fitted=int(self._fitted.sum()),
            n_clean=int(clean.sum()),
            n_added=int(added.sum()),
            n_removed=int(removed.sum()),
            n_positions_trimmed=positions_trimmed,
            floor_applied=floor_applied,
            seconds=time.monotonic() - self._started,
        )
        self._iterations.append(step)
        self.clean = clean
        self._history.append(clean)
        self._started = time.monotonic()
        was_seen = _digest(clean) in self._seen
        self._seen.add(_digest(clean))
        logger.info(
            "%s: pass %d: %d of %d clean (+%d -%d), %d positions trimmed%s",
            self._name,
            step.iteration,
            step.n_clean,
            int(self.measured.sum()),
            step.n_added,
            step.n_removed,
            step.n_positions_trimmed,
            ", floor applied" if step.floor_applied else "",
            extra={"group": self._name},
        )
        return was_seen

    def result(
        self,
        thresholds: Floats,
        stop_reason: str,
        *,
        published: Mask | None = None,
        smoothing: int = 1,
        purity: Purity | None = None,
    ) -> Trimming:
        """Return the clean set and how it was found; ``published`` defaults to the clean set."""
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
            purity=purity,
        )


class Forecast(NamedTuple):
    """What a strategy usually costs, measured on the runs behind ``docs/study/results.csv``."""

    usual: int  # passes: the median,
    fewest: int  # the smallest number,
    most: int  # and the 90th percentile
    kept: float  # share of the images that it keeps
    first: PassKind = PassKind()  # what the first pass computes,
    later: PassKind = PassKind()  # and each later one
    publishing: tuple[PassKind, ...] = ()  # passes that publishing makes besides the fit of the map
    iterates: int = 1  # how often it iterates up to ``trim.max_iterations``,
    besides: int = 0  # and the most passes that it makes besides


class Search(NamedTuple):
    """A group whose clean set is to be found."""

    measured: Mask  # (images,): those that take part
    config: TrimConfig
    grid: tuple[int, int]  # rows and columns of positions
    fitted_for: Indices  # (images,): the row of the image that is fitted for a near-duplicate, else the image's own
    name: str = ""  # in the log


class Strategy(Protocol):
    """One way to find the clean set of a group. Each strategy has its own file; `registry` lists them."""

    @property
    def name(self) -> str:
        """The value of ``trim.strategy``."""

    @property
    def estimator(self) -> str:
        """The covariance estimator that ``gaussian.estimator = auto`` means."""

    @property
    def fits_distinct_images(self) -> bool:
        """Whether it fits only one of several near-duplicates."""

    @property
    def keeps_fitted(self) -> bool:
        """Whether its thresholds say nothing about the images that were fitted."""

    @property
    def rejects(self) -> bool:
        """Whether it has a rule that rejects images."""

    @property
    def measures_neighbours(self) -> bool:
        """Whether its distances, and those of its map, are multiplied by those to reference images."""

    @property
    def forecast(self) -> Forecast:
        """Its usual costs."""

    def find(self, passes: GroupPasses, group: Search) -> Trimming:
        """Find the clean set of a group."""

    def map_thresholds(self, passes: GroupPasses, trimming: Trimming) -> Floats:
        """Return the thresholds (rows, columns) of the published map, for images that were not fitted."""

    def holdout_thresholds(self, passes: GroupPasses, fitted: Mask, config: TrimConfig, *, smoothing: int) -> Floats:
        """Return the thresholds (rows, columns) of this rule after a fit on some of the images that it kept."""


def better_half(scores: Floats, measured: Mask) -> Mask:
    """Return the half of the images with the smallest scores, earlier rows first among equals."""
    return smallest(scores, measured, max(MIN_START, int(measured.sum()) // 2))


def _digest(mask: Mask) -> bytes:
    return hashlib.sha256(np.packbits(mask).tobytes()).digest()
