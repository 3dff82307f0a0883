"""CADA-VAE: Schönfeld et al., "Generalized Zero- and Few-Shot Learning via Aligned Variational
Autoencoders", CVPR 2019.

Reduced: its networks have 128 hidden units (the paper's 560 to 1,660), and it trains for about a
second. Errors are squared, since L1 would depend on
the rotation of the features, and what is encoded gets noise, since seen classes may be few.
"""

from collections.abc import Iterator, Sequence
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vgse.zsl.data import Features
from vgse.zsl.features import Training
from vgse.zsl.models.bilinear import Embeddings, Params, Score, span

COMPONENTS = 128  # principal axes of the features that learn
HIDDEN = 128
LATENT = 32
BATCH = 64
EPOCHS, MIN_STEPS, MAX_STEPS = 20, 300, 1000
LEARNING_RATE = 2e-3
FEATURE_NOISE = 0.5  # of inputs whose mean square is 1
WEIGHT = 128.0  # of reconstructions, whatever the sizes of features and embeddings
KL, CROSS, DISTANCE = 0.25, 2.37, 8.13  # β, γ and δ of Eq. 6, as in the paper
CLASSIFIER_STEPS, CLASSIFIER_BATCH = 300, 256
UNSEEN_SHARE = 2.0  # the paper draws 400 latents of an unseen class and 200 of a seen one

_SEEDED = Lock()  # the generator is that of the whole process

Latents = tuple[Tensor, Tensor]  # means and standard deviations [M, L] of diagonal Gaussians


def ramp(progress: float, start: float, end: float) -> float:
    """Warm-up: 0 until `start`, 1 from `end`, linear between; all in shares of the training."""
    return min(max((progress - start) / (end - start), 0.0), 1.0)


def layers(inputs: int, outputs: int) -> nn.Sequential:
    """One hidden layer, as in all four networks of the paper."""
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))


