"""Spherical k-means in PyTorch, where FAISS or its GPU part is missing.

Follows FAISS's Clustering: the same number of points a centroid, Lloyd steps with inner products,
and empty clusters that take half of a large one. Sums are matrix products with one-hot rows, not
atomic additions, so that a seed gives the same centroids again on the same device.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SPLIT = 1 / 1024  # how far apart the halves of a split cluster start
_START_POINTS = 256  # points a centroid that k-means++ looks at
_BLOCK_BYTES = 256 << 20  # of similarities at once

Found = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


def kmeans_torch(
    features: NDArray[np.float32],
    num_clusters: int,
    seed: int,
    max_points_per_centroid: int,
    num_iterations: int,
    device: str,
) -> Found:
    """Centroids [D_v, D] of length 1, and of each row [n] the largest cosine and its centroid.

    Beside the subsample the device holds blocks of at most 256 MB.
    """
    random = np.random.default_rng(seed)
    rows = torch.from_numpy(np.ascontiguousarray(features))
    sample = _drawn(rows, num_clusters * max_points_per_centroid, random).to(device)
    start = _drawn(sample, num_clusters * _START_POINTS, random)
    centroids = _plus_plus(start, num_clusters, random)
    for _ in range(num_iterations):
        sums, counts = _sums(sample, centroids)
        # An empty cluster keeps its sum of zero until it is given half of another one.
        centroids = torch.nn.functional.normalize(sums / counts.clamp_min(1)[:, None], dim=1)
        _split_empty(centroids, counts.cpu().numpy(), random)
    blocks = [(block.to(device) @ centroids.T).max(1) for block in _blocks(rows, centroids)]
    best, nearest = (torch.cat(parts).cpu().numpy() for parts in zip(*blocks, strict=True))
    return centroids.cpu().numpy(), best, nearest


def _drawn(rows: Tensor, most: int, random: np.random.Generator) -> Tensor:
    """All rows, or a sample of `most` of them in their order."""
    if len(rows) <= most:
        return rows
    chosen = np.sort(random.choice(len(rows), most, replace=False))
    return rows[torch.from_numpy(chosen).to(rows.device)]


def _plus_plus(points: Tensor, num_clusters: int, random: np.random.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii, 2007): each start is drawn with a probability that
    grows with the squared distance to those before it."""
    chosen = [int(random.integers(len(points)))]
    distance = 2 - 2 * points @ points[chosen[0]]
    while len(chosen) < num_clusters:
        # The CPU adds up in a fixed order, a GPU's cumulative sum does not.
        total = np.cumsum(distance.clamp_min(0).double().cpu().numpy())
        place = int(np.searchsorted(total, random.random() * total[-1], side="right"))
        chosen.append(min(place, len(points) - 1))
        distance = torch.minimum(distance, 2 - 2 * points @ points[chosen[-1]])
    return points[torch.tensor(chosen, device=points.device)]


def _blocks(rows: Tensor, centroids: Tensor) -> tuple[Tensor, ...]:
    """Rows in blocks whose similarities take a bounded amount of memory."""
    return rows.split(max(1, _BLOCK_BYTES // (8 * len(centroids))))


def _sums(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Sum [D_v, D] and number [D_v] of the points nearest to each centroid."""
    sums = torch.zeros_like(centroids, dtype=torch.float64)
    counts = torch.zeros(len(centroids), dtype=torch.float64, device=points.device)
    for block in _blocks(points, centroids):
        nearest = (block @ centroids.T).argmax(1)
        member = torch.zeros(len(block), len(centroids), device=points.device)
        member.scatter_(1, nearest[:, None], 1.0)
        sums += member.T @ block
        counts += member.sum(0)
    return sums.float(), counts.float()


def _split_empty(
    centroids: Tensor, counts: NDArray[np.float32], random: np.random.Generator
) -> None:
    """Let each empty cluster share the points of another, drawn by size: the two start a little to
    each side of where that was."""
    signs = torch.ones(centroids.shape[1], device=centroids.device)
    signs[1::2] = -1
    for empty in np.flatnonzero(counts == 0):
        shares = np.maximum(counts - 1, 0)
        other = int(random.choice(len(counts), p=shares / shares.sum()))
        centroids[empty] = centroids[other] * (1 + _SPLIT * signs)
        centroids[other] = centroids[other] * (1 - _SPLIT * signs)
        pair = torch.tensor([int(empty), other], device=centroids.device)
        centroids[pair] = torch.nn.functional.normalize(centroids[pair], dim=1)
        counts[empty] = counts[other] // 2
        counts[other] -= counts[empty]
