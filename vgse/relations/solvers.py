"""The two solvers of relation problems for many classes at once: closed form and active sets."""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from vgse.relations import active_set
from vgse.relations.problem import F64, NEAREST, SeenPoints

GRAM_LIMIT = 5_000  # above, the Gram matrix of the seen classes is not formed
COMPILED_FROM = 15_000  # weights; fewer mostly take well below a second, and compiling eight
_MAX_SUPPORT = 256  # real word vectors need 14 to 26; denser optima are quicker elsewhere
_MAX_ROUNDS = 50
_CANDIDATES = 64  # classes priced in at a time where there is no Gram matrix


def spectrum(seen: SeenPoints) -> tuple[F64, F64]:
    """Eigenvalues and vectors of W_c' W_c or W_c W_c', whichever is smaller."""
    weighted = seen.points * np.sqrt(seen.counts)[:, None]
    wide = len(weighted) <= weighted.shape[1]
    values, vectors = eigh(weighted @ weighted.T if wide else weighted.T @ weighted)
    return np.maximum(values, 0.0), vectors


def closed_form(targets: F64, seen: SeenPoints, values: F64, vectors: F64) -> F64:
    """The optimum without the box, as totals [B, G] over equal classes.

    r = 1/S + (W_c W_c' + ridge)^-1 W_c (w_u - c); the sum is 1 because W_c has mean zero.
    """
    roots = np.sqrt(seen.counts)
    weighted = seen.points * roots[:, None]
    inverse = 1.0 / (values + seen.ridge)
    wide = len(weighted) <= weighted.shape[1]

    def correction(error: F64, shift: F64 | float) -> F64:  # [B, D_w], [B, G] -> [B, G]
        # (W W' + ridge)^-1 (W error - ridge shift)
        if wide:
            right = error @ weighted.T - seen.ridge * shift
            return np.asarray(((right @ vectors) * inverse) @ vectors.T)
        pushed = error + (shift @ weighted if isinstance(shift, np.ndarray) else 0.0)
        solved = ((pushed @ vectors) * inverse) @ vectors.T @ weighted.T
        return np.asarray(solved - shift)

    moved = correction(targets, 0.0)
    moved += correction(targets - moved @ weighted, moved)  # one step of refinement
    totals = (seen.counts / seen.counts.sum()) + moved * roots
    return np.asarray(totals / totals.sum(axis=1, keepdims=True))


def on_the_simplex(
    targets: F64, seen: SeenPoints, gram: F64 | None, alpha: float
) -> tuple[F64, NDArray[np.bool_]]:
    """Active sets for r = alpha + (1 - S alpha) q, q on the simplex: totals [B, G], solved [B].

    The upper bound of r is left out: it is implied at alpha >= 0, and else the certificate's.
    """
    share = 1.0 - seen.counts.sum() * alpha
    base = alpha * seen.counts
    if share <= 0.0:
        return np.tile(base, (len(targets), 1)), np.ones(len(targets), dtype=np.bool_)
    goals = targets / share
    size = np.maximum(np.square(goals).sum(axis=1), NEAREST * seen.spread)
    reach = np.square(seen.points).sum(axis=1).max()
    # What float64 can resolve of a gradient W_c (W_c' q - w_c), and never less.
    noise = 4 * np.finfo(np.float64).eps * (reach + np.sqrt(reach * size))
    tolerances = np.maximum(5e-14 * size, noise)
    weights = np.empty((len(goals), len(seen.points)))
    if gram is not None:
        solve_rows = active_set.solve_rows
        if weights.size >= COMPILED_FROM:
            from vgse.relations.compiled import solve_rows
        linear = goals @ seen.points.T
        solved = solve_rows(gram, seen.ridges, linear, tolerances, _MAX_SUPPORT, weights)
    else:
        solved = _by_pricing(goals, seen, tolerances, weights)
    return base + share * weights, solved


def _by_pricing(goals: F64, seen: SeenPoints, tolerances: F64, weights: F64) -> NDArray[np.bool_]:
    """Active sets on a few candidate classes each; the gradient of all classes prices more in."""
    from vgse.relations.compiled import solve_one

    points, ridges = seen.points, seen.ridges
    weights[:] = 0.0
    solved = np.zeros(len(goals), dtype=np.bool_)
    failed = np.zeros(len(goals), dtype=np.bool_)
    near = 0.5 * np.square(points).sum(axis=1) - goals @ points.T
    new = np.argpartition(near, _CANDIDATES, axis=1)[:, :_CANDIDATES]
    open_rows = np.arange(len(goals))
    for _ in range(_MAX_ROUNDS):
        errors = goals[open_rows].copy()
        levels = np.empty(len(open_rows))
        for i, row in enumerate(open_rows):
            pool = np.union1d(np.flatnonzero(weights[row]), new[i])
            local = points[pool]
            answer = np.empty(len(pool))
            failed[row] = not solve_one(
                local @ local.T,
                ridges[pool],
                local @ goals[row],
                0.5 * tolerances[row],
                _MAX_SUPPORT,
                answer,
            )
            weights[row, pool] = answer
            errors[i] -= answer @ local
            levels[i] = answer @ (ridges[pool] * answer - local @ errors[i])
        gradient = -errors @ points.T
        on = np.nonzero(weights[open_rows])
        gradient[on] += (ridges * weights[open_rows])[on]
        solved[open_rows] = gradient.min(axis=1) >= levels - tolerances[open_rows]
        going = ~(solved[open_rows] | failed[open_rows])
        new = np.argpartition(gradient[going], _CANDIDATES, axis=1)[:, :_CANDIDATES]
        open_rows = open_rows[going]
        if not open_rows.size:
            break
    return solved
