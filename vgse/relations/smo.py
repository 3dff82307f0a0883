"""VGSE-SMO: the relation r of unseen classes to seen ones, solved exactly (Xu et al., CVPR 2022).

For each unseen class the optimum of

    min_r  0.5 ||w_u - r' W_s||^2 + 0.5 ridge lambda_max ||r||^2,  alpha <= r <= 1,  sum(r) = 1

where lambda_max is the largest eigenvalue of W_c W_c', W_c the seen vectors minus their mean c.
The ridge makes the optimum unique, so that neither the order of the seen classes nor duplicates
among them matter.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vgse.errors import UserError
from vgse.relations.box_qp import solve_box
from vgse.relations.problem import F64, SeenPoints, certify, checked_vectors, prepare, row_blocks
from vgse.relations.solvers import GRAM_LIMIT, closed_form, on_the_simplex, spectrum

GAP_TARGET = 1e-9
VIOLATION_TARGET = 1e-12


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


def solve_relations(
    unseen: ArrayLike, seen: ArrayLike, *, alpha: float = 0.0, ridge: float = 1e-8
) -> Relations:
    """Exact relations of all unseen classes to the seen classes, in one call.

    Memory is ``8 U S`` bytes for the answer, ``8 min(S, 5000)^2`` for the Gram matrix (not formed
    above 5,000 distinct seen vectors), ``24 (U + S) D_w`` for copies of the vectors and about
    0.3 GB of work arrays; a row in the fallback needs up to ``32 S min(S, 5 D_w)`` more.

    Seen classes with the same vector share its weight equally. Callers check ``gap <= 1e-9`` and
    ``violation <= 1e-12``: a row that misses them after the fallback is returned as it is.

    Args:
        unseen: word vectors of the unseen classes [U, D_w]; U may be 0.
        seen: word vectors of the seen classes [S, D_w], S >= 1.
        alpha: lower bound of each weight, at most 1/S. At 0 or above the weights are sparse or
            nearly so; below 0 mostly the closed form holds.
        ridge: weight of ||r||^2 relative to lambda_max, above 0.
    """
    unseen, seen = checked_vectors(unseen, seen)
    num_unseen, num_seen = len(unseen), len(seen)
    if not np.isfinite(alpha) or alpha * num_seen > 1 + 1e-12:
        raise UserError(
            f"alpha={alpha} leaves no weights that sum to 1 over {num_seen} seen classes; "
            f"choose a finite alpha of at most {1 / num_seen:.6g}"
        )
    if not (np.isfinite(ridge) and ridge > 0):
        raise UserError(f"ridge={ridge} must be a finite number above 0, such as 1e-8")
    alpha = min(float(alpha), 1 / num_seen)
    prepared = prepare(seen, ridge)
    points = prepared.points
    gram = points @ points.T if len(points) <= GRAM_LIMIT else None
    eigen = spectrum(prepared) if alpha < 0 else None
    weights, fallback = np.empty((num_unseen, num_seen)), np.zeros(num_unseen, dtype=np.bool_)
    residual, gap, violation = np.empty((3, num_unseen))
    result = Relations(weights, residual, gap, violation, fallback)
    for rows in row_blocks(num_unseen, num_seen):
        block = Relations(**{name: array[rows] for name, array in vars(result).items()})  # views
        targets = (unseen[rows] - prepared.centre) / prepared.scale  # [B, D_w]
        left = np.arange(len(targets))
        if eigen is not None:
            totals = closed_form(targets, prepared, *eigen)
            left = left[~_store(block, left, totals, targets, prepared, alpha)]
        if left.size:
            totals, solved = on_the_simplex(targets[left], prepared, gram, alpha)
            left = left[~(solved & _store(block, left, totals, targets, prepared, alpha))]
        block.fallback[left] = True
        low, high = alpha * prepared.counts, prepared.counts
        for row in left:
            totals = solve_box(points, prepared.ridges, targets[row], low, high)[None]
            _store(block, left[left == row], totals, targets, prepared, alpha)
    return result


def _store(
    block: Relations,
    rows: NDArray[np.int64],
    totals: F64,
    targets: F64,
    seen: SeenPoints,
    alpha: float,
) -> NDArray[np.bool_]:
    """Store totals [L, G] of `rows` with their certificates; returns which meet the targets."""
    weights = (totals / seen.counts)[:, seen.inverse]  # equal classes share equally
    residual, gap, violation = certify(weights, targets[rows], seen, alpha)
    block.weights[rows] = weights
    block.residual[rows] = residual * seen.scale
    block.gap[rows] = gap
    block.violation[rows] = violation
    return np.asarray((gap <= GAP_TARGET) & (violation <= VIOLATION_TARGET))


@dataclass(frozen=True)
class CachedSolver:
    """`solve_relations` that keeps its answers, by the content of its arguments."""

    _solved: dict[tuple[bytes, float, float], Relations] = field(default_factory=dict)

    def __call__(
        self, unseen: F64, seen: F64, *, alpha: float = 0.0, ridge: float = 1e-8
    ) -> Relations:
        """As `solve_relations`."""
        digest = hashlib.blake2b(repr((unseen.shape, seen.shape)).encode())
        for vectors in (unseen, seen):
            digest.update(np.ascontiguousarray(vectors, np.float64).tobytes())
        key = (digest.digest(), float(alpha), float(ridge))
        if key not in self._solved:
            if len(self._solved) >= 32:  # answers that are kept
                del self._solved[next(iter(self._solved))]
            self._solved[key] = solve_relations(unseen, seen, alpha=alpha, ridge=ridge)
        return self._solved[key]
