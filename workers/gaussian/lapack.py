"""Call SciPy's own BLAS and LAPACK routines in place and without the interpreter's lock.

Threads compute positions side by side. SciPy's functions hold the lock while they compute, so only one of them runs at
a time, and they return copies. But SciPy exports the addresses of its routines (`scipy.LowLevelCallable`), and ctypes
releases the lock.

Matrices are float64 in Fortran order; samples (images, channels) in C order are their transpose.
"""

import ctypes
from collections.abc import Callable
from types import ModuleType

import numpy as np
import scipy
from scipy.linalg import cython_blas, cython_lapack

from schemas.arrays import Floats

# Channels in one block of a triangular solve. Blocks are inverted, so this is the smallest with fast multiplications.
BLOCK = 64

_ABOVE = np.triu(np.ones((BLOCK, BLOCK), bool), 1)  # above the diagonal of a block

# LAPACK inverts triangles up to this order; larger ones are inverted by halves, joined by matrix products.
SMALL_TRIANGLE = 32


def _routine(module: ModuleType, name: str, arguments: int) -> Callable[..., None]:
    """Return a routine as a function that takes ``arguments`` pointers."""
    capsule = scipy.LowLevelCallable.from_cython(module, name).function
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    address_of = ctypes.pythonapi.PyCapsule_GetPointer
    address_of.restype, address_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address_of(capsule, name_of(capsule)))


_dgemm = _routine(cython_blas, "dgemm", 13)
_dsyrk = _routine(cython_blas, "dsyrk", 10)
_dpotrf = _routine(cython_lapack, "dpotrf", 5)
_dtrmm = _routine(cython_blas, "dtrmm", 11)
_dtrtri = _routine(cython_lapack, "dtrtri", 6)

# Options are the addresses of letters; "N" means not transposed, or a diagonal that is not all ones.
_LETTERS = {letter: ctypes.c_char(letter) for letter in (b"L", b"N", b"R")}
_LOWER = _LEFT = ctypes.addressof(_LETTERS[b"L"])
_RIGHT = ctypes.addressof(_LETTERS[b"R"])
_PLAIN = ctypes.addressof(_LETTERS[b"N"])


def add_products(total: Floats, samples: Floats, sign: float = 1.0) -> None:
    """Add (``sign`` -1: subtract) x x^T of samples (images, channels), C order, to the lower triangle of a matrix."""
    channels = _order(total)
    assert samples.flags.c_contiguous
    assert samples.shape[1] == channels
    if len(samples):
        n, k = ctypes.c_int(channels), ctypes.c_int(len(samples))
        factor, one = ctypes.c_double(sign), ctypes.c_double(1.0)
        _dsyrk(
            *(_LOWER, _PLAIN, _at(n), _at(k), _at(factor), samples.ctypes.data, _at(n)),
            *(_at(one), total.ctypes.data, _at(n)),
        )


def mirror(matrix: Floats) -> None:
    """Copy the lower triangle of a matrix to the upper one, by blocks that stay in the cache."""
    for start in range(0, _order(matrix), BLOCK):
        stop = start + BLOCK
        diagonal = matrix[start:stop, start:stop]
        np.copyto(diagonal, diagonal.T, where=_ABOVE[: len(diagonal), : len(diagonal)])
        for below in range(stop, len(matrix), BLOCK):
            matrix[start:stop, below : below + BLOCK] = matrix[below : below + BLOCK, start:stop].T


def factorise(matrix: Floats) -> Floats:
    """Turn the lower triangle of a positive definite matrix into its Cholesky factor L; returns the same array.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the matrix is not positive definite.
    """
    n, info = ctypes.c_int(_order(matrix)), ctypes.c_int(0)
    _dpotrf(_LOWER, _at(n), matrix.ctypes.data, _at(n), _at(info))
    if info.value:
        raise np.linalg.LinAlgError(f"the leading minor of order {info.value} is not positive definite")
    for start in range(0, n.value, BLOCK):
        stop = start + BLOCK
        matrix[:start, start:stop] = 0.0
        diagonal = matrix[start:stop, start:stop]
        np.copyto(diagonal, 0.0, where=_ABOVE[: len(diagonal), : len(diagonal)])
    return matrix


def invert_triangle(factor: Floats) -> Floats:
    """Turn a lower triangular matrix into its inverse; returns the same array."""
    n, info = ctypes.c_int(_order(factor)), ctypes.c_int(0)
    _dtrtri(_LOWER, _PLAIN, _at(n), factor.ctypes.data, _at(n), _at(info))
    assert not info.value, "a Cholesky factor has no zero on its diagonal"
    return factor


def invert_factor(factor: Floats) -> Floats:
    """Turn a lower triangular matrix into its inverse, by halves; returns the same array.

    Nearly all work is products of large triangles, four times as fast as LAPACK's dtrtri.
    """
    if _order(factor):
        _invert_part(factor, 0, len(factor))
    return factor


