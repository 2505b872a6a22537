"""The production strategies on an archive in memory: each gets the passes it asks for from Gram matrices.

Strategies, thresholds, selection, smoothing and calibration are the production code. Only the passes differ:
`pipeline.judging.statistics` runs Dask tasks over stored features, this module computes the same distances here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.judging.strategies.base import MIN_START, PassResult, Search, Trimming
from pipeline.judging.strategies.registry import estimator_of, strategy_of
from schemas.arrays import Mask
from schemas.config import Config
from studies.cleaning.gram import Gram, Rows
from workers.gaussian.fit import Fit
from workers.passes.by_features import NORMAL_DEVIATION
from workers.verdict.calibration import fit_score_law
from workers.verdict.near_duplicates import Sketches, find_representatives
from workers.verdict.selection import margins
from workers.verdict.smoothing import smooth
from workers.verdict.threshold import position_threshold

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Archive:
    """Images to clean, without byte-identical copies.

    Attributes
    ----------
    gram
        The inner products of these images and of others.
    rows
        (images,) int64: the rows of these images in it.
    grid
        Rows and columns of positions.
    sketches
        (images, 256) float32: sketches that find near-duplicates.
    """

    gram: Gram
    rows: Rows
    grid: tuple[int, int]
    sketches: Sketches

    def clean(self, config: Config) -> Trimming:
        """Find the clean set by the configured strategy."""
        passes = _Passes(self, config)
        everything = np.ones(len(self.rows), dtype=bool)
        fitted_for = np.arange(len(self.rows))
        if strategy_of(config).fits_distinct_images:
            fitted_for = find_representatives([self.sketches], config.trim.near_duplicates)
        return strategy_of(config).find(passes, Search(everything, config.trim, self.grid, fitted_for))

    def map_distances(self, clean: Mask, images: Rows, config: Config, *, nearest: float = 1.0) -> Array:
        """Return the distances (images, rows, columns) of images under the map published for a clean set.

        Parameters
        ----------
        clean
            (images of the archive,) bool: the images to fit on.
        images
            (m,) int64: rows of the images to measure.
        config
            Holds the covariance estimator.
        nearest
            Below 1, each position is fitted on this share of the images: those nearest there.
        """
        fit, fitted = Fit(config.gaussian, estimator_of(config)), self.rows[clean]
        if nearest < 1.0:
            apart = self.gram.distances(fitted, fitted, fit._replace(leaves_one_out=True))
            fitted = fitted[nearest_of(apart, nearest)]
        return self.gram.distances(fitted, images, fit).reshape(len(images), *self.grid)


def nearest_of(distances: Array, share: float) -> Rows:
    """Return the indices (n, positions) of the share of some images (images, positions) nearest at each position."""
    count = min(len(distances), max(MIN_START, round(share * len(distances))))
    return np.argsort(distances, axis=0, kind="stable")[:count]


class _Passes:
    """The passes over one archive under one configuration; keeps the distances of the last pass."""

    def __init__(self, archive: Archive, config: Config) -> None:
        self._archive, self._config = archive, config
        self._distances = np.empty((len(archive.rows), *archive.grid))

    def run_pass(self, fitted: Mask, number: int) -> PassResult:
        """Run one pass of the paper's strategy."""
        distances = self._measure(fitted, leaves_one_out=False)
        options, count = self._config.trim, int(fitted.sum())
        thresholds = np.array(
            [position_threshold(column, options, fitted=count, is_first=number == 1) for column in distances.T]
        )
        return PassResult(thresholds.reshape(self._archive.grid), margins(distances, thresholds).max(axis=1))

    def score_pass(self, fitted: Mask, number: int, *, smoothing: int | None, nearest: float = 1.0) -> Array:
        """Return each image's score, like `GroupStatistics.score_pass`."""
        distances = self._measure(fitted, leaves_one_out=True)
        if nearest < 1.0:
            self._measure_nearest(distances, np.flatnonzero(fitted), nearest)
        if smoothing is None:
            median, spread = self._standardisation()
            scores: Array = ((np.log(self._distances) - median) / spread).max(axis=(1, 2))
        else:
            scores = np.log(smooth(self._distances, smoothing).max(axis=(1, 2)))
        return scores

    def count_fitted(self, fitted: Mask, *, nearest: float) -> int:
        """Return how many images each position of a map is fitted on; maps are `Archive.map_distances`'s."""
        return int(fitted.sum()) if nearest >= 1.0 else len(nearest_of(np.empty((int(fitted.sum()), 1)), nearest))

    def calibrate(self, fitted: Mask) -> Array:
        """Return the paper's thresholds under a fit on some images."""
        return self.run_pass(fitted, 2).thresholds

    def calibrate_law(self, fitted: Mask, *, smoothing: int, nearest: float) -> Array:
        """Return the thresholds that clean images exceed at the target rate, under a fit on some images."""
        scores = self.score_pass(fitted, 2, smoothing=smoothing, nearest=nearest)
        threshold = fit_score_law(scores[fitted]).threshold(self._config.trim.target_false_reject)
        return np.full(self._archive.grid, np.exp(threshold))

    def thresholds_at(self, score: float) -> Array:
        """Return the distances (rows, columns) at which a pass in robust deviations gives a score in the last pass."""
        median, spread = self._standardisation()
        thresholds: Array = np.exp(median + score * spread)
        return thresholds

    def _measure(self, fitted: Mask, *, leaves_one_out: bool) -> Array:
        """Return the distances (images, positions)."""
        return self._measure_rows(self._archive.rows[fitted], leaves_one_out=leaves_one_out)

    def _measure_nearest(self, distances: Array, candidates: Rows, share: float) -> None:
        """Measure again, each position fitted on the share of the candidates that are nearest there."""
        nearest = candidates[nearest_of(distances[candidates], share)]
        self._measure_rows(self._archive.rows[nearest], leaves_one_out=True)

    def _measure_rows(self, fitted: Rows, *, leaves_one_out: bool) -> Array:
        fit = Fit(self._config.gaussian, estimator_of(self._config), leaves_one_out)
        distances = self._archive.gram.distances(fitted, self._archive.rows, fit)
        self._distances = distances.reshape(self._distances.shape)
        return distances

    def _standardisation(self) -> tuple[Array, Array]:
        """Return the median and the robust deviation of the log distances at each position."""
        logs = np.log(self._distances)
        median = np.median(logs, axis=0)
        spread = NORMAL_DEVIATION * np.median(np.abs(logs - median), axis=0)
        return median, np.maximum(spread, np.finfo(np.float64).eps)
