"""The third stage: Dask reductions from features to Gaussians, distances and thresholds, group by group.

Tasks are (row of positions) x (segment of images). Segments are fixed by the configuration and merged in order,
so a result depends on neither the number of workers nor who finishes first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from distributed import Future
from numpy.typing import NDArray

from pipeline.cluster import Cluster
from pipeline.progress import Phase
from pipeline.tasks import TaskWindow
from schemas.config import Config
from schemas.features import FeatureGeometry
from schemas.names import storage_name
from schemas.run import CLEAN_SETS, DISTANCE, THRESHOLD
from workers.calibration import fit_score_law
from workers.gaussian import uses_dual
from workers.gaussian_map import write_row
from workers.passes import (
    ArrayRef,
    Fit,
    RowVerdict,
    Segment,
    accumulate_fourth,
    accumulate_segment,
    cut_segments,
    fit_row_dual,
    fit_row_primal,
    judge_row,
    measure_segment,
    merge_rows,
    nearest_images,
    row_thresholds,
    score_row,
    score_segment,
    take_images,
)
from workers.selection import MIN_FITTED, Evidence, gather_evidence
from workers.storage import Directory

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class PassResult:
    """What one pass over a group found.

    Attributes
    ----------
    thresholds
        (rows, columns) float64.
    margin
        (images,) float64: each image's largest distance / threshold; NaN where it does not take part.
    """

    thresholds: NDArray[np.float64]
    margin: NDArray[np.float64]


class GroupStatistics:
    """The passes over one product group.

    Images that do not take part (unreadable ones, duplicates) keep their rows and are masked everywhere.
    """

    def __init__(
        self,
        cluster: Cluster,
        group: str,
        measured: Mask,
        geometry: FeatureGeometry,
        config: Config,
        features: Directory,
        distances: Directory,
    ) -> None:
        """Create the group's distance arrays.

        Parameters
        ----------
        cluster
            Where to run.
        group
            Product group.
        measured
            (images,) bool: the images that take part.
        geometry
            The grid of positions.
        config
            The configuration.
        features, distances
            The run's stores.
        """
        self._cluster = cluster
        self._group = group
        self._measured = measured
        self._geometry = geometry
        self._config = config
        self._features = ArrayRef(features, "", storage_name(group))
        self._directory = distances / storage_name(group)
        self._create_distances(DISTANCE)

    def measure(self, fitted: Mask, *, is_first: bool, phase: Phase, into: str = DISTANCE) -> PassResult:
        """Fit on some images, measure all that take part, find the thresholds.

        Parameters
        ----------
        fitted
            (images,) bool: the images to fit on.
        is_first
            Whether this is the first pass, with its own window start (paper, section 3.3.2).
        phase
            Counts rows of positions.
        into
            The distance array to write.
        """
        distances = ArrayRef(self._directory, "", into)
        window = self._window()
        verdicts = []
        for row in range(self._geometry.rows):
            gaussians = self._fit(window, row, fitted)
            receipts = [
                window.submit(measure_segment, gaussians, self._features, distances, row, segment)
                for segment in self._segments(self._measured)
            ]
            verdict = window.submit(
                judge_row, distances, row, self._measured, self._config.trim, int(fitted.sum()), is_first, receipts
            )
            verdict.add_done_callback(lambda _: phase.advance())
            verdicts.append(verdict)
        found: list[RowVerdict] = window.gather(verdicts)
        margin = found[0].margin
        for verdict in found[1:]:
            margin = np.fmax(margin, verdict.margin)
        return PassResult(np.stack([verdict.thresholds for verdict in found]), margin)

    def score(
        self,
        fitted: Mask,
        *,
        smoothing: int | None,
        phase: Phase,
        nearest: float = 1.0,
        into: str = DISTANCE,
    ) -> NDArray[np.float64]:
        """Fit on some images, measure all that take part, the fitted ones without themselves, and score each image.

        Parameters
        ----------
        fitted
            (images,) bool: the images to fit on.
        smoothing
            Score by the largest log distance averaged over squares of so many positions; None scores by the largest
            log distance in robust deviations at its position.
        phase
            Counts rows of positions.
        nearest
            Below 1, fit a second time, each position on this share of the images that are nearest there.
        into
            The distance array to write.

        Returns
        -------
        ndarray
            (images,) float64; NaN where an image does not take part.
        """
        distances = ArrayRef(self._directory, "", into)
        window = self._window()
        by_segment: list[list[Future]] = [[] for _ in self._segments(fitted)]
        by_row = []
        for row in range(self._geometry.rows):
            receipts = self._measure_without_themselves(window, distances, row, fitted, nearest)
            receipts[-1].add_done_callback(lambda _: phase.advance())
            for segment_receipts, receipt in zip(by_segment, receipts, strict=True):
                segment_receipts.append(receipt)
            if smoothing is None:
                by_row.append(window.submit(score_row, distances, row, self._measured, receipts))
        if smoothing is None:
            return np.asarray(np.fmax.reduce(window.gather(by_row)))
        scores = [
            window.submit(score_segment, distances, segment, smoothing, receipts)
            for segment, receipts in zip(self._segments(self._measured), by_segment, strict=True)
        ]
        return np.concatenate(window.gather(scores))

    def _measure_without_themselves(
        self, window: TaskWindow, distances: ArrayRef, row: int, fitted: Mask, nearest: float
    ) -> list[Future]:
        """Submit the distances of one row of positions for `score`; returns each segment's receipt."""
        gaussians = self._fit(window, row, fitted, leaves_one_out=True)
        receipts = [
            window.submit(measure_segment, gaussians, self._features, distances, row, segment, left_out.mask)
            for segment, left_out in zip(self._segments(self._measured), self._segments(fitted), strict=True)
        ]
        if nearest >= 1.0:
            return receipts
        # Leaving one out needs one image more than a fit does.
        count = min(int(fitted.sum()), max(MIN_FITTED + 1, round(nearest * int(fitted.sum()))))
        chosen = window.submit(nearest_images, distances, row, fitted, count, receipts)
        parts = [window.submit(take_images, chosen, segment.start, segment.stop) for segment in self._segments(fitted)]
        gaussians = self._fit(window, row, fitted, leaves_one_out=True, count=count, chosen=chosen, parts=parts)
        return [
            window.submit(measure_segment, gaussians, self._features, distances, row, segment, part)
            for segment, part in zip(self._segments(self._measured), parts, strict=True)
        ]

    def thresholds_at(self, score: float) -> NDArray[np.float64]:
        """Return the distances (rows, columns) that a score in robust deviations means in the stored distances."""
        distances, window = ArrayRef(self._directory, "", DISTANCE), self._window()
        rows = [
            window.submit(row_thresholds, distances, row, self._measured, score) for row in range(self._geometry.rows)
        ]
        return np.stack(window.gather(rows))

    def calibrate(self, fitted: Mask, *, phase: Phase) -> NDArray[np.float64]:
        """Return the thresholds under Gaussians fitted on some images, leaving the stored distances as they are."""
        self._create_distances("calibration")
        thresholds = self.measure(fitted, is_first=False, phase=phase, into="calibration").thresholds
        self._directory.remove("calibration")
        return thresholds

    def calibrate_law(self, fitted: Mask, *, smoothing: int, phase: Phase) -> NDArray[np.float64]:
        """Return, as `calibrate` does, the thresholds that clean images exceed at ``trim.target_false_reject``."""
        self._create_distances("calibration")
        scores = self.score(fitted, smoothing=smoothing, phase=phase, into="calibration")
        self._directory.remove("calibration")
        threshold = fit_score_law(scores[fitted]).threshold(self._config.trim.target_false_reject)
        return np.full((self._geometry.rows, self._geometry.columns), np.exp(threshold))

    def publish(self, fitted: Mask, model: Directory, *, phase: Phase) -> None:
        """Fit on the final clean set and write the Gaussians into the map, whose arrays are there already."""
        window = self._window()
        receipts = []
        for row in range(self._geometry.rows):
            receipt = window.submit(write_row, model, self._group, row, self._fit(window, row, fitted))
            receipt.add_done_callback(lambda _: phase.advance())
            receipts.append(receipt)
        window.gather(receipts)

    def store_verdict(self, thresholds: NDArray[np.float64], history: Mask, *, smoothing: int) -> None:
        """Keep, beside the distances, the thresholds (rows, columns) and the clean set after each pass.

        The attribute ``smoothing`` says how the distances meet the thresholds.
        """
        node = self._directory.zarr_group("", "r+")
        for name, values in ((THRESHOLD, thresholds), (CLEAN_SETS, history)):
            node.create_array(name, data=values, compressors=None, overwrite=True)
        node.attrs["smoothing"] = smoothing

    def evidence(self, thresholds: NDArray[np.float64], *, smoothing: int) -> Evidence:
        """Return each image's evidence from the stored distances, read one segment of images at a time."""
        array = ArrayRef(self._directory, "", DISTANCE).open()
        return Evidence.concatenate(
            [
                gather_evidence(np.asarray(array[start:stop])[mask], thresholds, smoothing=smoothing)
                for start, stop, mask in self._segments(self._measured)
            ]
        )

    def _fit(
        self,
        window: TaskWindow,
        row: int,
        fitted: Mask,
        *,
        leaves_one_out: bool = False,
        count: int | None = None,
        chosen: Future | None = None,
        parts: Sequence[Future | None] = (),
    ) -> Future:
        """Submit the fit of one row of positions; returns a future of its Gaussians.

        With ``chosen``, and ``parts`` of it for each segment, every column is fitted on ``count`` images of its own.
        """
        fit = Fit(self._config.gaussian, self._config.estimator(), leaves_one_out)
        segments = list(self._segments(fitted))
        if uses_dual(count or int(fitted.sum()), self._geometry.channels):
            return window.submit(fit_row_dual, self._features, row, Segment(0, len(fitted), fitted), fit, chosen)
        moments = None
        parts = parts or [None] * len(segments)
        for segment, part in zip(segments, parts, strict=True):
            more = window.submit(accumulate_segment, self._features, row, segment, part)
            moments = more if moments is None else window.submit(merge_rows, moments, more)
        fourth = [
            window.submit(accumulate_fourth, self._features, row, segment, moments, part)
            for segment, part in zip(segments, parts, strict=True)
            if fit.estimator == "ledoit-wolf"
        ]
        return window.submit(fit_row_primal, moments, fit, fourth)

    def _segments(self, mask: Mask) -> Iterator[Segment]:
        return cut_segments(mask, self._config.gaussian.segment_images)

    def _create_distances(self, name: str) -> None:
        images = len(self._measured)
        chunk = min(self._config.gaussian.segment_images, images)
        self._directory.zarr_group("", "a").create_array(
            name,
            shape=(images, self._geometry.rows, self._geometry.columns),
            chunks=(chunk, 1, self._geometry.columns),
            dtype="float64",
            compressors=None,
            fill_value=np.nan,
            overwrite=True,
        )

    def _window(self) -> TaskWindow:
        return TaskWindow(self._cluster.client, self._cluster.workers)
