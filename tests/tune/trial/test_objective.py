"""A trial's score: on folds of the seen classes, each by what the others choose, blind to test."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed.features.cache import read_unit, units_of
from distributed.features.extract import compute_unit
from shards.manifest import load_manifest
from tune.config import SearchConfig
from tune.trial.context import TrialContext
from tune.trial.evaluator import collapse_cause, objective_of
from tune.trial.objective import Problem, make_problem, own_images_accuracy, zero_shot_scores
from tune.trial.trainable import run_trial
from tune_tiny import make_search, make_trial_context, spoil_test_shards
from vgse.config import RelationConfig


@pytest.fixture(scope="module")
def context(root: Path) -> TrialContext:
    return make_trial_context(root, root / "searches" / "one", make_search(root))


def score(context: TrialContext, problem: Problem, own: np.ndarray) -> dict[str, float]:
    return scores(context, problem, own, "prototype")


def scores(
    context: TrialContext, problem: Problem, own: np.ndarray, *models: str
) -> dict[str, float]:
    words = context.word_vectors
    return zero_shot_scores(problem, own, words, context.knowledge, RelationConfig(), "z", models)


def image_means(context: TrialContext) -> np.ndarray:
    """Means of each class's image features, for embeddings that surely hold the classes."""
    contents = [read_unit(context.features, unit) for unit in context.units]
    features = np.concatenate([c.images.numpy() for c in contents]).astype(np.float64)
    labels = np.concatenate([c.labels.numpy() for c in contents])
    means = np.full((len(context.word_vectors), features.shape[1]), np.nan)
    for label in np.unique(labels):
        means[label] = features[labels == label].mean(0)
    return means


def test_validation_classes_are_unseen_in_the_first_fold_and_seen_classes_take_turns(
    context: TrialContext, root: Path
) -> None:
    problem, manifest = context.problem, load_manifest(str(root / "packed"))
    assert problem.folds[0].unseen.tolist() == manifest.val == problem.val.tolist()
    assert not set(context.trained.tolist()) & set(manifest.val)
    turns = np.concatenate([fold.unseen for fold in problem.folds])
    assert sorted(turns.tolist()) == sorted(manifest.seen)
    for fold in problem.folds:
        images = np.concatenate([fold.train, fold.test_seen, fold.test_unseen])
        assert len(np.unique(images)) == len(images)
        assert not set(problem.labels[images].tolist()) & set(manifest.unseen)
        assert not set(problem.labels[fold.train].tolist()) & set(fold.unseen.tolist())


def test_embeddings_of_a_fold_that_it_predicts_are_not_looked_at(context: TrialContext) -> None:
    own, problem = image_means(context), context.problem
    one = replace(problem, folds=problem.folds[:1], features=problem.features[:1])
    spoilt = own.copy()
    spoilt[problem.val] = 1e9
    assert score(context, one, own) == score(context, one, spoilt)
    # The control: in further folds they are seen.
    assert score(context, problem, own) != score(context, problem, spoilt)


def test_own_images_need_no_relation_and_no_other_class(context: TrialContext) -> None:
    contents = [read_unit(context.features, unit) for unit in context.units]
    a_n = np.concatenate([c.images.numpy() for c in contents]).astype(np.float32)
    found = own_images_accuracy(context.problem, a_n)
    spoilt = a_n.copy()
    of_val = np.isin(context.problem.labels, context.problem.val)
    spoilt[~of_val] = 0
    assert found == own_images_accuracy(context.problem, spoilt) > 0.5
    spoilt[of_val] = np.random.default_rng(0).permutation(spoilt[of_val])
    assert own_images_accuracy(context.problem, spoilt) < found


def test_an_objective_is_a_measure_or_the_mean_of_two() -> None:
    found = {"own_images": 0.6, "zsl": 0.2, "harmonic_mean": 0.3}
    assert objective_of(found, "own_images") == 0.6
    assert objective_of(found, "own_images+zsl") == pytest.approx(0.4)
    assert objective_of(found, SearchConfig().objective) == pytest.approx(0.45)


def test_good_embeddings_score_above_shuffled_ones(context: TrialContext) -> None:
    own = image_means(context)
    random = np.random.default_rng(1)
    shuffled = []
    for _ in range(8):
        mixed = own.copy()
        mixed[context.trained] = own[random.permutation(context.trained)]
        shuffled.append(score(context, context.problem, mixed)["unseen"])
    good = score(context, context.problem, own)
    assert good["seen"] > 0.2
    assert good["zsl"] >= 0.5 and good["zsl"] > np.mean(shuffled)


