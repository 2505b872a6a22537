"""Strategies beyond the paper: robust start, growth, pruning, on scores that put all images on one scale.

An image's score is its largest log distance over all positions. Fitted images are measured without themselves, so
that a score means the same inside the fit and outside, for archived images as for new ones; there is no jump between
the fitted and the rest that a threshold would have to find.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.judging.strategies.paire import AMBIGUOUS, CYCLE, MAX_ITERATIONS, UNCHANGED, PassLog, Trimming
from schemas.arrays import Floats, Indices, Mask
from schemas.config import TrimConfig
from workers.passes.by_features import NORMAL_DEVIATION
from workers.verdict.calibration import count_borderline, fit_score_law
from workers.verdict.selection import MIN_FITTED, smallest

# Admission to the fit is on trial, so it is this much more generous than the final verdict.
ADMISSION = 0.02

# Share of the images that each position is fitted on at the start: FAST-MCD's choice where less than a quarter is
# contaminated (Rousseeuw and Van Driessen 1999), which holds at a single position even where it does not for images.
NEAREST = 0.75

# No threshold is pure when so many borderline images, as a share of the clean ones, lie just above it ...
AMBIGUITY = 0.05
# ... and they are more than chance puts anywhere.
FEW = 3.0

# A fit that leaves one out needs one sample more.
MIN_START = MIN_FITTED + 1


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
    representative: Indices | None = None,
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

    Of near-duplicates only the representative is ever fitted, and no image scores better than its representative: a
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
    representative
        (images,) int64: for each image the earlier one that it is a near-duplicate of, itself where there is none; None
        for no near-duplicates.
    name
        What to call the group in the log.
    """
    passes = _Passes(score, np.arange(len(measured)) if representative is None else representative)
    distinct = measured & passes.distinct
    log = PassLog(measured, name)
    positions = grid[0] * grid[1]
    half = _better_half(passes.start(measured, log.number), distinct)
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
        half = _better_half(scores, distinct)
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
    representative: Indices

    @property
    def distinct(self) -> Mask:
        """(images,) bool: those that are no near-duplicate of an earlier image."""
        is_own: Mask = self.representative == np.arange(len(self.representative))
        return is_own

    def score(self, clean: Mask, number: int, *, smoothing: int, nearest: float = 1.0) -> Floats:
        """Return the scores (images,) of a pass fitted on the distinct ones of the clean images."""
        scores = self.run(clean & self.distinct, number, smoothing=smoothing, nearest=nearest)
        shared: Floats = np.fmax(scores, scores[self.representative])
        return shared

    def start(self, measured: Mask, number: int) -> Floats:
        """Return the scores of the pass that needs no clean set: every position fitted on the images nearest there."""
        return self.score(measured, number, smoothing=1, nearest=NEAREST)


def concentrate(
    score: Callable[[Mask, int], Floats],
    thresholds: Callable[[float], Floats],
    measured: Mask,
    config: TrimConfig,
    *,
    grid: tuple[int, int],
    name: str = "",
) -> Trimming:
    """Concentrate on the half with the smallest scores, as FAST-MCD does, then grow by robust deviations.

    Parameters
    ----------
    score
        As for `grow`, but in robust deviations at each position.
    thresholds
        Gives the distances (rows, columns) that correspond to a score under the last fit.
    measured, config, grid, name
        As for `grow`; ``deviations`` is k.
    """
    log = PassLog(measured, name)
    positions = grid[0] * grid[1]
    for _ in range(config.max_iterations):
        half = _better_half(score(log.clean, log.number), measured)
        if log.record(half, positions_trimmed=positions):
            break
    reason = MAX_ITERATIONS
    for _ in range(config.max_iterations):
        scores = score(log.clean, log.number)
        threshold = robust_limit(scores[log.clean], config.deviations)
        was_seen = log.record(measured & (scores < threshold), positions_trimmed=positions)
        if was_seen:
            reason = CYCLE if log.last.n_added or log.last.n_removed else UNCHANGED
            break
    return log.result(thresholds(threshold), reason)


def _better_half(scores: Floats, measured: Mask) -> Mask:
    """Return the half of the images with the smallest scores, earlier rows first among equals."""
    return smallest(scores, measured, max(MIN_START, int(measured.sum()) // 2))


def robust_limit(scores: Floats, deviations: float) -> float:
    """Return the median plus some robust deviations of the scores below it."""
    median = float(np.median(scores))
    lower = float(np.median(median - scores[scores <= median]))
    return median + deviations * NORMAL_DEVIATION * lower
