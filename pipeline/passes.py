"""Which tasks one pass over a product group is: by inner products where these fit, else by the features themselves.

Groups of no more images than channels have the inner products of their images at every position computed once, and
passes are tasks of rows of positions (`workers.gram_passes`). In larger groups a task has one row of positions and one
segment of images (`workers.passes`), and moments are merged over segments in order; where few images changed since an
earlier pass, one task for each row updates the moments of that one (`workers.updates`). Which way a group goes follows
from its size, and which way a pass goes from the sequence of fitted images, so a result depends on neither the number
of workers nor who finishes first.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks import Window
from schemas.config import Config, TrimConfig
from schemas.features import FeatureGeometry
from workers.gaussian import Fit, uses_dual
from workers.gram_passes import (
    Band,
    GramGroup,
    bands,
    judge_rows,
    measure_rows,
    multiply_rows,
    products_chunk,
    uses_products,
)
from workers.passes import (
    ArrayRef,
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
    take_images,
)
from workers.storage import Directory
from workers.updates import (
    Change,
    KeptMoments,
    fit_row_whitening,
    kept_values,
    pays_to_keep,
    pays_to_update,
    update_row,
)

Mask = NDArray[np.bool_]

# The array of inner products beside a group's distances, there while the group is judged.
PRODUCTS = "products"

# The array of moments there, of a larger group.
MOMENTS = "moments"


class Rows(NamedTuple):
    """Tasks submitted for some rows of positions.

    Attributes
    ----------
    number
        Of rows.
    futures
        One for each segment of images; the same where one task measures all of them.
    """

    number: int
    futures: list[Any]


class Passes(Protocol):
    """Submits the tasks of passes over one group."""

    def judge(self, window: Window, into: ArrayRef, fitted: Mask, fit: Fit, *, is_first: bool) -> Iterator[Rows]:
        """Measure all images and yield futures of `RowVerdict`, in the order of rows."""

    def measure(self, window: Window, into: ArrayRef, fitted: Mask, fit: Fit, nearest: int | None) -> Iterator[Rows]:
        """Measure all images and yield futures of receipts, in the order of rows.

        With ``nearest``, each position is fitted a second time, on so many of the images that are nearest there.
        """

    def replay(self, fitted: Mask, fit: Fit) -> None:
        """Take note of a pass that an interrupted job finished, as if it had run here."""

    def close(self) -> None:
        """Remove what was kept between passes."""


def plan_passes(
    features: ArrayRef, directory: Directory, measured: Mask, geometry: FeatureGeometry, config: Config
) -> Passes:
    """Choose how the passes over a group go.

    Parameters
    ----------
    features
        The group's features.
    directory
        Of the group's distances; may get an array of inner products until the passes are closed.
    measured
        (images,) bool: the images that take part.
    geometry
        The grid of positions.
    config
        The configuration.
    """
    if uses_products(int(measured.sum()), geometry.channels):
        return PassesByProducts(features, directory, measured, geometry, config.trim)
    return PassesByFeatures(features, directory, measured, geometry, config)


class PassesByProducts:
    """One task for each band of rows. The first pass writes the products, which the others read."""

    def __init__(
        self, features: ArrayRef, directory: Directory, measured: Mask, geometry: FeatureGeometry, trim: TrimConfig
    ) -> None:
        self._group = GramGroup(features, ArrayRef(directory, "", PRODUCTS), measured)
        self._directory, self._geometry, self._trim = directory, geometry, trim
        self._bands = list(bands(int(measured.sum()), geometry.rows, geometry.columns))
        self._receipts: list[Any] = []

    def judge(self, window: Window, into: ArrayRef, fitted: Mask, fit: Fit, *, is_first: bool) -> Iterator[Rows]:
        """Submit one task for each band."""
        for band, receipt in self._multiplied(window):
            verdict = window.submit(judge_rows, self._group, into, band, fitted, fit, self._trim, is_first, receipt)
            yield Rows(band.stop - band.start, [verdict])

    def measure(self, window: Window, into: ArrayRef, fitted: Mask, fit: Fit, nearest: int | None) -> Iterator[Rows]:
        """Submit one task for each band."""
        for band, receipt in self._multiplied(window):
            measured = window.submit(measure_rows, self._group, into, band, fitted, fit, nearest, receipt)
            yield Rows(band.stop - band.start, [measured])

    def replay(self, fitted: Mask, fit: Fit) -> None:
        """Nothing follows from it: the products are computed anew."""

    def close(self) -> None:
        """Remove the products."""
        self._receipts.clear()
        self._directory.remove(PRODUCTS)

    def _multiplied(self, window: Window) -> Iterator[tuple[Band, Any]]:
        """Yield each band and the receipt of its products, whose tasks are submitted the first time."""
        if not self._receipts:
            self._create()
        for number, band in enumerate(self._bands):
            if number == len(self._receipts):
                self._receipts.append(window.submit(multiply_rows, self._group, band))
            yield band, self._receipts[number]

    def _create(self) -> None:
        count, grid = int(self._group.measured.sum()), (self._geometry.rows, self._geometry.columns)
        self._directory.zarr_group("", "a").create_array(
            PRODUCTS,
            shape=(*grid, count, count),
            chunks=products_chunk(count, *grid),
            dtype="float64",
            compressors=None,
            overwrite=True,
        )


class _Plan(NamedTuple):
    """How a pass gets the moments of its fitted images.

    Attributes
    ----------
    fitted
        (images,) bool.
    fit
        How they are fitted.
    number
        Of the pass.
    kept
        Where its moments are kept; None for nowhere.
    change
        What to update there; None to accumulate anew.
    """

    fitted: Mask
    fit: Fit
    number: int
    kept: KeptMoments | None
    change: Change | None


class PassesByFeatures:
    """One task for each row of positions and segment of images; or for each row, where moments are updated."""

    def __init__(
        self, features: ArrayRef, directory: Directory, measured: Mask, geometry: FeatureGeometry, config: Config
    ) -> None:
        self._features, self._measured, self._geometry, self._config = features, measured, geometry, config
        self._directory, self._passes = directory, 0
        self._kept: tuple[int, Mask] | None = None

    def judge(self, window: Window, into: ArrayRef, fitted: Mask, fit: Fit, *, is_first: bool) -> Iterator[Rows]:
        """Submit the tasks of each row."""
        trim, count, plan = self._config.trim, int(fitted.sum()), self._plan(fitted, fit)
        for row in range(self._geometry.rows):
            receipts = self._measure(window, into, row, self._fit(window, row, plan), None)
            yield Rows(1, [window.submit(judge_row, into, row, self._measured, trim, count, is_first, receipts)])

    def measure(self, window: Window, into: ArrayRef, fitted: Mask, fit: Fit, nearest: int | None) -> Iterator[Rows]:
        """Submit the tasks of each row."""
        plan = self._plan(fitted, fit)
        for row in range(self._geometry.rows):
            own: list[Any] = [segment.mask if fit.leaves_one_out else None for segment in self._segments(fitted)]
            receipts = self._measure(window, into, row, self._fit(window, row, plan), own)
            if nearest is not None:
                chosen = window.submit(nearest_images, into, row, fitted, nearest, receipts)
                own = [
                    window.submit(take_images, chosen, segment.start, segment.stop) if fit.leaves_one_out else None
                    for segment in self._segments(fitted)
                ]
                # Every position has images of its own, which no other pass fits.
                gaussians = self._fit_anew(window, row, plan._replace(kept=None), chosen, nearest)
                receipts = self._measure(window, into, row, gaussians, own)
            yield Rows(1, receipts)

    def replay(self, fitted: Mask, fit: Fit) -> None:
        """Take note of what was kept."""
        self._plan(fitted, fit, is_replayed=True)

    def close(self) -> None:
        """Remove the kept moments."""
        self._directory.remove(MOMENTS)

    def _plan(self, fitted: Mask, fit: Fit, *, is_replayed: bool = False) -> _Plan:
        """Choose how the next pass gets its moments, and take note of what will be kept after it."""
        count, self._passes = int(fitted.sum()), self._passes + 1
        # The fourth moments of ledoit-wolf need all images in any case.
        is_kept = fit.estimator != "ledoit-wolf" and pays_to_keep(count) and not self._is_dual(count)
        if not is_kept:
            return _Plan(fitted, fit, self._passes, None, None)
        change = None
        if self._kept is None:
            if not is_replayed:
                self._create()
        else:
            since, before = self._kept
            if pays_to_update(int((before != fitted).sum()), count):
                change = Change(before, fitted, since, self._passes)
        self._kept = self._passes, fitted.copy()
        return _Plan(fitted, fit, self._passes, KeptMoments(ArrayRef(self._directory, "", MOMENTS)), change)

    def _measure(self, window: Window, into: ArrayRef, row: int, gaussians: Any, own: list[Any] | None) -> list[Any]:
        """Submit the distances of each segment; ``own`` has its fitted images where they are left out one by one."""
        segments = list(self._segments(self._measured))
        return [
            window.submit(measure_segment, gaussians, self._features, into, row, segment, left_out)
            for segment, left_out in zip(segments, own or [None] * len(segments), strict=True)
        ]

    def _fit(self, window: Window, row: int, plan: _Plan) -> Any:
        """Submit the fit of a row as planned."""
        if plan.change is not None:
            return window.submit(update_row, self._features, plan.kept, row, plan.change, plan.fit)
        return self._fit_anew(window, row, plan)

    def _fit_anew(self, window: Window, row: int, plan: _Plan, chosen: Any = None, count: int | None = None) -> Any:
        """Submit the fit of a row to features, see `fit_row`."""
        source = (window, self._features, row, plan.fitted, plan.fit)
        size = self._config.gaussian.segment_images
        if self._is_dual(count or int(plan.fitted.sum())):
            return _fit_dual(*source, chosen)
        moments, fourth = _accumulate(*source, chosen, size)
        return window.submit(fit_row_whitening, moments, plan.fit, fourth, row, plan.kept, plan.number)

    def _is_dual(self, fitted: int) -> bool:
        return uses_dual(fitted, self._geometry.channels)

    def _create(self) -> None:
        grid, values = (self._geometry.rows, self._geometry.columns), kept_values(self._geometry.channels)
        self._directory.zarr_group("", "a").create_array(
            MOMENTS,
            shape=(*grid, values),
            chunks=(1, 1, values),
            dtype="float64",
            compressors=None,
            overwrite=True,
        )

    def _segments(self, mask: Mask) -> Iterator[Segment]:
        return cut_segments(mask, self._config.gaussian.segment_images)


def fit_row(
    window: Window,
    features: ArrayRef,
    row: int,
    fitted: Mask,
    fit: Fit,
    *,
    channels: int,
    segment_images: int,
    chosen: Any = None,
    count: int | None = None,
) -> Any:
    """Submit the fit of one row of positions to features; returns a future of its Gaussians.

    Moments are accumulated anew: what is published carries no drift of earlier passes.

    Parameters
    ----------
    window
        Where to submit.
    features, row, fitted, fit
        As for `workers.passes.fit_row_dual`.
    channels
        D.
    segment_images
        Images in one task.
    chosen, count
        A future of the images (images, columns) that each column is fitted on, and how many they are at each.
    """
    if uses_dual(count or int(fitted.sum()), channels):
        return _fit_dual(window, features, row, fitted, fit, chosen)
    moments, fourth = _accumulate(window, features, row, fitted, fit, chosen, segment_images)
    return window.submit(fit_row_primal, moments, fit, fourth)


def _fit_dual(window: Window, features: ArrayRef, row: int, fitted: Mask, fit: Fit, chosen: Any) -> Any:
    return window.submit(fit_row_dual, features, row, Segment(0, len(fitted), fitted), fit, chosen)


def _accumulate(
    window: Window, features: ArrayRef, row: int, fitted: Mask, fit: Fit, chosen: Any, segment_images: int
) -> tuple[Any, list[Any]]:
    """Submit the moments of a row, segment by segment; returns a future of them, and of each fourth moment needed."""
    segments = list(cut_segments(fitted, segment_images))
    parts = [
        None if chosen is None else window.submit(take_images, chosen, segment.start, segment.stop)
        for segment in segments
    ]
    moments = None
    for segment, part in zip(segments, parts, strict=True):
        more = window.submit(accumulate_segment, features, row, segment, part)
        moments = more if moments is None else window.submit(merge_rows, moments, more)
    fourth = [
        window.submit(accumulate_fourth, features, row, segment, moments, part)
        for segment, part in zip(segments, parts, strict=True)
        if fit.estimator == "ledoit-wolf"
    ]
    return moments, fourth
