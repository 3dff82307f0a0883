"""A softmax classifier that learns from Gaussians in a latent space, for any set of classes."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

STEPS, BATCH, LEARNING_RATE = 300, 256, 1e-2
UNSEEN_SHARE = 2.0  # the paper draws 400 latents of an unseen class and 200 of a seen one

Latents = tuple[Tensor, Tensor]
"""Means and standard deviations [M, L] of diagonal Gaussians."""


def fit_latent_classifier(
    images: Latents, labels: Tensor, classes: Latents, seen: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights [L, K] and biases [K] of a classifier over K candidates, by Adam.

    A candidate that is a seen class learns from the encoded images of that class, any other from
    its encoded embedding.

    Args:
        images: encoded training images [M, L].
        labels: [M] their classes.
        classes: encoded embeddings of the candidates [K, L].
        seen: [K] the label of each candidate, -1 for one that is no seen class.
    """
    # Rows of images and classes one after another, so that a draw is one look-up.
    means, spreads = (torch.cat(pair) for pair in zip(images, classes, strict=True))
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    first = (counts.cumsum(0) - counts)[seen]  # where a seen candidate's images start
    weight = torch.zeros(means.shape[1], len(seen), requires_grad=True)
    bias = torch.zeros(len(seen), requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, STEPS)
    share = torch.where(seen >= 0, 1.0, UNSEEN_SHARE)
    for _ in range(STEPS):
        drawn = torch.multinomial(share, BATCH, replacement=True)
        image = first[drawn] + (torch.rand(BATCH) * counts[seen[drawn]]).long()
        row = torch.where(seen[drawn] >= 0, order[image], len(order) + drawn)
        mean = means[row]
        latents = mean + spreads[row] * torch.randn_like(mean)
        loss = cross_entropy(latents @ weight + bias, drawn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return weight.detach(), bias.detach()
