"""Starting the clustering layer: a PCA of patch features and k-means on a hashed sample."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vgse.errors import UserError
from vgse.kmeans_torch import Found, kmeans_torch

_NOT_FINITE = "patch features are not finite; check backbone.weights and the images"


@dataclass(frozen=True)
class Centroids:
    """The result of k-means on unit vectors."""

    vectors: NDArray[np.float32]  # [D_v, D], rows of length 1
    counts: NDArray[np.int64]  # [D_v], sampled patches nearest to each centroid
    objective: float  # mean squared distance of the sample to its centroid, in 0..4
    device: str  # where and by what it really ran: "cpu (FAISS)", "cuda (torch)", ...


@dataclass(frozen=True)
class Projection:
    """An affine map of features, `x @ weight.T + bias`."""

    weight: NDArray[np.float32]  # [D_p, D_f]
    bias: NDArray[np.float32]  # [D_p]


def patch_hashes(keys: Sequence[str], num_patches: int, seed: int) -> NDArray[np.uint64]:
    """A number for every patch by its image's key, its index and the seed alone.

    The k patches with the smallest numbers are a uniform sample that is the same for any number
    of workers and any order of shards (bottom-k sampling). uint64 [len(keys), num_patches].
    """
    salt = seed.to_bytes(8, "little", signed=True)
    digests = (hashlib.blake2b(key.encode(), digest_size=8, key=salt).digest() for key in keys)
    images = np.frombuffer(b"".join(digests), "<u8")
    patches = np.arange(1, num_patches + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = images[:, None] + np.uint64(0x9E3779B97F4A7C15) * patches
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def hash_threshold(sample_size: int, population: int) -> int:
    """A bound that the `sample_size` smallest of `population` hashes stay below, save 1 in 10⁹:
    what workers send is bounded by the sample."""
    expected = sample_size + 6 * sample_size**0.5 + 40
    return 2**64 - 1 if expected >= population else int(2**64 * (expected / population))


def normalise_rows(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows scaled to unit length; rows of zeros stay zero. float32, same shape."""
    floats = features.astype(np.float32)
    return floats / np.maximum(np.linalg.norm(floats, axis=1, keepdims=True), 1e-12)


