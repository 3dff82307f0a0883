"""Block principal pivoting: exact optima over the simplex, for any support and start."""

import numpy as np
import pytest
from numpy.typing import NDArray

from vgse.relations import pivoting
from vgse.relations.pivoting import solve_simplex
from vgse.relations.smo import solve_relations

F64 = NDArray[np.float64]


def problem(seed: int, num_seen: int, size: int, num_unseen: int = 20) -> tuple[F64, F64, float]:
    """Centred seen points, targets, and the largest eigenvalue."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num_seen + num_unseen, size)) * rng.uniform(0.1, 1, size)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows -= rows[:num_seen].mean(0)
    seen, targets = rows[:num_seen], rows[num_seen:]
    return seen, targets, float(np.linalg.eigvalsh(seen @ seen.T)[-1])


def gaps(seen: F64, targets: F64, ridge: float, weights: F64) -> F64:
    gradient = (weights @ seen - targets) @ seen.T + ridge * weights
    return (gradient * weights).sum(1) - gradient.min(1)


@pytest.mark.parametrize("ridge", [1e-8, 1e-3, 0.03, 0.3, 1.0])
@pytest.mark.parametrize(("num_seen", "size"), [(2, 3), (60, 8), (60, 200), (220, 40)])
def test_optima_are_those_of_the_exact_solver(num_seen: int, size: int, ridge: float) -> None:
    seen, targets, largest = problem(0, num_seen, size)
    weights, solved = solve_simplex(seen @ seen.T, ridge * largest, targets @ seen.T)
    assert solved.all() and weights.min() >= 0
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    assert gaps(seen, targets, ridge * largest, weights).max() < 1e-10
    reference = solve_relations(targets, seen, ridge=ridge).weights
    np.testing.assert_allclose(weights, reference, atol=1e-5 if ridge < 1e-6 else 1e-8)


def test_the_gap_tells_a_wrong_answer() -> None:
    seen, targets, largest = problem(0, 60, 20)
    weights, _ = solve_simplex(seen @ seen.T, 0.03 * largest, targets @ seen.T)
    assert gaps(seen, targets, 0.03 * largest, np.roll(weights, 1, axis=1)).max() > 1e-2
    assert gaps(seen, targets, 0.1 * largest, weights).max() > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_the_start_does_not_change_the_optimum(seed: int) -> None:
    seen, targets, largest = problem(seed, 120, 60)
    gram, linear = seen @ seen.T, targets @ seen.T
    cold, _ = solve_simplex(gram, 0.03 * largest, linear)
    full = np.ones(linear.shape, np.bool_)
    random = np.random.default_rng(seed).random(linear.shape) < 0.3
    random[:, 0] = True
    for start in (full, random, cold > 0):
        copy = start.copy()
        warm, solved = solve_simplex(gram, 0.03 * largest, linear, start)
        assert solved.all()
        np.testing.assert_allclose(warm, cold, atol=1e-10)
        np.testing.assert_array_equal(start, copy)


def test_equal_points_share_their_weight() -> None:
    seen, targets, largest = problem(3, 30, 10)
    seen = np.concatenate([seen, seen[:5]])
    seen -= seen.mean(0)
    weights, solved = solve_simplex(seen @ seen.T, 0.01 * largest, targets @ seen.T)
    assert solved.all()
    np.testing.assert_allclose(weights[:, :5], weights[:, 30:], atol=1e-10)


def test_rows_that_are_not_solved_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, targets, largest = problem(0, 60, 20)
    monkeypatch.setattr(pivoting, "_MAX_STEPS", 1)
    weights, solved = solve_simplex(seen @ seen.T, 0.03 * largest, targets @ seen.T)
    assert not solved.any()
    np.testing.assert_allclose(weights.sum(1), 1)


def test_single_exchanges_alone_end_at_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, targets, largest = problem(0, 12, 5)
    gram, linear = seen @ seen.T, targets @ seen.T
    quick, _ = solve_simplex(gram, 0.03 * largest, linear)
    monkeypatch.setattr(pivoting, "_PATIENCE", -1)
    monkeypatch.setattr(pivoting, "_MAX_STEPS", 5000)
    slow, solved = solve_simplex(gram, 0.03 * largest, linear)
    assert solved.all()
    np.testing.assert_allclose(slow, quick, atol=1e-10)
