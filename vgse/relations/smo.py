"""Relation problems in two parts, so that blocks of unseen classes can be solved apart.

What concerns the seen classes alone is computed once (`relation_problem`); `solve_block` then
solves any unseen classes. `vgse.relations.solve` has both in one call, and the method.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vgse.errors import UserError
from vgse.relations.box_qp import solve_box
from vgse.relations.problem import F64, SeenPoints, certify, prepare
from vgse.relations.solvers import GRAM_LIMIT, closed_form, on_the_simplex, spectrum

GAP_TARGET = 1e-9
VIOLATION_TARGET = 1e-12
_BLOCK_NUMBERS = 4_000_000  # size of one [B, S] work array: 32 MB


@dataclass(frozen=True)
class Relations:
    """The relations of U unseen classes to S seen ones, each with its certificate.

    Attributes:
        weights: r [U, S] float64, in the order of the inputs.
        residual: ``||w_u - r' W_s||`` [U], in the units of the word vectors.
        gap: relative Frank-Wolfe duality gap [U]: an upper bound on how far the objective (with
            its ridge) is above its minimum, divided by ``0.5 ||w_u - c||^2``. A w_u closer to c
            than 1e-3 of the seen classes' root mean square distance counts as that far away;
            where all seen vectors are equal, and w_u with them, the gap is 0.
        violation: largest violation of ``alpha <= r <= 1`` and ``sum(r) = 1`` [U].
        fallback: whether the row needed the general solver, with PIQP in it [U] bool.
    """

    weights: F64
    residual: F64
    gap: F64
    violation: F64
    fallback: NDArray[np.bool_]


@dataclass(frozen=True)
class RelationProblem:
    """The seen classes, and what the relations of all unseen classes to them share."""

    seen: SeenPoints
    alpha: float
    gram: F64 | None  # [G, G] of the distinct seen vectors, where it is formed
    spectrum: tuple[F64, F64] | None  # for the closed form, which alpha >= 0 has no use for


def relation_problem(seen: F64, *, alpha: float = 0.0, ridge: float = 1e-8) -> RelationProblem:
    """The problem of finite seen vectors [S, D_w]; arguments and errors as `solve_relations`."""
    num_seen = len(seen)
    if not np.isfinite(alpha) or alpha * num_seen > 1 + 1e-12:
        raise UserError(
            f"alpha={alpha} leaves no weights that sum to 1 over {num_seen} seen classes; "
            f"choose a finite alpha of at most {1 / num_seen:.6g}"
        )
    if not (np.isfinite(ridge) and ridge > 0):
        raise UserError(f"ridge={ridge} must be a finite number above 0, such as 1e-8")
    prepared = prepare(seen, ridge)
    large = len(prepared.points) > GRAM_LIMIT
    return RelationProblem(
        prepared,
        min(float(alpha), 1 / num_seen),
        None if large else prepared.points @ prepared.points.T,
        spectrum(prepared) if alpha < 0 else None,
    )


def row_blocks(num_unseen: int, num_seen: int) -> Iterator[slice]:
    """The blocks of rows that are solved at a time; one core needs a second or two for each."""
    step = max(1, _BLOCK_NUMBERS // max(num_seen, 1))
    for start in range(0, num_unseen, step):
        yield slice(start, min(start + step, num_unseen))


def solve_block(problem: RelationProblem, unseen: F64) -> Relations:
    """The relations of `unseen` [B, D_w], finite float64, in work arrays of several [B, S]."""
    seen, alpha = problem.seen, problem.alpha
    num_unseen, num_seen = len(unseen), len(seen.inverse)
    result = Relations(
        weights=np.empty((num_unseen, num_seen)),
        residual=np.empty(num_unseen),
        gap=np.empty(num_unseen),
        violation=np.empty(num_unseen),
        fallback=np.zeros(num_unseen, dtype=np.bool_),
    )
    targets = (unseen - seen.centre) / seen.scale  # [B, D_w]
    left = np.arange(num_unseen)
    if problem.spectrum is not None:
        totals = closed_form(targets, seen, *problem.spectrum)
        left = left[~_accept(result, left, totals, targets, seen, alpha)]
    if left.size:
        totals, solved = on_the_simplex(targets[left], seen, problem.gram, alpha)
        solved &= _accept(result, left, totals, targets, seen, alpha)
        left = left[~solved]
    for row in left:
        result.fallback[row] = True
        low, high = alpha * seen.counts, seen.counts
        totals = solve_box(seen.points, seen.ridges, targets[row], low, high)
        _accept(result, np.array([row]), totals[None], targets, seen, alpha)
    return result


def join_blocks(
    blocks: Iterable[tuple[slice, Relations]], num_unseen: int, num_seen: int
) -> Relations:
    """Relations of all rows from those of `row_blocks`, in any order."""
    whole = Relations(
        weights=np.empty((num_unseen, num_seen)),
        residual=np.empty(num_unseen),
        gap=np.empty(num_unseen),
        violation=np.empty(num_unseen),
        fallback=np.empty(num_unseen, dtype=np.bool_),
    )
    for rows, block in blocks:
        for name, array in vars(block).items():
            getattr(whole, name)[rows] = array
    return whole


def _accept(
    result: Relations,
    index: NDArray[np.int64],
    totals: F64,
    targets: F64,
    seen: SeenPoints,
    alpha: float,
) -> NDArray[np.bool_]:
    """Store answers [B, G] with their certificates; returns which of them meet the targets."""
    weights = (totals / seen.counts)[:, seen.inverse]  # equal classes share equally
    residual, gap, violation = certify(weights, targets[index], seen, alpha)
    result.weights[index] = weights
    result.residual[index] = residual * seen.scale
    result.gap[index] = gap
    result.violation[index] = violation
    return np.asarray((gap <= GAP_TARGET) & (violation <= VIOLATION_TARGET))
