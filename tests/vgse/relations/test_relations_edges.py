"""Relations at their edges: degenerate and bad input, the weighted average, the compiled code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import vgse
from vgse.relations import CachedSolver, Relations, smo, solve_relations, weighted_average

F64 = NDArray[np.float64]


def words(num_seen: int, num_unseen: int) -> tuple[F64, F64]:
    """Random unit vectors: unseen [U, 50], seen [S, 50]."""
    vectors = np.random.default_rng(0).normal(size=(num_seen + num_unseen, 50))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[num_seen:], vectors[:num_seen]


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.3, -1.0])
def test_one_seen_class_takes_all_the_weight(alpha: float) -> None:
    unseen, seen = words(1, 3)
    ours = solve_relations(unseen, seen, alpha=alpha)
    assert np.array_equal(ours.weights, np.ones((3, 1))) and ours.gap.max() == 0


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_equal_seen_vectors_get_equal_weights(alpha: float) -> None:
    unseen, seen = words(1, 3)
    ours = solve_relations(np.vstack([unseen, seen]), np.repeat(seen, 7, axis=0), alpha=alpha)
    assert np.allclose(ours.weights, 1 / 7, atol=1e-15) and ours.gap.max() <= 1e-9


def test_alpha_of_one_over_the_number_of_classes_leaves_equal_weights() -> None:
    unseen, seen = words(7, 3)
    ours = solve_relations(unseen, seen, alpha=1 / 7)
    assert np.allclose(ours.weights, 1 / 7) and ours.gap.max() <= 1e-9


def test_zero_vectors_are_points_like_any_other() -> None:
    unseen, seen = words(30, 3)
    seen[4], unseen[1] = 0, 0
    ours = solve_relations(unseen, seen)
    assert ours.weights[1, 4] > 0.99 and ours.gap.max() <= 1e-9


def test_no_unseen_class_gives_empty_arrays() -> None:
    _, seen = words(30, 1)
    ours = solve_relations(np.empty((0, 50)), seen)
    assert ours.weights.shape == (0, 30) and ours.gap.shape == (0,)
    assert weighted_average(np.empty((0, 50)), seen).shape == (0, 30)


def test_float32_and_lists_are_computed_in_float64() -> None:
    unseen, seen = words(30, 3)
    single = solve_relations(unseen.astype(np.float32), seen.astype(np.float32))
    assert single.weights.dtype == np.float64 and single.gap.max() <= 1e-9
    assert solve_relations([[0.0, 1.0]], [[0, 0], [0, 2]]).weights[0] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("unseen", "seen", "options", "message"),
    [
        ([[1.0, np.nan]], [[1, 2]], {}, "unseen holds NaN or infinity in row 0"),
        ([[1.0, 2]], [[1, 2], [np.inf, 0]], {}, "seen holds NaN or infinity in row 1"),
        ([[1.0, 2, 3]], [[1, 2]], {}, "unseen vectors have 3 numbers and seen vectors 2"),
        ([1.0, 2], [[1, 2]], {}, r"unseen must be \[classes, word size\]"),
        ([[1.0, 2]], np.empty((0, 2)), {}, "seen is empty"),
        ([[1.0, 2]], [[1, 2], [3, 4]], {"alpha": 0.6}, "alpha=0.6 leaves no weights .* most 0.5"),
        ([[1.0, 2]], [[1, 2]], {"alpha": np.nan}, "alpha=nan"),
        ([[1.0, 2]], [[1, 2]], {"alpha": -np.inf}, "alpha=-inf"),
        ([[1.0, 2]], [[1, 2]], {"ridge": 0.0}, "ridge=0.0 must be"),
    ],
)
def test_bad_input_gets_one_clear_line(
    unseen: object, seen: object, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        solve_relations(unseen, seen, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_weighted_average_is_the_papers_similarity_over_the_nearest_classes() -> None:
    unseen, seen = words(40, 6)
    unseen = 3 * unseen  # Euclidean distance and cosine disagree on such vectors
    weights = weighted_average(unseen, seen, num_neighbours=4, eta=2.0)
    for w, row in zip(unseen, weights, strict=True):
        similarity = np.exp(-2 * np.linalg.norm(w - seen, axis=1))
        nearest = np.argsort(-similarity)[:4]
        assert np.allclose(row[nearest], similarity[nearest] / similarity[nearest].sum())
        assert np.count_nonzero(row) == 4


def test_weighted_average_takes_the_highest_cosines_of_unit_vectors() -> None:
    unseen, seen = words(40, 6)
    weights = weighted_average(unseen, seen, num_neighbours=3)
    for w, row in zip(unseen, weights, strict=True):
        assert set(np.flatnonzero(row)) == set(np.argsort(-seen @ w)[:3])


def test_weighted_average_keeps_the_digits_of_small_distances() -> None:
    seen = np.array([[100.0, 0.0], [100.0, 1e-7], [0.0, 100.0]])
    weights = weighted_average(seen[:1], seen, num_neighbours=2, eta=1e7)
    assert np.allclose(weights[0], np.array([1, np.exp(-1), 0]) / (1 + np.exp(-1)))


def test_weighted_average_of_a_zero_vector_is_by_distance_too() -> None:
    seen = np.array([[0.0, 0.0], [3.0, 4.0]])
    weights = weighted_average([[0.0, 0.0]], seen, num_neighbours=2, eta=0.2)
    assert np.allclose(weights[0], np.array([1, np.exp(-1)]) / (1 + np.exp(-1)))


def test_weighted_average_of_duplicates_does_not_depend_on_their_order() -> None:
    unseen, seen = words(10, 6)
    doubled = np.vstack([seen, seen])
    weights = weighted_average(unseen, doubled, num_neighbours=3)
    assert np.allclose(weights[:, :10], weights[:, 10:]) and np.allclose(weights.sum(axis=1), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_neighbours": 0}, "num_neighbours=0"),
        ({"eta": np.inf}, "eta=inf"),
        ({"eta": -1.0}, "eta=-1.0 must be a finite number of at least 0"),
    ],
)
def test_weighted_average_refuses_bad_options(options: dict[str, float], message: str) -> None:
    unseen, seen = words(10, 6)
    with pytest.raises(ValueError, match=message):
        weighted_average(unseen, seen, **options)  # type: ignore[arg-type]


def test_a_small_problem_is_solved_without_importing_the_compiler() -> None:
    code = """
