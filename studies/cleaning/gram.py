"""Distances in an archive from inner products, which make a study of hundreds of cleanings affordable.

The study cleans an archive of N images again and again, with other images planted, by other strategies, in many passes.
The inner products of all images at a position stay the same, and `workers.gaussian.products` computes all distances
from them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.gaussian.fit import Fit
from workers.gaussian.neighbours import neighbour_distances_of_products
from workers.gaussian.products import inner_products, measure

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Gram:
    """The inner products of images at every position.

    Attributes
    ----------
    products
        (positions, images, images) float64, of features about their mean; may be mapped from a file.
    channels
        D.
    """

    products: Array
    channels: int

    def distances(self, fitted: Rows, measured: Rows, fit: Fit) -> Array:
        """Fit on some images and measure some images, which may be the same: Eq. 6.

        Parameters
        ----------
        fitted
            (n,) int64: rows of the images, each once; or (n, positions) where each position has its own.
        measured
            (m,) int64: rows of the images.

        Returns
        -------
        ndarray
            (m, positions) float64.
        """
        result = np.empty((len(measured), len(self.products)))
        for position, products in enumerate(self.products):
            here = fitted if fitted.ndim == 1 else fitted[:, position]
            result[:, position] = measure(products, self.channels, here, measured, fit).distances
        return result

    def over_all_positions(self, images: Rows) -> Array:
        """Return the inner products (m, m) of images (m,) about their mean, all positions with the same weight.

        These are those of `workers.guard.structure.gram`.
        """
        total = np.zeros((len(images), len(images)))
        for products in self.products:
            chosen = products[np.ix_(images, images)]
            to_mean = chosen.mean(axis=1)
            chosen = chosen - to_mean[:, np.newaxis] - to_mean + to_mean.mean()
            variance = float(np.trace(chosen))
            if variance > 0:
                total += chosen / variance
        return total

    def neighbour_distances(self, references: Rows, measured: Rows) -> Array:
        """Return the neighbour distances (m, positions) float64, as `distances` does those of a fit."""
        result = np.empty((len(measured), len(self.products)))
        for position, products in enumerate(self.products):
            result[:, position] = neighbour_distances_of_products(products, references, measured)
        return result


def products_of(features: NDArray[Any], out: Array) -> None:
    """Fill ``out`` (positions, images, images) with the inner products of features (images, positions, channels)."""
    for position in range(features.shape[1]):
        out[position] = inner_products(features[:, position])
