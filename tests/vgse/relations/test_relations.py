"""Relations against SciPy and against their own optimality conditions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, linprog, minimize, nnls

from vgse.relations import box_qp, solve_relations, solvers, weighted_average

F64 = NDArray[np.float64]


@pytest.fixture(params=["numpy", "compiled"], scope="module", autouse=True)
def code(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test runs with NumPy alone and with the compiled active set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solvers, "COMPILED_FROM", 0 if request.param == "compiled" else 10**9)
        yield


def words(num_seen: int, num_unseen: int, size: int = 50, seed: int = 0) -> tuple[F64, F64]:
    """Correlated unit vectors: unseen [U, D_w], seen [S, D_w]."""
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(rng.normal(size=(size, size)))[0] / np.sqrt(1 + np.arange(size))
    vectors = rng.normal(size=(num_seen + num_unseen, size)) @ mixing.T + 0.1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[num_seen:], vectors[:num_seen]


def problem(seen: F64, ridge: float = 1e-8) -> tuple[F64, F64, float]:
    centre = seen.mean(axis=0)
    centred = seen - centre
    return centred, centre, ridge * float(np.linalg.norm(centred, 2)) ** 2


def gaps(weights: F64, unseen: F64, seen: F64, alpha: float = 0.0) -> F64:
    """Relative Frank-Wolfe gaps, the linear minimisation done by a linear programme."""
    centred, centre, ridge = problem(seen)
    result = []
    for r, w in zip(weights, unseen - centre, strict=True):
        gradient = centred @ (r @ centred - w) + ridge * r
        ones = np.ones((1, len(r)))
        best = linprog(gradient, A_eq=ones, b_eq=[1], bounds=(alpha, 1), method="highs").fun
        result.append((gradient @ r - best) / (0.5 * w @ w))
    return np.array(result)


def slsqp(unseen: F64, seen: F64, alpha: float) -> F64:
    centred, centre, ridge = problem(seen)
    num_seen = len(seen)
    answers = []
    for w in unseen - centre:

        def objective(r: F64, w: F64 = w) -> tuple[float, F64]:
            error = r @ centred - w
            return float(0.5 * (error @ error + ridge * r @ r)), centred @ error + ridge * r

        found = minimize(
            objective,
            np.full(num_seen, 1 / num_seen),
            jac=True,
            method="SLSQP",
            bounds=[(alpha, 1.0)] * num_seen,
            constraints=LinearConstraint(np.ones((1, num_seen)), 1, 1),
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        answers.append(found.x)
    return np.array(answers)


@pytest.mark.parametrize("alpha", [0.0, -0.02, -1.0, 0.01])
def test_weights_equal_those_of_slsqp(alpha: float) -> None:
    unseen, seen = words(40, 6, size=60)
    ours = solve_relations(unseen, seen, alpha=alpha)
    reference = slsqp(unseen, seen, alpha)
    assert np.abs(ours.weights - reference).max() < 1e-3
    assert (ours.residual <= np.linalg.norm(unseen - reference @ seen, axis=1) + 1e-7).all()


@pytest.mark.parametrize("alpha", [-0.2, -1.0])
def test_weights_equal_those_of_slsqp_where_the_box_binds(alpha: float) -> None:
    unseen, seen = words(12, 5, size=30)
    unseen = 40 * unseen
    ours = solve_relations(unseen, seen, alpha=alpha)
    assert (ours.weights.max(axis=1) == 1).any() or (ours.weights.min(axis=1) == alpha).all()
    assert np.abs(ours.weights - slsqp(unseen, seen, alpha)).max() < 1e-5
    assert ours.gap.max() <= 1e-9


def test_weights_equal_those_of_nnls_with_a_weighted_sum_row() -> None:
    unseen, seen = words(150, 10)
    centred, centre, ridge = problem(seen)
    for w, r in zip(unseen, solve_relations(unseen, seen).weights, strict=True):
        rows = [centred.T, np.sqrt(ridge) * np.eye(len(seen)), np.full((1, len(seen)), 1e4)]
        right = np.concatenate([w - centre, np.zeros(len(seen)), [1e4]])
        assert np.abs(nnls(np.vstack(rows), right)[0] - r).max() < 1e-5


@pytest.mark.parametrize("alpha", [0.0, 0.002, -0.01, -1.0])
def test_every_row_is_certified_and_the_certificate_is_the_true_gap(alpha: float) -> None:
    unseen, seen = words(200, 30)
    ours = solve_relations(unseen, seen, alpha=alpha)
    assert ours.gap.max() <= 1e-9 and ours.violation.max() <= 1e-12
    assert np.abs(gaps(ours.weights, unseen, seen, alpha) - ours.gap).max() <= 1e-9
    assert ours.weights.dtype == np.float64 and ours.weights.shape == (30, 200)


def test_a_projected_closed_form_has_a_large_gap_where_the_box_binds() -> None:
    unseen, seen = words(30, 8, size=20)
    unseen = 30 * unseen
    centred, centre, ridge = problem(seen)
    inverse = np.linalg.inv(centred.T @ centred + ridge * np.eye(20))
    free = 1 / 30 + (unseen - centre) @ inverse @ centred.T
    assert np.allclose(free.sum(axis=1), 1) and free.max() > 1  # the closed form, outside the box
    clamped = np.array([box_qp._project(r, np.full(30, -1.0), np.ones(30)) for r in free])
    assert np.abs(clamped.sum(axis=1) - 1).max() < 1e-12 and np.abs(clamped).max() <= 1
    assert gaps(clamped, unseen, seen, -1.0).min() > 1e-3
    ours = solve_relations(unseen, seen, alpha=-1.0)
    assert ours.fallback.all() and gaps(ours.weights, unseen, seen, -1.0).max() <= 1e-9


def test_the_order_of_the_seen_classes_changes_nothing() -> None:
    unseen, seen = words(90, 10, size=20)  # S > D_w + 1: not unique without the ridge
    order = np.random.default_rng(1).permutation(90)
    for alpha in (0.0, -1.0):
        there = solve_relations(unseen, seen, alpha=alpha).weights
        assert np.array_equal(
            there[:, order], solve_relations(unseen, seen[order], alpha=alpha).weights
        )


@pytest.mark.parametrize("alpha", [0.0, 0.005, -0.01, -1.0])
def test_duplicates_share_the_weight_equally(alpha: float) -> None:
    unseen, seen = words(40, 10, size=20)
    doubled = np.vstack([seen, seen[:15], seen[:5]])
    ours = solve_relations(unseen, doubled, alpha=alpha)
    assert np.array_equal(ours.weights[:, :15], ours.weights[:, 40:55])
    assert np.array_equal(ours.weights[:, :5], ours.weights[:, 55:])
    assert ours.gap.max() <= 1e-9
    assert gaps(ours.weights, unseen, doubled, alpha).max() <= 1e-9


def test_nearly_equal_vectors_share_the_weight_nearly_equally() -> None:
    unseen, seen = words(40, 10, size=20)
    near = np.vstack([seen, seen + 1e-13])
    weights = solve_relations(unseen, near).weights
    assert np.abs(weights[:, :40] - weights[:, 40:]).max() < 1e-3


def test_an_unseen_class_at_a_seen_vector_takes_that_class_alone() -> None:
    _, seen = words(60, 1)
    ours = solve_relations(seen[7:8], seen)
    assert ours.weights[0, 7] > 1 - 1e-4 and ours.residual[0] < 1e-4


def test_an_unseen_class_far_outside_takes_the_extreme_class() -> None:
    _, seen = words(60, 1)
    direction = seen[7] - seen.mean(axis=0)
    ours = solve_relations(1e6 * direction[None], seen)
    assert ours.weights[0].argmax() == ((seen - seen.mean(0)) @ direction).argmax()
    assert ours.weights[0].max() == 1 and ours.gap[0] <= 1e-9


def test_the_mean_of_the_seen_vectors_gets_equal_weights() -> None:
    _, seen = words(60, 1, size=100)
    ours = solve_relations(seen.mean(axis=0)[None], seen)
    assert np.allclose(ours.weights, 1 / 60, atol=1e-6) and ours.gap[0] <= 1e-9


def test_dense_optima_that_exhaust_the_active_set_are_solved_and_counted() -> None:
    unseen, seen = words(400, 4, size=6)
    unseen = seen.mean(axis=0) + 0.05 * (unseen - seen.mean(axis=0))  # deep inside the hull
    ours = solve_relations(unseen, seen)
    assert ours.fallback.all() and ((ours.weights > 0).sum(axis=1) > 256).all()
    assert ours.gap.max() <= 1e-9 and ours.violation.max() <= 1e-12
    # Where all weights are free the ridge's optimum is known: the one of least norm.
    centred, centre, ridge = problem(seen)
    inverse = np.linalg.inv(centred.T @ centred + ridge * np.eye(6))
    free = 1 / 400 + (unseen - centre) @ inverse @ centred.T
    inside = (free > 0).all(axis=1)
    assert inside.any() and np.abs(ours.weights[inside] - free[inside]).max() < 1e-7


@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
@pytest.mark.parametrize(("num_seen", "size"), [(60, 30), (120, 5)])  # PIQP dense, PIQP sparse
def test_piqp_with_polishing_equals_the_active_set(num_seen: int, size: int, scale: float) -> None:
    unseen, seen = words(num_seen, 3, size=size)
    unseen = scale * unseen
    centred, centre, ridge = problem(seen)
    ours = solve_relations(unseen, seen)
    low, high, ridges = np.zeros(num_seen), np.ones(num_seen), np.full(num_seen, ridge)
    for w, r in zip(unseen - centre, ours.weights, strict=True):
        rough = box_qp._interior_point(centred, ridges, w, low, high)
        assert np.abs(rough - r).max() < 1e-3
        assert np.abs(box_qp.solve_box(centred, ridges, w, low, high) - r).max() < 1e-6


def test_without_the_gram_matrix_the_answer_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    unseen, seen = words(150, 2)
    whole = solve_relations(unseen, seen)
    monkeypatch.setattr("vgse.relations.smo.GRAM_LIMIT", 100)
    monkeypatch.setattr(solvers, "_CANDIDATES", 8)  # so that several rounds are needed
    priced = solve_relations(unseen, seen)
    assert np.abs(whole.weights - priced.weights).max() < 1e-7
    assert priced.gap.max() <= 1e-9 and not priced.fallback.any()


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    unseen, seen = words(50, 20)
    whole, average = solve_relations(unseen, seen), weighted_average(unseen, seen)
    monkeypatch.setattr("vgse.relations.problem._BLOCK_NUMBERS", 350)  # 7 rows at a time
    parts = solve_relations(unseen, seen)
    assert np.allclose(average, weighted_average(unseen, seen), atol=1e-12)
    assert np.allclose(whole.weights, parts.weights, atol=1e-9)
    assert parts.gap.max() <= 1e-9


def test_moving_and_scaling_all_vectors_changes_no_weight() -> None:
    unseen, seen = words(80, 10)
    plain = solve_relations(unseen, seen)
    moved = solve_relations(1e3 * unseen + 5, 1e3 * seen + 5)
    assert np.abs(plain.weights - moved.weights).max() < 1e-5
    assert np.allclose(1e3 * plain.residual, moved.residual)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 25),
    st.integers(1, 12),
    st.sampled_from([1e-3, 0.3, 1.0, 10.0, 1e4]),
    st.sampled_from([0.0, 0.5, -0.01, -0.3, -1.0]),
    st.integers(0, 10_000),
)
def test_small_problems_of_every_shape_are_certified(
    num_seen: int, size: int, scale: float, alpha: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    seen = rng.integers(-2, 3, size=(num_seen, size)).astype(float)  # ties and duplicates abound
    unseen = scale * rng.normal(size=(2, size))
    bound = alpha / num_seen if alpha > 0 else alpha
    ours = solve_relations(unseen, seen, alpha=bound)
    assert ours.gap.max() <= 1e-9
    assert ours.violation.max() <= 1e-12
    weights = ours.weights
    assert weights.min() >= bound - 1e-12 and weights.max() <= 1 + 1e-12
    assert np.abs(weights.sum(axis=1) - 1).max() <= 1e-12
