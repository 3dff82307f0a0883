"""Least squares over the simplex by an active set, for one class at a time.

Solves ``min 0.5 q'(G + diag(d)) q - b'q`` subject to ``q >= 0`` and ``sum(q) = 1``. It follows
Wolfe, "Finding the nearest point in a polytope" (1976): the support grows by the coordinate whose
gradient is lowest, and shrinks where a step meets ``q = 0``. The number of steps is close to the
size of the final support, whatever the number of classes. `vgse.relations.compiled` compiles this
very code where the problem is large enough to pay for it: it is written in what Numba knows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

F64 = NDArray[np.float64]


def solve_one(
    gram: F64, ridges: F64, linear: F64, tolerance: float, max_support: int, weights: F64
) -> bool:
    """Minimise over the simplex and write the optimum to ``weights``.

    G [S, S] is symmetric, d [S] positive, b [S]; ``tolerance`` is the duality gap at which to stop,
    in the units of the objective. Returns whether no coordinate outside the support can lower the
    objective by more than that, as far as float64 can tell; False when the support outgrew
    ``max_support`` or the block lost definiteness. The weights [S] are feasible all the same.
    """
    limit = min(max_support, len(linear))
    support = np.array([np.argmin(0.5 * (np.diag(gram) + ridges) - linear)])
    x = np.ones(1)
    weights[:] = 0.0
    weights[support] = 1.0
    solved = stalled = False
    for _ in range(4 * limit + 50):
        gradient = _gradient(support, x, gram, linear)
        level = x @ (gradient[support] + ridges[support] * x) - tolerance
        gradient[support] = np.inf
        entering = gradient.argmin()
        # Stalled: rounding alone let the last one in, and float64 has nothing more to gain.
        solved = stalled or gradient[entering] >= level
        if solved or len(support) == limit:
            break
        support, x = np.append(support, entering), np.append(x, 0.0)
        while not stalled:
            optimum = _optimum_on(support, gram, ridges, linear)
            if not len(optimum):
                return False
            low = np.flatnonzero(optimum <= 0.0)
            if not len(low):
                x = optimum
                break
            steps = x[low] / np.maximum(x[low] - optimum[low], 1e-300)
            blocking = low[steps.argmin()]
            stalled = support[blocking] == entering and x[blocking] == 0.0
            x = np.delete(x + steps.min() * (optimum - x), blocking)
            support = np.delete(support, blocking)
    x = np.maximum(x, 0.0)
    weights[:] = 0.0
    weights[support] = x / x.sum()
    return bool(solved)


def _gradient(support: NDArray[np.int64], x: F64, gram: F64, linear: F64) -> F64:
    """Without the ridges."""
    return np.asarray(x @ gram[support] - linear)


def _optimum_on(support: NDArray[np.int64], gram: F64, ridges: F64, linear: F64) -> F64:
    """The optimum on the support with sum 1, signs ignored; empty where it is not definite."""
    block = gram[np.ix_(support, support)]
    block[np.diag_indices(len(support))] += ridges[support]
    try:
        factor = cho_factor(block, check_finite=False)
    except LinAlgError:
        return np.empty(0)
    right = np.column_stack([linear[support], np.ones(len(support))])
    x, ones = cho_solve(factor, right, check_finite=False).T
    x = x - (x.sum() - 1.0) / ones.sum() * ones
    # One step of refinement: the block's condition number is 1/ridge, and the gap shows it.
    error = linear[support] - block @ x
    step = cho_solve(factor, error - error.mean(), check_finite=False)
    return np.asarray(x + step + (1.0 - x.sum() - step.sum()) / ones.sum() * ones)


def solve_rows(
    gram: F64, ridges: F64, linear: F64, tolerances: F64, max_support: int, weights: F64
) -> NDArray[np.bool_]:
    """Run `solve_one` for each row of ``linear`` [B, S]; weights [B, S]; returns solved [B]."""
    rows = zip(linear, tolerances, weights, strict=True)
    solved = [solve_one(gram, ridges, b, limit, max_support, r) for b, limit, r in rows]
    return np.array(solved, dtype=np.bool_)
