"""Beyond the paper: a forward search from a robust half, judged by a law of the scores of clean images.

An image's score is its largest log distance over all positions: its Mahalanobis distance times its distance to the
second nearest reference image. Fitted images are measured without themselves, so a score means the same for images
inside and outside the fit, archived or new. No threshold has to find a jump between the fitted images and the rest.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.costs.footprint import PassKind
from pipeline.judging.strategies.base import (
    AMBIGUOUS,
    GAP,
    MAX_ITERATIONS,
    MIN_START,
    UNCHANGED,
    Forecast,
    GroupPasses,
    PassLog,
    Search,
    Trimming,
    better_half,
)
from schemas.arrays import Floats, Indices, Mask
from schemas.config import TrimConfig
from workers.verdict.calibration import RESOLUTION, ScoreLaw, fit_score_law
from workers.verdict.purity import Purity, estimate_purity, fit_anomalies, is_pure, pure_threshold
from workers.verdict.selection import smallest

# Concentration steps: FAST-MCD's take two or three to settle (Rousseeuw and Van Driessen 1999).
CONCENTRATIONS = 3

# A pass admits at most this share of the images, so that those it admits are judged under a fit that is still clean.
STEP = 0.05

# A family, a rare variant of the part, lies far from a fit without it: its images are candidates if clean ones exceed
# their scores at this share of the false rejects that the verdict allows.
CANDIDATE = 0.02

# A candidate belongs to a family if clean images exceed its neighbour score, among kept images and candidates, at this
# rate: at least two others resemble it everywhere.
RESEMBLANCE = 0.05

# The law is doubted if it keeps less than this share of the images, and a gap is a boundary only if as many lie below
# it: the breakdown guard stops at less.
MAJORITY = 0.6

_PASS = PassKind(scores=True, neighbours=True)
_FORECAST = Forecast(
    usual=17,
    fewest=9,
    most=21,
    kept=0.8,
    first=_PASS,
    later=_PASS,
    publishing=(_PASS,),  # finds the law of the distances under the map's fit
    iterates=3,  # growth, families, and what is removed after them
    besides=CONCENTRATIONS + 6,  # on all images, on halves, on the way back from families, and for a gap
)


@dataclass(frozen=True)
class Grow:
    """Keeps nearly every clean image, by a law of the scores of clean ones."""

    name: str = "grow"
    forecast: Forecast = _FORECAST
    estimator: str = "relative-ridge"
    fits_distinct_images: bool = True
    keeps_fitted: bool = False
    measures_neighbours: bool = True
    rejects: bool = True

    def find(self, passes: GroupPasses, group: Search) -> Trimming:
        """Start, grow, add families, decide."""
        return grow(passes, group.measured, group.config, grid=group.grid, fitted_for=group.fitted_for, name=group.name)

    def map_thresholds(self, passes: GroupPasses, trimming: Trimming) -> Floats:
        """Judge new images by the law of the distances under the map's own fit, unless that is the last one."""
        if (trimming.published == trimming.fitted).all():
            return trimming.thresholds
        return passes.calibrate_law(trimming.published, smoothing=trimming.smoothing, neighbours=True)

    def holdout_thresholds(self, passes: GroupPasses, fitted: Mask, config: TrimConfig, *, smoothing: int) -> Floats:
        """Find the law of the fitted images' scores."""
        return passes.calibrate_law(fitted, smoothing=smoothing, neighbours=True)


class Scorer(Protocol):
    """The passes that growth asks for: those of `GroupPasses`."""

    def score_pass(self, fitted: Mask, number: int, *, smoothing: int | None, neighbours: bool = False) -> Floats:
        """Return the scores (images,) of a pass."""

    def score_neighbours(self, fitted: Mask, number: int) -> Floats:
        """Return the scores (images,) by the neighbour distance alone."""


