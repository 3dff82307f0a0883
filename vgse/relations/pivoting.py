"""Many least squares problems over the simplex that share a Gram matrix, without compilation.

Solves ``min 0.5 q'(G + ridge I) q - b'q`` subject to ``q >= 0`` and ``sum(q) = 1`` for all rows b
at once by block principal pivoting (Judice and Pires, 1994): every coordinate that is infeasible,
in primal or dual, changes sides, and where that no longer helps only the last one does, which
ends after finitely many steps. Up to a factor q is the optimum of ``x'Mx + (sum(x) - 1)^2`` over
``x >= 0``, M the Gram matrix of the points minus the row's target, so the sum needs no care.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

_TOLERANCE = 1e-11  # of signs, for points about 1 long
_PATIENCE = 3
_MAX_STEPS = 100
_SMALL = 48  # supports up to this size are solved in batches
_BATCH_NUMBERS = 400_000
_DENSE_ROWS = 8  # rows with most coordinates in their support that pay for an inverse


def solve_simplex(
    gram: F64, ridge: float, linear: F64, support: Mask | None = None
) -> tuple[F64, Mask]:
    """The optima of all rows.

    Args:
        gram: G [S, S], positive semidefinite.
        ridge: above 0.
        linear: b [B, S].
        support: [B, S], where to start, such as the support at another ridge.

    Returns:
        Weights [B, S] on the simplex, and which rows are solved [B].
    """
    # The sum is fixed, so a multiple of 11' changes nothing, and centred points need it: without
    # it their Gram matrix is singular.
    shifted = gram + gram.diagonal().mean()
    shifted[np.diag_indices_from(shifted)] += ridge
    support = _nearest(gram, linear) if support is None else support.copy()
    weights = np.zeros_like(linear)
    solved = np.zeros(len(linear), np.bool_)
    for with_inverse in (True, False):  # a small ridge may need more digits than an inverse has
        rows = np.flatnonzero(~solved)
        if rows.size:
            solver = _EqualitySolver(shifted, with_inverse)
            weights[rows], solved[rows] = _pivot(solver, linear[rows], support[rows])
    weights = np.maximum(weights, 0.0)
    return weights / weights.sum(1, keepdims=True), solved


def _pivot(solver: "_EqualitySolver", linear: F64, support: Mask) -> tuple[F64, Mask]:
    """Solutions before the last rounding below 0, and which are optimal; changes `support`."""
    weights = np.zeros_like(linear)
    best = np.full(len(linear), linear.shape[1] + 1)
    patience = np.zeros(len(linear), np.int64)
    going = np.arange(len(linear))
    for _ in range(_MAX_STEPS):
        inside = support[going]
        found = solver(linear[going], inside)
        gradient = found @ solver.shifted - linear[going]
        level = (gradient * inside).sum(1, keepdims=True) / inside.sum(1, keepdims=True)
        wrong = np.where(inside, found < -_TOLERANCE, gradient < level - _TOLERANCE)
        weights[going] = found
        count = wrong.sum(1)
        patience[going] = np.where(count < best[going], _PATIENCE, patience[going] - 1)
        best[going] = np.minimum(best[going], count)
        last = linear.shape[1] - 1 - wrong[:, ::-1].argmax(1)
        stuck = np.flatnonzero((patience[going] < 0) & (count > 0))
        wrong[stuck] = False
        wrong[stuck, last[stuck]] = True
        support[going] = inside ^ wrong
        going = going[count > 0]
        if not going.size:
            break
    solved = np.ones(len(linear), np.bool_)
    solved[going] = False
    return weights, solved


def _nearest(gram: F64, linear: F64) -> Mask:
    support = np.zeros(linear.shape, np.bool_)
    support[np.arange(len(linear)), (0.5 * gram.diagonal() - linear).argmin(1)] = True
    return support


class _EqualitySolver:
    """The optimum of each row on its support with sum 1, whatever its signs."""

    def __init__(self, shifted: F64, with_inverse: bool) -> None:
        self.shifted = shifted
        self.with_inverse = with_inverse
        self.inverse: F64 | None = None

    def __call__(self, linear: F64, support: Mask) -> F64:
        found = np.zeros_like(linear)
        sizes = support.sum(1)
        dense = 2 * sizes > max(linear.shape[1], 2 * _SMALL)
        if self.with_inverse and self.inverse is None and dense.sum() >= _DENSE_ROWS:
            self.inverse = np.asarray(np.linalg.inv(self.shifted), np.float64)
        order = np.argsort(sizes, kind="stable")
        start = 0
        while start < len(order):
            size = int(sizes[order[start]])
            rows = order[start : start + 1]
            if size <= _SMALL:
                rows = order[start : start + 1 + _BATCH_NUMBERS // size**2]
                rows = rows[sizes[rows] <= min(size + 4, _SMALL)]
                self._small(linear, support, rows, found)
            elif dense[rows[0]] and self.inverse is not None:
                self._dense(self.inverse, linear, support, rows[0], found)
            else:
                at = np.flatnonzero(support[rows[0]])
                right = np.stack([linear[rows[0], at], np.ones(size)], 1)
                found[rows[0], at] = _with_sum_one(dposv(self.shifted[np.ix_(at, at)], right)[1])
            start += len(rows)
        return found

    def _small(self, linear: F64, support: Mask, rows: NDArray[np.int64], found: F64) -> None:
        """All `rows` at once, smaller supports filled up with equations x = 0."""
        sizes = support[rows].sum(1)
        at = np.argsort(~support[rows], axis=1, kind="stable")[:, : sizes.max()]
        empty = np.arange(at.shape[1]) >= sizes[:, None]
        blocks = self.shifted[at[:, :, None], at[:, None, :]]
        blocks[empty[:, :, None] | empty[:, None, :]] = 0.0
        diagonal = np.arange(at.shape[1])
        blocks[:, diagonal, diagonal] += empty
        right = np.stack([linear[rows[:, None], at], np.ones(at.shape)], 2)
        right[empty] = 0.0
        found[rows[:, None], at] = _with_sum_one(np.linalg.solve(blocks, right))

    def _dense(self, inverse: F64, linear: F64, support: Mask, row: int, found: F64) -> None:
        """By the few coordinates that are out: x = A^-1 (right + E m), m such that they are 0."""
        out, at = np.flatnonzero(~support[row]), np.flatnonzero(support[row])
        whole = inverse @ np.stack([linear[row], np.ones(len(inverse))], 1)
        moved = np.asarray(np.linalg.solve(inverse[np.ix_(out, out)], whole[out]), np.float64)
        found[row, at] = _with_sum_one(whole[at] - inverse[np.ix_(at, out)] @ moved)


def _with_sum_one(solutions: NDArray[np.floating]) -> F64:
    """From A^-1 [b, 1] along the last axis to A^-1 (b - level), which has the sum 1."""
    of_linear, of_ones = solutions[..., 0], solutions[..., 1]
    level = (of_linear.sum(-1, keepdims=True) - 1.0) / of_ones.sum(-1, keepdims=True)
    return np.asarray(of_linear - level * of_ones)
