"""The start of the clustering layer: hashes, PCA and k-means."""

import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from vgse import clusters
from vgse.clusters import (
    fit_centroids,
    fit_projection,
    hash_threshold,
    normalise_rows,
    patch_hashes,
    project,
)
from vgse.config import LARGEST_SEED
from vgse.kmeans_torch import _blocks, _split_empty, _sums, kmeans_torch

Method = Literal["faiss", "torch"]
METHODS: list[Method] = ["faiss", "torch"]


def blobs(num_blobs: int, spread: float, each: int = 60, size: int = 16) -> NDArray[np.float32]:
    rng = np.random.default_rng(num_blobs)
    centres = normalise_rows(rng.normal(size=(num_blobs, size)))
    noise = rng.normal(scale=spread / math.sqrt(size), size=(num_blobs * each, size))
    return normalise_rows(np.repeat(centres, each, 0) + noise)


def objective(features: NDArray[np.float32], centroids: NDArray[np.float32]) -> float:
    distances = ((features[:, None].astype(np.float64) - centroids[None]) ** 2).sum(2)
    return float(distances.min(1).mean())


def test_a_hash_depends_on_key_place_and_seed_alone() -> None:
    keys = [f"key{i}" for i in range(50)]
    hashes = patch_hashes(keys, 9, 3)
    assert hashes.shape == (50, 9)
    assert hashes.dtype == np.uint64
    np.testing.assert_array_equal(patch_hashes(keys[::-1], 9, 3)[::-1], hashes)
    np.testing.assert_array_equal(patch_hashes(keys[7:8], 4, 3)[0], hashes[7, :4])
    assert len(np.unique(hashes)) == hashes.size
    assert not (patch_hashes(keys, 9, 4) == hashes).any()
    assert not (patch_hashes(["other"], 9, 3) == hashes).any()


def test_hashes_stay_the_same_over_machines_and_versions() -> None:
    assert patch_hashes(["n01/cat"], 2, 0).tolist() == [
        [12_764_230_981_670_935_555, 18_303_506_826_987_575_952]
    ]
    assert patch_hashes(["n01/cat"], 1, -1).tolist() != patch_hashes(["n01/cat"], 1, 1).tolist()


def test_hashes_are_spread_evenly_over_images_and_places() -> None:
    shares = patch_hashes([str(i) for i in range(4000)], 9, 0) / 2.0**64
    counts = np.histogram(shares, 20, (0, 1))[0]
    expected = shares.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 44  # chi-square with 19, p = 0.001
    assert np.abs(shares.mean(0) - 0.5).max() < 5 * math.sqrt(1 / 12 / 4000)
    assert np.abs(np.corrcoef(shares.T) - np.eye(9)).max() < 5 / math.sqrt(4000)


