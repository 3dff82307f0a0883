"""A Cholesky factor that grows and shrinks by one row, compiled with Numba.

The factor is the lower triangle [k, k] of ``G[P][:, P] + diag(d[P])`` for a support P of k
coordinates; either change costs O(k^2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def compiled(function: Callable[..., Any]) -> Any:
    """The function compiled on its first call, kept on disk where a folder can be written."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # neither the source folder nor the home folder can hold the cache
        return numba.njit(nogil=True, error_model="numpy")(function)


@compiled
def append(
    factor: F64, support: NDArray[np.int64], size: int, gram: F64, ridges: F64, new: int
) -> bool:
    """Extend the factor by coordinate ``new``; False when the block is no longer definite."""
    pivot = gram[new, new] + ridges[new]
    for i in range(size):
        value = gram[new, support[i]]
        for j in range(i):
            value -= factor[i, j] * factor[size, j]
        value /= factor[i, i]
        factor[size, i] = value
        pivot -= value * value
    if not pivot > 1e-15 * (gram[new, new] + ridges[new]):
        return False
    factor[size, size] = np.sqrt(pivot)
    support[size] = new
    return True


@compiled
def remove(factor: F64, support: NDArray[np.int64], x: F64, size: int, gone: int) -> None:
    """Delete one coordinate from the factor by Givens rotations of neighbouring columns."""
    for i in range(gone, size - 1):
        support[i] = support[i + 1]
        x[i] = x[i + 1]
        for j in range(i + 2):
            factor[i, j] = factor[i + 1, j]
    for i in range(gone, size - 1):
        a, b = factor[i, i], factor[i, i + 1]
        length = np.sqrt(a * a + b * b)
        c, s = a / length, b / length
        factor[i, i] = length
        for row in range(i + 1, size - 1):
            left, right = factor[row, i], factor[row, i + 1]
            factor[row, i] = c * left + s * right
            factor[row, i + 1] = c * right - s * left


@compiled
def solve_factored(factor: F64, size: int, x: F64) -> None:
    """Replace ``x`` by the solution of ``factor factor' y = x``."""
    for i in range(size):
        value = x[i]
        for j in range(i):
            value -= factor[i, j] * x[j]
        x[i] = value / factor[i, i]
    for i in range(size - 1, -1, -1):
        x[i] /= factor[i, i]
        for j in range(i):
            x[j] -= factor[i, j] * x[i]
