"""A run with too many images for the driver's memory: they lie in parts, read one at a time."""

import shutil
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest

from distributed.embedding import embed, pictures
from distributed.embedding.embed import EmbeddedPart, collect, part_of
from distributed.embedding.files import (
    Embedded,
    EmbeddedImages,
    PartFiles,
    load_embedded,
    save_embedded,
)
from distributed.embedding.pictures import gather_pictures
from distributed.embedding.results import cluster_measures
from vgse.config import RunConfig
from vgse.embeddings import add_images, empty_sums
from vgse.errors import UserError
from vgse.images.image_features import (
    SPLITS,
    PartsIndex,
    image_labels,
    image_parts,
    read_image_features,
    read_index,
    sample_images,
    write_index,
)
from vgse.run_folder import evaluated_images

CLASSES, CLUSTERS, PATCHES, FEATURES = 12, 6, 4, 32
MANY = 500  # images of a part, where memory is measured
SEEN, UNSEEN = np.arange(8), np.arange(8, CLASSES)
PREPARED: Any = SimpleNamespace(
    manifest=SimpleNamespace(class_names=[f"class {c}" for c in range(CLASSES)]),
    seen=SEEN,
    unseen=UNSEEN,
)


def made(number: int, size: int = 50) -> Embedded:
    """Images of one task, as `embed_units` gives them."""
    random = np.random.default_rng(number)
    split = random.choice(SPLITS, size)
    labels = np.where(
        split == "test_unseen", random.choice(UNSEEN, size), random.choice(SEEN, size)
    )
    sums, start_sums = {}, {}
    means = {}
    for name, of in (("own", sums), ("start", start_sums)):
        assignments = random.dirichlet(np.full(CLUSTERS, 0.3), (size, PATCHES)).astype(np.float32)
        for one in SPLITS:
            of[one] = empty_sums(CLASSES, CLUSTERS)
            add_images(of[one], assignments[split == one], labels[split == one])
        means[name] = assignments.mean(1, dtype=np.float64).astype(np.float32)
        if name == "own":
            strongest, scores = assignments.argmax(2).astype(np.int32), assignments.max(2)
    images = EmbeddedImages(
        keys=[f"{number}-{row}" for row in range(size)],
        sources=[f"{number}/{row}.png" for row in range(size)],
        shards=[f"shard-{number:06d}.tar"] * size,
        splits=split.tolist(),
        rows=np.arange(size),
        labels=labels,
        features=random.normal(size=(size, FEATURES)).astype(np.float16),
        assignments=means["own"],
        strongest=strongest,
        scores=scores,
        start_assignments=means["start"],
    )
    return Embedded(sums, start_sums, [images])


def parts(order: Iterable[int], run: Path | None, size: int = 50) -> Iterator[EmbeddedPart]:
    for number in order:
        yield part_of(made(number, size), number, None if run is None else str(run))