def grow(
    passes: Scorer,
    measured: Mask,
    config: TrimConfig,
    *,
    grid: tuple[int, int],
    fitted_for: Indices | None = None,
    name: str = "",
) -> Trimming:
    """Keep nearly every clean image and hardly a bad one.

    1. Start: the better half under the fit on all images, concentrated as by FAST-MCD. Nearly all of it is clean unless
       most images are bad.
    2. Grow, as a forward search does (Atkinson, Riani and Cerioli 2010): admit the images whose score clean ones exceed
       at ``target_false_reject``, but only a few in one pass, the best first, and fit again until there are none left.
    3. Families: admit images farther off that resemble at least two others at every position, fit again, and remove
       what clean images exceed. A family of good ones then lies within the law. If what is kept would not be pure, the
       families go again.
    4. Decide: an image is clean if its score is below the threshold at ``target_false_reject``, or below a lower one if
       the scores beyond it say that anomalies pass there. If that would leave less than half of the images, without
       near-duplicates, the better half of these is kept, and there is no clear boundary.
    5. Clean images need not follow the law: parts may lie in some places more than in others. If less than `MAJORITY`
       come near it, and the scores under a fit on all images have a gap wider than the upper half of the scores below
       it, also under a fit on the images below it, then that gap is the boundary. Images between the law and the gap
       count as perhaps impure.

    Only one of several near-duplicates is ever fitted, and the others score no better than that one: a defect that
    several images show cannot support itself.

    Parameters
    ----------
    measured
        (images,) bool: the images that take part.
    config
        ``max_iterations`` bounds the passes of growth, and again those of the families.
    grid
        Rows and columns of positions.
    fitted_for
        (images,) int64: the row of the image that is fitted for a near-duplicate; any other image has its own row. None
        if there are no near-duplicates.
    """
    fitted_for = np.arange(len(measured)) if fitted_for is None else fitted_for
    search = _Growth(passes, measured, config, fitted_for, PassLog(measured, name), grid[0] * grid[1])
    search.start()
    reason = search.grow()
    search.add_families()
    if search.ends_at_gap():
        return search.decide_at_gap(grid)
    return search.decide(grid, reason)


