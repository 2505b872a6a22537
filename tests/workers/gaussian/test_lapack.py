"""Routines in place, against NumPy's, at sizes on both sides of a block."""

import threading
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from workers.gaussian.lapack import (
    BLOCK,
    add_products,
    factorise,
    invert_diagonal_blocks,
    invert_factor,
    invert_triangle,
    mirror,
    multiply_triangle,
    whiten,
)

SIZES = [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7]

Array = NDArray[np.float64]


def definite(size: int) -> Array:
    """Return a positive definite matrix (size, size) in Fortran order."""
    values = np.random.default_rng(size).normal(size=(size, size + 3))
    return np.asfortranarray(values @ values.T + np.eye(size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("images", [0, 1, 40])
def test_products_are_added_below_the_diagonal(size: int, images: int) -> None:
    samples = np.random.default_rng(1).normal(size=(images, size))
    samples.flags.writeable = False
    total, before = definite(size), definite(size)
    add_products(total, samples)
    np.testing.assert_allclose(np.tril(total), np.tril(before + samples.T @ samples), rtol=1e-12, atol=1e-12)
    add_products(total, samples, -1)
    np.testing.assert_allclose(np.tril(total), np.tril(before), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("size", SIZES)
def test_a_factor_is_numpy_s_and_in_the_same_array(size: int) -> None:
    matrix, expected = definite(size), np.linalg.cholesky(definite(size))
    factor = factorise(matrix)
    assert factor is matrix
    np.testing.assert_allclose(factor, expected, rtol=1e-10, atol=1e-12)
    assert invert_triangle(factor) is matrix
    np.testing.assert_allclose(factor @ expected, np.eye(size), atol=1e-9)


def test_a_matrix_that_is_not_definite_has_no_factor() -> None:
    matrix = np.diag([1.0, 2.0, -1.0]).copy(order="F")
    with pytest.raises(np.linalg.LinAlgError, match="order 3"):
        factorise(matrix)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("images", [0, 1, 40])
def test_whitened_samples_solve_the_triangular_system(size: int, images: int) -> None:
    factor = factorise(definite(size))
    factor.flags.writeable = False
    samples = np.random.default_rng(2).normal(size=(images, size))
    whitened = samples.copy()
    whiten(factor, invert_diagonal_blocks(factor), whitened)
    np.testing.assert_allclose(whitened @ factor.T, samples, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("images", [0, 1, 40])
def test_samples_times_the_inverse_of_a_factor_solve_the_triangular_system(size: int, images: int) -> None:
    factor = factorise(definite(size))
    inverse = invert_factor(factor.copy(order="F"))
    np.testing.assert_allclose(inverse @ factor, np.eye(size), atol=1e-10)
    np.testing.assert_array_equal(np.triu(inverse, 1), 0)
    inverse.flags.writeable = False
    samples = np.random.default_rng(2).normal(size=(images, size))
    whitened = samples.copy()
    multiply_triangle(inverse, whitened)
    np.testing.assert_allclose(whitened @ factor.T, samples, rtol=1e-9, atol=1e-10)


def test_an_inverted_factor_loses_no_more_than_the_square_root_of_the_condition() -> None:
    # Condition 1e12: variances from 1 to 1e-12, in rotated channels.
    rng, size = np.random.default_rng(5), 3 * BLOCK + 7
    rotation = np.linalg.qr(rng.normal(size=(size, size)))[0]
    factor = np.asfortranarray(np.linalg.qr((rotation * np.geomspace(1, 1e-6, size)).T)[1].T)
    samples = rng.normal(size=(40, size)) @ factor.T
    solved = np.linalg.solve(factor, samples.T).T
    multiply_triangle(invert_factor(factor.copy(order="F")), samples)
    norms, expected = np.linalg.norm(samples, axis=1), np.linalg.norm(solved, axis=1)
    assert np.abs(norms / expected - 1).max() < 1e6 * np.finfo(float).eps * size


@pytest.mark.parametrize("size", SIZES)
def test_a_mirrored_matrix_is_symmetric_with_its_lower_triangle(size: int) -> None:
    matrix = np.asfortranarray(np.random.default_rng(3).normal(size=(size, size)))
    lower = np.tril(matrix)
    mirror(matrix)
    np.testing.assert_array_equal(np.tril(matrix), lower)
    np.testing.assert_array_equal(matrix, matrix.T)


def test_the_interpreter_is_free_for_other_threads_meanwhile() -> None:
    matrix, ticks, done = definite(1500), [], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(1e-4)

    thread = threading.Thread(target=tick)
    thread.start()
    started = time.perf_counter()
    for _ in range(5):
        add_products(matrix, np.ones((1500, 1500)))
    ended = time.perf_counter()
    done.set()
    thread.join()
    # A routine that held the lock would leave moments between two calls only.
    assert sum(started < tick < ended for tick in ticks) > 20
