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
    nearest_images,
    take_images,
)
from workers.passes.kept_moments import Change, KeptMoments, fit_row_whitening, update_row
from workers.storage.directory import Directory


class PassPlan(NamedTuple):
    """What a pass fits, and how it gets the moments."""

    fitted: Mask  # (images,)
    fit: Fit
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
        receipts = self._measure(window, into, self._fit_planned(window, plan), None)
        count = int(plan.fitted.sum())
        return [window.submit(judge_row, into, self.row, self.measured, trim, count, is_first, receipts)]

    def submit_distances(self, window: Window, into: ArrayRef, plan: PassPlan, nearest: int | None) -> list[Any]:
        """Measure all images; futures of receipts, one for each segment.

        With ``nearest``, each position is fitted a second time, on this number of the images that are nearest there.
        """
        leaves_one_out, segments = plan.fit.leaves_one_out, list(self._segments(plan.fitted))
        own: list[Any] = [segment.mask if leaves_one_out else None for segment in segments]
        receipts = self._measure(window, into, self._fit_planned(window, plan), own)
        if nearest is None:
            return receipts
        chosen = window.submit(nearest_images, into, self.row, plan.fitted, nearest, receipts)
        own = [
            window.submit(take_images, chosen, segment.start, segment.stop) if leaves_one_out else None
            for segment in segments
        ]
        # These moments are not kept: every position has images of its own, which no other pass fits.
        further = self.row, None, plan.number
        gaussians = self._fit(window, plan.fitted, plan.fit, chosen, nearest, fit_row_whitening, *further)
        return self._measure(window, into, gaussians, own)

    def submit_fit(self, window: Window, fitted: Mask, fit: Fit, chosen: Any, count: int | None) -> Any:
        """Fit what is published; a future of the Gaussians of the row.

        Moments are accumulated again: what is published carries no drift of earlier passes. ``chosen`` (images,
        columns) bool, or a future of it, has the ``count`` images that each column is fitted on; None fits all of
        ``fitted``.
        """
        return self._fit(window, fitted, fit, chosen, count, fit_row_primal)

    def _measure(self, window: Window, into: ArrayRef, gaussians: Any, own: list[Any] | None) -> list[Any]:
        """Submit the distances of each segment; ``own`` has its fitted images if they are left out one by one."""
        segments = list(self._segments(self.measured))
        return [
            window.submit(measure_segment, gaussians, self.features, into, self.row, segment, left_out)
            for segment, left_out in zip(segments, own or [None] * len(segments), strict=True)
        ]

    def _fit_planned(self, window: Window, plan: PassPlan) -> Any:
        """Submit the fit of a pass: update kept moments, or fit to the features."""
        if plan.change is not None:
            return window.submit(update_row, self.features, plan.kept, self.row, plan.change, plan.fit)
        further = self.row, plan.kept, plan.number
        return self._fit(window, plan.fitted, plan.fit, None, None, fit_row_whitening, *further)

    def _fit(
        self,
        window: Window,
        fitted: Mask,
        fit: Fit,
        chosen: Any,
        count: int | None,
        primal: Callable[..., Any],
        *further: object,
    ) -> Any:
        """Submit the dual fit, or ``primal`` of moments that are accumulated segment by segment, and ``further``."""
        if uses_dual(count or int(fitted.sum()), self.channels):
            return window.submit(fit_row_dual, self.features, self.row, Segment(0, len(fitted), fitted), fit, chosen)
        segments = list(self._segments(fitted))
        parts = [
            None if chosen is None else window.submit(take_images, chosen, segment.start, segment.stop)
            for segment in segments
        ]
        moments = None
        for segment, part in zip(segments, parts, strict=True):
            more = window.submit(accumulate_segment, self.features, self.row, segment, part)
            moments = more if moments is None else window.submit(merge_rows, moments, more)
        fourth = [
            window.submit(accumulate_fourth, self.features, self.row, segment, moments, part)
            for segment, part in zip(segments, parts, strict=True)
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
    chosen: list[Any],
    count: int | None,
) -> Any:
    """Submit the fit and the writing of rows that share chunks of the map; a future of their checksums.

    The arguments are those of `RowTasks.submit_fit`, with one element of ``chosen`` for each row.
    """
    gaussians = [
        tasks.submit_fit(window, fitted, fit, images, count) for tasks, images in zip(rows, chosen, strict=True)
    ]
    return window.submit(write_rows, model, group, rows[0].row, gaussians)


def _publish_here(rows: Sequence[RowTasks], *asked: Any) -> list[int]:
    opened = OpenedFeatures.of(rows[0].features)
    checksums: list[int] = publish_rows(Here(), [replace(tasks, features=opened) for tasks in rows], *asked).result
    return checksums
