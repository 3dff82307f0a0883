"""A trial's score: on validation classes as unseen, chosen one level down, blind to test."""

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
from tune.trial.context import TrialContext
from tune.trial.evaluator import collapse_cause
from tune.trial.objective import Problem, make_problem, zero_shot_scores
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


def test_validation_classes_are_unseen_and_take_no_part_in_any_choice(
    context: TrialContext, root: Path
) -> None:
    problem, manifest = context.problem, load_manifest(str(root / "packed"))
    assert problem.outer.unseen.tolist() == manifest.val
    assert not set(context.trained.tolist()) & set(manifest.val)
    inner = set(problem.inner.seen.tolist()) | set(problem.inner.unseen.tolist())
    assert inner == set(context.trained.tolist())  # neither val nor unseen classes
    labels = np.concatenate(
        [read_unit(context.features, unit).labels.numpy() for unit in context.units]
    )
    chosen_on = np.concatenate(
        [problem.inner.train, problem.inner.test_seen, problem.inner.test_unseen]
    )
    assert set(labels[chosen_on].tolist()) == set(context.trained.tolist())
    assert not set(chosen_on.tolist()) & set(problem.outer.test_seen.tolist())
    assert not set(problem.outer.train.tolist()) & set(problem.outer.test_seen.tolist())


def test_embeddings_of_validation_classes_are_not_looked_at(context: TrialContext) -> None:
    own = image_means(context)
    spoilt = own.copy()
    spoilt[context.problem.outer.unseen] = 1e9
    assert score(context, context.problem, own) == score(context, context.problem, spoilt)


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


def test_what_the_trial_is_scored_on_does_not_choose_hyper_parameters(
    context: TrialContext,
) -> None:
    """With the two validation classes' names swapped the score turns and the choice stays."""
    own, problem = image_means(context), context.problem
    labels = problem.outer_features.unseen_labels
    assert len(np.unique(labels)) == 2
    swapped = replace(problem.outer_features, unseen_labels=labels.min() + labels.max() - labels)
    wrong = replace(problem, outer_features=swapped)
    right, lied = score(context, problem, own), score(context, wrong, own)
    assert lied["zsl"] == pytest.approx(1 - right["zsl"])  # the same hyper-parameters
    assert lied["seen"] == right["seen"]  # γ is the same


def test_too_few_classes_are_named(context: TrialContext) -> None:
    with pytest.raises(ValueError, match="3 training classes besides 1 validation classes"):
        make_problem(
            np.zeros((8, 4), np.float32),
            np.repeat(np.arange(4), 2),
            list("abcd"),
            np.arange(3),
            np.array([3]),
            holdout=0.2,
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
