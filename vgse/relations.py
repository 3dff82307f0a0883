"""How unseen classes are composed of seen ones: the relation r of VGSE (Xu et al., CVPR 2022).

`solve_relations` is VGSE-SMO: for each unseen class the exact optimum of

    min_r  0.5 ||w_u - r' W_s||^2 + 0.5 ridge lambda_max ||r||^2,  alpha <= r <= 1,  sum(r) = 1

where lambda_max is the largest eigenvalue of W_c W_c', W_c the seen vectors minus their mean c.
The ridge makes the optimum unique, so that neither the order of the seen classes nor duplicates
among them matter. `weighted_average` is VGSE-WAvg.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vgse._box_qp import solve_box
from vgse._relation_problem import F64, SeenPoints, certify, prepare
from vgse._relation_solvers import GRAM_LIMIT, closed_form, on_the_simplex, spectrum

GAP_TARGET = 1e-9
VIOLATION_TARGET = 1e-12
_CHUNK_NUMBERS = 4_000_000  # size of one [B, S] work array: 32 MB


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
    unseen, seen = _checked(unseen, seen)
    num_seen = len(seen)
    if not np.isfinite(alpha) or alpha * num_seen > 1 + 1e-12:
        raise ValueError(
            f"alpha={alpha} leaves no weights that sum to 1 over {num_seen} seen classes; "
            f"choose a finite alpha of at most {1 / num_seen:.6g}"
        )
    if not (np.isfinite(ridge) and ridge > 0):
        raise ValueError(f"ridge={ridge} must be a finite number above 0, such as 1e-8")
    alpha = min(float(alpha), 1 / num_seen)

    prepared = prepare(seen, ridge)
    eigen = spectrum(prepared) if alpha < 0 else None
    large = len(prepared.points) > GRAM_LIMIT
    gram = None if large else prepared.points @ prepared.points.T
    num_unseen = len(unseen)
    result = Relations(
        weights=np.empty((num_unseen, num_seen)),
        residual=np.empty(num_unseen),
        gap=np.empty(num_unseen),
        violation=np.empty(num_unseen),
        fallback=np.zeros(num_unseen, dtype=np.bool_),
    )
    for rows in _chunks(num_unseen, num_seen):
        targets = (unseen[rows] - prepared.centre) / prepared.scale  # [B, D_w]
        left = np.arange(len(targets))
        if eigen is not None:
            totals = closed_form(targets, prepared, *eigen)
            left = left[~_accept(result, rows, left, totals, targets, prepared, alpha)]
        if left.size:
            totals, solved = on_the_simplex(targets[left], prepared, gram, alpha)
            solved &= _accept(result, rows, left, totals, targets, prepared, alpha)
            left = left[~solved]
        for row in left:
            result.fallback[rows.start + row] = True
            low, high = alpha * prepared.counts, prepared.counts
            totals = solve_box(prepared.points, prepared.ridges, targets[row], low, high)
            _accept(result, rows, np.array([row]), totals[None], targets, prepared, alpha)
    return result


def weighted_average(
    unseen: ArrayLike, seen: ArrayLike, *, num_neighbours: int = 5, eta: float = 5.0
) -> F64:
    """Weights of VGSE-WAvg: each unseen class as a mean of its nearest seen classes.

    The neighbours are those of w_u in the word space by cosine similarity, and their weights
    ``softmax(eta * similarity)``. Classes that tie with the last neighbour all count, so the
    order of the seen classes has no effect.

    Args:
        unseen: word vectors [U, D_w].
        seen: word vectors [S, D_w].
        num_neighbours: neighbours of each class, at least 1; all of them where S is smaller.
        eta: how fast the weight falls with the similarity; 0 gives equal weights.

    Returns:
        Weights [U, S] float64 in 0..1, rows summing to 1.

    Raises:
        ValueError: as `solve_relations`; also for a zero vector, which has no direction, and for
            num_neighbours below 1 or an eta that is not finite.
    """
    unseen, seen = _checked(unseen, seen)
    if num_neighbours < 1:
        raise ValueError(f"num_neighbours={num_neighbours} must be at least 1")
    if not np.isfinite(eta):
        raise ValueError(f"eta={eta} must be finite")
    directions = [_directions("unseen", unseen), _directions("seen", seen)]
    weights = np.empty((len(unseen), len(seen)))
    last = len(seen) - min(num_neighbours, len(seen))
    for rows in _chunks(len(unseen), len(seen)):
        similarity = directions[0][rows] @ directions[1].T  # [B, S] in -1..1
        threshold = np.partition(similarity, last, axis=1)[:, last, None]
        # The slack keeps equal vectors together when rounding tells them apart.
        exponent = np.where(similarity >= threshold - 1e-12, eta * similarity, -np.inf)
        exponent = np.exp(exponent - exponent.max(axis=1, keepdims=True))
        weights[rows] = exponent / exponent.sum(axis=1, keepdims=True)
    return weights


def _checked(unseen: ArrayLike, seen: ArrayLike) -> tuple[F64, F64]:
    arrays = []
    for name, values in (("unseen", unseen), ("seen", seen)):
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 2 or array.shape[1] == 0:
            raise ValueError(f"{name} must be [classes, word size], but its shape is {array.shape}")
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if bad.size:
            raise ValueError(
                f"{name} holds NaN or infinity in row {bad[0]} ({bad.size} of {len(array)} rows); "
                "replace or drop those word vectors"
            )
        arrays.append(array)
    if arrays[0].shape[1] != arrays[1].shape[1]:
        raise ValueError(
            f"unseen vectors have {arrays[0].shape[1]} numbers and seen vectors "
            f"{arrays[1].shape[1]}; take both from the same word vectors"
        )
    if len(arrays[1]) == 0:
        raise ValueError("seen is empty; give at least one seen class")
    return arrays[0], arrays[1]


def _directions(name: str, vectors: F64) -> F64:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    zero = np.flatnonzero(norms[:, 0] == 0)
    if zero.size:
        raise ValueError(
            f"{name} holds a zero vector in row {zero[0]}, which has no direction; "
            "replace or drop that word vector"
        )
    return vectors / norms


def _chunks(num_rows: int, num_columns: int) -> Iterator[slice]:
    step = max(1, _CHUNK_NUMBERS // max(num_columns, 1))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def _accept(
    result: Relations,
    rows: slice,
    index: NDArray[np.int64],
    totals: F64,
    targets: F64,
    seen: SeenPoints,
    alpha: float,
) -> NDArray[np.bool_]:
    """Store answers [B, G] with their certificates; returns which of them meet the targets."""
    weights = (totals / seen.counts)[:, seen.inverse]  # equal classes share equally
    residual, gap, violation = certify(weights, targets[index], seen, alpha)
    where = rows.start + index
    result.weights[where] = weights
    result.residual[where] = residual * seen.scale
    result.gap[where] = gap
    result.violation[where] = violation
    return np.asarray((gap <= GAP_TARGET) & (violation <= VIOLATION_TARGET))
