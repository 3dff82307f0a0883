"""How unseen classes are composed of seen ones: the relation r of VGSE (Xu et al., CVPR 2022).

`solve_relations` is VGSE-SMO: for each unseen class the exact optimum of

    min_r  0.5 ||w_u - r' W_s||^2 + 0.5 ridge lambda_max ||r||^2,  alpha <= r <= 1,  sum(r) = 1

where lambda_max is the largest eigenvalue of W_c W_c', W_c the seen vectors minus their mean c.
The ridge makes the optimum unique, so that neither the order of the seen classes nor duplicates
among them matter. `weighted_average` is VGSE-WAvg.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from vgse.errors import UserError
from vgse.relations.problem import F64
from vgse.relations.smo import (
    GAP_TARGET,
    VIOLATION_TARGET,
    Relations,
    join_blocks,
    relation_problem,
    row_blocks,
    solve_block,
)

__all__ = [
    "GAP_TARGET",
    "VIOLATION_TARGET",
    "Relations",
    "checked_vectors",
    "solve_relations",
    "weighted_average",
]


def solve_relations(
    unseen: ArrayLike, seen: ArrayLike, *, alpha: float = 0.0, ridge: float = 1e-8
) -> Relations:
    """Exact relations of all unseen classes to the seen classes, in one call.

    Memory is ``8 U S`` bytes for the answer, ``8 min(S, 5000)^2`` for the Gram matrix (not formed
    above 5,000 distinct seen vectors), ``24 (U + S) D_w`` for copies of the vectors and about
    0.3 GB of work arrays; a row in the fallback needs up to ``32 S min(S, 5 D_w)`` more. On one
    core 20,841 classes against 1,000 take seconds; see `benchmarks/relations.py`.

    Seen classes with the same vector share its weight equally. A zero vector is a point like any
    other. Callers check ``gap <= 1e-9`` and ``violation <= 1e-12``: a row that misses them after
    the fallback is returned with its true figures.

    Args:
        unseen: word vectors of the unseen classes [U, D_w]; U may be 0.
        seen: word vectors of the seen classes [S, D_w], S >= 1.
        alpha: lower bound of each weight, at most 1/S. At 0 or above the weights are sparse or
            nearly so; below 0 mostly the closed form holds.
        ridge: weight of ||r||^2 relative to lambda_max, above 0.

    Returns:
        `Relations`, float64.

    Raises:
        ValueError: arrays that are not two-dimensional, differ in D_w or hold NaN or infinity; no
            seen class; alpha above 1/S or not finite; ridge not above 0.
    """
    unseen, seen = checked_vectors(unseen, seen)
    problem = relation_problem(seen, alpha=alpha, ridge=ridge)
    blocks = list(row_blocks(len(unseen), len(seen)))
    if len(blocks) == 1:
        return solve_block(problem, unseen)
    solved = ((rows, solve_block(problem, unseen[rows])) for rows in blocks)
    return join_blocks(solved, len(unseen), len(seen))


def weighted_average(
    unseen: ArrayLike, seen: ArrayLike, *, num_neighbours: int = 5, eta: float = 5.0
) -> F64:
    """Weights of VGSE-WAvg: each unseen class as a mean of its nearest seen classes.

    Over the `num_neighbours` seen classes n whose word vectors are nearest to w_u,

        r_n = exp(-eta ||w_u - w_n||) / sum over neighbours of exp(-eta ||w_u - w_m||)

    with the Euclidean distance, after VGSE-WAvg (Xu et al., CVPR 2022). The division by the sum is
    ours: it changes the length of an embedding and not its direction. Classes that tie with the
    last neighbour all count, so the order of the seen classes has no effect. On vectors of unit
    length the neighbours are those of the highest cosine.

    Args:
        unseen: word vectors [U, D_w].
        seen: word vectors [S, D_w].
        num_neighbours: neighbours of each class, at least 1; all of them where S is smaller.
        eta: how fast the weight falls with the distance; 0 gives equal weights.

    Returns:
        Weights [U, S] float64 in 0..1, rows summing to 1.

    Raises:
        ValueError: as `solve_relations`; also for num_neighbours below 1 or an eta that is negative
            or not finite.
    """
    unseen, seen = checked_vectors(unseen, seen)
    if num_neighbours < 1:
        raise UserError(f"num_neighbours={num_neighbours} must be at least 1")
    if not (np.isfinite(eta) and eta >= 0):
        raise UserError(f"eta={eta} must be a finite number of at least 0")
    weights = np.zeros((len(unseen), len(seen)))
    last = min(num_neighbours, len(seen)) - 1
    centre = seen.mean(axis=0)  # distances from here keep more digits
    points = seen - centre
    lengths = np.square(points).sum(axis=1)
    for rows in row_blocks(len(unseen), len(seen)):
        targets = unseen[rows] - centre
        squares = lengths - 2 * (targets @ points.T)  # [B, S] less |w_u|^2, the same in a row
        slack = 1e-12 * (lengths.max() + np.square(targets).sum(axis=1, keepdims=True))
        threshold = np.partition(squares, last, axis=1)[:, last, None]
        # The slack keeps equal vectors together when rounding tells them apart.
        row, neighbour = np.nonzero(squares <= threshold + slack)
        # From the difference: a small distance would drown in the rounding of the squares.
        distance = np.linalg.norm(targets[row] - points[neighbour], axis=1)
        nearest = np.full(len(targets), np.inf)
        np.minimum.at(nearest, row, distance)
        of_rows = weights[rows]
        of_rows[row, neighbour] = np.exp(-eta * (distance - nearest[row]))
        of_rows /= of_rows.sum(axis=1, keepdims=True)
    return weights


def checked_vectors(unseen: ArrayLike, seen: ArrayLike) -> tuple[F64, F64]:
    """Both as float64 [classes, D_w]; ValueError where `solve_relations` has one for them."""
    arrays = []
    for name, values in (("unseen", unseen), ("seen", seen)):
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 2 or array.shape[1] == 0:
            raise UserError(f"{name} must be [classes, word size], but its shape is {array.shape}")
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if bad.size:
            raise UserError(
                f"{name} holds NaN or infinity in row {bad[0]} ({bad.size} of {len(array)} rows); "
                "replace or drop those word vectors"
            )
        arrays.append(array)
    if arrays[0].shape[1] != arrays[1].shape[1]:
        raise UserError(
            f"unseen vectors have {arrays[0].shape[1]} numbers and seen vectors "
            f"{arrays[1].shape[1]}; take both from the same word vectors"
        )
    if len(arrays[1]) == 0:
        raise UserError("seen is empty; give at least one seen class")
    return arrays[0], arrays[1]
