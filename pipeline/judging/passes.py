"""Which tasks one pass over a product group is: by inner products where these fit, else by the features themselves.

A group with no more images than channels has the inner products of its images at every position computed once; its
passes are tasks of rows of positions (`workers.passes.by_products`). A larger group goes by rows of positions and
segments of images (`pipeline.judging.row_tasks`), and moments are merged over segments in order; if few images changed
since an earlier pass, the moments of that one are updated (`workers.passes.kept_moments`). The way of a group follows
from its size, and the way of a pass from the sequence of fitted images, so a result depends neither on the number of
workers nor on which one finishes first.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from zarr.codecs import Crc32cCodec

from pipeline.cluster.tasks import Window
from pipeline.judging.group import Group
from pipeline.judging.row_tasks import PassPlan, RowTasks, rows_of, submit_row
from schemas.arrays import Mask
from workers.features.arrays import ArrayRef
from workers.gaussian.fit import Fit, uses_dual
from workers.passes.by_products import (
    Band,
    GramGroup,
    bands,
    judge_rows,
    measure_rows,
    multiply_rows,
    products_chunk,
    uses_products,
)
from workers.passes.kept_moments import Change, KeptMoments, kept_values, pays_to_keep, pays_to_update
from workers.storage.directory import Directory

# Arrays beside a group's distances while it is judged: its inner products, or the moments of a larger group.
PRODUCTS = "products"
MOMENTS = "moments"


class Rows(NamedTuple):
    """Tasks submitted for some rows of positions."""

    number: int  # of rows
    futures: list[Any]  # one for each segment of images, or a single one if one task measures all of them


class Passes(Protocol):
    """Submits the tasks of passes over one group."""

    def submit_verdicts(
        self, window: Window, into: ArrayRef, fitted: Mask, fit: Fit, *, is_first: bool
    ) -> Iterator[Rows]:
        """Measure all images and yield futures of `RowVerdict`, in the order of rows."""

    def submit_distances(
        self, window: Window, into: ArrayRef, fitted: Mask, fit: Fit | None, references: Mask | None
    ) -> Iterator[Rows]:
        """Measure all images and yield futures of receipts, in the order of rows.

        ``references`` (images,) bool are those whose neighbour distance multiplies the distance from the fit; without a
        fit it is the distance.
        """

    def replay(self, fitted: Mask, fit: Fit) -> None:
        """Note a pass that an interrupted job finished, as if it had run here."""

    def close(self) -> None:
        """Remove what was kept between passes."""


def plan_passes(group: Group, directory: Directory) -> Passes:
    """Choose how the passes over a group go; until they are closed they may keep arrays in its directory."""
    if uses_products(group.count, group.geometry.channels):
        return PassesByProducts(group, directory)
    return PassesByFeatures(group, directory)


class PassesByProducts:
    """One task for each band of rows. The first pass writes the products, which the others read."""

    def __init__(self, group: Group, directory: Directory) -> None:
        self._group = GramGroup(group.features, ArrayRef(directory, "", PRODUCTS), group.measured)
        self._directory, self._grid, self._trim = directory, group.grid, group.config.trim
        self._bands = list(bands(group.count, *group.grid))
        self._receipts: list[Any] = []

    def submit_verdicts(
        self, window: Window, into: ArrayRef, fitted: Mask, fit: Fit, *, is_first: bool
    ) -> Iterator[Rows]:
        """Submit one task for each band."""
        for band, receipt in self._multiplied(window):
            verdict = window.submit(judge_rows, self._group, into, band, fitted, fit, self._trim, is_first, receipt)
            yield Rows(band.stop - band.start, [verdict])

    def submit_distances(
        self, window: Window, into: ArrayRef, fitted: Mask, fit: Fit | None, references: Mask | None
    ) -> Iterator[Rows]:
        """Submit one task for each band."""
        for band, receipt in self._multiplied(window):
            measured = window.submit(measure_rows, self._group, into, band, fitted, fit, references, receipt)
            yield Rows(band.stop - band.start, [measured])

    def replay(self, fitted: Mask, fit: Fit) -> None:
        """Do nothing: the products are computed again."""

    def close(self) -> None:
        """Remove the products."""
        self._receipts.clear()
        self._directory.remove(PRODUCTS)

    def _multiplied(self, window: Window) -> Iterator[tuple[Band, Any]]:
        """Yield each band and the receipt of its products; the first call submits their tasks."""
        if not self._receipts:
            count, grid = int(self._group.measured.sum()), self._grid
            self._directory.zarr_group("", "a").create_array(
                PRODUCTS,
                shape=(*grid, count, count),
                chunks=products_chunk(count, *grid),
                dtype="float64",
                compressors=None,
                overwrite=True,
            )
        for number, band in enumerate(self._bands):
            if number == len(self._receipts):
                self._receipts.append(window.submit(multiply_rows, self._group, band))
            yield band, self._receipts[number]


class PassesByFeatures:
    """The tasks of each row of positions, see `RowTasks`; fewer of them if moments are updated."""

    def __init__(self, group: Group, directory: Directory) -> None:
        self._geometry, self._trim, self._directory, self._passes = group.geometry, group.config.trim, directory, 0
        self._rows = rows_of(group)
        self._kept: tuple[int, Mask] | None = None

    def submit_verdicts(
        self, window: Window, into: ArrayRef, fitted: Mask, fit: Fit, *, is_first: bool
    ) -> Iterator[Rows]:
        """Submit the tasks of each row."""
        plan = self._plan(fitted, fit)
        for tasks in self._rows:
            yield Rows(1, submit_row(window, RowTasks.submit_verdict, tasks, into, plan, self._trim, is_first))

    def submit_distances(
        self, window: Window, into: ArrayRef, fitted: Mask, fit: Fit | None, references: Mask | None
    ) -> Iterator[Rows]:
        """Submit the tasks of each row."""
        plan = self._plan(fitted, fit) if fit else PassPlan(fitted, None, self._passes, None, None)
        for tasks in self._rows:
            yield Rows(1, submit_row(window, RowTasks.submit_distances, tasks, into, plan, references))

    def replay(self, fitted: Mask, fit: Fit) -> None:
        """Note what was kept."""
        self._plan(fitted, fit, is_replayed=True)

    def close(self) -> None:
        """Remove the kept moments."""
        self._directory.remove(MOMENTS)

    def _plan(self, fitted: Mask, fit: Fit, *, is_replayed: bool = False) -> PassPlan:
        """Choose how the next pass gets its moments, and note what will be kept after it."""
        count, self._passes = int(fitted.sum()), self._passes + 1
        is_dual = uses_dual(count, self._geometry.channels)
        # The fourth moments of ledoit-wolf need all images in any case.
        is_kept = fit.estimator != "ledoit-wolf" and pays_to_keep(count) and not is_dual
        if not is_kept:
            return PassPlan(fitted, fit, self._passes, None, None)
        change = None
        if self._kept is None:
            if not is_replayed:
                self._create()
        else:
            since, before = self._kept
            if pays_to_update(int((before != fitted).sum()), count):
                change = Change(before, fitted, since, self._passes)
        self._kept = self._passes, fitted.copy()
        return PassPlan(fitted, fit, self._passes, KeptMoments(ArrayRef(self._directory, "", MOMENTS)), change)

    def _create(self) -> None:
        grid, values = (self._geometry.rows, self._geometry.columns), kept_values(self._geometry.channels)
        self._directory.zarr_group("", "a").create_array(
            MOMENTS,
            shape=(*grid, values),
            chunks=(1, 1, values),
            dtype="float64",
            compressors=Crc32cCodec(),
            overwrite=True,
        )
