"""Models against their formulas written out, and on a world where they can be right."""

from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.linalg import solve_sylvester

from vgse.zsl.features import principal_axes, training_set, unit_rows
from vgse.zsl.folds import final_fold, prepare
from vgse.zsl.hyperparameters import zsl_top1
from vgse.zsl.metrics import per_class_top1
from vgse.zsl.models import MODELS, bilinear, cada_vae, find_model
from vgse.zsl.models.bilinear import (
    DEVISE_MARGIN,
    ale_slope,
    cross_entropy_slope,
    devise_slope,
    sje_slope,
    span,
)
from vgse.zsl.models.closed_form import sae_matrix
from zsl_toy import make_toy

RNG = np.random.default_rng(0)
RAW = RNG.normal(size=(200, 12)) @ RNG.normal(size=(12, 12)) + 1.0
LABELS = np.arange(200) % 7
AXES = principal_axes(RAW)
TRAINING = training_set(AXES.transform(RAW), LABELS, 7)
X = unit_rows(RAW).astype(np.float64)
X -= X.mean(0)
TOY = make_toy()
FOLD = prepare(TOY.data, final_fold(TOY.data))
OWN = TOY.own[np.concatenate([TOY.data.seen, TOY.data.unseen])]


def test_axes_keep_distances_and_make_the_gram_matrix_diagonal():
    features = TRAINING.features.astype(np.float64)
    assert_allclose(features @ features.T, X @ X.T, atol=1e-5)
    assert_allclose(features.T @ features, np.diag(TRAINING.spectrum), atol=1e-5)
    assert (np.diff(TRAINING.spectrum) <= 1e-6).all()


def test_fewer_images_than_features_give_the_same_axes():
    wide = RNG.normal(size=(9, 40))
    few, many = principal_axes(wide), principal_axes(np.repeat(wide, 5, axis=0))
    assert few.rotation.shape == (40, 8)
    assert_allclose(np.abs(few.rotation.T @ many.rotation[:, :8]), np.eye(8), atol=1e-3)
    assert_allclose(few.mean, many.mean, atol=1e-6)


def test_axes_without_variance_are_left_out():
    narrow = np.repeat(RAW[:5], 3, axis=0)
    assert principal_axes(narrow).rotation.shape == (12, 4)


@pytest.mark.parametrize("size", [3, 7, 30])
def test_eszsl_is_the_formula_of_the_paper(size):
    embeddings = np.random.default_rng(size).normal(size=(7, size))
    signs = np.where(np.arange(7) == LABELS[:, None], 1.0, -1.0)
    gamma = 0.3 * np.trace(X.T @ X) / TRAINING.features.shape[1]
    lam = 2.0 * np.trace(embeddings.T @ embeddings) / min(7, size)
    expected = (
        np.linalg.inv(X.T @ X + gamma * np.eye(12))
        @ X.T
        @ signs
        @ embeddings
        @ np.linalg.inv(embeddings.T @ embeddings + lam * np.eye(size))
    )
    score = MODELS["eszsl"].fit(TRAINING, embeddings, gamma=0.3, lam=2.0)
    found = AXES.rotation @ score(np.eye(12, dtype=np.float32), np.eye(size))
    assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [3, 30])
def test_sae_solves_its_sylvester_equation(size):
    embeddings = np.random.default_rng(size).normal(size=(7, size))
    found = sae_matrix(TRAINING, embeddings, 0.5)
    codes = embeddings[LABELS].T  # S [D_e, M]
    images = TRAINING.features.T.astype(np.float64)  # X [D, M]
    lam = 0.5 * np.trace(codes @ codes.T) / np.trace(images @ images.T)
    left = codes @ codes.T @ found + lam * found @ images @ images.T
    assert_allclose(left, (1 + lam) * codes @ images.T, atol=1e-3)


def _public_sae(x, s, lam):
    """SAE.m of the authors: A = S Sᵀ, B = λ X Xᵀ, C = (1 + λ) S Xᵀ, W = sylvester(A, B, C)."""
    return solve_sylvester(s @ s.T, lam * x @ x.T, (1 + lam) * s @ x.T)


def _public_eszsl(x, signs, s, gamma, lam):
    """The authors' one line: inv(X Xᵀ + γI) X Y S inv(Sᵀ S + λI), X [D, M], S [C, D_e]."""
    left = np.linalg.inv(x @ x.T + gamma * np.eye(len(x)))
    return left @ x @ signs @ s @ np.linalg.inv(s.T @ s + lam * np.eye(s.shape[1]))


