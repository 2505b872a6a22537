"""scikit-learn's covariance estimators and ours at one position, side by side: distances, planted outliers, cost.

`EmpiricalCovariance` corresponds to our fit without robustness; `MinCovDet` (FAST-MCD, Rousseeuw and Van Driessen 1999)
is the robust estimator. It is compared with one concentration step of ours: a second fit on the nearest three quarters.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.covariance import EmpiricalCovariance, MinCovDet
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from benchmarks.results import Record, record, spread
from schemas.config import GaussianConfig
from workers.gaussian import products as gram
from workers.gaussian.fit import Fit, fit_primal, uses_dual
from workers.gaussian.moments import accumulate
from workers.verdict.selection import smallest

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Positions from few channels with many images, where MinCovDet is at its best, to fewer images than channels.
SHAPES = ((1000, 16), (1000, 64), (400, 100), (200, 448))
OUTLIERS = 0.2
# In standard deviations of the clean images. At D = 64 a clean image lies at 8.
SHIFT = 8.0
KINDS = ("clean", "scattered", "clustered")

# FAST-MCD's choice if less than a quarter is contaminated (Rousseeuw and Van Driessen 1999).
NEAREST = 0.75

# A method that takes less time than this is measured this often, and its fastest time counts.
QUICK_S, TIMES = 0.1, 5

RIDGE = Fit(GaussianConfig(), "ridge")
GROW = Fit(GaussianConfig(), "relative-ridge", leaves_one_out=True)

_EXPLANATION = f"""One position, images x channels, one thread. {OUTLIERS:.0%} of the images are shifted by {SHIFT:g}
standard deviations, each in a direction of its own (scattered) or all in the same (clustered). Time: CPU time of fit
and all distances over that of `paire, all images`. Error: the median relative one of clean images' distances, against
those to the true Gaussian; and the same after the best common factor, as a threshold that is found from the distances
needs no more. AUROC: of outliers against clean images, by distance. Purity: share of clean images in the nearest
{1 - OUTLIERS:.0%}. `paire, all images` is a plain fit, as of `paire` and `none`; `paire, nearest {NEAREST:.0%}` a
second fit on the images nearest under a first on all of them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options."""
    parser.add_argument("--rounds", type=int, default=5, help="samples drawn of each kind")
    parser.add_argument(
        "--limit-s", type=float, default=900, help="start no other kind of sample after this many seconds"
    )


def measure(arguments: argparse.Namespace, command: str) -> Record:
    """Compare all methods on all samples."""
    rows: list[dict[str, str]] = []
    until = time.monotonic() + arguments.limit_s
    for images, channels in SHAPES:
        for kind in KINDS:
            if rows and time.monotonic() > until:
                continue
            for row in _compare(images, channels, kind, arguments.rounds):
                rows.append(row)
                print(row, flush=True)
    return record(f"Peers: scikit-learn {sklearn.__version__} at one position", _EXPLANATION, rows, command=command)


@dataclass(frozen=True)
class Sample:
    """Images at one position.

    Attributes
    ----------
    values
        (images, channels) float64.
    is_outlier
        (images,) bool.
    distances
        (images,) float64: to the Gaussian that the clean images were drawn from.
    """

    values: Array
    is_outlier: Mask
    distances: Array


def draw(images: int, channels: int, kind: str, *, seed: int) -> Sample:
    """Draw images from a Gaussian whose variances fall like those of features, and shift some."""
    rng = np.random.default_rng(seed)
    whitened = rng.standard_normal((images, channels))
    is_outlier = np.zeros(images, bool)
    if kind != "clean":
        is_outlier[: round(OUTLIERS * images)] = True
        directions = rng.standard_normal((int(is_outlier.sum()) if kind == "scattered" else 1, channels))
        whitened[is_outlier] += SHIFT * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    deviations = 1.0 / np.sqrt(np.arange(1, channels + 1))
    rotation, _ = np.linalg.qr(rng.standard_normal((channels, channels)))
    return Sample(3.0 + (whitened * deviations) @ rotation, is_outlier, np.linalg.norm(whitened, axis=1))


def measure_all(values: Array) -> Array:
    """Return our distances (images,) under a fit on all images."""
    everything = np.arange(len(values))
    if uses_dual(*values.shape):
        return gram.measure(gram.inner_products(values), values.shape[1], everything, everything, RIDGE).distances
    return fit_primal(accumulate(values[:, np.newaxis]), RIDGE.config, RIDGE.estimator)[0].gaussian.mahalanobis(values)


def measure_nearest(values: Array) -> Array:
    """Return our distances (images,) under a second fit on the nearest images, fitted ones without themselves."""
    everything = np.ones(len(values), bool)
    measure_under = _products(values) if uses_dual(*values.shape) else _moments(values)
    chosen = smallest(measure_under(everything), everything, round(NEAREST * len(values)))
    return measure_under(chosen)


def _products(values: Array) -> Callable[[Mask], Array]:
    products, everything = gram.inner_products(values), np.arange(len(values))
    return lambda fitted: gram.measure(products, values.shape[1], np.flatnonzero(fitted), everything, GROW).distances


def _moments(values: Array) -> Callable[[Mask], Array]:
    def measure_under(fitted: Mask) -> Array:
        moments = accumulate(values[fitted][:, np.newaxis])
        fit = fit_primal(moments, GROW.config, GROW.estimator, leaves_one_out=True)[0]
        return fit.leave_one_out(values, fitted)

    return measure_under


def _empirical(values: Array) -> Array:
    squared: Array = EmpiricalCovariance().fit(values).mahalanobis(values)
    return np.sqrt(squared)


def _robust(values: Array) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that the covariance is singular where N <= D, which the table shows
        estimator = MinCovDet(random_state=0).fit(values)
    squared: Array = estimator.mahalanobis(values)
    return np.sqrt(np.maximum(squared, 0.0))


METHODS: dict[str, Callable[[Array], Array]] = {
    "paire, all images": measure_all,
    "EmpiricalCovariance": _empirical,
    f"paire, nearest {NEAREST:.0%}": measure_nearest,
    "MinCovDet": _robust,
}


def _compare(images: int, channels: int, kind: str, rounds: int) -> Iterator[dict[str, str]]:
    """Yield a row for each method: all of them in turns on one sample after the other."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in METHODS}
    with threadpool_limits(limits=1):
        for number in range(1 + rounds):
            sample, first = draw(images, channels, kind, seed=number), 0.0
            for name, method in METHODS.items():  # our method is the first
                distances, spent = _timed(method, sample.values)
                first = first or spent
                if number:  # the first call warms up
                    for column, value in {"time": spent / first, **judge(sample, distances)}.items():
                        found[name].setdefault(column, []).append(value)
    for name, columns in found.items():
        shown = {column: spread(values) if np.isfinite(values).all() else "" for column, values in columns.items()}
        yield {"images": f"{images} x {channels}, {kind}", "method": name, **shown}


def _timed(method: Callable[[Array], Array], values: Array) -> tuple[Array, float]:
    """Return the distances and their CPU seconds."""
    fastest = float("inf")
    for _ in range(TIMES):
        started = time.process_time()
        distances = method(values)
        fastest = min(fastest, time.process_time() - started)
        if fastest > QUICK_S:
            break
    return distances, fastest


def judge(sample: Sample, distances: Array) -> dict[str, float]:
    """Return how good distances (images,) are."""
    is_clean = ~sample.is_outlier
    ratios = distances[is_clean] / sample.distances[is_clean]
    nearest = smallest(distances, np.ones(len(distances), bool), round((1.0 - OUTLIERS) * len(distances)))
    return {
        "error, %": 100.0 * float(np.median(np.abs(ratios - 1.0))),
        "up to a factor, %": 100.0 * float(np.median(np.abs(ratios / np.median(ratios) - 1.0))),
        "AUROC": float(roc_auc_score(sample.is_outlier, distances)) if sample.is_outlier.any() else float("nan"),
        "purity": float(is_clean[nearest].mean()),
    }
