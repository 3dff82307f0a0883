"""Relations of very many classes, solved in blocks by the cluster's CPUs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from numpy.typing import ArrayLike, NDArray

from distributed.cluster import ray_cluster
from distributed.features.actors import results_of
from vgse.config import ClusterConfig
from vgse.relations.smo import (
    RelationProblem,
    Relations,
    join_blocks,
    relation_problem,
    row_blocks,
    solve_block,
)
from vgse.relations.solve import checked_vectors, solve_relations

WORTH_SHARDING = 100_000_000
"""U * S from which the cluster is asked: most of a minute of one core, where starting Ray, and a
task with its compiled solver, take a few seconds each."""


@contextmanager
def cluster_where_faster(config: ClusterConfig, size: int) -> Iterator[None]:
    """A cluster inside, if relations of U * S = `size` weights are worth it."""
    if size < WORTH_SHARDING:
        yield
        return
    with ray_cluster(config):
        yield


def solve_where_faster(
    unseen: ArrayLike, seen: ArrayLike, *, alpha: float = 0.0, ridge: float = 1e-8
) -> Relations:
    """`solve_relations`, on the cluster where that is worth it and there is one."""
    size = np.shape(unseen)[0] * np.shape(seen)[0]
    if size < WORTH_SHARDING or not ray.is_initialized() or _cpus() < 2:
        return solve_relations(unseen, seen, alpha=alpha, ridge=ridge)
    return solve_on_cluster(unseen, seen, alpha=alpha, ridge=ridge)


def solve_on_cluster(
    unseen: ArrayLike, seen: ArrayLike, *, alpha: float = 0.0, ridge: float = 1e-8
) -> Relations:
    """`solve_relations` with its blocks of unseen classes as Ray tasks of one CPU each.

    What the seen classes share, the Gram matrix among it, is computed here and put into the object
    store once. The blocks are those of the single call, and so are the answers, bit by bit where
    BLAS runs with as many threads here as there.

    Raises:
        ValueError: as `solve_relations`.
    """
    unseen, seen = checked_vectors(unseen, seen)
    problem = ray.put(relation_problem(seen, alpha=alpha, ridge=ridge))
    task = ray.remote(num_cpus=1)(_solve)

    def calls() -> Iterator[tuple[Any, tuple[Any, ...]]]:
        for rows in row_blocks(len(unseen), len(seen)):
            yield task, (problem, unseen[rows], rows)

    blocks = results_of(calls(), limit=2 * _cpus())
    return join_blocks(blocks, len(unseen), len(seen))


def _solve(
    problem: RelationProblem, unseen: NDArray[np.float64], rows: slice
) -> tuple[slice, Relations]:
    if problem.gram is not None:
        # Arrays of the object store are read-only, for which the solver is not compiled.
        problem = replace(problem, gram=problem.gram.copy())
    return rows, solve_block(problem, unseen)


def _cpus() -> int:
    return int(ray.cluster_resources().get("CPU", 1))
