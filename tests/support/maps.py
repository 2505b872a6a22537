"""Gaussian maps that tests fit and publish themselves."""

import numpy as np
from numpy.typing import NDArray

from schemas.config import FeaturesConfig, GaussianConfig
from schemas.records.run import SUCCESS
from schemas.stores.features import FeatureGeometry
from workers.gaussian.fit import FittedGaussian, Gaussian, fit_dual, fit_primal, uses_dual
from workers.gaussian.moments import accumulate
from workers.map.reader import MapDescription
from workers.map.writer import complete_map, create_group_map, create_map, write_rows, write_thresholds
from workers.passes.by_features import References
from workers.storage.directory import Directory

ESTIMATOR = "ridge"
RIDGE = 1e-6
GAUSSIAN = GaussianConfig(ridge=RIDGE)


def describe(
    geometry: FeatureGeometry, features: FeaturesConfig | None = None, weights_digest: str = "w" * 64
) -> MapDescription:
    return MapDescription("run", "c" * 64, features or FeaturesConfig(), weights_digest, geometry, ESTIMATOR)


def fit_row(samples: NDArray[np.floating]) -> tuple[FittedGaussian, ...]:
    """Fit one row of positions on samples (images, columns, channels)."""
    images, columns, channels = samples.shape
    if uses_dual(images, channels):
        return tuple(fit_dual(samples[:, column], GAUSSIAN, ESTIMATOR) for column in range(columns))
    return fit_primal(accumulate(samples), GAUSSIAN, ESTIMATOR)


def reference_rows(samples: NDArray[np.floating], references: int) -> list[References]:
    """Return each row's reference images: the first of samples (images, rows, columns, channels); [] for none."""
    chosen = np.arange(len(samples)) < references
    return [References(chosen, samples[chosen, row]) for row in range(samples.shape[1]) if references]


def write_group(
    model: Directory,
    group: str,
    geometry: FeatureGeometry,
    samples: NDArray[np.floating],
    thresholds: NDArray[np.float64],
    *,
    smoothing: int = 1,
    rows_together: int = 1,
    references: int = 0,
) -> list[tuple[Gaussian, ...]]:
    """Fit a product group on samples (images, rows, columns, channels) and write it; returns its Gaussians by row.

    The first ``references`` samples are its reference images.
    """
    create_group_map(model, group, geometry, len(samples), references=references, rows_together=rows_together)
    rows = [fit_row(samples[:, row]) for row in range(geometry.rows)]
    near = reference_rows(samples, references)
    checksums = []
    for start in range(0, len(rows), rows_together):
        stop = start + rows_together
        checksums += write_rows(model, group, start, rows[start:stop], near[start:stop])
    write_thresholds(model, group, thresholds, checksums=checksums, smoothing=smoothing)
    return [tuple(fitted.gaussian for fitted in row) for row in rows]


def finish(run: Directory) -> None:
    """Complete the map of a run and mark the run as finished."""
    complete_map(run / "model")
    run.write(SUCCESS, b"")


def new_map(run: Directory, description: MapDescription) -> Directory:
    """Create an empty map in a run; returns its directory."""
    model = run / "model"
    create_map(model, description)
    return model