def _cosines(rows, others):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)) @ (
        others / np.linalg.norm(others, axis=1, keepdims=True)
    ).T


@pytest.mark.parametrize("name", ["eszsl", "sae", "sae_decoder"])
def test_t1_is_that_of_the_public_formulas(name):
    num_seen, training = FOLD.num_seen, FOLD.training
    of_seen, of_unseen = OWN[:num_seen], OWN[num_seen:]
    x, images = training.features.T.astype(np.float64), FOLD.unseen_features
    if name == "eszsl":
        signs = np.where(np.arange(num_seen) == training.labels[:, None], 1.0, -1.0)
        ridges = (0.1 * training.spectrum.mean(), 10.0 * np.square(of_seen).sum() / 10)
        params = {"gamma": 0.1, "lam": 10.0}
        expected = images @ _public_eszsl(x, signs, of_seen, *ridges) @ of_unseen.T
    else:
        codes = of_seen[training.labels].T
        lam = 1.0 * np.square(codes).sum() / np.square(x).sum()
        params = {"balance": 1.0}
        encoder = _public_sae(x, codes, lam)
        if name == "sae":
            expected = _cosines(images @ encoder.T, of_unseen)
        else:
            expected = _cosines(images, of_unseen @ encoder)
    accuracy = per_class_top1(expected.argmax(1) + num_seen, FOLD.unseen_labels)
    score = MODELS[name].fit(training, of_seen, **params)
    assert_allclose(score(images, of_unseen), expected, rtol=1e-3, atol=1e-3)
    assert zsl_top1(score, FOLD, OWN) == pytest.approx(accuracy)
    assert accuracy > 0.5


def test_prototypes_are_a_ridge_regression_to_class_means():
    embeddings = RNG.normal(size=(7, 4))
    candidates = RNG.normal(size=(3, 4))
    score = MODELS["prototype"].fit(TRAINING, embeddings, ridge=0.2, shrinkage=5.0)
    features = TRAINING.features.astype(np.float64)
    means = np.stack([features[c == LABELS].mean(0) for c in range(7)])
    rho = 0.2 * np.trace(embeddings @ embeddings.T) / 7
    solution = np.linalg.solve(embeddings.T @ embeddings + rho * np.eye(4), embeddings.T @ means)
    metric = 1 / np.sqrt(TRAINING.spectrum / TRAINING.spectrum.mean() + 5.0)
    images, prototypes = features[:20] * metric, candidates @ solution * metric
    expected = images @ prototypes.T
    expected /= np.linalg.norm(images, axis=1)[:, None] * np.linalg.norm(prototypes, axis=1)
    assert_allclose(score(TRAINING.features[:20], candidates), expected, atol=1e-4)


def test_the_span_of_long_embeddings_holds_them():
    embeddings = RNG.normal(size=(5, 40))
    coordinates, basis = span(embeddings)
    assert coordinates.shape == (5, 5)
    assert_allclose(coordinates @ basis, embeddings, atol=1e-10)
    assert_allclose(basis @ basis.T, np.eye(5), atol=1e-10)


def _hinge(scores, label):
    return max(0.0, max(scores[y] + (y != label) - scores[label] for y in range(len(scores))))


def _ranking(scores, label):
    margins = [scores[y] + 1 - scores[label] for y in range(len(scores)) if y != label]
    violated = [margin for margin in margins if margin > 0]
    rank = len(violated)
    return sum(1 / i for i in range(1, rank + 1)) / max(rank, 1) * sum(violated)


def _summed(scores, label):
    others = [y for y in range(len(scores)) if y != label]
    return np.mean([max(0.0, DEVISE_MARGIN + scores[y] - scores[label]) for y in others])


def _cross_entropy(scores, label):
    return np.log(np.exp(scores).sum()) - scores[label]


