"""Relations solved in blocks on the cluster are those of the single call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from distributed.cluster import ray_cluster
from distributed.embedding import relate
from distributed.embedding.relate import solve_on_cluster, solve_where_faster
from vgse.config import ClusterConfig
from vgse.relations.solve import Relations, solve_relations

RNG = np.random.default_rng(0)
UNSEEN: NDArray[np.float64] = RNG.normal(size=(23, 20))
SEEN: NDArray[np.float64] = RNG.normal(size=(60, 20))


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_blocks_on_the_cluster_give_the_answer_of_the_single_call(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, alpha: float
) -> None:
    monkeypatch.setattr("vgse.relations.smo._BLOCK_NUMBERS", 300)  # five rows, five blocks
    whole = solve_relations(UNSEEN, SEEN, alpha=alpha)
    parts = solve_on_cluster(UNSEEN, SEEN, alpha=alpha)
    for name, array in vars(whole).items():
        assert np.array_equal(getattr(parts, name), array), name
    assert parts.gap.max() <= 1e-9


def test_a_mistake_is_told_as_in_a_single_call(ray_session: None) -> None:
    with pytest.raises(ValueError, match="unseen holds NaN or infinity in row 0"):
        solve_on_cluster(np.full((2, 20), np.nan), SEEN)
    with pytest.raises(ValueError, match=r"alpha=0\.5 leaves no weights"):
        solve_on_cluster(UNSEEN, SEEN, alpha=0.5)


@pytest.mark.parametrize(("limit", "sharded"), [(23 * 60, True), (23 * 60 + 1, False)])
def test_the_cluster_is_asked_from_a_stated_size_on(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, limit: int, sharded: bool
) -> None:
    asked = []

    def noted(*arguments: NDArray[np.float64], **options: float) -> Relations:
        asked.append(options)
        return solve_on_cluster(*arguments, **options)

    monkeypatch.setattr(relate, "solve_on_cluster", noted)
    monkeypatch.setattr(relate, "WORTH_SHARDING", limit)
    found = solve_where_faster(UNSEEN, SEEN)
    assert bool(asked) is sharded
    assert np.allclose(found.weights, solve_relations(UNSEEN, SEEN).weights, atol=1e-12)


@pytest.mark.parametrize(("size", "started"), [(relate.WORTH_SHARDING, 1), (1, 0)])
def test_a_cluster_is_opened_for_large_problems_alone(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, size: int, started: int
) -> None:
    opened = []

    @contextmanager
    def noted(config: ClusterConfig) -> Iterator[None]:
        opened.append(config)
        with ray_cluster(config):
            yield

    monkeypatch.setattr(relate, "ray_cluster", noted)
    with relate.cluster_where_faster(ClusterConfig(), size):
        pass
    assert len(opened) == started
