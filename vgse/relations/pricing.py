"""Which coordinate enters an active set: a pass over all, then a few steps on the best of them.

A pass costs the Gram matrix's rows of the whole support, so the lowest gradients are kept as a
pool, with their columns of the Gram matrix side by side, and priced alone until none is left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vgse.relations.cholesky import F64, compiled

POOL = 32  # coordinates that are priced between two passes over all of them


@compiled
def price(
    gram: F64,
    ridges: F64,
    linear: F64,
    support: NDArray[np.int64],
    size: int,
    x: F64,
    tolerance: float,
    inside: NDArray[np.bool_],
    gradient: F64,
    pool: NDArray[np.int64],
) -> tuple[int, float]:
    """Fill ``pool`` with the lowest gradients below the support's level; returns how many.

    Returns also that level, the tolerance taken off.
    """
    gradient[:] = -linear
    for j in range(size):
        gradient += x[j] * gram[support[j]]
    level = -tolerance
    for j in range(size):
        level += x[j] * (gradient[support[j]] + ridges[support[j]] * x[j])
    found, bar = 0, level
    for i in range(linear.shape[0]):
        if gradient[i] >= bar or inside[i]:
            continue
        place = found
        if found < pool.shape[0]:
            found += 1
        else:
            place -= 1
        while place > 0 and gradient[pool[place - 1]] > gradient[i]:
            pool[place] = pool[place - 1]
            place -= 1
        pool[place] = i
        if found == pool.shape[0]:
            bar = gradient[pool[found - 1]]
    return found, level


@compiled
def fill_columns(
    columns: F64,
    gram: F64,
    support: NDArray[np.int64],
    start: int,
    size: int,
    pool: NDArray[np.int64],
    found: int,
) -> None:
    """Write ``gram[support[j], pool]`` to row j of ``columns`` for j from start to size."""
    for j in range(start, size):
        for p in range(found):
            columns[j, p] = gram[support[j], pool[p]]


@compiled
def price_pool(
    columns: F64,
    linear: F64,
    size: int,
    x: F64,
    level: float,
    inside: NDArray[np.bool_],
    pool: NDArray[np.int64],
    found: int,
) -> int:
    """The pool's coordinate of lowest gradient below the level, or -1."""
    gradient = np.empty(POOL)
    for p in range(found):
        gradient[p] = -linear[pool[p]]
    for j in range(size):
        for p in range(found):
            gradient[p] += x[j] * columns[j, p]
    entering = -1
    for p in range(found):
        if gradient[p] < level and not inside[pool[p]]:
            level, entering = gradient[p], pool[p]
    return entering
