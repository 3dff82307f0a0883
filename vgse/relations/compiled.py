"""The active set of `vgse.relations.active_set` for many classes at once, compiled with Numba.

The Cholesky factor of the support's block is updated, never rebuilt, so a support of k costs O(k^2)
a step. A pass over all coordinates costs the Gram matrix's rows of the whole support, so the lowest
gradients are kept as a pool, with their columns of the Gram matrix side by side, and priced alone
until none is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
POOL = 32  # coordinates that are priced between two passes over all of them


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


@compiled
def price(
    gram: F64,
    ridges: F64,
    linear: F64,
    support: NDArray[np.int64],
    size: int,
    x: F64,
    tolerance: float,
    inside: NDArray[np.bool_],
    gradient: F64,
    pool: NDArray[np.int64],
) -> tuple[int, float]:
    """Fill ``pool`` with the lowest gradients below the support's level; returns how many.

    Returns also that level, the tolerance taken off.
    """
    gradient[:] = -linear
    for j in range(size):
        gradient += x[j] * gram[support[j]]
    level = -tolerance
    for j in range(size):
        level += x[j] * (gradient[support[j]] + ridges[support[j]] * x[j])
    found, bar = 0, level
    for i in range(linear.shape[0]):
        if gradient[i] >= bar or inside[i]:
            continue
        place = found
        if found < pool.shape[0]:
            found += 1
        else:
            place -= 1
        while place > 0 and gradient[pool[place - 1]] > gradient[i]:
            pool[place] = pool[place - 1]
            place -= 1
        pool[place] = i
        if found == pool.shape[0]:
            bar = gradient[pool[found - 1]]
    return found, level


@compiled
def fill_columns(
    columns: F64,
    gram: F64,
    support: NDArray[np.int64],
    start: int,
    size: int,
    pool: NDArray[np.int64],
    found: int,
) -> None:
    """Write ``gram[support[j], pool]`` to row j of ``columns`` for j from start to size."""
    for j in range(start, size):
        for p in range(found):
            columns[j, p] = gram[support[j], pool[p]]


@compiled
def price_pool(
    columns: F64,
    linear: F64,
    size: int,
    x: F64,
    level: float,
    inside: NDArray[np.bool_],
    pool: NDArray[np.int64],
    found: int,
) -> int:
    """The pool's coordinate of lowest gradient below the level, or -1."""
    gradient = np.empty(POOL)
    for p in range(found):
        gradient[p] = -linear[pool[p]]
    for j in range(size):
        for p in range(found):
            gradient[p] += x[j] * columns[j, p]
    entering = -1
    for p in range(found):
        if gradient[p] < level and not inside[pool[p]]:
            level, entering = gradient[p], pool[p]
    return entering


@compiled
def _equality_solution(
    factor: F64, support: NDArray[np.int64], size: int, linear: F64, z: F64, ones: F64
) -> None:
    """Write to ``z`` the optimum on the support with sum 1, signs ignored."""
    for i in range(size):
        z[i] = linear[support[i]]
        ones[i] = 1.0
    solve_factored(factor, size, z)
    solve_factored(factor, size, ones)
    z[:size] -= (z[:size].sum() - 1.0) / ones[:size].sum() * ones[:size]


@compiled
def _refine(
    factor: F64,
    support: NDArray[np.int64],
    size: int,
    gram: F64,
    ridges: F64,
    linear: F64,
    x: F64,
    error: F64,
    ones: F64,
) -> None:
    """One step of refinement: the block's condition number is 1/ridge, and the gap shows it."""
    for i in range(size):
        value = linear[support[i]] - ridges[support[i]] * x[i]
        for j in range(size):
            value -= gram[support[i], support[j]] * x[j]
        error[i] = value
    error[:size] -= error[:size].mean()
    solve_factored(factor, size, error)
    ones[:size] = 1.0
    solve_factored(factor, size, ones)
    error[:size] += (1.0 - x[:size].sum() - error[:size].sum()) / ones[:size].sum() * ones[:size]
    if (x[:size] + error[:size]).min() > 0.0:
        x[:size] += error[:size]


