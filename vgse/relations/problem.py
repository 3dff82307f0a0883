"""The data of a relation problem, and the certificate of its answers."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgError, eigh
from scipy.sparse import csr_array

from vgse.errors import UserError

F64 = NDArray[np.float64]

NEAREST = 1e-6  # squared: a target closer to the centre counts as this share of the spread away
_BLOCK_NUMBERS = 4_000_000  # size of one [B, S] work array: 32 MB


def checked_vectors(unseen: ArrayLike, seen: ArrayLike) -> tuple[F64, F64]:
    """Both as float64 [classes, D_w], finite and of one word size."""
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


def row_blocks(num_unseen: int, num_seen: int) -> Iterator[slice]:
    """The blocks of rows that are solved at a time, so that work arrays stay bounded."""
    step = max(1, _BLOCK_NUMBERS // max(num_seen, 1))
    for start in range(0, num_unseen, step):
        yield slice(start, min(start + step, num_unseen))


@dataclass(frozen=True)
class SeenPoints:
    """Distinct seen vectors, centred, and scaled to a largest entry of 1."""

    points: F64  # [G, D_w] in an order of their own, so that the inputs' order has no effect
    counts: F64  # [G] how many seen classes share the vector
    inverse: NDArray[np.int64]  # [S] the row of each seen class
    original: F64  # [S, D_w] the points in the order of the seen classes
    centre: F64  # [D_w] mean over the seen classes
    scale: float
    spread: float  # mean squared distance from the centre, scaled
    ridge: float  # ridge * lambda_max, scaled

    @property
    def ridges(self) -> F64:
        """[G]: a weight t shared by m equal classes costs m (t / m)^2."""
        return self.ridge / self.counts


def prepare(seen: F64, ridge: float) -> SeenPoints:
    """The distinct seen vectors, centred and scaled."""
    # Adding 0 turns -0 into 0: equal vectors must have equal bytes.
    rows = np.ascontiguousarray(seen + 0.0)
    keys = rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
    _, first, inverse, sizes = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    points, counts = rows[first], sizes.astype(np.float64)
    magnitude = float(np.abs(points).max())
    centre = counts @ points / counts.sum()
    centre += counts @ (points - centre) / counts.sum()  # the first mean is off by rounding
    points = points - centre
    scale = float(np.abs(points).max())
    if scale <= 1e-13 * magnitude:  # one point, up to rounding: every r fits equally well
        points[:], scale, largest = 0.0, magnitude or 1.0, 1.0
    else:
        points /= scale
        weighted = points * np.sqrt(counts)[:, None]
        small = weighted.T @ weighted if len(points) > points.shape[1] else weighted @ weighted.T
        largest = largest_eigenvalue(small)
    spread = float(counts @ np.square(points).sum(axis=1) / counts.sum())
    return SeenPoints(
        points, counts, inverse, points[inverse], centre, scale, spread, ridge * largest
    )


def largest_eigenvalue(gram: F64) -> float:
    """That of a symmetric matrix."""
    top = len(gram) - 1
    try:
        return float(eigh(gram, eigvals_only=True, subset_by_index=[top, top])[0])
    except (
        LinAlgError
    ):  # LAPACK finds no single one where all are equal: classes alike to each other
        return float(np.linalg.eigvalsh(gram)[-1])


def certify(weights: F64, targets: F64, seen: SeenPoints, alpha: float) -> tuple[F64, F64, F64]:
    """Residual (scaled), relative Frank-Wolfe gap and violation, from the vectors themselves.

    The gap is g'(r - s) with g the gradient at r and s the feasible point of the lowest g's:
    alpha everywhere, and what is left to 1 given to the smallest g's, at most 1 - alpha each.
    """
    points = seen.original
    num_seen = weights.shape[1]
    fitted = (csr_array(weights) if alpha == 0 else weights) @ points
    errors = targets - fitted
    gradient = -errors @ points.T
    gradient += seen.ridge * weights
    gradient -= gradient.mean(axis=1, keepdims=True)  # free, as r and s have the same sum
    here = np.einsum("bs,bs->b", gradient, weights)
    room, budget = 1.0 - alpha, 1.0 - num_seen * alpha
    full = min(int(budget / room), num_seen - 1) if room > 0 else 0
    lowest = np.partition(gradient, full, axis=1)
    there = room * lowest[:, :full].sum(axis=1) + (budget - full * room) * lowest[:, full]
    size = np.maximum(np.square(targets).sum(axis=1), NEAREST * seen.spread)
    gap = np.maximum(here - there, 0.0) / np.where(size > 0, 0.5 * size, 1.0)
    outside = np.maximum((alpha - weights).max(axis=1), weights.max(axis=1) - 1)
    violation = np.maximum(np.abs(weights.sum(axis=1) - 1), outside)
    return np.linalg.norm(errors, axis=1), gap, violation
