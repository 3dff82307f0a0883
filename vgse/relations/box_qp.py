"""Least squares over a box and a sum, for the rows that the quicker solvers leave.

Solves ``min 0.5 ||w - W't||^2 + 0.5 sum(d_i t_i^2)``, ``low <= t <= high``, ``sum(t) = 1`` for one
w. A primal-dual active set (Hintermueller, Ito and Kunisch, 2002) is exact where it settles. Where
it does not, PIQP (an interior-point QP solver) finds which bounds hold, and the active set brings
that to float64's accuracy.
"""

from typing import Any

import numpy as np
import piqp
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.sparse import csc_array, csc_matrix, diags_array, eye_array, hstack, vstack

F64 = NDArray[np.float64]

_DENSE_LIMIT = 3_000
_TOLERANCE = 1e-12  # a loose answer does not tell which bounds hold
_INNER_STEPS = 80
_POLISHING_STEPS = 40


def solve_box(points: F64, ridges: F64, target: F64, low: F64, high: F64) -> F64:
    """The best feasible point found, t [G], which the caller's certificate judges.

    Of W [G, D_w], d [G] above 0, w [D_w], and bounds [G] that sum to at most and at least 1.
    """
    start = np.zeros(len(points))
    _solve_free(points, ridges, target, start, np.ones(len(points), dtype=np.bool_))
    settled, candidates = _polish(points, ridges, target, low, high, start)
    if settled:
        return candidates[-1]
    start = _interior_point(points, ridges, target, low, high)
    candidates = [_project(start, low, high)]
    candidates += _polish(points, ridges, target, low, high, start)[1]
    first = candidates[0]
    gradient = ridges * first - points @ (target - first @ points)
    gradient -= gradient.mean()
    changes = []  # of the objective, free of the cancellation in a difference of two values
    for t in candidates:
        step = t - first
        changes.append(gradient @ step + 0.5 * (np.square(step @ points).sum() + ridges @ step**2))
    return candidates[int(np.argmin(changes))]


def _interior_point(points: F64, ridges: F64, target: F64, low: F64, high: F64) -> F64:
    num_points, word_size = points.shape
    hessian: Any
    total: Any
    if num_points <= min(5 * word_size, _DENSE_LIMIT):
        solver = piqp.DenseSolver()
        hessian = np.asfortranarray(points @ points.T + np.diag(ridges))
        total = np.asfortranarray(np.ones((1, num_points)))
        data = (hessian, -points @ target, total, np.ones(1))
        bounds = (low, high)
    else:  # e = w - W't as variables: memory G * D_w instead of G^2, and quicker for tall W
        solver = piqp.SparseSolver()
        hessian = csc_matrix(diags_array(np.concatenate([ridges, np.ones(word_size)])))
        fit = hstack([csc_array(points.T), eye_array(word_size)])
        total = csc_array(np.repeat([1.0, 0.0], [num_points, word_size])[None])
        rows = csc_matrix(vstack([fit, total]))
        data = (hessian, np.zeros(num_points + word_size), rows, np.append(target, 1.0))
        free = np.full(word_size, np.inf)
        bounds = (np.concatenate([low, -free]), np.concatenate([high, free]))
    for name in ("eps_abs", "eps_rel", "eps_duality_gap_abs", "eps_duality_gap_rel"):
        setattr(solver.settings, name, _TOLERANCE)
    solver.settings.max_iter = _INNER_STEPS
    solver.setup(*data, x_l=bounds[0], x_u=bounds[1])
    solver.solve()
    found = np.asarray(solver.result.x, dtype=np.float64)[:num_points]
    return found if np.isfinite(found).all() else np.full(num_points, 1.0 / num_points)


def _project(t: F64, low: F64, high: F64) -> F64:
    """The nearest point of the box with sum 1: a shift that is found by bisection, then exact."""
    left, right = float((low - t).min()), float((high - t).max())
    for _ in range(200):
        middle = 0.5 * (left + right)
        if not left < middle < right:
            break
        if np.clip(t + middle, low, high).sum() < 1.0:
            left = middle
        else:
            right = middle
    result = np.clip(t + right, low, high)
    inner = (result > low) & (result < high)
    if inner.any():
        result[inner] += (1.0 - result.sum()) / inner.sum()
    return np.asarray(np.clip(result, low, high))


def _polish(
    points: F64, ridges: F64, target: F64, low: F64, high: F64, start: F64
) -> tuple[bool, list[F64]]:
    """Whether a primal-dual active set from ``start`` settles; its points, the optimum last."""
    gradient = ridges * start - points @ (target - start @ points)
    slack = np.maximum(np.minimum(start - low, high - start), 0.0) + 1e-300
    level = float(np.average(gradient, weights=slack))  # equal where no bound holds
    # Bound i holds when the multiplier outweighs the distance to the bound.
    trial = start - (gradient - level) / ridges
    at_low, at_high = trial <= low, trial >= high
    found: list[F64] = []
    for _ in range(_POLISHING_STEPS):
        free = ~(at_low | at_high)
        if not free.any():
            break
        t = np.where(at_high, high, low)
        try:
            level = _solve_free(points, ridges, target, t, free)
        except LinAlgError:
            break
        gradient = ridges * t - points @ (target - t @ points)
        found.append(_project(t, low, high))
        trial = np.where(free, t, t - (gradient - level) / ridges)
        new_low, new_high = trial <= low, trial >= high
        if (new_low == at_low).all() and (new_high == at_high).all():
            return True, found
        at_low, at_high = new_low, new_high
    return False, found


def _solve_free(points: F64, ridges: F64, target: F64, t: F64, free: NDArray[np.bool_]) -> float:
    """Set t's free part to the optimum with sum 1; returns the gradient's value there."""
    w, d = points[free], ridges[free]
    dual = w.shape[0] > w.shape[1]
    block = np.eye(w.shape[1]) + (w.T / d) @ w if dual else w @ w.T + np.diag(d)
    factor = cho_factor(block)

    def solve(right: F64) -> F64:
        """Return (W W' + diag(d))^-1 right, by Woodbury's formula where W is tall."""
        if dual:
            scaled = right / d
            return np.asarray(scaled - (w @ cho_solve(factor, w.T @ scaled)) / d)
        return np.asarray(cho_solve(factor, right))

    ones = solve(np.ones(len(w)))
    t[free] = 0.0
    for _ in range(3):  # solve, then refine twice: the condition number reaches 1/ridge
        error = w @ (target - t @ points) - d * t[free]
        step = solve(error)
        level = (t.sum() + step.sum() - 1.0) / ones.sum()
        t[free] += step - level * ones
    return float(-level)