@pytest.fixture
def whole() -> Embedded:
    """All images in memory."""
    return collect(parts(list(range(5)), None), CLASSES, None)[0]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the same images in parts."""
    embedded, _ = collect(parts([3, 0, 4, 2, 1], tmp_path), CLASSES, str(tmp_path))
    assert save_embedded(tmp_path, embedded) == ("image_parts.npz", "embedded.npz")
    return tmp_path


def test_parts_that_come_in_any_order_are_what_is_found_in_memory_to_the_last_bit(
    whole: Embedded, run: Path
) -> None:
    found = load_embedded(run)
    for ours, theirs in ((found.sums, whole.sums), (found.start_sums, whole.start_sums)):
        assert ours.keys() == theirs.keys() == set(SPLITS)
        for split, own in ours.items():
            for name, values in vars(own).items():
                np.testing.assert_array_equal(values, getattr(theirs[split], name))
    assert len(list(found.parts)) == 5
    for name, values in vars(found.images).items():
        if name not in ("keys", "sources", "features"):  # which image_features/ has
            np.testing.assert_array_equal(values, getattr(whole.images, name), name)


def test_readers_of_features_get_the_same_rows_from_parts(whole: Embedded, run: Path) -> None:
    (folder := run / "one").mkdir()
    save_embedded(folder, whole)
    assert read_index(folder) is None
    for name, values in vars(read_image_features(folder)).items():
        np.testing.assert_array_equal(getattr(read_image_features(run), name), values, name)
    for ours, theirs in zip(image_labels(run), image_labels(folder), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    images, sampled = evaluated_images(run, 250)
    assert sampled is None
    np.testing.assert_array_equal(images.features, whole.images.features)


def test_parts_at_a_url_are_read_without_a_copy_on_this_machine(
    whole: Embedded, tmp_path: Path
) -> None:
    url = f"memory://{tmp_path}/run"
    found = (part_of(made(number), number, url) for number in (2, 0, 1))
    embedded, _ = collect(found, CLASSES, url)
    save_embedded(tmp_path, embedded)
    stored = load_embedded(tmp_path, url)
    np.testing.assert_array_equal(stored.images.strongest, whole.images.strongest[:150])
    assert isinstance(stored.parts, PartFiles)
    images, _ = evaluated_images(tmp_path, 150, stored.parts.features())
    np.testing.assert_array_equal(images.features, whole.images.features[:150])
    fsspec.filesystem("memory").rm(f"{tmp_path}/run/embedded/part-000001.npz")
    with pytest.raises(UserError, match=r"memory://.*part-000001.npz: no such file"):
        list(stored.parts)


def test_pictures_and_measures_read_a_part_at_a_time_and_are_the_same(
    whole: Embedded, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[Any]] = []

    def no_samples(manifest: object, wanted: Any, access: object) -> dict[Any, Any]:
        seen.append(set(wanted))
        return {}

    monkeypatch.setattr(pictures, "read_pictures", no_samples)
    stored = load_embedded(run)
    config = RunConfig()
    ours, theirs = (gather_pictures(config, PREPARED, found) for found in (stored, whole))
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values, name)
    assert seen[0] == seen[1] and len(seen[0]) > 100
    assert cluster_measures(PREPARED, stored, CLUSTERS) == pytest.approx(
        cluster_measures(PREPARED, whole, CLUSTERS)
    )


def test_a_sample_is_of_each_class_and_split_and_the_same_for_any_parts(
    whole: Embedded, run: Path
) -> None:
    images, total = evaluated_images(run, 100)
    assert total == 250 and 60 <= len(images.labels) <= 100
    groups = set(zip(images.split.tolist(), images.labels.tolist(), strict=True))
    every = read_image_features(run)
    assert groups == set(zip(every.split.tolist(), every.labels.tolist(), strict=True))
    index = read_index(run)
    assert index is not None
    again = sample_images([every], index.counts, 100)
    np.testing.assert_array_equal(again.features, images.features)
    np.testing.assert_array_equal(again.labels, images.labels)
    all_of_them = sample_images(image_parts(run), index.counts, 250)
    np.testing.assert_array_equal(all_of_them.features, every.features)
    other = sample_images(
        [replace(every, keys=[f"x{key}" for key in every.keys])], index.counts, 100
    )
    assert not np.array_equal(other.features, images.features)


def test_labels_of_images_that_no_index_lists_come_from_the_parts(
    run: Path, tmp_path: Path
) -> None:
    listed = read_index(run)
    assert listed is not None
    shutil.copytree(run, tmp_path / "run")
    none = np.empty(0, np.int32), np.empty(0, np.uint8)
    write_index(tmp_path / "run", PartsIndex(listed.num_parts, listed.counts, *none))
    for found, expected in zip(image_labels(tmp_path / "run"), image_labels(run), strict=True):
        assert len(found) == listed.num_images
        np.testing.assert_array_equal(found, expected)


def growth(work: Any, few: int, many: int) -> float:
    """Bytes of memory at the peak that each further image costs."""
    peaks = []
    for count in (few, many):
        tracemalloc.start()
        work(count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[1] - peaks[0]) / (MANY * (many - few))


def test_the_drivers_memory_grows_by_a_label_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "read_pictures", lambda *arguments: {})
    a_row = 2 * FEATURES + 8 * CLUSTERS + 8 * PATCHES

    def take(count: int) -> Embedded:
        folder = tmp_path / str(count)
        found = collect(parts(range(count), folder, MANY), CLASSES, str(folder))[0]
        save_embedded(folder, found)
        return found

    def read(count: int) -> None:
        stored = load_embedded(tmp_path / str(count))
        gather_pictures(RunConfig(), PREPARED, stored)
        cluster_measures(PREPARED, stored, CLUSTERS)
        evaluated_images(tmp_path / str(count), 100)

    take(2)
    read(2)  # what is made once is there
    assert growth(take, 4, 8) < 30
    assert growth(read, 4, 8) < 30
    in_memory = growth(lambda count: collect(parts(range(count), None, MANY), CLASSES, None), 4, 8)
    assert in_memory > a_row
    monkeypatch.setattr(embed, "LISTED", 100)  # labels of more images are not listed either
    assert growth(take, 9, 13) < 10
