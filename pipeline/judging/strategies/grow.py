"""Beyond the paper: a robust start, growth, pruning, on scores that put all images on one scale.

An image's score is its largest log distance over all positions. Fitted images are measured without themselves, so a
score means the same for images inside and outside the fit, archived or new. No threshold has to find a jump between
the fitted images and the rest.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.costs.footprint import PassKind
from pipeline.judging.strategies.base import (
    AMBIGUOUS,
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
from workers.verdict.calibration import count_borderline, fit_score_law

# Growth admits on trial, at this share of the false rejects that the verdict allows.
ADMISSION = 0.02

# Share of the images that each position is fitted on at the start: FAST-MCD's choice if less than a quarter is
# contaminated (Rousseeuw and Van Driessen 1999). At a single position that holds even if more of the images are bad.
NEAREST = 0.75

# No threshold is pure if more borderline images than this share of the clean ones lie just above it,
AMBIGUITY = 0.05
# and more than this number, which chance puts anywhere.
FEW = 3.0

_FORECAST = Forecast(
    usual=10,
    fewest=6,
    most=15,
    kept=0.75,
    first=PassKind(scores=True, nearest=NEAREST),
    later=PassKind(scores=True),
    # One pass finds the law of the distances under the map's fit, one which images are nearest.
    publishing=(PassKind(scores=True, nearest=NEAREST), PassKind(scores=True)),
    iterates=2,
)


@dataclass(frozen=True)
class Grow:
    """Keeps nearly every clean image, by a law of the scores of clean ones."""

    name: str = "grow"
    forecast: Forecast = _FORECAST
    estimator: str = "relative-ridge"
    fits_distinct_images: bool = True
    keeps_fitted: bool = False
    rejects: bool = True

    def find(self, passes: GroupPasses, group: Search) -> Trimming:
        """Start, grow, prune, decide."""
        measured, config, grid, fitted_for, name = group
        return grow(passes.score_pass, measured, config, grid=grid, fitted_for=fitted_for, name=name)

    def map_thresholds(self, passes: GroupPasses, trimming: Trimming) -> Floats:
        """Judge new images by the law of the distances under the map's own fit, unless that is the last one."""
        fitted = trimming.published
        if passes.count_fitted(fitted, nearest=trimming.nearest) == int(fitted.sum()):
            return trimming.thresholds
        return passes.calibrate_law(fitted, smoothing=trimming.smoothing, nearest=trimming.nearest)

    def holdout_thresholds(
        self, passes: GroupPasses, fitted: Mask, config: TrimConfig, *, smoothing: int, nearest: float
    ) -> Floats:
        """Find the law of the fitted images' scores; each position is fitted on the nearest, as the map is."""
        return passes.calibrate_law(fitted, smoothing=smoothing, nearest=nearest)


class Scorer(Protocol):
    """Fits on some images and scores all."""

    def __call__(self, fitted: Mask, number: int, *, smoothing: int, nearest: float = 1.0) -> Floats:
        """Return the scores (images,) of a pass, as `GroupPasses.score_pass` does."""