@compiled
def solve_one(
    gram: F64,
    ridges: F64,
    linear: F64,
    tolerance: float,
    max_support: int,
    weights: F64,
) -> bool:
    """Minimise over the simplex and write the optimum to ``weights``.

    Args:
        gram: ``G`` [S, S], symmetric, float64, C-contiguous.
        ridges: ``d`` [S], positive.
        linear: ``b`` [S].
        tolerance: the duality gap at which to stop, in the units of the objective.
        max_support: the largest support that is tried.
        weights: [S], overwritten; feasible also when the answer is False.

    Returns:
        Whether no coordinate outside the support can lower the objective by more than the
        tolerance, as far as float64 can tell. False when the support outgrew ``max_support`` or
        the block lost definiteness.
    """
    num_classes = linear.shape[0]
    limit = min(max_support, num_classes)
    factor = np.empty((limit, limit))  # its pages are touched as the support grows, no sooner
    support = np.empty(limit, dtype=np.int64)
    pool = np.empty(POOL, dtype=np.int64)
    columns = np.empty((limit, POOL))
    inside = np.zeros(num_classes, dtype=np.bool_)
    x, z, ones = np.empty(limit), np.empty(limit), np.empty(limit)
    gradient = np.empty(num_classes)

    first = 0
    best = np.inf
    for i in range(num_classes):
        value = 0.5 * (gram[i, i] + ridges[i]) - linear[i]
        if value < best:
            best, first = value, i
    weights[:] = 0.0
    weights[first] = 1.0
    if not append(factor, support, 0, gram, ridges, first):
        return False
    size, found, solved, level = 1, 0, False, 0.0
    x[0] = 1.0
    inside[first] = True
    for _ in range(4 * limit + 50):
        entering = price_pool(columns, linear, size, x, level, inside, pool, found)
        if entering < 0:
            _refine(factor, support, size, gram, ridges, linear, x, z, ones)
            found, level = price(
                gram, ridges, linear, support, size, x, tolerance, inside, gradient, pool
            )
            if found == 0:
                solved = True
                break
            entering = pool[0]
            fill_columns(columns, gram, support, 0, size, pool, found)
        if size == limit or not append(factor, support, size, gram, ridges, entering):
            break
        inside[entering] = True
        x[size] = 0.0
        size += 1
        fill_columns(columns, gram, support, size - 1, size, pool, found)
        stalled = False
        while not stalled:
            _equality_solution(factor, support, size, linear, z, ones)
            step, blocking = 1.0, -1
            for j in range(size):
                if z[j] <= 0.0:
                    ratio = x[j] / (x[j] - z[j]) if x[j] > z[j] else 0.0
                    if ratio < step or blocking < 0:
                        step, blocking = ratio, j
            if blocking < 0:
                x[:size] = z[:size]
                at = support[0]  # the gradient is equal on the whole support
                level = ridges[at] * x[0] - linear[at] - tolerance
                for j in range(size):
                    level += x[j] * gram[at, support[j]]
                break
            stalled = support[blocking] == entering and x[blocking] == 0.0
            x[:size] += step * (z[:size] - x[:size])
            inside[support[blocking]] = False
            remove(factor, support, x, size, blocking)
            size -= 1
            columns[blocking:size] = columns[blocking + 1 : size + 1]
        if stalled:  # rounding alone let it in: nothing more can be gained in float64
            solved = True
            break
    weights[first] = 0.0
    total = 0.0
    for j in range(size):
        x[j] = max(x[j], 0.0)
        total += x[j]
    for j in range(size):
        weights[support[j]] = x[j] / total
    return solved


@compiled
def solve_rows(
    gram: F64, ridges: F64, linear: F64, tolerances: F64, max_support: int, weights: F64
) -> NDArray[np.bool_]:
    """Run `solve_one` for each row of ``linear`` [B, S]; weights [B, S]; returns solved [B]."""
    solved = np.zeros(linear.shape[0], dtype=np.bool_)
    for row in range(linear.shape[0]):
        solved[row] = solve_one(
            gram, ridges, linear[row], tolerances[row], max_support, weights[row]
        )
    return solved
