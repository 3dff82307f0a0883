"""The choice of weights and ridge: what it finds, what it may look at, and when it warns."""

import numpy as np
import pytest
from numpy.typing import NDArray

from vgse.config import RelationConfig
from vgse.knowledge.sources import Knowledge, Source, combine_blocks, source_blocks
from vgse.relations import select
from vgse.relations.pivoting import solve_simplex
from vgse.relations.predict import choose_knowledge
from vgse.relations.select import Selection, select_relation
from vgse.relations.smo import solve_relations

F64 = NDArray[np.float64]

NUM_SEEN, NUM_ALL, SIZE = 60, 80, 12
SEEN = np.arange(NUM_SEEN)


def made(*noise: float, seed: int = 0) -> tuple[F64, list[F64]]:
    """Embeddings [C, D_v] of hidden points, and a source of each noise that shows the points."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(NUM_ALL, SIZE)) * np.linspace(1, 0.3, SIZE)
    embeddings = hidden @ rng.normal(size=(SIZE, 30)) + 0.3 * rng.normal(size=(NUM_ALL, 30))
    return embeddings, [hidden + n * rng.normal(size=hidden.shape) for n in noise]


def knowledge_of(sources: list[F64]) -> Knowledge:
    names = [f"class{i}" for i in range(NUM_ALL)]
    return Knowledge(names, [Source(f"source{i}", rows, None) for i, rows in enumerate(sources)])


def chosen(embeddings: F64, sources: list[F64]) -> Selection:
    blocks = source_blocks(knowledge_of(sources), SEEN)
    return select_relation(embeddings[SEEN], [block[SEEN] for block in blocks])


def test_it_picks_the_better_of_two_sources_whichever_stands_first() -> None:
    embeddings, (good, bad) = made(0.1, 3.0)
    first, second = chosen(embeddings, [good, bad]), chosen(embeddings, [bad, good])
    assert first.weights[1] <= 0.35 * first.weights[0]
    assert second.weights[0] == 0 or second.weights[1] >= 2.8 * second.weights[0]
    assert first.criterion > 0.5 and second.criterion == pytest.approx(first.criterion, abs=0.05)
    assert first.warning is None and second.warning is None
    assert first.criterion > chosen(embeddings, [bad]).criterion + 0.2


def test_two_sources_that_each_know_a_half_are_taken_together() -> None:
    embeddings, (one, two) = made(0.1, 0.1)
    one[:, ::2] = np.random.default_rng(1).normal(size=one[:, ::2].shape)
    two[:, 1::2] = np.random.default_rng(2).normal(size=two[:, 1::2].shape)
    both = chosen(embeddings, [one, two])
    assert min(both.weights) > 0
    for alone in ([one], [two]):
        assert both.criterion > chosen(embeddings, alone).criterion


def test_three_sources_are_searched_one_after_the_other() -> None:
    embeddings, sources = made(3.0, 0.1, 3.0)
    found = chosen(embeddings, sources)
    assert found.weights[1] >= 2 * max(found.weights[0], found.weights[2])


def test_a_noisy_source_wants_a_larger_ridge() -> None:
    clean, noisy = (chosen(e, s) for e, s in (made(0.0), made(1.5)))
    assert noisy.ridge > clean.ridge
    assert {setting.ridge for setting in noisy.curve} >= {1e-8, noisy.ridge}


def test_permuted_knowledge_has_no_criterion_and_a_warning() -> None:
    embeddings, sources = made(0.1)
    for seed in range(3):
        moved = [rows[np.random.default_rng(seed).permutation(NUM_ALL)] for rows in sources]
        found = chosen(embeddings, moved)
        assert abs(found.criterion) < 0.15
        assert found.warning is not None and "say nothing about the pictures" in found.warning
    real = chosen(embeddings, sources)
    assert real.warning is None and real.criterion > 0.5
    assert abs(real.permuted) < 0.05 < real.permuted_best < 0.2


def test_no_unseen_class_reaches_the_choice() -> None:
    embeddings, sources = made(0.3, 1.0)
    before = chosen(embeddings, sources)
    rng = np.random.default_rng(9)
    for array in (embeddings, *sources):
        array[NUM_SEEN:] = rng.normal(size=array[NUM_SEEN:].shape) * 100
    assert chosen(embeddings, sources) == before
    sources[0][:NUM_SEEN] = rng.permutation(sources[0][:NUM_SEEN])
    assert chosen(embeddings, sources) != before


def test_the_choice_of_a_run_stays_when_unseen_classes_change() -> None:
    embeddings, (words, _) = made(0.3, 1.0)
    ancestors = (np.random.default_rng(1).random((NUM_ALL, 20)) < 0.3).astype(np.float64)

    def choice() -> Selection | None:
        sources = [Source("words", words, None), Source("tree", ancestors, None, True)]
        knowledge = Knowledge([f"class{i}" for i in range(NUM_ALL)], sources)
        config = RelationConfig()
        return choose_knowledge(knowledge, words, SEEN, embeddings[SEEN], config, 0).selection

    before = choice()
    words[NUM_SEEN:] += 5
    ancestors[NUM_SEEN:] = 1
    assert before is not None and choice() == before
    ancestors[0] = 1
    assert choice() != before


def test_fixed_weights_and_a_fixed_ridge_stay() -> None:
    embeddings, sources = made(0.3, 1.0)
    blocks = [rows[SEEN] for rows in sources]
    fixed = select_relation(embeddings[SEEN], blocks, weights=[1.0, 0.7])
    assert {setting.weights for setting in fixed.curve} == {(1.0, 0.7)}
    assert len({setting.ridge for setting in fixed.curve}) > 1
    first = select_relation(embeddings[SEEN], blocks, weights=[None, 1.0]).curve
    assert {setting.weights[1] for setting in first} == {1.0}
    assert len({setting.weights[0] for setting in first}) > 5
    both = select_relation(embeddings[SEEN], blocks, weights=[1.0, None], ridge=0.02)
    assert {setting.ridge for setting in both.curve} == {0.02}
    assert len({setting.weights for setting in both.curve}) > 5


def test_the_best_of_the_curve_is_chosen() -> None:
    embeddings, sources = made(0.3, 1.0)
    found = chosen(embeddings, sources)
    best = max(found.curve, key=lambda setting: setting.score)
    assert (found.weights, found.ridge, found.criterion) == (
        best.weights,
        best.ridge,
        best.criterion,
    )
    assert len({(s.weights, s.ridge) for s in found.curve}) == len(found.curve)
    assert found.num_problems == len(found.curve) * 2 * NUM_SEEN


def reference(
    embeddings: F64, blocks: list[F64], setting: select.Setting, seed: int
) -> tuple[float, float]:
    """The criterion and the margin from vectors, by the solver of the final relations."""
    rng = np.random.default_rng(seed)
    rng.permutation(len(embeddings))
    cosines, margins = [], []
    for _ in range(2):
        for held in np.array_split(rng.permutation(len(embeddings)), 5):
            train = np.setdiff1d(np.arange(len(embeddings)), held)
            rng.permuted(np.tile(np.arange(len(held)), (300, 1)), axis=1)
            again = source_blocks(
                Knowledge([], [Source("", block, None) for block in blocks]), train
            )
            rows = combine_blocks(again, setting.weights, train)
            weights = solve_relations(rows[held], rows[train], ridge=setting.ridge).weights
            scores = (embeddings - embeddings[train].mean(0)) / embeddings[train].std(0)
            predicted, own = weights @ scores[train], scores[held]
            for number, row in enumerate(own):
                lengths = np.linalg.norm(predicted, axis=1) * np.linalg.norm(row)
                of_all = list(predicted @ row / lengths)
                cosines.append(of_all.pop(number))
                margins.append(cosines[-1] - max(of_all))
    return float(np.mean(cosines)), float(np.mean(margins))


def test_the_criterion_is_that_of_the_final_relations() -> None:
    embeddings, sources = made(0.3, 1.0)
    sources[1][[3, 30]] = 0  # classes that the source lacks
    blocks = [block[SEEN] for block in source_blocks(knowledge_of(sources), SEEN)]
    found = select_relation(embeddings[SEEN], blocks, seed=4)
    for setting in found.curve[:: max(1, len(found.curve) // 3)]:
        again = reference(embeddings[SEEN], blocks, setting, 4)
        assert (setting.criterion, setting.margin) == pytest.approx(again, abs=1e-7)
        other = select.Setting(setting.weights, 2.0, 0, 0, 0)
        elsewhere = reference(embeddings[SEEN], blocks, other, 4)
        assert abs(setting.criterion - elsewhere[0]) > 1e-4 < abs(setting.margin - elsewhere[1])


def test_predictions_that_are_all_near_but_alike_have_no_margin() -> None:
    near_but_alike, apart = np.full((3, 3), 0.9), np.eye(3) - 0.1
    assert select._margins(near_but_alike).tolist() == [0, 0, 0]
    assert select._margins(apart) == pytest.approx([1, 1, 1])
    assert select._margins(np.ones((1, 1))).tolist() == [0]
    assert select.Setting((1.0,), 0.1, 0.9, 0.0, 1.0).score > 0.9  # the cosine of both


def test_rows_that_pivoting_leaves_go_to_the_general_solver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embeddings, sources = made(0.3)
    before = chosen(embeddings, sources)

    def half(*args: F64) -> tuple[F64, NDArray[np.bool_]]:
        weights, solved = solve_simplex(*args)
        weights[::2], solved[::2] = 1 / weights.shape[1], False
        return weights, solved

    monkeypatch.setattr(select, "solve_simplex", half)
    after = chosen(embeddings, sources)
    assert after.ridge == before.ridge
    assert after.criterion == pytest.approx(before.criterion, abs=1e-7)


@pytest.mark.parametrize("alpha", [-1.0, -0.02, 0.005])
def test_other_lower_bounds_are_those_of_the_final_relations(alpha: float) -> None:
    embeddings, sources = made(0.5)
    fold = select._fold(embeddings[SEEN], np.arange(10), np.random.default_rng(0))
    rows = combine_blocks(source_blocks(knowledge_of(sources), fold.train), [1.0], fold.train)
    problem = select._problem([sources[0][SEEN] @ sources[0][SEEN].T], (1.0,), 1.0, fold)
    relation = select._solve(0.1, alpha, problem, fold, None)
    wanted = solve_relations(rows[fold.held], rows[fold.train], alpha=alpha, ridge=0.1).weights
    np.testing.assert_allclose(relation, wanted, atol=1e-7)
    assert np.abs(relation - select._solve(0.1, 0.0, problem, fold, None)).max() > 1e-3


def test_folds_side_by_side_choose_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, sources = made(0.3, 1.0)
    before = chosen(embeddings, sources)
    monkeypatch.setattr(select, "_THREADS_FROM", 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert chosen(embeddings, sources) == before


def test_too_few_classes_are_not_chosen_by() -> None:
    found = select_relation(np.eye(5), [np.eye(5), np.eye(5)])
    assert found.weights == (1.0, 1.0) and found.curve == []
    assert found.warning is not None and "too few" in found.warning
    assert select_relation(np.eye(10), [np.eye(10)]).curve


def test_many_classes_are_sampled() -> None:
    embeddings, sources = made(0.3)
    whole = chosen(embeddings, sources)
    blocks = [block[SEEN] for block in source_blocks(knowledge_of(sources), SEEN)]
    part = select_relation(embeddings[SEEN], blocks, max_classes=40)
    assert part.num_problems == len(part.curve) * 2 * 40
    assert part.criterion > 0.5 and part.criterion != whole.criterion


def test_a_source_that_tells_no_classes_apart_has_no_criterion() -> None:
    embeddings, sources = made(0.1)
    found = chosen(embeddings, [np.ones_like(sources[0])])
    assert abs(found.criterion) < 0.1 and found.warning is not None


def largest_eigenvalue_with(limit: int, monkeypatch: pytest.MonkeyPatch, gram: F64) -> float:
    monkeypatch.setattr(select, "_FULL_SPECTRUM", limit)
    return select._largest_eigenvalue(gram)


def test_both_ways_to_the_largest_eigenvalue_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).normal(size=(50, 20))
    gram = (points - points.mean(0)) @ (points - points.mean(0)).T
    few, many = (largest_eigenvalue_with(limit, monkeypatch, gram) for limit in (10, 100))
    assert few == pytest.approx(many, rel=1e-10)


def test_classes_that_are_all_alike_to_each_other_are_no_error() -> None:
    for num_classes in range(20, 40):  # at some sizes LAPACK finds no largest eigenvalue
        blocks = source_blocks(knowledge_of([np.eye(num_classes)]), np.arange(num_classes))
        embeddings = np.random.default_rng(0).normal(size=(num_classes, 3))
        found = select_relation(embeddings, blocks, ridge=0.1)
        assert abs(found.criterion) < 0.5
        rows = combine_blocks(blocks, [1.0], np.arange(num_classes))
        np.testing.assert_allclose(solve_relations(rows[:2], rows).weights.sum(1), 1)
