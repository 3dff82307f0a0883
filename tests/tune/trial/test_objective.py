"""A trial's score: on validation classes as unseen, chosen one level down, blind to test."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distributed.features.cache import read_unit, units_of
from shards.manifest import load_labels, load_manifest
from shards.sampler import select
from tune.trial.context import Material
from tune.trial.evaluator import collapse_cause
from tune.trial.objective import Problem, make_problem, measure, objective_of
from tune_tiny import make_material, make_search, make_tiny, spoil_test_shards
from vgse.config import RelationConfig


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("objective")
    make_tiny(root, train=12, test=4)
    return root


@pytest.fixture(scope="module")
def material(root: Path) -> Material:
    return make_material(root, root / "searches" / "one", make_search(root))


def score(material: Material, problem: Problem, own: np.ndarray) -> dict[str, float]:
    found = measure(problem, own, material.word_vectors, RelationConfig(), "z", ["prototype"])
    return found["prototype"]


def image_means(material: Material) -> np.ndarray:
    """Means of each class's image features, for embeddings that surely hold the classes."""
    contents = [read_unit(material.features, unit) for unit in material.units]
    features = np.concatenate([c.images.numpy() for c in contents]).astype(np.float64)
    labels = np.concatenate([c.labels.numpy() for c in contents])
    means = np.full((material.num_classes, features.shape[1]), np.nan)
    for label in np.unique(labels):
        means[label] = features[labels == label].mean(0)
    return means


def test_validation_classes_are_unseen_and_take_no_part_in_any_choice(
    material: Material, root: Path
) -> None:
    problem, manifest = material.problem, load_manifest(str(root / "packed"))
    assert problem.outer.unseen.tolist() == manifest.val
    assert not set(material.trained.tolist()) & set(manifest.val)
    inner = set(problem.inner.seen.tolist()) | set(problem.inner.unseen.tolist())
    assert inner == set(material.trained.tolist())  # neither val nor unseen classes
    labels = np.concatenate(
        [read_unit(material.features, unit).labels.numpy() for unit in material.units]
    )
    chosen_on = np.concatenate(
        [problem.inner.train, problem.inner.test_seen, problem.inner.test_unseen]
    )
    assert set(labels[chosen_on].tolist()) == set(material.trained.tolist())
    assert not set(chosen_on.tolist()) & set(problem.outer.test_seen.tolist())
    assert not set(problem.outer.train.tolist()) & set(problem.outer.test_seen.tolist())


def test_embeddings_of_validation_classes_are_not_looked_at(material: Material) -> None:
    own = image_means(material)
    spoilt = own.copy()
    spoilt[material.problem.outer.unseen] = 1e9
    assert score(material, material.problem, own) == score(material, material.problem, spoilt)


def test_good_embeddings_score_above_shuffled_ones(material: Material) -> None:
    own = image_means(material)
    random = np.random.default_rng(1)
    shuffled = []
    for _ in range(8):
        mixed = own.copy()
        mixed[material.trained] = own[random.permutation(material.trained)]
        shuffled.append(score(material, material.problem, mixed)["unseen"])
    good = score(material, material.problem, own)
    assert good["seen"] > 0.2
    assert good["zsl"] >= 0.5 and good["zsl"] > np.mean(shuffled)


def test_what_the_trial_is_scored_on_does_not_choose_hyper_parameters(material: Material) -> None:
    """With the two validation classes' names swapped the score turns and the choice stays."""
    own, problem = image_means(material), material.problem
    labels = problem.outer_features.unseen_labels
    assert len(np.unique(labels)) == 2
    swapped = replace(problem.outer_features, unseen_labels=labels.min() + labels.max() - labels)
    wrong = replace(problem, outer_features=swapped)
    right, lied = score(material, problem, own), score(material, wrong, own)
    assert lied["zsl"] == pytest.approx(1 - right["zsl"])  # the same hyper-parameters
    assert lied["seen"] == right["seen"]  # γ is the same


def test_too_few_classes_are_named(material: Material) -> None:
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


def test_the_objective_is_the_mean_over_models() -> None:
    results = {"a": {"zsl": 0.2}, "b": {"zsl": 0.4}}
    assert objective_of(results, "zsl") == pytest.approx(0.3)


def test_a_trial_is_given_no_test_shard_and_no_unseen_word(material: Material, root: Path) -> None:
    whole, view = load_manifest(str(root / "packed")), load_manifest(material.url)
    assert {shard.split for shard in view.shards} == {"train"}
    assert view.class_names == whole.class_names and view.seen == whole.seen
    assert view.unseen == [] and not list(Path(material.url).glob("test*"))
    assert np.isnan(material.word_vectors[whole.unseen]).all()
    labels, seen = load_labels(whole), load_labels(view)
    for file, content in seen.items():
        np.testing.assert_array_equal(content, labels[file])
    assert select(view, "train", whole.val).counts == select(whole, "train", whole.val).counts


def test_a_hidden_class_with_images_is_refused(material: Material, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(material.url, tmp_path / "view"))
    content = json.loads((folder / "manifest.json").read_text())
    shown = next(entry for entry in content["classes"] if entry["role"] == "train")
    shown["role"] = "hidden"
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is hidden but has images in split train"):
        load_manifest(str(folder))


def test_putting_together_a_search_opens_no_test_shard(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "packed", tmp_path / "packed")
    shutil.copy(root / "words.txt", tmp_path)
    shutil.rmtree(tmp_path / "packed" / "features", ignore_errors=True)
    spoil_test_shards(tmp_path / "packed")
    material = make_material(tmp_path, tmp_path / "searches" / "blind", make_search(tmp_path))
    assert not list(Path(material.features).glob("test*"))
    # The control: whoever opens one is seen.
    manifest = load_manifest(str(tmp_path / "packed"))
    from distributed.features.extract import compute_unit

    unit = units_of(manifest, ["test_unseen"])[0]
    with pytest.raises(ValueError, match="test_unseen"):
        compute_unit(manifest.url, unit, material.spec, str(tmp_path / "x"), "cpu")


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
