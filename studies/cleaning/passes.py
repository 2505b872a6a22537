"""The production strategies on an archive in memory: each gets the passes it asks for from Gram matrices.

Strategies, thresholds, selection, smoothing and calibration are the production code. Only the passes differ:
`pipeline.judging.statistics` runs Dask tasks over stored features, this module computes the same distances here.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.judging.strategies.base import PassResult, Search, Trimming
from pipeline.judging.strategies.registry import estimator_of, strategy_of
from schemas.arrays import Mask
from schemas.config import Config
from studies.cleaning.gram import Gram, Rows
from workers.gaussian.fit import Fit
from workers.gaussian.neighbours import choose_references
from workers.passes.by_features import NORMAL_DEVIATION
from workers.verdict.calibration import fit_score_law
from workers.verdict.near_duplicates import Sketches, find_representatives
from workers.verdict.selection import margins
from workers.verdict.smoothing import SMALLEST, smooth
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

    def clean(self, config: Config) -> "Cleaning":
        """Find the clean set by the configured strategy."""
        passes, own = _Passes(self, config), np.arange(len(self.rows))
        first = find_representatives([self.sketches], config.trim.near_duplicates)
        fitted_for = first if strategy_of(config).fits_distinct_images else own
        everything = np.ones(len(self.rows), dtype=bool)
        trimming = strategy_of(config).find(passes, Search(everything, config.trim, self.grid, fitted_for))
        distances = passes.distances  # a new array in every pass
        thresholds = strategy_of(config).map_thresholds(passes, trimming)
        return Cleaning(trimming, distances, fitted_for, int((first != own).sum()), thresholds)

    def scores(self, fitted: Mask, config: Config, *, estimator: str, smoothing: int) -> Array:
        """Fit on some images, and score all (images,) as `grow` does, the fitted ones without themselves."""
        fit = Fit(config.gaussian, estimator, leaves_one_out=True)
        distances = self.gram.distances(self.rows[fitted], self.rows, fit)
        distances = (distances * self.neighbour_distances(fitted, self.rows)).reshape(len(self.rows), *self.grid)
        scores: Array = np.log(smooth(distances, smoothing).max(axis=(1, 2)))
        return scores

    def neighbour_distances(self, fitted: Mask, images: Rows) -> Array:
        """Return the distances (images, positions) of images to references among the fitted ones (images,) bool."""
        return self.gram.neighbour_distances(self.rows[choose_references(fitted)], images)

    def map_distances(self, clean: Mask, images: Rows, config: Config) -> Array:
        """Return the distances (images, rows, columns) of images under the map published for a clean set.

        Parameters
        ----------
        clean
            (images of the archive,) bool: the images to fit on.
        images
            (m,) int64: rows of the images to measure.
        config
            Holds the covariance estimator and the strategy.
        """
        distances = self.gram.distances(self.rows[clean], images, Fit(config.gaussian, estimator_of(config)))
        if strategy_of(config).measures_neighbours:
            distances *= self.neighbour_distances(clean, images)
        return distances.reshape(len(images), *self.grid)


@dataclass(frozen=True)
class Cleaning:
    """The clean set that a strategy found in an archive.

    Attributes
    ----------
    trimming
        The clean set, and how it was found.
    distances
        (images, rows, columns) float64: those of the pass that decided.
    fitted_for
        (images,) int64: the image that was fitted for each, as in `Search`.
    near_duplicates
        How many images are near-duplicates of earlier ones, whether or not they count as one.
    map_thresholds
        (rows, columns) float64: those of the published map.
    """

    trimming: Trimming
    distances: Array
    fitted_for: Rows
    near_duplicates: int
    map_thresholds: Array


class _Passes:
    """The passes over one archive under one configuration; ``distances`` are those of the last pass."""

    def __init__(self, archive: Archive, config: Config) -> None:
        self._archive, self._config = archive, config
        self.distances = np.empty((len(archive.rows), *archive.grid))

    def run_pass(self, fitted: Mask, number: int) -> PassResult:
        """Run one pass of the paper's strategy."""
        distances = self._measure(fitted, leaves_one_out=False)
        options, count = self._config.trim, int(fitted.sum())
        thresholds = np.array(
            [position_threshold(column, options, fitted=count, is_first=number == 1) for column in distances.T]
        )
        return PassResult(thresholds.reshape(self._archive.grid), margins(distances, thresholds).max(axis=1))

    def score_pass(self, fitted: Mask, number: int, *, smoothing: int | None, neighbours: bool = False) -> Array:
        """Return each image's score, like `GroupStatistics.score_pass`."""
        distances = self._measure(fitted, leaves_one_out=True)
        if neighbours:
            near = self._archive.neighbour_distances(fitted, self._archive.rows)
            self.distances = (distances * near).reshape(self.distances.shape)
        if smoothing is None:
            median, spread = self._standardisation()
            scores: Array = ((np.log(self.distances) - median) / spread).max(axis=(1, 2))
        else:
            scores = np.log(smooth(self.distances, smoothing).max(axis=(1, 2)))
        return scores

    def score_neighbours(self, fitted: Mask, number: int) -> Array:
        """Return each image's score by the neighbour distance alone, like `GroupStatistics.score_neighbours`."""
        near = self._archive.neighbour_distances(fitted, self._archive.rows)
        scores: Array = np.log(np.maximum(near, SMALLEST).max(axis=1))
        return scores

    def calibrate(self, fitted: Mask) -> Array:
        """Return the paper's thresholds under a fit on some images."""
        return self.run_pass(fitted, 2).thresholds

    def calibrate_law(self, fitted: Mask, *, smoothing: int, neighbours: bool) -> Array:
        """Return the thresholds that clean images exceed at the target rate, under a fit on some images."""
        scores = self.score_pass(fitted, 2, smoothing=smoothing, neighbours=neighbours)
        threshold = fit_score_law(scores[fitted]).threshold(self._config.trim.target_false_reject)
        return np.full(self._archive.grid, np.exp(threshold))

    def thresholds_at(self, score: float) -> Array:
        """Return the distances (rows, columns) at which a pass in robust deviations gives a score in the last pass."""
        median, spread = self._standardisation()
        thresholds: Array = np.exp(median + score * spread)
        return thresholds

    def _measure(self, fitted: Mask, *, leaves_one_out: bool) -> Array:
        """Return the distances (images, positions)."""
        fit = Fit(self._config.gaussian, estimator_of(self._config), leaves_one_out)
        distances = self._archive.gram.distances(self._archive.rows[fitted], self._archive.rows, fit)
        self.distances = distances.reshape(self.distances.shape)
        return distances

    def _standardisation(self) -> tuple[Array, Array]:
        """Return the median and the robust deviation of the log distances at each position."""
        logs = np.log(self.distances)
        median = np.median(logs, axis=0)
        spread = NORMAL_DEVIATION * np.median(np.abs(logs - median), axis=0)
        return median, np.maximum(spread, np.finfo(np.float64).eps)
