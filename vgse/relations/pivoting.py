"""Many least squares problems over the simplex that share a Gram matrix, without compilation.

Solves ``min 0.5 q'(G + ridge I) q - b'q`` subject to ``q >= 0`` and ``sum(q) = 1`` for all rows b
at once by block principal pivoting (Judice and Pires, 1994): every coordinate that is infeasible,
in primal or dual, changes sides, and where that no longer helps only the last one does, which
ends after finitely many steps. Up to a factor q is the optimum of ``x'Mx + (sum(x) - 1)^2`` over
``x >= 0``, M the Gram matrix of the points minus the row's target, so the sum needs no care.
"""

from collections.abc import Iterator

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
    if support is None:
        nearest = (0.5 * gram.diagonal() - linear).argmin(1)
        support = np.arange(len(gram)) == nearest[:, None]
    weights, solved = _pivot(shifted, linear, support, with_inverse=True)
    for easier in (False, True):
        left = np.flatnonzero(~solved)
        if not left.size:
            break
        start = support[left]
        if easier and ridge < gram.diagonal().mean():  # a small ridge needs a start from near by,
            start = solve_simplex(gram, 1000 * ridge, linear[left])[0] > 0
        answer = _pivot(shifted, linear[left], start, with_inverse=False)  # and all digits
        weights[left], solved[left] = answer
    weights = np.maximum(weights, 0.0)
    return weights / weights.sum(1, keepdims=True), solved


def _pivot(shifted: F64, linear: F64, support: Mask, with_inverse: bool) -> tuple[F64, Mask]:
    """Optima on the last supports, and which of them are optimal at all."""
    num_rows, num_points = linear.shape
    support = support.copy()
    inverse: F64 | None = None
    weights, exact = np.zeros_like(linear), np.zeros(num_rows, np.bool_)
    best = np.full(num_rows, num_points + 1)
    patience = np.zeros(num_rows, np.int64)
    going = np.arange(num_rows)
    for _ in range(_MAX_STEPS):
        inside, b = support[going], linear[going]
        sizes = inside.sum(1)
        dense = (2 * sizes > max(num_points, 2 * _SMALL)) & with_inverse
        if inverse is None and dense.sum() >= _DENSE_ROWS:
            inverse = np.asarray(np.linalg.inv(shifted), np.float64)
        if inverse is None:
            dense[:] = False
        found = np.empty_like(b)
        found[~dense] = _by_support(shifted, b[~dense], inside[~dense])
        if inverse is not None:
            found[dense] = _by_rest(inverse, b[dense], inside[dense])
        gradient = found @ shifted - b
        level = (gradient * inside).sum(1, keepdims=True) / sizes[:, None]
        wrong = np.where(inside, found < -_TOLERANCE, gradient < level - _TOLERANCE)
        weights[going] = found
        exact[going] = np.abs(np.where(inside, gradient - level, 0.0)).max(1) <= 10 * _TOLERANCE
        count = wrong.sum(1)
        patience[going] = np.where(count < best[going], _PATIENCE, patience[going] - 1)
        best[going] = np.minimum(best[going], count)
        last = num_points - 1 - wrong[:, ::-1].argmax(1)
        stuck = np.flatnonzero((patience[going] < 0) & (count > 0))
        wrong[stuck] = False
        wrong[stuck, last[stuck]] = True
        support[going] = inside ^ wrong
        going = going[count > 0]
        if not going.size:
            break
    exact[going] = False
    return weights, exact


def _by_support(shifted: F64, linear: F64, support: Mask) -> F64:
    """The optimum of each row on its support with sum 1, whatever its signs."""
    found = np.zeros_like(linear)
    ones = np.ones(len(shifted))
    for rows, at, empty in _batches(support):
        right = np.stack([linear[rows[:, None], at], ones[at]], 2)
        solution = _solve_blocks(shifted, at, empty, right)
        found[rows[:, None], at] += _with_sum_one(solution[..., 0], solution[..., 1])
    return found


def _by_rest(inverse: F64, linear: F64, support: Mask) -> F64:
    """The same by the few coordinates that are out, which multipliers m keep at 0.

    x = A^-1 (b - level + E m), E the columns of the identity at these coordinates.
    """
    plain, ones = linear @ inverse, inverse.sum(0)
    multipliers = np.zeros((2, *linear.shape))
    for rows, at, empty in _batches(~support):
        right = np.stack([plain[rows[:, None], at], ones[at]], 2)
        solution = _solve_blocks(inverse, at, empty, right)
        multipliers[:, rows[:, None], at] += np.moveaxis(solution, 2, 0)
    of_linear, of_ones = plain - multipliers[0] @ inverse, ones - multipliers[1] @ inverse
    return _with_sum_one(of_linear * support, of_ones * support)


Batch = tuple[NDArray[np.int64], NDArray[np.int64], Mask]


def _batches(members: Mask) -> Iterator[Batch]:
    """Rows of about as many members, up to `_SMALL` together, and single rows above.

    Yields rows [R], the places of their members [R, K], and which of these are none.
    """
    sizes = members.sum(1)
    order = np.argsort(sizes, kind="stable")
    order = order[sizes[order] > 0]
    while order.size:
        size = int(sizes[order[0]])
        rows = order[: 1 + (_BATCH_NUMBERS // size**2 if size <= _SMALL else 0)]
        rows = rows[sizes[rows] <= max(size, min(size + size // 8 + 4, _SMALL))]
        order = order[len(rows) :]
        at = np.argsort(~members[rows], axis=1, kind="stable")[:, : sizes[rows].max()]
        yield rows, at, np.arange(at.shape[1]) >= sizes[rows, None]


def _solve_blocks(matrix: F64, at: NDArray[np.int64], empty: Mask, right: F64) -> F64:
    """Solutions [R, K, 2] of the blocks `at` of a definite matrix, 0 where `empty`."""
    if len(at) == 1:
        block = matrix.take(at[0], 0).take(at[0], 1)  # twice as quick as with two indices
        return np.asarray(dposv(block, right[0])[1][None], np.float64)
    blocks = matrix[at[:, :, None], at[:, None, :]]
    blocks[empty[:, :, None] | empty[:, None, :]] = 0.0
    diagonal = np.arange(at.shape[1])
    blocks[:, diagonal, diagonal] += empty
    right[empty] = 0.0
    return np.asarray(np.linalg.solve(blocks, right), np.float64)


def _with_sum_one(of_linear: F64, of_ones: F64) -> F64:
    """A^-1 (b - level) with sum 1 from A^-1 b and A^-1 1."""
    level = (of_linear.sum(1, keepdims=True) - 1.0) / of_ones.sum(1, keepdims=True)
    return np.asarray(of_linear - level * of_ones)
