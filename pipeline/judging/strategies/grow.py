"""Beyond the paper: a robust start, growth, pruning, on scores that put all images on one scale.

An image's score is its largest log distance over all positions. Fitted images are measured without themselves, so
that a score means the same inside the fit and outside, for archived images as for new ones. No threshold has to find
a jump between the fitted images and the rest.
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
    Trimming,
    better_half,
)
from schemas.arrays import Floats, Indices, Mask
from schemas.config import TrimConfig
from workers.verdict.calibration import count_borderline, fit_score_law

# Admission to the fit is on trial, so it is this much more generous than the final verdict.
ADMISSION = 0.02

# Share of the images that each position is fitted on at the start: FAST-MCD's choice where less than a quarter is
# contaminated (Rousseeuw and Van Driessen 1999), which holds at a single position even where it does not for images.
NEAREST = 0.75

# No threshold is pure when so many borderline images, as a share of the clean ones, lie just above it ...
AMBIGUITY = 0.05
# ... and they are more than chance puts anywhere.
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
        """Start, grow, prune, decide."""
        return grow(passes.score_pass, measured, config, grid=grid, fitted_for=fitted_for, name=name)

    def map_thresholds(self, passes: GroupPasses, trimming: Trimming) -> Floats:
        """Judge new images by the law of the distances under the map's own fit, where that is not the last one."""
        fitted = trimming.published
        if passes.count_fitted(fitted, nearest=trimming.nearest) == int(fitted.sum()):
            return trimming.thresholds
        return passes.calibrate_law(fitted, smoothing=trimming.smoothing, nearest=trimming.nearest)

    def holdout_thresholds(
        self,
        passes: GroupPasses,
        fitted: Mask,
        config: TrimConfig,  # noqa: ARG002 - as every strategy is asked
        *,
        smoothing: int,
        nearest: float,
    ) -> Floats:
        """Find the law of the fitted images' scores; each position is fitted on the nearest, as the map is."""
        return passes.calibrate_law(fitted, smoothing=smoothing, nearest=nearest)


class Scorer(Protocol):
    """Fits on some images and scores all."""

    def __call__(self, fitted: Mask, number: int, *, smoothing: int, nearest: float = 1.0) -> Floats:
        """Return the scores (images,) of a pass.

        Parameters
        ----------
        fitted
            (images,) bool: the images to fit on.
        number
            The pass, from 1.
        smoothing
            Side of the square of positions that log distances are averaged over before the largest is taken.
        nearest
            Below 1, fit a second time, each position on this share of the images that are nearest there.
        """


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
       positions only, so each of them is contaminated less than the archive is. The better half under that fit is
       the start; nearly all of it is clean unless most images are bad.
    2. Grow: admit every image whose score clean ones hardly ever exceed (a fiftieth of ``target_false_reject``),
       refit, until none is left to admit. Rare good variants lie far from a fit without them and come in together; a
       defect that was admitted has no like in the fit.
    3. Prune: remove every image whose score, measured without itself, clean ones exceed at ``target_false_reject``,
       refit, until none is left to remove. Variants now support one another and stay; admitted defects go.
    4. Decide: an image is clean when its score under the last fit is below that threshold. But where many images lie
       just above it, about as many anomalies must be expected just below: no threshold would be pure, and only the
       better half as in step 1 is kept.
    5. Map. Where there is a boundary, it is fitted at each position on the clean images but for the share
       ``target_false_reject`` that lies farthest there: a defect that was kept, because another one like it supports
       it, lies at few positions, and there it is among the farthest. Where there is none, it is that of step 1: at each
       position it saw more images than the half has, and fewer defects than lie in it.

    Of near-duplicates only the fitted_for is ever fitted, and no image scores better than its fitted_for: a
    defect that is there several times can not support itself.

    Parameters
    ----------
    score
        Runs one pass.
    measured
        (images,) bool: the images that take part.
    config
        Holds ``target_false_reject``, ``smoothing`` and ``max_iterations``, the bound on the passes of growth and of
        pruning.
    grid
        Indices and columns of positions.
    fitted_for
        (images,) int64: for each image the earlier one that it is a near-duplicate of, itself where there is none; None
        for no near-duplicates.
    name
        What to call the group in the log.
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
    """Passes that fit one of several near-duplicates only, and give none a better score than that one."""

    run: Scorer
    fitted_for: Indices

    @property
    def distinct(self) -> Mask:
        """(images,) bool: those that are no near-duplicate of an earlier image."""
        is_own: Mask = self.fitted_for == np.arange(len(self.fitted_for))
        return is_own

    def score(self, clean: Mask, number: int, *, smoothing: int, nearest: float = 1.0) -> Floats:
        """Return the scores (images,) of a pass fitted on the distinct ones of the clean images."""
        scores = self.run(clean & self.distinct, number, smoothing=smoothing, nearest=nearest)
        shared: Floats = np.fmax(scores, scores[self.fitted_for])
        return shared

    def start(self, measured: Mask, number: int) -> Floats:
        """Return the scores of the pass that needs no clean set: every position fitted on the images nearest there."""
        return self.score(measured, number, smoothing=1, nearest=NEAREST)