class _Growth:
    """The search so far: the clean set in its log, and the scores (images,) of the last pass, fitted on that set."""

    def __init__(
        self,
        passes: Scorer,
        measured: Mask,
        config: TrimConfig,
        fitted_for: Indices,
        log: PassLog,
        positions: int,
    ) -> None:
        self._passes, self._measured, self._config, self._log = passes, measured, config, log
        self._fitted_for, self._positions = fitted_for, positions
        self._distinct = measured & (fitted_for == np.arange(len(fitted_for)))
        self._fitted = self._distinct
        self._majority = int(np.ceil(MAJORITY * int(measured.sum())))
        self._step = max(1, round(STEP * int(measured.sum())))

    def start(self) -> None:
        """Find the better half."""
        self._scores = self._score(self._distinct)
        for _ in range(1 + CONCENTRATIONS):
            half = better_half(self._scores, self._distinct)
            if (half == self._fitted).all():
                break
            self._move(half)

    def grow(self) -> str:
        """Admit images within the law, a few in each pass; return why that ended."""
        for _ in range(self._config.max_iterations):
            clean = self._log.clean
            within = self._below(self._law().threshold(self._config.target_false_reject)) & ~clean
            if not within.any():
                return UNCHANGED
            self._move(clean | smallest(self._scores, within, self._step))
        return MAX_ITERATIONS

    def add_families(self) -> None:
        """Admit images that resemble others, and take them back if anomalies would come with them."""
        before = self._log.clean
        for _ in range(self._config.max_iterations):
            clean = self._log.clean
            candidates = self._below(self._law().threshold(CANDIDATE * self._config.target_false_reject)) & ~clean
            if not candidates.any():
                break
            near = self._passes.score_neighbours((clean | candidates) & self._distinct, self._log.number)
            near = np.fmax(near, near[self._fitted_for])
            alike = candidates & (near < fit_score_law(near[clean & self._distinct]).threshold(RESEMBLANCE))
            if not alike.any():
                break
            self._move(clean | smallest(self._scores, alike, self._step))
        if (self._log.clean == before).all():
            return
        for _ in range(self._config.max_iterations):
            clean = self._log.clean & self._below(self._law().threshold(self._config.target_false_reject))
            if (clean == self._log.clean).all() or int((clean & self._distinct).sum()) < MIN_START:
                break
            self._move(clean)
        law, scores = self._law(), self._scores[self._measured]
        threshold = law.threshold(self._config.target_false_reject)
        passing = fit_anomalies(law, scores, threshold).below(threshold)
        if not is_pure(passing, int((scores < threshold).sum())):
            self._move(before)

    def ends_at_gap(self) -> bool:
        """Tell whether the law keeps no majority and a clear gap does, under a fit on all images and on those below."""
        settled = self._log.clean
        lawful = self._below(self._law().threshold(CANDIDATE * self._config.target_false_reject))
        if int(lawful.sum()) >= self._majority:
            return False
        self._move(self._measured)
        below = self._below_gap()
        if below is not None:
            self._move(below)
            if (after := self._below_gap()) is not None and (after == below).all():
                return True
        self._move(settled)
        return False

    def decide_at_gap(self, grid: tuple[int, int]) -> Trimming:
        """Place the threshold in the gap, not far above the clean images."""
        clean, law = self._log.clean, self._law()
        last, first = self._scores[clean].max(), self._scores[self._measured & ~clean].min()
        threshold, level = min(last + law.scale, (last + first) / 2), self._config.target_false_reject
        self._log.record(clean, positions_trimmed=self._positions, fitted=self._fitted)
        lawful = int(self._below(law.threshold(level)).sum()) / (1.0 - level)
        return self._log.result(
            np.full(grid, np.exp(threshold)),
            GAP,
            published=self._fitted,
            smoothing=self._config.smoothing,
            purity=Purity(1.0, min(1.0, lawful / int(clean.sum()))),
        )

    def _below_gap(self) -> Mask | None:
        """Return the images below the widest gap, if that is clear and most images lie below it."""
        rows = np.flatnonzero(self._measured)
        ordered = np.sort(self._scores[rows])
        least = max(MIN_START, self._majority)
        gaps = np.diff(ordered)[least - 1 :]
        if not len(gaps):
            return None
        last = least - 1 + int(np.argmax(gaps))
        if not gaps.max() > ordered[last] - ordered[last // 2]:
            return None
        below: Mask = self._measured & (self._scores <= ordered[last])
        return below

    def decide(self, grid: tuple[int, int], reason: str) -> Trimming:
        """Find the threshold and the purity of the images below it."""
        law, scores, level = self._law(), self._scores[self._measured], self._config.target_false_reject
        threshold = law.threshold(level)
        anomalies = fit_anomalies(law, scores, threshold)
        pure = pure_threshold(anomalies, scores, threshold)
        half = better_half(self._scores, self._distinct)
        if int((self._below(pure) & self._distinct).sum()) < int(half.sum()):
            reason, pure = AMBIGUOUS, self._above(half)
        self._log.record(self._below(pure), positions_trimmed=self._positions, fitted=self._fitted)
        return self._log.result(
            np.full(grid, np.exp(pure)),
            reason,
            published=self._log.clean & self._distinct,
            smoothing=self._config.smoothing,
            purity=estimate_purity(law, anomalies, scores, pure, level),
        )

    def _move(self, clean: Mask) -> None:
        """Make this the clean set, and fit on it."""
        self._log.record(clean, positions_trimmed=self._positions, fitted=self._fitted)
        self._scores = self._score(clean & self._distinct)

    def _score(self, fitted: Mask) -> Floats:
        """Return the scores (images,) of a pass; near-duplicates have no better one than the image fitted for them."""
        self._fitted = fitted
        scores = self._passes.score_pass(fitted, self._log.number, smoothing=self._config.smoothing, neighbours=True)
        shared: Floats = np.fmax(scores, scores[self._fitted_for])
        return shared

    def _law(self) -> ScoreLaw[float]:
        """Return the law of clean images' scores."""
        return fit_score_law(self._scores[self._fitted])

    def _below(self, score: float) -> Mask:
        below: Mask = self._measured & (self._scores < score)
        return below

    def _above(self, half: Mask) -> float:
        """Return a score between those of the better half and the others; equal ones stay together."""
        rest, highest = self._distinct & ~half, float(self._scores[half].max())
        next_one = float(self._scores[rest].min(initial=np.inf))
        return max((highest + next_one) / 2, highest + RESOLUTION * max(1.0, abs(highest)))