def multiply_triangle(triangle: Floats, samples: Floats) -> None:
    """Turn samples (images, channels), C order, into T x for a lower triangular T, in place."""
    assert samples.flags.c_contiguous
    assert samples.shape[1] == _order(triangle)
    if len(samples):
        _dtrmm_of(_LEFT, 1.0, triangle, samples.T)


def _invert_part(factor: Floats, start: int, stop: int) -> None:
    """Invert the rows and columns from ``start`` to ``stop`` of a lower triangular matrix, in place."""
    if stop - start <= SMALL_TRIANGLE:
        n, stride, info = ctypes.c_int(stop - start), ctypes.c_int(len(factor)), ctypes.c_int(0)
        _dtrtri(_LOWER, _PLAIN, _at(n), factor[start:, start:].ctypes.data, _at(stride), _at(info))
        assert not info.value, "a Cholesky factor has no zero on its diagonal"
        return
    middle = start + -(-(stop - start) // (2 * SMALL_TRIANGLE)) * SMALL_TRIANGLE
    _invert_part(factor, start, middle)
    _invert_part(factor, middle, stop)
    between = factor[middle:stop, start:middle]
    _dtrmm_of(_LEFT, -1.0, factor[middle:stop, middle:stop], between)
    _dtrmm_of(_RIGHT, 1.0, factor[start:middle, start:middle], between)


def _dtrmm_of(side: int, sign: float, triangle: Floats, matrix: Floats) -> None:
    """Multiply a matrix by a lower triangular one from the left or the right, in place; both with unit row stride."""
    rows, columns = ctypes.c_int(matrix.shape[0]), ctypes.c_int(matrix.shape[1])
    # NumPy does not define the stride over a single column.
    strides = [ctypes.c_int(max(part.strides[1] // part.itemsize, len(part))) for part in (triangle, matrix)]
    factor = ctypes.c_double(sign)
    _dtrmm(
        *(side, _LOWER, _PLAIN, _PLAIN, _at(rows), _at(columns), _at(factor)),
        *(triangle.ctypes.data, _at(strides[0]), matrix.ctypes.data, _at(strides[1])),
    )


def invert_diagonal_blocks(factor: Floats) -> tuple[Floats, ...]:
    """Return the inverses of the blocks of `BLOCK` channels along the diagonal of a lower triangular matrix."""
    starts = range(0, len(factor), BLOCK)
    return tuple(
        invert_triangle(factor[start : start + BLOCK, start : start + BLOCK].copy(order="F")) for start in starts
    )


def whiten(factor: Floats, inverses: tuple[Floats, ...], samples: Floats) -> None:
    """Turn samples (images, channels) into L^-1 x for a lower triangular L, in place.

    Forward substitution by halves: solve the first half of the channels, subtract what it explains from the second,
    solve that. Nearly all work is products of large matrices, twice as fast as a triangular solve. ``inverses`` are
    those of L's diagonal blocks.
    """
    assert samples.flags.c_contiguous
    assert samples.shape[1] == _order(factor)
    if len(inverses) == 1:
        samples[:] = samples @ inverses[0].T
    elif len(samples):
        _whiten_blocks(factor, inverses, samples, 0, len(inverses))


def _whiten_blocks(factor: Floats, inverses: tuple[Floats, ...], samples: Floats, first: int, last: int) -> None:
    """Whiten the channels of blocks ``first`` to ``last``, after subtracting what earlier blocks explain."""
    if last - first == 1:
        block = samples[:, first * BLOCK : last * BLOCK]
        block[:] = block @ inverses[first].T
        return
    middle = (first + last) // 2
    _whiten_blocks(factor, inverses, samples, first, middle)
    start, cut, stop = first * BLOCK, middle * BLOCK, min(last * BLOCK, len(factor))
    rows, columns, images = ctypes.c_int(stop - cut), ctypes.c_int(cut - start), ctypes.c_int(len(samples))
    stride, minus, one = ctypes.c_int(len(factor)), ctypes.c_double(-1.0), ctypes.c_double(1.0)
    _dgemm(
        *(_PLAIN, _PLAIN, _at(rows), _at(images), _at(columns), _at(minus)),
        *(factor[cut:, start:].ctypes.data, _at(stride), samples[:, start:].ctypes.data, _at(stride)),
        *(_at(one), samples[:, cut:].ctypes.data, _at(stride)),
    )
    _whiten_blocks(factor, inverses, samples, middle, last)


def _order(matrix: Floats) -> int:
    """Return n of an n x n matrix, after checking that the routines can work on it."""
    assert matrix.dtype == np.float64
    assert matrix.flags.f_contiguous
    assert matrix.shape[0] == matrix.shape[1]
    return len(matrix)


def _at(value: ctypes.c_int | ctypes.c_double) -> int:
    """Return the address of a number; the caller must keep the number alive."""
    return ctypes.addressof(value)
