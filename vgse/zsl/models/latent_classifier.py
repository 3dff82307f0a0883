"""A softmax classifier that learns from Gaussians in a latent space, for any set of classes."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from vgse.zsl.data import Features
from vgse.zsl.models.bilinear import Embeddings

STEPS, BATCH, LEARNING_RATE = 300, 256, 1e-2
UNSEEN_SHARE = 2.0  # the paper draws 400 latents of an unseen class and 200 of a seen one


Latents = tuple[Tensor, Tensor]
"""Means and standard deviations [M, L] of diagonal Gaussians."""


@dataclass(frozen=True)
class LatentScore:
    """Logits of a classifier over the candidates, which learns when they are first asked for.

    A candidate whose embedding is that of a seen class learns from the encoded images of that
    class, any other from its encoded embedding.
    """

    encode_images: Callable[[Features], Latents]
    encode_classes: Callable[[Embeddings], Latents]
    images: Latents  # [M, L] of training images
    labels: Tensor  # [M] in 0..S-1
    seen: Embeddings  # [S, D_e]
    seed: int
    _learned: dict[bytes, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __call__(self, features: Features, embeddings: Embeddings) -> NDArray[np.floating]:
        """Logits [M, K] of `features` [M, D] among candidates of `embeddings` [K, D_e]."""
        key = np.ascontiguousarray(embeddings, np.float64).tobytes()
        if key not in self._learned:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self._learned[key] = self._learn(embeddings)
        weight, bias = self._learned[key]
        logits: NDArray[np.floating] = (self.encode_images(features)[0] @ weight + bias).numpy()
        return logits

    def _learn(self, embeddings: Embeddings) -> tuple[Tensor, Tensor]:
        """Weights [L, K] and biases [K]."""
        classes = self.encode_classes(embeddings)
        # Rows of images and classes one after another, so that a draw is one look-up.
        means, spreads = (torch.cat(pair) for pair in zip(self.images, classes, strict=True))
        order = torch.argsort(self.labels, stable=True)
        counts = torch.bincount(self.labels, minlength=len(self.seen))
        label_of = {row.tobytes(): label for label, row in enumerate(self.seen)}
        labels = torch.tensor([label_of.get(row.tobytes(), -1) for row in embeddings])
        is_seen = labels >= 0
        first = (counts.cumsum(0) - counts)[labels]  # where a seen candidate's images start
        weight = torch.zeros(means.shape[1], len(labels), requires_grad=True)
        bias = torch.zeros(len(labels), requires_grad=True)
        optimizer = torch.optim.Adam([weight, bias], lr=LEARNING_RATE, fused=True)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, STEPS)
        share = torch.where(is_seen, 1.0, UNSEEN_SHARE)
        for _ in range(STEPS):
            drawn = torch.multinomial(share, BATCH, replacement=True)
            image = first[drawn] + (torch.rand(BATCH) * counts[labels[drawn]]).long()
            row = torch.where(is_seen[drawn], order[image], len(order) + drawn)
            mean = means[row]
            latents = mean + spreads[row] * torch.randn_like(mean)
            loss = cross_entropy(latents @ weight + bias, drawn)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return weight.detach(), bias.detach()