@pytest.mark.parametrize(("sample", "population"), [(1, 18_000), (100, 18_000), (5000, 18_000)])
def test_the_smallest_hashes_stay_below_their_bound(sample: int, population: int) -> None:
    bound = hash_threshold(sample, population)
    for seed in range(20):
        hashes = patch_hashes([str(i) for i in range(population // 9)], 9, seed)
        below = int((hashes < np.uint64(bound)).sum())
        assert sample <= below <= sample + 12 * math.sqrt(sample) + 100  # and few more travel
    assert (hashes < np.uint64(int(bound * 0.5))).sum() < max(sample, 40)  # half were too few


def test_a_sample_as_large_as_the_data_has_no_bound() -> None:
    assert hash_threshold(1000, 900) == 2**64 - 1
    assert hash_threshold(900, 901) == 2**64 - 1


def test_the_projection_is_a_pca_up_to_sign() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(2, 1, (500, 12)) * np.linspace(3, 0.5, 12) @ rng.normal(size=(12, 12))
    found = fit_projection(features.astype(np.float32), 5)
    reference = PCA(5, svd_solver="full").fit(features)
    signs = np.sign((found.weight * reference.components_).sum(1))
    np.testing.assert_allclose(found.weight * signs[:, None], reference.components_, atol=1e-4)
    projected = (features @ found.weight.T + found.bias) * signs
    np.testing.assert_allclose(projected, reference.transform(features), atol=1e-2, rtol=1e-3)
    largest = np.abs(found.weight).argmax(1)
    assert (found.weight[np.arange(5), largest] > 0).all()


def test_projected_features_are_affine_and_of_length_one() -> None:
    features = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float16)
    projection = fit_projection(features, 3)
    plain = features.astype(np.float64) @ projection.weight.T + projection.bias
    expected = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(project(features, projection), expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(project(features, None), axis=1), 1, atol=1e-6)
    assert not normalise_rows(np.zeros((2, 3))).any()


def test_a_projection_that_is_too_large_or_meets_nan_says_so() -> None:
    with pytest.raises(ValueError, match=r"model\.projection is 9, .* 20 patches with 8 features"):
        fit_projection(np.ones((20, 8)), 9)
    with pytest.raises(ValueError, match=r"model\.projection is 8, .* 5 patches"):
        fit_projection(np.ones((5, 8)), 8)
    with pytest.raises(ValueError, match="not finite"):
        fit_projection(np.where(np.eye(8) > 0, np.nan, 1.0), 2)


@pytest.mark.parametrize(("num_clusters", "spread"), [(10, 1.0), (40, 3.0)])
def test_k_means_reaches_the_objective_of_scikit_learn(num_clusters: int, spread: float) -> None:
    features = blobs(num_clusters, spread)
    found = fit_centroids(features, num_clusters, seed=0)
    reference = KMeans(num_clusters, n_init=1, random_state=0).fit(features)
    best = objective(features, normalise_rows(reference.cluster_centers_))
    assert found.objective <= 1.01 * best
    drawn = np.random.default_rng(0).choice(features, num_clusters, replace=False)
    assert objective(features, drawn) > 1.05 * best  # to draw patches is not enough


@pytest.mark.parametrize("method", METHODS)
def test_clusters_that_lie_apart_are_told_apart(method: Method) -> None:
    features = blobs(10, 0.15)
    best = np.mean(
        [fit_centroids(features, 10, seed=seed, method=method).objective for seed in range(5)]
    )
    random = []
    for seed in range(5):
        kmeans = pytest.importorskip("faiss").Kmeans(
            16, 10, seed=seed + 1, spherical=True, min_points_per_centroid=1
        )
        kmeans.train(features)
        assert kmeans.centroids is not None
        random.append(objective(features, kmeans.centroids))
    assert best < 0.6 * np.mean(random)


def drawn_sample(num_keys: int, seed: int = 0) -> NDArray[np.float32]:
    """Patches of a mixture whose directions differ in variance, a third kept by their hash."""
    rng = np.random.default_rng(seed)
    scales = np.linspace(1.5, 0.2, 32)
    centres = rng.normal(size=(60, 32)) * scales
    noise = rng.normal(size=(num_keys * 9, 32)) * scales
    features = normalise_rows(centres[rng.integers(60, size=num_keys * 9)] + noise)
    hashes = patch_hashes([str(i) for i in range(num_keys)], 9, seed).ravel()
    return features[hashes < np.uint64(2**64 // 3)]


@pytest.mark.parametrize(
    ("features", "num_clusters"),
    [(blobs(40, 1.0), 40), (blobs(40, 3.0), 40), (drawn_sample(2000), 30)],
    ids=["apart", "mixed", "hashed"],
)
def test_both_ways_reach_the_same_objective(
    features: NDArray[np.float32], num_clusters: int
) -> None:
    def mean(method: Method, num_iterations: int = 20) -> float:
        return float(
            np.mean(
                [
                    fit_centroids(
                        features,
                        num_clusters,
                        seed=seed,
                        method=method,
                        num_iterations=num_iterations,
                    ).objective
                    for seed in range(5)
                ]
            )
        )

    reference = mean("faiss")
    assert mean("torch") <= 1.005 * reference
    assert mean("torch", num_iterations=1) > 1.05 * reference


def test_an_empty_cluster_shares_the_points_of_a_large_one() -> None:
    features = torch.from_numpy(blobs(2, 0.3, each=100))
    first, second = features[0], features[100]
    centroids = torch.stack([first, second, -first])  # nothing is near the third
    counts = np.array([100, 100, 0], np.float32)
    _split_empty(centroids, counts, np.random.default_rng(0))
    torch.testing.assert_close(centroids.norm(dim=1), torch.ones(3))
    near = (centroids @ torch.stack([first, second]).T).max(1).values
    assert (near > 0.999).all()
    assert not torch.equal(centroids[2], centroids[0])
    assert sorted(counts) == [50, 50, 100]
    _, after = _sums(features, centroids)
    assert (after > 0).all()


def test_a_start_with_one_centroid_repeated_still_ends_with_all_clusters_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = drawn_sample(600)
    best = fit_centroids(features, 20, seed=0, method="torch")
    monkeypatch.setattr(
        "vgse.kmeans_torch._plus_plus", lambda points, count, random: points[:1].repeat(count, 1)
    )
    found = fit_centroids(features, 20, seed=0, method="torch", num_iterations=60)
    assert (found.counts > 0).all()
    assert found.objective < 1.2 * best.objective


def test_blocks_of_bounded_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features = drawn_sample(600)
    whole = fit_centroids(features, 20, seed=0, method="torch")
    monkeypatch.setattr("vgse.kmeans_torch._BLOCK_BYTES", 20 * 8 * 37)
    assert max(len(b) for b in _blocks(torch.from_numpy(features), torch.zeros(20, 1))) == 37
    parts = fit_centroids(features, 20, seed=0, method="torch")
    np.testing.assert_allclose(parts.vectors, whole.vectors, atol=1e-5)


def test_the_result_names_what_ran() -> None:
    features = blobs(5, 0.5)
    found = [
        fit_centroids(features, 5, seed=0, method=method, device="cpu").device
        for method in (*METHODS, "auto")
    ]
    assert found == ["cpu (FAISS)", "cpu (torch)", "cpu (FAISS)"]


@pytest.mark.parametrize(
    ("faiss_gpus", "device", "named"),
    [
        (0, "auto", "cuda (torch, as FAISS sees no GPU)"),  # ARM: FAISS has a CPU build alone
        (8, "auto", "cuda (FAISS)"),
        (8, "cpu", "cpu (FAISS)"),  # cluster.use_gpu is no
        (0, "cpu", "cpu (FAISS)"),
    ],
)
def test_a_gpu_is_used_by_what_sees_it_and_left_alone_for_the_cpu(
    faiss_gpus: int,
    device: Literal["auto", "cpu"],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, asked = blobs(5, 0.5), []

    def pretended(rows: NDArray[np.float32], count: int, *options: object) -> tuple[object, ...]:
        asked.append(options[-1])
        return kmeans_torch(rows, count, 0, 100, 5, "cpu")

    build = SimpleNamespace(get_num_gpus=lambda: faiss_gpus)
    monkeypatch.setitem(sys.modules, "faiss", build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(clusters, "kmeans_torch", pretended)
    monkeypatch.setattr(clusters, "_kmeans_faiss", lambda build, *rest: pretended(*rest))
    assert fit_centroids(features, 5, seed=0, device=device).device == named
    assert asked == [named.partition(" ")[0]]


def test_without_faiss_pytorch_finds_the_clusters() -> None:
    program = (
        "import sys; sys.modules['faiss'] = None\n"
        "import numpy as np\n"
        "from vgse.clusters import fit_centroids, normalise_rows\n"
        "rows = normalise_rows(np.random.default_rng(0).normal(size=(100, 8)))\n"
        "print(fit_centroids(rows, 5, seed=0, device='cpu').device)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout == "cpu (torch)\n", ran.stderr


@pytest.mark.gpu
def test_a_gpu_reaches_the_objective_of_the_cpu_and_repeats_itself() -> None:
    features = drawn_sample(2000)
    found = [fit_centroids(features, 30, seed=seed, method="torch") for seed in (0, 0, 1, 2)]
    assert {one.device for one in found} == {"cuda (torch)"}
    np.testing.assert_array_equal(found[0].vectors, found[1].vectors)
    assert fit_centroids(features, 30, seed=0).device.startswith("cuda (")
    on_cpu = [
        fit_centroids(features, 30, seed=seed, method="torch", device="cpu") for seed in (0, 1, 2)
    ]
    assert {one.device for one in on_cpu} == {"cpu (torch)"}
    gpu, cpu = (np.mean([one.objective for one in some]) for some in (found[1:], on_cpu))
    assert gpu == pytest.approx(cpu, rel=0.005)


@pytest.mark.parametrize("method", METHODS)
def test_the_result_of_k_means_is_consistent_and_reproducible(method: Method) -> None:
    features = blobs(20, 1.0)
    first, again = (fit_centroids(features, 20, seed=5, method=method) for _ in range(2))
    np.testing.assert_array_equal(first.vectors, again.vectors)
    np.testing.assert_allclose(np.linalg.norm(first.vectors, axis=1), 1, atol=1e-6)
    assert first.vectors.dtype == np.float32
    assert first.objective == pytest.approx(objective(features, first.vectors), abs=1e-5)
    nearest = (features @ first.vectors.T).argmax(1)
    np.testing.assert_array_equal(first.counts, np.bincount(nearest, minlength=20))
    other = fit_centroids(features, 20, seed=6, method=method)
    assert not np.array_equal(first.vectors, other.vectors)


def test_threads_do_not_change_the_centroids() -> None:
    features = blobs(20, 1.0, each=200)
    faiss = pytest.importorskip("faiss")
    threads = faiss.omp_get_max_threads()
    results = []
    try:
        for count in (1, 2, 4):
            faiss.omp_set_num_threads(count)
            results.append(fit_centroids(features, 20, seed=0, device="cpu").vectors)
    finally:
        faiss.omp_set_num_threads(threads)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("method", METHODS)
def test_points_above_the_bound_are_left_to_a_subsample(method: Method) -> None:
    features = blobs(10, 1.0, each=300)
    found = fit_centroids(features, 10, seed=0, max_points_per_centroid=50, method=method)
    every = fit_centroids(features, 10, seed=0, method=method)
    assert found.counts.sum() == len(features)
    assert not np.array_equal(found.vectors, every.vectors)
    assert found.objective < 1.1 * every.objective


def test_more_clusters_than_distinct_patches_are_refused_also_in_a_large_sample() -> None:
    few = blobs(5, 0.5, each=1)
    for copies in (1, 2, 4000):
        repeated = np.tile(few, (copies, 1))
        with pytest.raises(ValueError, match=r"model\.num_clusters is 6, but only 5 distinct"):
            fit_centroids(repeated, 6, seed=0)
    assert fit_centroids(np.tile(few, (40, 1)), 5, seed=0).objective < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_many_equal_patches_leave_every_cluster_a_place(method: Method) -> None:
    white = np.tile(normalise_rows(np.ones((1, 16))), (2000, 1))
    features = np.concatenate([white, blobs(10, 0.3, each=20)])
    found = fit_centroids(features, 11, seed=0, method=method)
    assert np.isfinite(found.vectors).all()
    assert (found.counts > 0).all()
    assert found.objective < objective(features, found.vectors[:1])


def test_features_that_are_not_finite_are_refused() -> None:
    features = blobs(5, 0.5)
    features[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"not finite; check backbone\.weights"):
        fit_centroids(features, 5, seed=0)


def test_the_largest_seed_is_taken() -> None:
    points = normalise_rows(np.random.default_rng(0).normal(size=(64, 4)))
    found = fit_centroids(points, 4, seed=LARGEST_SEED)
    assert np.isfinite(found.vectors).all()
    with pytest.raises(OverflowError):
        fit_centroids(points, 4, seed=LARGEST_SEED + 1, method="faiss")
