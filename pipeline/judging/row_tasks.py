"""The tasks of one row of positions, from features: fit it, measure its images, and judge or publish what comes out.

In a large group each of these is a task of its own for each segment of images, so that the workers share the segments;
moments and Gaussians go from task to task. A group of one segment has nothing to share: all of a row is one task then
(`workers.features.arrays.is_whole_row`), which reads its features once; nothing but the outcome leaves the worker.
Both ways call the same functions in the same order.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pipeline.cluster.tasks import Here, Window
from pipeline.judging.group import Group
from schemas.arrays import Mask
from schemas.config import TrimConfig
from workers.features.arrays import ArrayRef, HeldFeatures, OpenedFeatures, Segment, cut_segments, is_whole_row
from workers.gaussian.fit import Fit, uses_dual
from workers.map.writer import write_rows
from workers.passes.by_features import (
    accumulate_fourth,
    accumulate_segment,
    fit_row_dual,
    fit_row_primal,
    judge_row,
    measure_segment,
    merge_rows,
    read_references,
)
from workers.passes.kept_moments import Change, KeptMoments, fit_row_whitening, update_row
from workers.storage.directory import Directory


class PassPlan(NamedTuple):
    """What a pass fits, and how it gets the moments."""

    fitted: Mask  # (images,)
    fit: Fit | None  # None measures neighbour distances alone
    number: int  # of the pass
    kept: KeptMoments | None  # where its moments are kept, if they are
    change: Change | None  # what to update there; None accumulates again


@dataclass(frozen=True)
class RowTasks:
    """Submits the tasks of one row of positions, and returns futures of the last of them."""

    features: ArrayRef
    row: int
    measured: Mask
    channels: int
    segment_images: int

    @property
    def is_whole(self) -> bool:
        """Whether all of the row is one task."""
        return is_whole_row(len(self.measured), self.segment_images)

    def submit_verdict(
        self, window: Window, into: ArrayRef, plan: PassPlan, trim: TrimConfig, is_first: bool
    ) -> list[Any]:
        """Measure all images; one future, of a `RowVerdict`."""
        receipts = self._measure(window, into, self._fit_planned(window, plan), None, None)
        count = int(plan.fitted.sum())
        return [window.submit(judge_row, into, self.row, self.measured, trim, count, is_first, receipts)]

    def submit_distances(self, window: Window, into: ArrayRef, plan: PassPlan, references: Mask | None) -> list[Any]:
        """Measure all images; futures of receipts, one for each segment.

        ``references`` (images,) bool are those whose neighbour distance multiplies the distance from the fit.
        """
        near = None if references is None else window.submit(read_references, self.features, self.row, references)
        if plan.fit is None:
            return self._measure(window, into, None, None, near)
        own: list[Any] | None = None
        if plan.fit.leaves_one_out:
            own = [segment.mask for segment in self._segments(plan.fitted)]
        return self._measure(window, into, self._fit_planned(window, plan), own, near)

    def submit_fit(self, window: Window, fitted: Mask, fit: Fit) -> Any:
        """Fit what is published; a future of the Gaussians of the row.

        Moments are accumulated again: what is published carries no drift of earlier passes.
        """
        return self._fit(window, fitted, fit, fit_row_primal)

    def submit_references(self, window: Window, references: Mask) -> Any:
        """Read the reference images ``references`` (images,) bool of what is published; a future of `References`."""
        return window.submit(read_references, self.features, self.row, references)

    def _measure(
        self, window: Window, into: ArrayRef, gaussians: Any, own: list[Any] | None, references: Any
    ) -> list[Any]:
        """Submit the distances of each segment; ``own`` has its fitted images if they are left out one by one."""
        segments = list(self._segments(self.measured))
        return [
            window.submit(measure_segment, gaussians, self.features, into, self.row, segment, left_out, references)
            for segment, left_out in zip(segments, own or [None] * len(segments), strict=True)
        ]

    def _fit_planned(self, window: Window, plan: PassPlan) -> Any:
        """Submit the fit of a pass: update kept moments, or fit to the features."""
        assert plan.fit is not None
        if plan.change is not None:
            return window.submit(update_row, self.features, plan.kept, self.row, plan.change, plan.fit)
        return self._fit(window, plan.fitted, plan.fit, fit_row_whitening, self.row, plan.kept, plan.number)

    def _fit(self, window: Window, fitted: Mask, fit: Fit, primal: Callable[..., Any], *further: object) -> Any:
        """Submit the dual fit, or ``primal`` of moments that are accumulated segment by segment, and ``further``."""
        if uses_dual(int(fitted.sum()), self.channels):
            return window.submit(fit_row_dual, self.features, self.row, Segment(0, len(fitted), fitted), fit)
        segments = list(self._segments(fitted))
        moments = None
        for segment in segments:
            more = window.submit(accumulate_segment, self.features, self.row, segment)
            moments = more if moments is None else window.submit(merge_rows, moments, more)
        fourth = [
            window.submit(accumulate_fourth, self.features, self.row, segment, moments)
            for segment in segments
            if fit.estimator == "ledoit-wolf"
        ]
        return window.submit(primal, moments, fit, fourth, *further)

    def _segments(self, mask: Mask) -> Iterator[Segment]:
        return cut_segments(mask, self.segment_images)


def rows_of(group: Group) -> list[RowTasks]:
    """Return the tasks of every row of positions of a group."""
    rows, channels, size = group.geometry.rows, group.geometry.channels, group.config.gaussian.segment_images
    return [RowTasks(group.features, row, group.measured, channels, size) for row in range(rows)]


def submit_row(window: Window, ask: Callable[..., list[Any]], tasks: RowTasks, *asked: object) -> list[Any]:
    """Call a method of `RowTasks`, ``ask``, or submit all that it does as one task if the whole row is one.

    ``asked`` are its arguments after the window; some may be futures.
    """
    if tasks.is_whole:
        return [window.submit(compute_row, ask, tasks, *asked)]
    return ask(tasks, window, *asked)


def compute_row(ask: Callable[..., list[Any]], tasks: RowTasks, *asked: object) -> Any:
    """Compute in this thread what a method of `RowTasks` would submit for one segment of images, see `submit_row`."""
    here = Here()
    (result,) = here.gather(ask(replace(tasks, features=HeldFeatures.of(tasks.features)), here, *asked))
    return result


def submit_publication(window: Window, rows: Sequence[RowTasks], *asked: Any) -> Any:
    """Call `publish_rows`, or submit all that it does as one task if a whole row is one; return the same future."""
    if rows[0].is_whole:
        return window.submit(_publish_here, rows, *asked)
    return publish_rows(window, rows, *asked)


def publish_rows(
    window: Window,
    rows: Sequence[RowTasks],
    model: Directory,
    group: str,
    fitted: Mask,
    fit: Fit,
    references: Mask | None,
) -> Any:
    """Submit the fit and the writing of rows that share chunks of the map; a future of their checksums.

    ``references`` (images,) bool are the reference images that the map has, if it has any.
    """
    gaussians = [tasks.submit_fit(window, fitted, fit) for tasks in rows]
    near = [] if references is None else [tasks.submit_references(window, references) for tasks in rows]
    return window.submit(write_rows, model, group, rows[0].row, gaussians, near)


def _publish_here(rows: Sequence[RowTasks], *asked: Any) -> list[int]:
    opened = OpenedFeatures.of(rows[0].features)
    checksums: list[int] = publish_rows(Here(), [replace(tasks, features=opened) for tasks in rows], *asked).result
    return checksums
