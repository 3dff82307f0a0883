"""Spherical k-means by FAISS."""

import warnings
from types import ModuleType

import numpy as np
from numpy.typing import NDArray


def load_faiss() -> ModuleType | None:
    """FAISS where it is installed; a machine with torch alone does without."""
    try:
        import faiss
    except ImportError:
        return None
    module: ModuleType = faiss
    return module


def sees_gpu(faiss: ModuleType) -> bool:
    """Whether FAISS would really use a GPU: asked for one that it lacks, it takes the CPU and
    says nothing."""
    return getattr(faiss, "get_num_gpus", lambda: 0)() > 0


def kmeans_faiss(
    faiss: ModuleType,
    features: NDArray[np.float32],
    num_clusters: int,
    *,
    seed: int,
    max_points_per_centroid: int,
    num_iterations: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Centroids [D_v, D], and of each row [n] the largest cosine and its centroid.

    Arguments as those of `kmeans_torch`; on a GPU where FAISS sees one.
    """
    first = _first_centroids(faiss, features, num_clusters, seed)
    kmeans = faiss.Kmeans(
        features.shape[1],
        num_clusters,
        niter=num_iterations,
        seed=seed + 1,  # FAISS reads 0 as "choose one"
        gpu=sees_gpu(faiss),
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=max_points_per_centroid,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kmeans.train(np.ascontiguousarray(features), init_centroids=first)
    assert kmeans.centroids is not None
    distances, nearest = kmeans.index.search(np.ascontiguousarray(features), 1)
    inner = isinstance(kmeans.index, faiss.IndexFlatIP) or kmeans.index.metric_type == 0
    cosines = distances if inner else 1 - distances / 2
    return kmeans.centroids, cosines[:, 0], nearest[:, 0]


def _first_centroids(
    faiss: ModuleType, features: NDArray[np.float32], num_clusters: int, seed: int
) -> NDArray[np.float32]:
    """k-means++ on at most 256 patches a centroid.

    FAISS's own start draws patches at random, which leaves clusters empty where many patches
    are equal, and ends several times further off where clusters lie apart.
    """
    kmeans = faiss.Kmeans(
        features.shape[1],
        num_clusters,
        niter=0,
        seed=seed + 1,
        spherical=True,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        min_points_per_centroid=1,
        max_points_per_centroid=256,
    )
    kmeans.train(np.ascontiguousarray(features))
    centroids: NDArray[np.float32] | None = kmeans.centroids
    assert centroids is not None
    return centroids
