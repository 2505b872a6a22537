"""One pass of the statistics against a loop of np.cov and np.linalg.inv, and against the machine's matrix products.

Both sides of a ratio are measured in turns in one run. A small group (N <= D) is measured by the clock on all cores,
a large one by the CPU time of one thread, as positions are computed side by side on one thread each.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks import results
from schemas.config import GaussianConfig
from schemas.stores.features import CHUNK_IMAGES
from workers.compute import map_in_threads, set_compute_threads
from workers.features.arrays import ArrayRef, Segment
from workers.gaussian import products as gram
from workers.gaussian.fit import Fit, fit_primal, invert
from workers.gaussian.moments import Accumulator, Moments
from workers.passes.by_features import RowWhitenings, accumulate_segment, measure_segment
from workers.passes.kept_moments import Change, KeptMoments, fit_row_whitening, kept_values, update_row
from workers.storage.directory import Directory

Array = NDArray[np.float64]
Result = TypeVar("Result")

# The paper's features of an image of 256 pixels, and a group of the usual size.
DUAL_IMAGES, DUAL_CHANNELS = 200, 1792
# The features of squeezenet1_1, and a large group.
PRIMAL_IMAGES, PRIMAL_CHANNELS = 4000, 896
# Columns of a row: a round of ours is one task. The naive loop is so slow that its round is one position.
ROW, NAIVE = 14, 1
# A larger group, whose passes update the moments of the last pass, and the shares of its images that change.
UPDATED_IMAGES, CHANGED = 20_000, (0.01, 0.1, 0.3)
# Order of the matrix product that measures the speed of the machine.
PRODUCT = 1024

FIT = Fit(GaussianConfig(), "ridge")
AGREEMENT = 1e-6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is measured")
    parser.add_argument("--threads", type=int, default=2, help="compute threads of the small group's passes")


def measure(arguments: argparse.Namespace, command: str) -> results.Record:
    """Run the benchmark."""
    ratios = {**_dual(arguments.rounds, arguments.threads), **_primal(arguments.rounds), **_updates(arguments.rounds)}
    rows = [{"ratio": name, "median (range)": results.spread(values)} for name, values in ratios.items()]
    return results.record(
        "Statistics: one pass",
        f"Times as fast as NumPy: the time of `np.cov` and `np.linalg.inv` at a position, and of all distances, over "
        f"ours on {arguments.threads} threads (N = {DUAL_IMAGES}, D = {DUAL_CHANNELS}); the distances agree to "
        f"{AGREEMENT:g}. Share of the matrix products: operations needed (N D^2 for moments, D^3 / 3 for the factor, "
        f"N D^2 for distances) per second of one thread, over those of a {PRODUCT} x {PRODUCT} product on it "
        f"(N = {PRIMAL_IMAGES}, D = {PRIMAL_CHANNELS}). Updates: CPU time of a pass that updates the stored moments of "
        f"an earlier one, over that of a pass that accumulates anew (N = {UPDATED_IMAGES}, D = {PRIMAL_CHANNELS}).",
        rows,
        command=command,
    )


def _dual(rounds: int, threads: int) -> dict[str, list[float]]:
    """Return how many times as fast as the naive loop a small group's first and later passes are."""
    clocks = {"": time.perf_counter, ", by CPU time": time.process_time}
    name_of = "small group, {}: times as fast{}"
    names = [(name_of.format("first pass", by), name_of.format("later passes", by)) for by in clocks]
    found: dict[str, list[float]] = {name: [] for pair in names for name in pair}
    features = np.random.default_rng(0).normal(3, 1, (DUAL_IMAGES, ROW, DUAL_CHANNELS)).astype(np.float16)
    columns = [features[:, column] for column in range(ROW)]

    def now() -> Array:
        return np.array([clock() for clock in clocks.values()])

    for _ in range(rounds):
        with threadpool_limits(limits=threads, user_api="blas"):
            started = now()
            expected = [_naive(column) for column in columns[:NAIVE]]
            naive = (now() - started) / NAIVE
        set_compute_threads(threads)
        started = now()
        products = map_in_threads(gram.inner_products, columns)
        multiplied = now()
        distances = map_in_threads(_distances, products)
        done = now()
        np.testing.assert_allclose(distances[:NAIVE], expected, rtol=AGREEMENT)
        for (first, later), first_ratio, later_ratio in zip(
            names, naive / ((done - started) / ROW), naive / ((done - multiplied) / ROW), strict=True
        ):
            found[first].append(float(first_ratio))
            found[later].append(float(later_ratio))
    return found


def _distances(products: Array) -> Array:
    """Return the distances (images,) of a position's images, all of them fitted."""
    everything = np.arange(DUAL_IMAGES)
    return gram.measure(products, DUAL_CHANNELS, everything, everything, FIT).distances


def _naive(samples: NDArray[np.float16]) -> Array:
    """Return the distances (images,) by the paper's formulas."""
    values = samples.astype(np.float64)
    covariance = np.cov(values, rowvar=False) + FIT.config.ridge * np.eye(values.shape[1])
    offsets, precision = values - values.mean(axis=0), np.linalg.inv(covariance)
    distances: Array = np.sqrt(np.einsum("ij,jk,ik->i", offsets, precision, offsets, optimize=True))
    return distances


