"""VGSE-WAvg: unseen classes as weighted averages of their nearest seen classes."""

import numpy as np
from numpy.typing import ArrayLike

from vgse.errors import UserError
from vgse.relations.problem import F64, checked_vectors, row_blocks


def weighted_average(
    unseen: ArrayLike,
    seen: ArrayLike,
    *,
    num_neighbours: int = 5,
    eta: float = 5.0,
    divided: bool = True,
) -> F64:
    """Weights of VGSE-WAvg: each unseen class as a mean of its nearest seen classes.

    Over the `num_neighbours` seen classes n whose word vectors are nearest to w_u,

        r_n = exp(-eta ||w_u - w_n||) / sum over neighbours of exp(-eta ||w_u - w_m||)

    with the Euclidean distance, after VGSE-WAvg (Xu et al., CVPR 2022). The division by the sum is
    ours, and the row of the table goes without: z-scores over seen classes feel the length.
    Classes that tie with the last neighbour all count.

    Takes word vectors [U, D_w] and [S, D_w]; returns weights [U, S] in 0..1, rows summing to 1
    where they are `divided`.
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
        if divided:
            of_rows /= of_rows.sum(axis=1, keepdims=True)
        else:
            of_rows *= np.exp(-eta * nearest[:, None])
    return weights
