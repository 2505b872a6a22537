"""The third stage: passes over the features of a product group, which find Gaussians, distances and thresholds.

`pipeline.judging.passes` decides which tasks a pass is. Here is what the strategies ask for, and what is kept: the
distances, and in the group's journal the outcome of each pass.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cluster.cluster import Cluster
from pipeline.cluster.progress import Phase, Reporter
from pipeline.cluster.tasks import open_window
from pipeline.judging.distances import GroupDistances
from pipeline.judging.group import Group
from pipeline.judging.passes import plan_passes
from pipeline.judging.row_tasks import rows_of, submit_publication
from pipeline.judging.strategies.base import PassResult
from pipeline.judging.strategies.registry import estimator_of
from pipeline.run_directory.journal import Arrays, Journal
from schemas.arrays import Floats, Mask
from schemas.names import storage_name
from schemas.records.run import DISTANCE
from schemas.stores.gaussian_map import CHECKSUMS
from workers.gaussian.fit import Fit
from workers.gaussian.neighbours import choose_references
from workers.map.writer import chunk_rows, create_group_map
from workers.passes.by_features import RowVerdict, row_thresholds, score_row, score_segment
from workers.storage.directory import Directory
from workers.verdict.calibration import fit_score_law

# In the journal, the writing of the map.
PUBLISH = "publish"


class GroupStatistics:
    """The passes over one product group: a context manager that removes at its end what was kept between passes.

    The attribute ``distances`` has what the passes measured; the argument of that name is the run's store of distances.
    Without a cluster everything is computed here. The journal knows the passes that an earlier command finished.
    """

    def __init__(
        self,
        cluster: Cluster | None,
        group: Group,
        distances: Directory,
        reporter: Reporter,
        journal: Journal | None = None,
    ) -> None:
        """Create the group's array of distances, unless passes were finished before."""
        self._cluster, self._group, self._reporter, self._journal = cluster, group, reporter, journal
        directory = distances / storage_name(group.name)
        self.distances = GroupDistances(directory, group)
        if journal is None or not journal.is_begun:
            self.distances.create(DISTANCE)
        self._passes = plan_passes(group, directory)

    def __enter__(self) -> "GroupStatistics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # An interrupted job goes on with what was kept between passes.
        if kind is None or self._journal is None:
            self._passes.close()

    def run_pass(self, fitted: Mask, number: int) -> PassResult:
        """Fit on some images, measure all, find the thresholds; the first pass has its own window start (3.3.2)."""
        with self._phase(f"pass {number}", "pass") as phase:
            return self._find_thresholds(fitted, phase, is_first=number == 1, into=DISTANCE)

    def _find_thresholds(self, fitted: Mask, phase: Phase, *, is_first: bool, into: str) -> PassResult:
        fit = self._fit()

        def compute() -> Arrays:
            window = open_window(self._cluster)
            verdicts: list[Any] = []
            distances = self.distances.array(into)
            for rows in self._passes.submit_verdicts(window, distances, fitted, fit, is_first=is_first):
                _advance(phase, rows.futures[-1], rows.number)
                verdicts += rows.futures
            found: list[RowVerdict] = window.gather(verdicts)
            return {
                "thresholds": np.concatenate([np.atleast_2d(verdict.thresholds) for verdict in found]),
                "margin": np.asarray(np.fmax.reduce([verdict.margin for verdict in found])),
            }

        outcome = self._once(compute, "measure", fitted, fit, is_first=is_first, into=into)
        return PassResult(outcome["thresholds"], outcome["margin"])

    def score_pass(self, fitted: Mask, number: int, *, smoothing: int | None, neighbours: bool = False) -> Floats:
        """Fit on some images, measure all, the fitted ones without themselves, and score each image.

        Parameters
        ----------
        smoothing
            Score by the largest log distance averaged over squares of this side, in positions; None scores by the
            largest log distance in robust deviations at its position.
        neighbours
            Multiply each distance by the distance to the second nearest reference image, see
            `workers.gaussian.neighbours`.

        Returns
        -------
        ndarray
            (images,) float64; NaN for an image that does not take part.
        """
        with self._phase(f"pass {number}", "pass") as phase:
            fit = self._fit()
            return self._find_scores(fitted, phase, fit, smoothing=smoothing, neighbours=neighbours, into=DISTANCE)

    def score_aside(
        self, fitted: Mask, *, kind: str, smoothing: int, neighbours: bool = False, estimator: str | None = None
    ) -> Floats:
        """Return scores as `score_pass` does, and leave the stored distances as they are."""
        with self._phase(kind, kind) as phase, self.distances.scratch() as into:
            fit = self._fit(estimator)
            return self._find_scores(fitted, phase, fit, smoothing=smoothing, neighbours=neighbours, into=into)

    def score_neighbours(self, fitted: Mask, number: int) -> Floats:
        """Score each image by its largest log distance to its neighbours alone, and keep the stored distances."""
        with self._phase(f"neighbours {number}", "pass") as phase, self.distances.scratch() as into:
            return self._find_scores(fitted, phase, None, smoothing=1, neighbours=True, into=into)

    def _find_scores(
        self, fitted: Mask, phase: Phase, fit: Fit | None, *, smoothing: int | None, neighbours: bool, into: str
    ) -> Floats:
        fit = None if fit is None else fit._replace(leaves_one_out=True)
        asked = {"smoothing": smoothing, "neighbours": neighbours, "into": into}
        references = choose_references(fitted) if neighbours else None

        def compute() -> Arrays:
            window, distances = open_window(self._cluster), self.distances.array(into)
            receipts: list[list[Any]] = []
            for rows in self._passes.submit_distances(window, distances, fitted, fit, references):
                _advance(phase, rows.futures[-1], rows.number)
                receipts += [rows.futures] * rows.number
            scores: list[Any] = []
            if smoothing is None:
                for row, futures in enumerate(receipts):
                    scores.append(window.submit(score_row, distances, row, self._group.measured, futures))
                return {"scores": np.asarray(np.fmax.reduce(window.gather(scores)))}
            for place, segment in enumerate(self._group.segments()):
                # If one task measured all segments, each waits for that one.
                measured = [futures[min(place, len(futures) - 1)] for futures in receipts]
                scores.append(window.submit(score_segment, distances, segment, smoothing, measured))
            return {"scores": np.concatenate(window.gather(scores))}

        estimator = None if fit is None else fit.estimator
        return np.asarray(self._once(compute, "score", fitted, fit, estimator=estimator, **asked)["scores"])

    def thresholds_at(self, score: float) -> Floats:
        """Return the distances (rows, columns) that a score in robust deviations means in the stored distances."""
        distances, window = self.distances.array(DISTANCE), open_window(self._cluster)
        all_rows = range(self._group.geometry.rows)
        rows = [window.submit(row_thresholds, distances, row, self._group.measured, score) for row in all_rows]
        return np.stack(window.gather(rows))

    def calibrate(self, fitted: Mask) -> Floats:
        """Return the thresholds of a fit on some images, and leave the stored distances as they are."""
        with self._phase("calibrate", "calibrate") as phase, self.distances.scratch() as into:
            return self._find_thresholds(fitted, phase, is_first=False, into=into).thresholds

    def calibrate_law(self, fitted: Mask, *, smoothing: int, neighbours: bool) -> Floats:
        """Like `calibrate`, but return the thresholds that clean images exceed at ``trim.target_false_reject``."""
        scores = self.score_aside(fitted, kind="calibrate", smoothing=smoothing, neighbours=neighbours)
        threshold = fit_score_law(scores[fitted]).threshold(self._group.config.trim.target_false_reject)
        return np.full(self._group.grid, np.exp(threshold))

    def _once(
        self, compute: Callable[[], Arrays], kind: str, fitted: Mask, fit: Fit | None, **asked: object
    ) -> Mapping[str, NDArray[Any]]:
        """Recall an outcome that was finished before, or compute it; ``fit`` is that of its pass, if it is a pass."""
        if self._journal is None:
            return compute()
        outcome = self._journal.recall(kind, fitted, **asked)
        if outcome is not None:
            if fit is not None:
                self._passes.replay(fitted, fit)
            return outcome
        self._journal.note(computed := compute())
        return computed

    def publish(self, fitted: Mask, model: Directory, *, neighbours: bool) -> list[int]:
        """Fit once more, write the Gaussians into the map, and return the checksum of each row of the map.

        With ``neighbours``, the map also has reference images.
        """
        group, fit, number = self._group, self._fit(), int(fitted.sum())
        references = choose_references(fitted) if neighbours else None
        together = chunk_rows(group.geometry, measured=group.count, fitted=number)
        if self._journal is None or not self._journal.expects(PUBLISH, fitted, neighbours=neighbours):
            count = 0 if references is None else int(references.sum())
            create_group_map(model, group.name, group.geometry, number, references=count, rows_together=together)

        def compute(phase: Phase) -> Arrays:
            window, rows, receipts = open_window(self._cluster), rows_of(group), []
            for start in range(0, len(rows), together):
                band = rows[start : start + together]
                receipts.append(submit_publication(window, band, model, group.name, fitted, fit, references))
                _advance(phase, receipts[-1], len(band))
            return {CHECKSUMS: np.concatenate(window.gather(receipts)).astype(np.int64)}

        with self._phase("publish", "publish") as phase:
            outcome = self._once(lambda: compute(phase), PUBLISH, fitted, None, neighbours=neighbours)
        checksums: list[int] = outcome[CHECKSUMS].tolist()
        return checksums

    def _fit(self, estimator: str | None = None) -> Fit:
        return Fit(self._group.config.gaussian, estimator or estimator_of(self._group.config))

    def _phase(self, label: str, kind: str) -> AbstractContextManager[Phase]:
        rows = self._group.geometry.rows
        return self._reporter.phase(f"{self._group.name}: {label}", rows, "rows", kind=kind, brief=True)


def _advance(phase: Phase, future: Any, count: int) -> None:
    """Count some rows of positions once a task is done."""
    future.add_done_callback(lambda _: phase.advance(count))
