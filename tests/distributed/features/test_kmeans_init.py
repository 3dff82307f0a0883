"""The sample that starts the clusters: bottom-k by hash, whatever the order of the work."""

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distributed.features.cache import Unit, UnitFeatures, read_unit, write_unit
from distributed.features.kmeans_init import complete_sample, load_start, make_start
from distributed.features.sample import (
    PatchSample,
    sample_of_units,
    sample_patches,
    sampling_of,
)
from shards.objects import ACCESS, Access
from vgse.clusters import Centroids, fit_projection, hash_threshold, patch_hashes, project
from vgse.config import ModelConfig, RunConfig

IMAGES, PATCHES, SIZE, CLASSES, SEED = 60, 4, 6, 5, 3
ALL = 2**64 - 1
CHOSEN = [0, 2, 3]


def key_of(image: int) -> str:
    return f"{image * 7919 % 1000:04d}"  # keys in another order than images


def label_of(image: int) -> int:
    return image % CLASSES


def feature_of(image: int, patch: int) -> NDArray[np.float16]:
    return np.random.default_rng(image * PATCHES + patch).normal(size=SIZE).astype(np.float16)


def write_cache(
    folder: Path, ranges: list[tuple[str, range]], below: int | None = None
) -> list[Unit]:
    """Units of a cache; with `below` one that holds only the patches whose hash is smaller."""
    units = []
    for shard, images in ranges:
        unit = Unit(shard, "train", images.start, images.stop)
        keys = [key_of(i) for i in images]
        patches = np.stack([[feature_of(i, p) for p in range(PATCHES)] for i in images])
        if below is not None:
            patches = patches[patch_hashes(keys, PATCHES, SEED) < np.uint64(below)]
        tensors = {
            "labels": torch.tensor([label_of(i) for i in images]),
            "rows": torch.arange(len(images)),
            "images": torch.zeros(len(images), SIZE, dtype=torch.float16),
            "patches": torch.from_numpy(patches),
        }
        write_unit(folder, unit, tensors, {"keys": json.dumps(keys)})
        units.append(unit)
    return units


