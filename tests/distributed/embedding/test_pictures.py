"""Pictures for the report, read from the shards."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed.embedding.pictures import Wanted, read_pictures
from distributed.features.extract import read_samples
from shards import samples
from shards.manifest import Manifest
from shards.objects import ACCESS
from shards.samples import read_raw
from shards_trees import flat_tree, pack_tree


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Two shards of training images, one of them of more than two runs of 64 samples."""
    root = tmp_path_factory.mktemp("pictures")
    flat_tree(root / "set", images=80)
    return pack_tree(root / "set", root / "out", images_per_shard=150)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are read, once for each read."""
    names: list[str] = []
    real = samples.read_bytes

    def read(url: str, *arguments: Any, **options: Any) -> bytes:
        names.append(Path(url).name)
        return real(url, *arguments, **options)

    monkeypatch.setattr(samples, "read_bytes", read)
    return names


def test_pictures_of_one_run_are_read_together(packed: Manifest, reads: list[str]) -> None:
    first, second = (shard.file for shard in packed.shards_of("train"))
    wanted = [(second, 3), (first, 140), (first, 9), (first, 5), (second, 0), (first, 9)]
    found = read_pictures(packed, wanted, ACCESS)
    assert reads == [first, first, second]  # between 9 and 140 lies a run that nobody asked for
    assert list(found) == sorted(set(wanted))
    for file, row in found:
        assert_the_same(found, packed, file, row)


def assert_the_same(found: dict[Wanted, Any], packed: Manifest, file: str, row: int) -> None:
    (alone,), _ = read_samples(packed, file, row, row + 1, ACCESS)
    for name, value in vars(found[file, row]).items():
        np.testing.assert_array_equal(value, getattr(alone, name))


def test_a_damaged_picture_is_left_out(packed: Manifest, tmp_path: Path) -> None:
    shard = packed.shards_of("train")[0]
    data = bytearray(Path(packed.url, shard.file).read_bytes())
    at = data.find(list(read_raw(packed, shard))[4].jpeg)
    data[at : at + 30] = bytes(30)
    (tmp_path / shard.file).write_bytes(data)
    spoiled = replace(packed, url=str(tmp_path), table=packed.shards)
    assert list(read_pictures(spoiled, [(shard.file, 4), (shard.file, 5)], ACCESS)) == [
        (shard.file, 5)
    ]