import sys, numpy as np
from vgse.relations import solve_relations
words = np.random.default_rng(0).normal(size=(200, 50))  # as many classes as the demo has
for alpha in (0.0, -1.0):
    found = solve_relations(words[:44], words[44:], alpha=alpha)
    assert found.gap.max() <= 1e-9 and found.violation.max() <= 1e-12
print("numba" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_a_cached_solver_solves_each_content_alpha_and_ridge_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def counted(*vectors: F64, **options: float) -> Relations:
        asked.append(options)
        return solve_relations(*vectors, **options)

    monkeypatch.setattr(smo, "solve_relations", counted)
    unseen, seen = words(10, 6)
    solve = CachedSolver()
    first = solve(unseen, seen, alpha=0.0)
    assert solve(unseen.copy(), seen.copy()) is first and len(asked) == 1
    solve(unseen, seen, alpha=-1.0)
    solve(unseen, seen, ridge=1e-3)
    solve(unseen + 1, seen)
    solve(unseen[:5], seen)
    assert len(asked) == 5


def test_relations_import_where_no_folder_can_hold_the_compiled_code(tmp_path: Path) -> None:
    package = tmp_path / "vgse"
    shutil.copytree(Path(vgse.__file__).parent, package, ignore=shutil.ignore_patterns("__pyc*"))
    blocker = package / "relations" / "__pycache__"
    blocker.write_text("a file, so that no cache folder can be made here")
    home = tmp_path / "home"
    home.write_text("not a folder either")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HOME": str(home)}
    for name in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        environment.pop(name, None)
    code = (
        "import vgse.relations as r, vgse.relations.compiled as a;"
        "print(r.__file__, type(a.solve_one._cache).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    where, cache = done.stdout.split()
    assert where.startswith(str(tmp_path)) and cache == "NullCache"