def by_shards(*ends: int) -> list[tuple[str, range]]:
    starts = (0, *ends[:-1])
    return [
        (f"train-{number:06d}.tar", range(start, end))
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def draw(
    folder: Path, units: list[Unit], size: int, below: int = ALL
) -> tuple[NDArray[np.float16], int]:
    config = sampling(size, SEED)
    return sample_patches(str(folder), units, CHOSEN, config, num_patches=PATCHES, below=below)


def sampling_config(size: int) -> RunConfig:
    return sampling(size, SEED)


def sampling(size: int, seed: int) -> RunConfig:
    return RunConfig(model=ModelConfig(num_clusters=size, max_points_per_centroid=1), seed=seed)


def written_out(size: int) -> NDArray[np.float16]:
    """The k smallest hashes of the chosen classes by sorting all, then in the order of keys."""
    patches = []
    for image in range(IMAGES):
        if label_of(image) in CHOSEN:
            hashes = patch_hashes([key_of(image)], PATCHES, SEED)[0].tolist()
            patches += [(hashes[p], key_of(image), p, image) for p in range(PATCHES)]
    smallest = sorted(patches)[:size]
    ordered = sorted(smallest, key=lambda patch: (patch[1], patch[2]))
    return np.stack([feature_of(image, place) for _, _, place, image in ordered])


@pytest.mark.parametrize("size", [1, 20, 143, 144, 1000])
def test_the_sample_is_the_bottom_k_of_a_plain_sort(size: int, tmp_path: Path) -> None:
    sample, population = draw(tmp_path, write_cache(tmp_path, by_shards(25, 40, IMAGES)), size)
    np.testing.assert_array_equal(sample, written_out(size))
    assert sample.dtype == np.float16
    assert population == 36 * PATCHES


def test_neither_the_order_nor_the_size_of_units_changes_the_sample(tmp_path: Path) -> None:
    expected = written_out(30)
    for name, ends in {"one": (60,), "three": (7, 31, 60), "many": range(5, 65, 5)}.items():
        units = write_cache(tmp_path / name, by_shards(*ends))
        for order in (units, units[::-1]):
            found, _ = draw(tmp_path / name, order, 30)
            np.testing.assert_array_equal(found, expected)


def test_a_cache_of_the_sampled_patches_alone_gives_the_same_sample(tmp_path: Path) -> None:
    below = hash_threshold(10, 36 * PATCHES)
    assert below < ALL
    full = write_cache(tmp_path / "full", by_shards(25, IMAGES))
    part = write_cache(tmp_path / "part", by_shards(25, IMAGES), below)
    sizes = [(tmp_path / name / full[0].file).stat().st_size for name in ("full", "part")]
    assert sizes[1] < sizes[0]
    expected = written_out(10)
    for found, population in (
        draw(tmp_path / "full", full, 10),
        draw(tmp_path / "full", full, 10, below),
        draw(tmp_path / "part", part, 10, below),
    ):
        np.testing.assert_array_equal(found, expected)
        assert population == 36 * PATCHES


def test_memory_is_bounded_by_the_sample(tmp_path: Path) -> None:
    many = write_cache(tmp_path, by_shards(IMAGES)) * 400
    draw(tmp_path, many[:1], 10)
    tracemalloc.start()
    draw(tmp_path, many, 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(many) * 36 * PATCHES * 8  # what the hashes alone would take


def test_another_seed_draws_other_patches(tmp_path: Path) -> None:
    units = write_cache(tmp_path, by_shards(IMAGES))
    config = sampling(20, SEED + 1)
    other, _ = sample_patches(str(tmp_path), units, CHOSEN, config, num_patches=PATCHES, below=ALL)
    assert not np.array_equal(other, written_out(20))


def test_a_missing_and_a_damaged_file_of_the_cache_are_named(tmp_path: Path) -> None:
    units = write_cache(tmp_path, by_shards(25, IMAGES))
    path = tmp_path / units[1].file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"train-000001-0000025\.safetensors: damaged"):
        draw(tmp_path, units, 5)
    path.unlink()
    with pytest.raises(ValueError, match=r"missing from the feature cache; run again"):
        draw(tmp_path, units, 5)


@pytest.mark.parametrize("projection", [0, 4])
def test_the_start_is_the_same_for_every_order_and_comes_back_from_its_files(
    projection: int, tmp_path: Path
) -> None:
    model = ModelConfig(num_clusters=5, projection=projection, max_points_per_centroid=20)
    config = RunConfig(model=model, seed=SEED)
    units = write_cache(tmp_path, by_shards(25, IMAGES))
    features, _ = draw(tmp_path, units, 100)

    def start(units: list[Unit], init: str) -> Centroids:
        place, count = tmp_path / init, {"num_patches": PATCHES, "below": ALL}
        return make_start(str(tmp_path), units, CHOSEN, config, init=place, **count)

    centroids, others = start(units, "init"), start(units[::-1], "other")
    np.testing.assert_array_equal(centroids.vectors, others.vectors)
    loaded, vectors = load_start(tmp_path / "init")
    np.testing.assert_array_equal(vectors, centroids.vectors)
    assert vectors.shape == (5, projection or SIZE)
    assert (loaded is None) == (projection == 0)
    if loaded is not None:
        made = fit_projection(features, projection)
        np.testing.assert_array_equal(project(features, loaded), project(features, made))


def gathered(size: int, below: int) -> PatchSample:
    sampling = sampling_of(sampling_config(size), CHOSEN, PATCHES)
    return PatchSample(replace(sampling, below=below))


def test_parts_that_tasks_return_in_any_order_are_the_same_sample(tmp_path: Path) -> None:
    units = write_cache(tmp_path, by_shards(*range(5, 65, 5)))
    for size in (10, 30, 143, 1000):
        below = hash_threshold(size, 36 * PATCHES)
        for order in (units, units[::-1], units[1::2] + units[::2]):
            sample = gathered(size, below)
            for unit in order:  # each sends no more than lies below the threshold
                part, own = sample_of_units(str(tmp_path), [unit], sample.sampling, ACCESS)
                assert (part.hashes < below).all()
                sample.add(part, own)
            assert not sample.is_short
            np.testing.assert_array_equal(sample.features(), written_out(size))
            assert sample.population == 36 * PATCHES


def test_units_that_were_just_computed_are_not_read_again_and_the_others_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = write_cache(tmp_path, by_shards(*range(5, 65, 5)))
    read: list[str] = []

    def noted(folder: str, unit: Unit, access: Access) -> UnitFeatures:
        read.append(unit.file)
        return read_unit(folder, unit, access)

    def here(function: Any, calls: list[Any], **options: Any) -> Iterator[Any]:
        return (function(*call) for call in reversed(calls))

    sample = gathered(30, hash_threshold(30, 36 * PATCHES))
    sample.add(*sample_of_units(str(tmp_path), units[:7], sample.sampling, ACCESS))
    monkeypatch.setattr("distributed.features.sample.read_unit", noted)
    monkeypatch.setattr("distributed.features.kmeans_init.task_results", here)
    job: Any = SimpleNamespace(folder=str(tmp_path), config=sampling_config(30))
    complete_sample(sample, job, units, print)
    assert sorted(read) == sorted(unit.file for unit in units[7:])
    np.testing.assert_array_equal(sample.features(), written_out(30))

    short = gathered(30, ALL // 100)  # as if nearly all images were missing
    complete_sample(short, job, units, print)
    np.testing.assert_array_equal(short.features(), written_out(30))
    assert short.population == 36 * PATCHES
