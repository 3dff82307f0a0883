"""`vgse.relations.active_set` compiled with Numba, the linear algebra on small arrays in loops."""

from typing import Any

import numba
import numpy as np
from numba.extending import overload, register_jitable
from numpy.typing import NDArray

from vgse.relations import active_set
from vgse.relations.active_set import F64


def _compiled(function: Any) -> Any:
    """The function compiled on its first call, kept on disk where a folder can be written."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # neither the source folder nor the home folder can hold the cache
        return numba.njit(nogil=True, error_model="numpy")(function)


def _stands_for(function: Any) -> Any:
    """In compiled code the decorated function takes the place of `function`."""

    def register(compiled: Any) -> Any:
        overload(function, strict=False)(lambda *arguments: compiled)
        return compiled

    return register


@_stands_for(active_set._gradient)
def _gradient(support: NDArray[np.int64], x: F64, gram: F64, linear: F64) -> F64:
    result = -linear
    for j in range(len(support)):
        row, weight = gram[support[j]], x[j]
        for i in range(len(linear)):
            result[i] += weight * row[i]
    return result


@_stands_for(active_set._optimum_on)
def _optimum_on(support: NDArray[np.int64], gram: F64, ridges: F64, linear: F64) -> F64:
    size = len(support)
    factor = np.empty((size, size))
    for i in range(size):
        diagonal = gram[support[i], support[i]] + ridges[support[i]]
        pivot = diagonal
        for j in range(i):
            value = gram[support[i], support[j]]
            for k in range(j):
                value -= factor[i, k] * factor[j, k]
            factor[i, j] = value / factor[j, j]
            pivot -= factor[i, j] ** 2
        if not pivot > 1e-15 * diagonal:
            return np.empty(0)
        factor[i, i] = np.sqrt(pivot)
    ones, x = np.ones(size), linear[support]
    _solve_factored(factor, ones)
    _solve_factored(factor, x)
    x -= (x.sum() - 1.0) / ones.sum() * ones
    step = linear[support] - ridges[support] * x
    for i in range(size):
        for j in range(size):
            step[i] -= gram[support[i], support[j]] * x[j]
    step -= step.mean()
    _solve_factored(factor, step)
    return x + step + (1.0 - x.sum() - step.sum()) / ones.sum() * ones


@register_jitable
def _solve_factored(factor: F64, x: F64) -> None:
    """Replace ``x`` by the solution of ``factor factor' y = x``."""
    for i in range(len(x)):
        for j in range(i):
            x[i] -= factor[i, j] * x[j]
        x[i] /= factor[i, i]
    for i in range(len(x) - 1, -1, -1):
        x[i] /= factor[i, i]
        for j in range(i):
            x[j] -= factor[i, j] * x[i]


solve_one = _compiled(active_set.solve_one)


@_compiled
def solve_rows(
    gram: F64, ridges: F64, linear: F64, tolerances: F64, max_support: int, weights: F64
) -> NDArray[np.bool_]:
    """Run `solve_one` for each row of ``linear`` [B, S]; weights [B, S]; returns solved [B]."""
    solved = np.zeros(len(linear), dtype=np.bool_)
    for i in range(len(linear)):
        solved[i] = solve_one(gram, ridges, linear[i], tolerances[i], max_support, weights[i])
    return solved