def _primal(rounds: int) -> dict[str, list[float]]:
    """Return what share of the speed of matrix products a large group's pass has on one thread."""
    count, channels = PRIMAL_IMAGES, PRIMAL_CHANNELS
    features = np.random.default_rng(1).normal(3, 1, (count, channels)).astype(np.float16)
    matrix, out = np.random.default_rng(2).normal(size=(PRODUCT, PRODUCT)), np.empty((PRODUCT, PRODUCT))
    operations = {"moments": count * channels**2, "factor": channels**3 / 3, "distances": count * channels**2}
    parts = (*operations, "all")
    found: dict[str, list[float]] = {f"large group, {part}: share of the matrix products": [] for part in parts}
    with threadpool_limits(limits=1, user_api="blas"):
        for _ in range(rounds):
            # The best of several, before and after: a slow product would flatter us.
            speeds = [_product_speed(matrix, out) for _ in range(3)]
            spent = dict(zip(operations, _primal_pass(features), strict=True))
            speed = max(*speeds, *(_product_speed(matrix, out) for _ in range(3)))
            rates = [operations[part] / spent[part] for part in operations]
            rates.append(sum(operations.values()) / sum(spent.values()))
            for values, rate in zip(found.values(), rates, strict=True):
                values.append(rate / speed)
    return found


def _updates(rounds: int) -> dict[str, list[float]]:
    """Return the cost of a pass over a large group that updates moments, over one that accumulates them again."""
    found: dict[str, list[float]] = {
        f"large group, {share:.0%} of the images changed: over a pass anew": [] for share in CHANGED
    }
    rng = np.random.default_rng(3)
    set_compute_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        features, distances, kept = _store_row(Directory.at(folder), rng)
        all_images = np.ones(UPDATED_IMAGES, bool)
        everything = Segment(0, UPDATED_IMAGES, all_images)
        moments = accumulate_segment(features, 0, everything)
        for _, (share, ratios) in itertools.product(range(rounds), zip(CHANGED, found.values(), strict=True)):
            fitted = rng.random(UPDATED_IMAGES) >= share
            anew = Segment(0, UPDATED_IMAGES, fitted)
            fit_row_whitening(moments, FIT, [], 0, kept, 1)
            change = Change(all_images, fitted, 1, 2)
            gaussians, updating = _timed(partial(update_row, features, kept, 0, change, FIT), clock=time.process_time)
            _, accumulating = _timed(partial(_fit_anew, features, anew), clock=time.process_time)
            _, measuring = _timed(
                partial(measure_segment, gaussians, features, distances, 0, everything), clock=time.process_time
            )
            ratios.append((updating + measuring) / (accumulating + measuring))
    return found


def _fit_anew(features: ArrayRef, segment: Segment) -> RowWhitenings:
    return fit_row_whitening(accumulate_segment(features, 0, segment), FIT, [], 0)


def _store_row(directory: Directory, rng: np.random.Generator) -> tuple[ArrayRef, ArrayRef, KeptMoments]:
    """Write the features of one position; return them, and the arrays for distances and moments."""
    group, size = directory.zarr_group("", "w"), kept_values(PRIMAL_CHANNELS)
    shape, chunk = (UPDATED_IMAGES, 1, 1, PRIMAL_CHANNELS), (CHUNK_IMAGES, 1, 1, PRIMAL_CHANNELS)
    values = rng.normal(3, 1, shape).astype(np.float16)
    group.create_array("features", data=values, chunks=chunk, compressors=None)
    group.create_array("distances", shape=shape[:3], chunks=(CHUNK_IMAGES, 1, 1), dtype="float64", compressors=None)
    group.create_array("moments", shape=(1, 1, size), chunks=(1, 1, size), dtype="float64", compressors=None)
    features, distances, moments = (ArrayRef(directory, "", name) for name in ("features", "distances", "moments"))
    return features, distances, KeptMoments(moments)


def _product_speed(matrix: Array, out: Array) -> float:
    _, spent = _timed(lambda: np.matmul(matrix, matrix, out=out), clock=time.thread_time)
    return 2.0 * PRODUCT**3 / spent


def _primal_pass(features: NDArray[np.float16]) -> Iterator[float]:
    """Yield the CPU seconds of moments, factor and distances at one position, chunk by chunk as a task does."""
    chunks = [features[start : start + CHUNK_IMAGES] for start in range(0, len(features), CHUNK_IMAGES)]
    accumulator = Accumulator(features.shape[1])

    def accumulate() -> Moments:
        for chunk in chunks:
            accumulator.add(chunk)
        return accumulator.result()

    moments, spent = _timed(accumulate, clock=time.thread_time)
    yield spent
    fits, spent = _timed(lambda: fit_primal(moments, FIT.config, FIT.estimator), clock=time.thread_time)
    yield spent

    def measure() -> list[Array]:
        gaussian = invert(fits[0]).gaussian
        return [gaussian.mahalanobis(chunk) for chunk in chunks]

    _, spent = _timed(measure, clock=time.thread_time)
    yield spent


def _timed(function: Callable[[], Result], *, clock: Callable[[], float] = time.perf_counter) -> tuple[Result, float]:
    started = clock()
    result = function()
    return result, clock() - started
