"""The Mahalanobis distance with an explicit inverse, and in exact arithmetic: what both forms of it must give."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def literal_distances(fitted: Array, samples: Array, ridge: float) -> Array:
    """Return sqrt((x - mu)^T Sigma^-1 (x - mu)) with an explicit inverse (Eqs. 4-6)."""
    mean = fitted.sum(axis=0) / len(fitted)
    sigma = sum(np.outer(x - mean, x - mean) for x in fitted) / (len(fitted) - 1) + ridge * np.eye(fitted.shape[1])
    inverse = np.linalg.inv(sigma)
    return np.array([np.sqrt((x - mean) @ inverse @ (x - mean)) for x in samples])


def exact_distances(fitted: Array, samples: Array, ridge: float) -> Array:
    """Return the same in rational arithmetic, correctly rounded; for a handful of channels."""
    rows = [[Fraction(float(value)) for value in sample] for sample in fitted]
    channels, count = len(rows[0]), len(rows)
    mean = [sum(row[c] for row in rows) / Fraction(count) for c in range(channels)]
    centred = [[value - m for value, m in zip(row, mean, strict=True)] for row in rows]
    sigma = [
        [sum(row[a] * row[b] for row in centred) / Fraction(count - 1) for b in range(channels)]
        for a in range(channels)
    ]
    for channel in range(channels):
        sigma[channel][channel] += Fraction(ridge)
    offsets = [[Fraction(float(value)) - m for value, m in zip(sample, mean, strict=True)] for sample in samples]
    solutions = _solve(sigma, offsets)
    return np.array(
        [
            math.sqrt(sum(u * z for u, z in zip(offset, solution, strict=True)))
            for offset, solution in zip(offsets, solutions, strict=True)
        ]
    )


def _solve(matrix: list[list[Fraction]], right_sides: list[list[Fraction]]) -> list[list[Fraction]]:
    """Return the solutions of a positive definite system by Gauss-Jordan elimination."""
    size = len(matrix)
    rows = [[*matrix[row], *(side[row] for side in right_sides)] for row in range(size)]
    for pivot in range(size):
        rows[pivot] = [value / rows[pivot][pivot] for value in rows[pivot]]
        for row in range(size):
            if row != pivot and rows[row][pivot]:
                factor = rows[row][pivot]
                rows[row] = [value - factor * p for value, p in zip(rows[row], rows[pivot], strict=True)]
    return [[rows[row][size + side] for row in range(size)] for side in range(len(right_sides))]