def fit_projection(features: NDArray[np.floating], size: int) -> Projection:
    """PCA without whitening of [n, D_f]: an affine map on the D_p directions of most variance."""
    num_samples, num_features = features.shape
    if size > min(num_samples, num_features):
        raise UserError(
            f"model.projection is {size}, but the sample has {num_samples} patches with "
            f"{num_features} features; lower it"
        )
    mean = features.mean(0, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise UserError(_NOT_FINITE)
    second = np.zeros((num_features, num_features))
    for start in range(0, num_samples, 16384):  # bounded memory in float64
        block = features[start : start + 16384].astype(np.float64) - mean
        second += block.T @ block
    _, vectors = np.linalg.eigh(second)  # ascending
    weight = vectors[:, ::-1][:, :size].T
    # An eigenvector's sign is arbitrary: fix it, so that every machine starts alike.
    weight *= np.sign(weight[np.arange(size), np.abs(weight).argmax(1)])[:, None]
    return Projection(weight.astype(np.float32), (-weight @ mean).astype(np.float32))


def project(features: NDArray[np.floating], projection: Projection | None) -> NDArray[np.float32]:
    """Projected features scaled to unit length, float32 [n, D_p]."""
    if projection is None:
        return normalise_rows(features)
    projected = np.empty((len(features), len(projection.bias)), np.float32)
    for start in range(0, len(features), 16384):  # the sample may be large and in float16
        block = features[start : start + 16384].astype(np.float32)
        projected[start : start + 16384] = block @ projection.weight.T + projection.bias
    return normalise_rows(projected)


def _count_distinct(features: NDArray[np.float32]) -> int:
    """Number of different rows, by a 64-bit hash: drawings on white have many equal patches."""
    factors = np.random.default_rng(0).integers(2**64, size=features.shape[1], dtype=np.uint64)
    hashes = np.empty(len(features), np.uint64)
    for start in range(0, len(features), 16384):
        # + 0 turns -0.0 into 0.0
        bits = (np.ascontiguousarray(features[start : start + 16384]) + 0).view(np.uint32)
        hashes[start : start + 16384] = bits.astype(np.uint64) @ (factors | np.uint64(1))
    return len(np.unique(hashes))


def fit_centroids(
    features: NDArray[np.float32],
    num_clusters: int,
    *,
    seed: int,
    max_points_per_centroid: int = 1000,
    num_iterations: int = 20,
    method: Literal["auto", "faiss", "torch"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Centroids:
    """Spherical k-means from a k-means++ start.

    By FAISS on a GPU where FAISS sees one; by PyTorch on a GPU that only PyTorch sees, as on ARM,
    where FAISS has no GPU build; else on the CPU, by FAISS where it is installed. `device` "cpu"
    leaves GPUs alone. Their objectives agree within 0.5%. Takes float32
    [n, D] with rows of length 1. The result depends on their order: sort them by key for a
    reproducible start. Above `max_points_per_centroid` a subsample is drawn: 1,000 come as near to
    the objective of all points as another seed would (benchmarks/results/kmeans.md).
    """
    if not np.isfinite(features).all():
        raise UserError(_NOT_FINITE)
    available = _count_distinct(features)
    if available < num_clusters:
        raise UserError(
            f"model.num_clusters is {num_clusters}, but only {available} distinct patches were "
            "sampled; lower it, or raise model.max_points_per_centroid or the number of images"
        )
    faiss: Any = None
    if method != "torch":
        with suppress(ImportError):  # a machine with torch alone does without
            faiss = import_module("faiss")
    # Asked for a GPU that it does not see, FAISS takes the CPU and says nothing.
    faiss_gpu = device != "cpu" and getattr(faiss, "get_num_gpus", lambda: 0)() > 0
    torch_gpu = device != "cpu" and torch.cuda.is_available()
    if faiss is not None and (method == "faiss" or faiss_gpu or not torch_gpu):
        ran_on, ran_by = "cuda" if faiss_gpu else "cpu", "FAISS"
        run: Callable[..., Found] = partial(_kmeans_faiss, faiss)
    else:
        ran_on, ran_by = "cuda" if torch_gpu else "cpu", "torch"
        ran_by += ", as FAISS sees no GPU" if faiss is not None else ""
        run = kmeans_torch
    vectors, cosines, nearest = run(
        features, num_clusters, seed, max_points_per_centroid, num_iterations, ran_on
    )
    return Centroids(
        normalise_rows(vectors),
        np.bincount(nearest, minlength=num_clusters).astype(np.int64),
        float((2 - 2 * cosines).mean(dtype=np.float64)),
        f"{ran_on} ({ran_by})",
    )


def _kmeans_faiss(
    faiss: Any,
    features: NDArray[np.float32],
    num_clusters: int,
    seed: int,
    max_points_per_centroid: int,
    num_iterations: int,
    device: str,
) -> Found:
    """As `kmeans_torch`, by FAISS."""
    features = np.ascontiguousarray(features)
    # seed: FAISS reads 0 as "choose one"
    common = {"seed": seed + 1, "spherical": True, "min_points_per_centroid": 1}
    shape = features.shape[1], num_clusters
    # FAISS's own start draws patches at random, which leaves clusters empty where many patches are
    # equal, and ends several times further off where clusters lie apart.
    plus_plus = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    start = faiss.Kmeans(
        *shape, niter=0, init_method=plus_plus, max_points_per_centroid=256, **common
    )
    start.train(features)
    kmeans = faiss.Kmeans(
        *shape,
        niter=num_iterations,
        gpu=device == "cuda",
        max_points_per_centroid=max_points_per_centroid,
        **common,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kmeans.train(features, init_centroids=start.centroids)
    distances, nearest = kmeans.index.search(features, 1)
    inner = isinstance(kmeans.index, faiss.IndexFlatIP) or kmeans.index.metric_type == 0
    cosines = distances if inner else 1 - distances / 2
    return kmeans.centroids, cosines[:, 0], nearest[:, 0]