@pytest.mark.parametrize(
    ("slope", "loss"),
    [
        (sje_slope, _hinge),
        (ale_slope, _ranking),
        (devise_slope, _summed),
        (cross_entropy_slope, _cross_entropy),
    ],
)
def test_slopes_are_the_finite_differences_of_the_losses(slope, loss):
    scores = np.random.default_rng(1).normal(size=(30, 6))
    labels = np.arange(30) % 6
    found = slope(scores, labels)
    step = 1e-6
    for image in range(30):
        for label in range(6):
            up, down = scores[image].copy(), scores[image].copy()
            up[label] += step
            down[label] -= step
            numeric = (loss(up, labels[image]) - loss(down, labels[image])) / (2 * step)
            assert found[image, label] == pytest.approx(numeric, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_models_name_unseen_classes_and_fail_on_exchanged_embeddings(name):
    centred = OWN - OWN[: FOLD.num_seen].mean(0)
    exchanged = centred.copy()
    exchanged[FOLD.num_seen :] = np.roll(centred[FOLD.num_seen :], 1, axis=0)
    model = MODELS[name]
    params = model.grid[len(model.grid) // 2]
    score = model.fit(FOLD.training, centred[: FOLD.num_seen], seed=0, **params)
    # ConSE can only mix what it saw, so the toy is harder for it.
    assert zsl_top1(score, FOLD, centred) > (0.5 if name == "conse" else 0.75)
    assert zsl_top1(score, FOLD, exchanged) < 0.2


@pytest.mark.parametrize("name", MODELS)
def test_models_name_seen_classes(name):
    model = MODELS[name]
    score = model.fit(FOLD.training, OWN[: FOLD.num_seen], seed=0, **model.grid[0])
    scores = score(FOLD.seen_features, OWN[: FOLD.num_seen])
    assert per_class_top1(scores.argmax(1), FOLD.seen_labels) > 0.5


@pytest.fixture
def few_steps(monkeypatch):
    """As good a test as a full training."""
    for module in (bilinear, cada_vae):
        monkeypatch.setattr(module, "MIN_STEPS", 20)
        monkeypatch.setattr(module, "MAX_STEPS", 20)
    monkeypatch.setattr(cada_vae, "CLASSIFIER_STEPS", 20)


@pytest.mark.parametrize("name", MODELS)
def test_hyper_parameters_fitted_together_give_what_each_gives_alone(name, few_steps):
    model, of_seen = MODELS[name], OWN[: FOLD.num_seen]
    params = model.grid[-2:]
    together = [
        score(FOLD.unseen_features, OWN)
        for score in model.fit_grid(FOLD.training, of_seen, 0, params)
    ]
    alone = [
        model.fit(FOLD.training, of_seen, seed=0, **each)(FOLD.unseen_features, OWN)
        for each in params
    ]
    close = partial(np.allclose, rtol=1e-5, atol=1e-5)
    assert len(together) == 2 and all(map(close, together, alone))
    assert not close(*together)  # the control: they differ


def test_sgd_makes_the_steps_of_its_formula_with_each_weight_decay(few_steps):
    training, of_seen = FOLD.training, OWN[: FOLD.num_seen]
    assert training.features.shape[1] <= bilinear.COMPONENTS
    x = training.features / np.sqrt(np.square(training.features).sum(1).mean(dtype=np.float64))
    a, decays = unit_rows(of_seen).astype(np.float64), (0.01, 0.4)
    assert len(x) % bilinear.BATCH  # batches are of unequal sizes
    expected = []
    for decay in decays:
        rng, weights, mean, batches = np.random.default_rng(3), np.zeros((x.shape[1], 10)), 0.0, []
        for step in range(20):
            if not batches:
                batches = np.array_split(rng.permutation(len(x)), len(x) // bilinear.BATCH)
            chosen = batches.pop()
            slope = cross_entropy_slope(x[chosen] @ weights @ a.T, training.labels[chosen])
            gradient = x[chosen].T @ slope @ a / len(chosen) + decay * weights
            weights = weights - min(3.0, 0.9 / decay) * (1 - step / 20) * gradient
            mean = mean + weights * (step >= 10) / 10
        expected.append(x @ mean @ a.T)
    grid = [{"weight_decay": decay} for decay in decays]
    fitted = bilinear.fit_bilinear(training, of_seen, 3, grid, slope=cross_entropy_slope)
    found = [score(training.features, of_seen) for score in fitted]
    assert_allclose(found, expected, atol=1e-4)
    assert np.abs(np.subtract(*expected)).max() > 0.1  # the control: the decays differ


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.stochastic])
def test_stochastic_models_repeat_with_their_seed(name, few_steps):
    def scores(seed):
        model = MODELS[name]
        fitted = model.fit(FOLD.training, OWN[: FOLD.num_seen], seed=seed, **model.grid[0])
        return fitted(FOLD.unseen_features, OWN)

    assert np.array_equal(scores(0), scores(0))
    assert not np.array_equal(scores(0), scores(1))


def test_an_unknown_model_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'eszls' is unknown: choose among eszsl, sje, prototype"):
        find_model("eszls")