def wasserstein(mean: Tensor, log_variance: Tensor, other: Tensor, other_log: Tensor) -> Tensor:
    """[B] 2-Wasserstein distances of diagonal Gaussians [B, L], Eq. 5."""
    spread = (log_variance / 2).exp() - (other_log / 2).exp()
    squares = (mean - other).square().sum(1) + spread.square().sum(1)
    return (squares + 1e-8).sqrt()  # at 0 the root has no slope


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """[B] Kullback-Leibler divergences of diagonal Gaussians [B, L] from N(0, 1)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def squared(found: Tensor, wanted: Tensor) -> Tensor:
    """[B] half the squared distances of rows, scaled to rows of `WEIGHT` numbers."""
    return 0.5 * WEIGHT * (found - wanted).square().mean(1)


class AlignedAutoencoders(nn.Module):
    """Encoders and decoders of image features x and class embeddings a."""

    def __init__(self, feature_size: int, embedding_size: int) -> None:
        super().__init__()
        self.encode_x = layers(feature_size, 2 * LATENT)
        self.encode_a = layers(embedding_size, 2 * LATENT)
        self.decode_x = layers(LATENT, feature_size)
        self.decode_a = layers(LATENT, embedding_size)

    def loss(self, x: Tensor, a: Tensor, noise: float, progress: float) -> Tensor:
        """Mean of Eq. 6 over images x [B, D] and the embeddings a [B, D_e] of their classes.

        β, γ and δ are warmed up as in the paper's 100 epochs. `noise` is added to the embeddings.
        """
        beta = KL * ramp(progress, 0.0, 0.9)
        gamma = CROSS * ramp(progress, 0.21, 0.75)
        delta = DISTANCE * ramp(progress, 0.06, 0.22)
        mean_x, log_x = self.encode_x(x + FEATURE_NOISE * torch.randn_like(x)).chunk(2, 1)
        mean_a, log_a = self.encode_a(a + noise * torch.randn_like(a)).chunk(2, 1)
        z_x = mean_x + (log_x / 2).exp() * torch.randn_like(mean_x)
        z_a = mean_a + (log_a / 2).exp() * torch.randn_like(mean_a)
        x_of_x, x_of_a = self.decode_x(torch.cat([z_x, z_a])).chunk(2)
        a_of_x, a_of_a = self.decode_a(torch.cat([z_x, z_a])).chunk(2)
        loss = squared(x_of_x, x) + squared(a_of_a, a)
        loss = loss + beta * (divergence(mean_x, log_x) + divergence(mean_a, log_a))
        loss = loss + gamma * (squared(x_of_a, x) + squared(a_of_x, a))
        loss = loss + delta * wasserstein(mean_x, log_x, mean_a, log_a)
        return loss.mean()


def batches(count: int, steps: int) -> Iterator[Tensor]:
    """Indices [BATCH] of `steps` batches; every image once before any comes again."""
    order = torch.randperm(count)
    for _ in range(steps):
        while len(order) < BATCH:
            order = torch.cat([order, torch.randperm(count)])
        yield order[:BATCH]
        order = order[BATCH:]


def train(x: Tensor, a: Tensor, labels: Tensor, noise: float) -> AlignedAutoencoders:
    """The autoencoders of features x [M, D] and embeddings a [S, R], by Adam and one cycle."""
    model = AlignedAutoencoders(x.shape[1], a.shape[1])
    steps = min(max(EPOCHS * len(x) // BATCH, MIN_STEPS), MAX_STEPS)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.1)
    for step, batch in enumerate(batches(len(x), steps)):
        optimizer.zero_grad()
        model.loss(x[batch], a[labels[batch]], noise, step / steps).backward()
        optimizer.step()
        schedule.step()
    return model


def unit_scale(rows: Features | Embeddings) -> float:
    """The factor that brings the mean square of all entries to 1."""
    return 1 / float(np.sqrt(np.mean(np.square(rows))) or 1)


def latents(encoded: Tensor) -> Latents:
    """Means and standard deviations from what an encoder gives."""
    mean, log_variance = encoded.chunk(2, 1)
    return mean, (log_variance / 2).exp()


def fit_latent_classifier(
    images: Latents, labels: Tensor, classes: Latents, seen: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights [L, K] and biases [K] of a classifier over K candidates, by Adam.

    A candidate learns from the encoded `images` [M, L] of its label `seen` [K] among `labels` [M],
    or, where that is -1, from its encoded embedding, a row of `classes` [K, L].
    """
    # Rows of images and classes one after another, so that a draw is one look-up.
    means, spreads = (torch.cat(pair) for pair in zip(images, classes, strict=True))
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    first = (counts.cumsum(0) - counts)[seen]  # where a seen candidate's images start
    weight = torch.zeros(means.shape[1], len(seen), requires_grad=True)
    bias = torch.zeros(len(seen), requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, CLASSIFIER_STEPS)
    share = torch.where(seen >= 0, 1.0, UNSEEN_SHARE)
    for _ in range(CLASSIFIER_STEPS):
        drawn = torch.multinomial(share, CLASSIFIER_BATCH, replacement=True)
        image = first[drawn] + (torch.rand(CLASSIFIER_BATCH) * counts[seen[drawn]]).long()
        row = torch.where(seen[drawn] >= 0, order[image], len(order) + drawn)
        mean = means[row]
        latents = mean + spreads[row] * torch.randn_like(mean)
        loss = cross_entropy(latents @ weight + bias, drawn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return weight.detach(), bias.detach()


def fit_cada_vae(
    training: Training, embeddings: Embeddings, seed: int, grid: Sequence[Params]
) -> Iterator[Score]:
    """(noise) -> the logits of one classifier for each set of candidates, which learns from aligned
    autoencoders; `noise` on class embeddings is relative to their root mean square."""
    coordinates, basis = span(embeddings)
    of_features = np.float32(unit_scale(training.features[:, :COMPONENTS]))
    of_embeddings = unit_scale(coordinates)

    def image_inputs(rows: Features) -> Tensor:
        return torch.from_numpy(rows[:, :COMPONENTS] * of_features)

    def class_inputs(rows: Embeddings) -> Tensor:
        return torch.from_numpy(np.asarray(of_embeddings * (rows @ basis.T), np.float32))

    x, labels = image_inputs(training.features), torch.from_numpy(training.labels)
    label_of = {row.tobytes(): label for label, row in enumerate(embeddings)}

    def fit(noise: float) -> Score:
        with _SEEDED, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = train(x, class_inputs(embeddings), labels, noise).requires_grad_(False)
        images = latents(model.encode_x(x))
        learned: dict[bytes, tuple[Tensor, Tensor]] = {}

        def score(features: Features, candidates: Embeddings) -> NDArray[np.floating]:
            key = np.ascontiguousarray(candidates, np.float64).tobytes()
            if key not in learned:
                classes = latents(model.encode_a(class_inputs(candidates)))
                seen = torch.tensor([label_of.get(row.tobytes(), -1) for row in candidates])
                with _SEEDED, torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    learned[key] = fit_latent_classifier(images, labels, classes, seen)
            weight, bias = learned[key]
            logits: NDArray[np.floating] = (
                model.encode_x(image_inputs(features)).chunk(2, 1)[0] @ weight + bias
            ).numpy()
            return logits

        return score

    return (fit(**params) for params in grid)
