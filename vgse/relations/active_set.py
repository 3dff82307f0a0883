"""Least squares over the simplex by an active set, compiled with Numba.

Solves, for one class at a time, ``min 0.5 q'(G + diag(d)) q - b'q`` subject to ``q >= 0`` and
``sum(q) = 1``. It follows Wolfe, "Finding the nearest point in a polytope" (1976): the support
grows by the coordinate whose gradient is lowest, and shrinks where a step meets ``q = 0``. The
Cholesky factor of the support's block is updated, never rebuilt, so a support of k costs O(k^2) a
step. The number of steps is close to the size of the final support, whatever the number of classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vgse.relations.cholesky import append, compiled, remove, solve_factored
from vgse.relations.pricing import POOL, fill_columns, price, price_pool

F64 = NDArray[np.float64]


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