def test_too_few_classes_are_named(context: TrialContext) -> None:
    with pytest.raises(ValueError, match="3 training classes besides 1 validation classes"):
        make_problem(
            np.zeros((8, 4), np.float32),
            np.repeat(np.arange(4), 2),
            list("abcd"),
            np.arange(3),
            np.array([3]),
            holdout=0.2,
            folds=5,
            seed=0,
        )


def test_the_objective_is_the_mean_over_models(context: TrialContext) -> None:
    own, models = image_means(context), ("prototype", "eszsl")
    apart = [scores(context, context.problem, own, model)["seen"] for model in models]
    both = scores(context, context.problem, own, *models)["seen"]
    assert apart[0] != apart[1] and both == pytest.approx(np.mean(apart))


def test_a_trial_is_given_no_test_unit_and_no_unseen_word(
    context: TrialContext, root: Path
) -> None:
    manifest = load_manifest(str(root / "packed"))
    assert {unit.split for unit in context.units} == {"train"}
    assert np.isnan(context.word_vectors[manifest.unseen]).all()
    assert not np.isnan(context.word_vectors[context.trained]).any()
    for source in context.knowledge.sources:
        assert not source.rows[manifest.unseen].any() and source.rows[context.trained].any()


@pytest.fixture
def blind(root: Path, tmp_path: Path) -> Path:
    """The data with test shards that nobody can read, and no features yet."""
    shutil.copytree(root / "packed", tmp_path / "packed")
    shutil.copy(root / "words.txt", tmp_path)
    shutil.rmtree(tmp_path / "packed" / "features", ignore_errors=True)
    spoil_test_shards(tmp_path / "packed")
    return tmp_path


def test_putting_together_a_search_opens_no_test_shard(blind: Path) -> None:
    context = make_trial_context(blind, blind / "searches" / "blind", make_search(blind))
    assert not list(Path(context.features).glob("test*"))
    # The control: whoever opens one is seen.
    unit = units_of(load_manifest(str(blind / "packed")), ["test_unseen"])[0]
    with pytest.raises(ValueError, match="test_unseen"):
        compute_unit(context.url, unit, context.spec, str(blind / "x"), "cpu")


def test_a_trial_from_pixels_opens_no_test_shard(
    blind: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backbone that learns reads shards in every epoch, to train and to be scored."""
    config = make_search(blind)
    config.run.backbone.train = "last"
    config.run.training.epochs = 1
    context = make_trial_context(blind, blind / "searches" / "pixels", config)
    opened: list[str] = []
    monkeypatch.setattr("builtins.open", noting(opened, open))
    rows: list[dict[str, float]] = []
    run_trial(context, "0000", {}, rows.append)
    assert [row["epoch"] for row in rows] == [1]
    assert any("train-000000.tar" in path for path in opened)
    ours = [Path(path).name for path in opened if path.startswith(str(blind))]
    assert ours and not [name for name in ours if "test_" in name]


def noting(opened: list[str], function: Callable[..., Any]) -> Callable[..., Any]:
    """`open` that writes down what it is asked for."""

    def noted(file: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(str(file))
        return function(file, *arguments, **options)

    return noted


def row(epoch: int, used: int, classification: float = 1.0) -> dict[str, float]:
    return {"epoch": epoch, "used_clusters": used, "classification": classification}


def test_dead_clusters_and_a_class_loss_of_guessing_are_collapses() -> None:
    guess = float(np.log(8))
    assert collapse_cause([row(1, 1)], 100, 8, 0.1) is None  # the rate still warms up
    assert "dead clusters: 5 of 100" in str(collapse_cause([row(1, 90), row(2, 5)], 100, 8, 0.1))
    assert collapse_cause([row(1, 90), row(2, 50)], 100, 8, 0.1) is None
    stuck = [row(epoch, 90, guess) for epoch in range(1, 5)]
    assert "stuck at ln S" in str(collapse_cause(stuck, 100, 8, 0.1))
    assert collapse_cause(stuck[:3], 100, 8, 0.1) is None
    assert collapse_cause([*stuck[:3], row(4, 90, 0.9 * guess)], 100, 8, 0.1) is None
    # Without the class loss nothing can be stuck at it.
    plain = [{"epoch": epoch, "used_clusters": 90} for epoch in range(1, 6)]
    assert collapse_cause(plain, 100, 8, 0.1) is None
