"""CADA-VAE: its losses against their formulas, and what a generative model must do better."""

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from vgse.zsl.folds import final_fold, prepare
from vgse.zsl.hyperparameters import generalised_scores, zsl_top1
from vgse.zsl.metrics import calibrated_stacking, per_class_top1
from vgse.zsl.models import MODELS
from vgse.zsl.models.cada_vae import (
    AlignedAutoencoders,
    divergence,
    ramp,
    wasserstein,
)
from vgse.zsl.rows import assembled
from zsl_toy import make_toy

TOY = make_toy()
FOLD = prepare(TOY.data, final_fold(TOY.data))
OWN = TOY.own[np.concatenate([TOY.data.seen, TOY.data.unseen])]
OWN = OWN - OWN[: FOLD.num_seen].mean(0)


@pytest.fixture(scope="module")
def score():
    return MODELS["cada_vae"].fit(FOLD.training, OWN[: FOLD.num_seen], noise=1.0)


def _gaussians():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 3, generator=generator) for _ in range(4)]


def test_the_divergence_is_that_of_gaussians_from_the_normal_one():
    mean, log_variance, _, _ = _gaussians()
    found = Independent(Normal(mean, (log_variance / 2).exp()), 1)
    normal = Independent(Normal(torch.zeros(5, 3), torch.ones(5, 3)), 1)
    torch.testing.assert_close(divergence(mean, log_variance), kl_divergence(found, normal))


def test_the_wasserstein_distance_is_0_for_equal_gaussians_and_that_of_the_means_for_equal_spread():
    mean, log_variance, other, other_log = _gaussians()
    assert wasserstein(mean, log_variance, mean, log_variance).max() < 1e-3
    found = wasserstein(mean, log_variance, other, log_variance)
    torch.testing.assert_close(found, (mean - other).norm(dim=1), atol=1e-4, rtol=1e-4)
    # General diagonal Gaussians: tr(Σ + Σ' − 2 (Σ Σ')^½) beside the means.
    spread = (
        log_variance.exp() + other_log.exp() - 2 * ((log_variance + other_log) / 2).exp()
    ).sum(1)
    expected = ((mean - other).square().sum(1) + spread).sqrt()
    torch.testing.assert_close(wasserstein(mean, log_variance, other, other_log), expected)


def test_a_ramp_rises_between_its_ends_only():
    assert [ramp(t, 0.2, 0.6) for t in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx([0, 0, 0.5, 1, 1])


def test_alignment_is_warmed_up_and_reaches_both_encoders():
    torch.manual_seed(0)
    model = AlignedAutoencoders(6, 4)
    x, a = torch.randn(8, 6), torch.randn(8, 4)

    def slopes(progress):
        model.zero_grad()
        torch.manual_seed(1)
        loss = model.loss(x, a, 0.3, progress)
        loss.backward()
        return loss.item(), [p.grad.clone() for p in model.encode_a.parameters()]

    early, alone = slopes(0.0)
    late, aligned = slopes(1.0)
    assert late > early
    assert any((g - h).abs().max() > 1e-3 for g, h in zip(alone, aligned, strict=True))


def test_it_names_unseen_classes_among_all_without_calibration(score):
    generalised = calibrated_stacking(generalised_scores(score, FOLD, OWN), 0.0)
    assert generalised.unseen > 0.7
    assert generalised.harmonic_mean > 0.75
    # The control: with the same embeddings, a bilinear model that was not tuned for it.
    eszsl = MODELS["eszsl"].fit(FOLD.training, OWN[: FOLD.num_seen], gamma=1.0, lam=1.0)
    bilinear = calibrated_stacking(generalised_scores(eszsl, FOLD, OWN), 0.0)
    assert generalised.harmonic_mean > bilinear.harmonic_mean + 0.1


def test_few_numbers_an_image_do_not_drown_in_the_alignment():
    toy = make_toy(noise=1.0)  # 20 numbers an image: unscaled, hardly an image was called seen
    fold = prepare(toy.data, final_fold(toy.data))
    classes = np.concatenate([toy.data.seen, toy.data.unseen])
    embeddings = assembled([toy.own[classes]], fold.num_seen, "z")
    fitted = MODELS["cada_vae"].fit(fold.training, embeddings[: fold.num_seen], noise=1.0)
    generalised = calibrated_stacking(generalised_scores(fitted, fold, embeddings), 0.0)
    assert generalised.harmonic_mean > 0.3


def test_exchanged_embeddings_of_unseen_classes_bring_it_to_chance(score):
    exchanged = OWN.copy()
    exchanged[FOLD.num_seen :] = np.roll(OWN[FOLD.num_seen :], 1, axis=0)
    assert zsl_top1(score, FOLD, exchanged) < 0.2
    generalised = calibrated_stacking(generalised_scores(score, FOLD, exchanged), 0.0)
    assert generalised.unseen < 0.1
    assert generalised.seen > 0.5


def test_candidates_may_be_any_classes_in_any_order(score):
    order = np.random.default_rng(0).permutation(len(OWN))
    scores = score(FOLD.seen_features, OWN[order])
    assert scores.shape == (len(FOLD.seen_features), len(OWN))
    accuracy = per_class_top1(order[scores.argmax(1)], FOLD.seen_labels)
    straight = per_class_top1(score(FOLD.seen_features, OWN).argmax(1), FOLD.seen_labels)
    assert accuracy == pytest.approx(straight, abs=0.1)


def test_scores_repeat_whatever_was_asked_before_and_leave_torchs_generator_alone(score):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = MODELS["cada_vae"].fit(FOLD.training, OWN[: FOLD.num_seen], noise=1.0)
    again(FOLD.unseen_features, OWN[FOLD.num_seen :])
    found = again(FOLD.unseen_features, OWN)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(found, score(FOLD.unseen_features, OWN))


def test_embeddings_longer_than_there_are_classes_are_taken():
    long = np.concatenate([OWN, np.zeros((len(OWN), 90))], axis=1)
    fitted = MODELS["cada_vae"].fit(FOLD.training, long[: FOLD.num_seen], noise=1.0)
    assert zsl_top1(fitted, FOLD, long) > 0.75