def grow(
    score: Scorer,
    measured: Mask,
    config: TrimConfig,
    *,
    grid: tuple[int, int],
    fitted_for: Indices | None = None,
    name: str = "",
) -> Trimming:
    """Keep nearly every clean image and no bad one.

    1. Start. Fit every position on the three quarters of the images that are nearest there: a defect lies at a few
       positions only, so each position is contaminated less than the archive. The better half under that fit is the
       start; nearly all of it is clean unless most images are bad.
    2. Grow: admit every image whose score clean ones hardly ever exceed (a fiftieth of ``target_false_reject``), and
       fit again, until there is nothing to admit. Rare good variants lie far from a fit without them and come in
       together; an admitted defect finds nothing like itself in the fit.
    3. Prune: remove every image whose score, measured without itself, clean ones exceed at ``target_false_reject``, and
       fit again, until there is nothing to remove. Variants now support one another and stay; admitted defects go.
    4. Decide: an image is clean if its score under the last fit is below that threshold. But if many images lie just
       above it, about as many anomalies must be expected just below. No threshold would be pure then, and only the
       better half of step 1 is kept.
    5. Map. With a clear boundary, each position is fitted on the clean images without the share
       ``target_false_reject`` that lies farthest there: a defect that was kept, because another one like it supports
       it, lies at few positions, and there it is among the farthest. Without a boundary, the map is the fit of step 1:
       at each position it saw more images than the half has, and fewer defects than lie in it.

    Only one of several near-duplicates is ever fitted, and the others score no better than that one: a defect that
    several images show cannot support itself.

    Parameters
    ----------
    measured
        (images,) bool: the images that take part.
    config
        ``max_iterations`` bounds the passes of growth, and again those of pruning.
    grid
        Rows and columns of positions.
    fitted_for
        (images,) int64: the row of the image that is fitted for a near-duplicate; any other image has its own row. None
        if there are no near-duplicates.
    """
    passes = _Passes(score, np.arange(len(measured)) if fitted_for is None else fitted_for)
    distinct = measured & passes.distinct
    log = PassLog(measured, name)
    positions = grid[0] * grid[1]
    half = better_half(passes.start(measured, log.number), distinct)
    log.record(half, positions_trimmed=0, fitted=distinct)
    reason = UNCHANGED
    for admits in (True, False):
        level = config.target_false_reject * (ADMISSION if admits else 1.0)
        for _ in range(config.max_iterations):
            scores = passes.score(log.clean, log.number, smoothing=config.smoothing)
            below = measured & (scores < fit_score_law(scores[log.clean & distinct]).threshold(level))
            clean = log.clean | below if admits else log.clean & below
            if (clean == log.clean).all() or int((clean & distinct).sum()) < MIN_START:
                break
            log.record(clean, positions_trimmed=positions, fitted=log.clean & distinct)
        else:
            reason = MAX_ITERATIONS
            scores = passes.score(log.clean, log.number, smoothing=config.smoothing)
    law = fit_score_law(scores[log.clean & distinct])
    threshold = law.threshold(config.target_false_reject)
    clean = measured & (scores < threshold)
    borderline = count_borderline(law, scores[measured], config.target_false_reject)
    if borderline > max(FEW, AMBIGUITY * int(clean.sum())):
        scores = passes.start(measured, log.number)
        half = better_half(scores, distinct)
        cut = (scores[half].max() + scores[distinct & ~half].min()) / 2
        log.record(measured & (scores < cut), positions_trimmed=positions, fitted=distinct)
        return log.result(np.full(grid, np.exp(cut)), AMBIGUOUS, published=distinct, nearest=NEAREST)
    log.record(clean, positions_trimmed=positions, fitted=log.clean & distinct)
    return log.result(
        np.full(grid, np.exp(threshold)),
        reason,
        published=clean & distinct,
        smoothing=config.smoothing,
        nearest=1.0 - config.target_false_reject,
    )


@dataclass(frozen=True)
class _Passes:
    """Passes that fit only one of several near-duplicates, and give the others no better score than that one."""

    run: Scorer
    fitted_for: Indices

    @property
    def distinct(self) -> Mask:
        """(images,) bool: those that are not a near-duplicate of an earlier image."""
        is_own: Mask = self.fitted_for == np.arange(len(self.fitted_for))
        return is_own

    def score(self, clean: Mask, number: int, *, smoothing: int, nearest: float = 1.0) -> Floats:
        """Return the scores (images,) of a pass fitted on the distinct clean images."""
        scores = self.run(clean & self.distinct, number, smoothing=smoothing, nearest=nearest)
        shared: Floats = np.fmax(scores, scores[self.fitted_for])
        return shared

    def start(self, measured: Mask, number: int) -> Floats:
        """Return the scores of the pass without a clean set: each position is fitted on the images nearest there."""
        return self.score(measured, number, smoothing=1, nearest=NEAREST)
