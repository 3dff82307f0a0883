import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from shards.manifest import Manifest, load_labels, load_manifest
from shards.objects import Retry
from shards.samples import read_shard
from shards_trees import flat_tree, pack_tree

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("manifest")
    return pack_tree(flat_tree(root / "set"), root / "out")


@pytest.fixture
def copy(packed: Manifest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed.url, tmp_path / "copy"))


def change(folder: Path, how: Change) -> str:
    content = json.loads((folder / "manifest.json").read_text())
    how(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    return str(folder)


def test_what_was_packed_is_loaded(packed: Manifest) -> None:
    assert load_manifest(packed.url) == packed
    assert load_manifest(f"{packed.url}/manifest.json") == packed
    assert load_manifest(f"file://{packed.url}/") == packed


def test_seen_holds_val_and_no_unseen_class(packed: Manifest) -> None:
    assert set(packed.val) < set(packed.seen)
    assert sorted(packed.seen + packed.unseen) == list(range(len(packed.class_names)))
    assert packed.class_names == sorted(packed.class_names)
    assert list(packed.class_words) == packed.class_names


def test_any_fsspec_url_is_loaded_and_read(packed: Manifest) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(packed.url, "/bucket/set", recursive=True)
    remote = load_manifest("memory://bucket/set")
    assert remote.fingerprint == packed.fingerprint
    shard = remote.shards_of("train")[1]
    one = [s.key for s in read_shard(remote, shard)]
    assert one == [s.key for s in read_shard(packed, shard)] and len(one) == shard.count


def test_the_fingerprint_follows_the_content_and_not_the_place(
    packed: Manifest, copy: Path
) -> None:
    assert load_manifest(str(copy)).fingerprint == packed.fingerprint
    other = change(copy, lambda content: content.update(licence="CC-BY-4.0"))
    assert load_manifest(other).fingerprint != packed.fingerprint


def test_labels_are_known_without_opening_a_shard(packed: Manifest) -> None:
    labels = load_labels(packed)
    for shard in packed.shards:
        found = [sample.label for sample in read_shard(packed, shard)]
        assert labels[shard.file].tolist() == found


def test_labels_of_another_pack_are_refused(copy: Path) -> None:
    np.save(copy / "labels.npy", np.zeros(30, np.uint16))
    with pytest.raises(ValueError, match=r"labels\.npy: does not belong to the manifest"):
        load_labels(load_manifest(str(copy)))


def test_a_missing_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest\.json: no such file; make it with `python -m"):
        load_manifest(str(tmp_path))


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(ValueError, match=r"nosuch://bucket/manifest\.json"):
        load_manifest("nosuch://bucket")


def test_an_unreachable_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.manifest.FIRST", Retry(attempts=2, first_wait_s=0.01))
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9/set/manifest\.json") as caught:
        load_manifest("http://127.0.0.1:9/set")
    assert "\n" not in str(caught.value)


def test_a_damaged_manifest_is_refused(copy: Path) -> None:
    (copy / "manifest.json").write_text('{"version": 1, ')
    with pytest.raises(ValueError, match=r"manifest\.json: not JSON"):
        load_manifest(str(copy))


def test_missing_shards_are_listed(copy: Path) -> None:
    (copy / "train-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"missing shards: train-000001\.tar; copy them"):
        load_manifest(str(copy))


def test_a_shard_copied_in_part_is_refused(copy: Path) -> None:
    tar = copy / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"'train-000001\.tar' has \d+ bytes, not \d+: copied in"):
        load_manifest(str(copy))


def first(content: dict[str, Any], split: str = "train") -> dict[str, Any]:
    return next(row for row in content["shards"] if row["split"] == split)


def both_roles(content: dict[str, Any]) -> None:
    seen = next(row for row in content["classes"] if row["role"] == "train")
    content["classes"].append({**seen, "role": "unseen"})


def stranger(content: dict[str, Any]) -> None:
    counts = first(content)["class_counts"]
    name = min(counts)
    counts["yak"] = counts.pop(name)


def unseen_in_train(content: dict[str, Any]) -> None:
    name = next(row["name"] for row in content["classes"] if row["role"] == "unseen")
    row = first(content)
    row["class_counts"][name] = 1
    row["count"] += 1


def empty_class(content: dict[str, Any]) -> None:
    content["classes"].append({"name": "yak", "role": "train", "words": ["yak"]})


BROKEN: list[tuple[Change, str]] = [
    (lambda c: c.update(version=9), r"field version is 9, this program reads 1"),
    (lambda c: c.pop("shards"), "field shards is missing"),
    (lambda c: c["shards"][0].pop("sha256"), "sha256"),
    (both_roles, "is both seen and unseen"),
    (lambda c: c["classes"].append(c["classes"][0]), "is listed 2 times"),
    (lambda c: c["shards"].append(c["shards"][0]), "is listed 2 times"),
    (lambda c: c["classes"][0].update(role="known"), "role 'known' is none of"),
    (lambda c: first(c).update(count=99), r"count is 99, its classes add up to 6"),
    (lambda c: first(c).update(sha256="00"), "sha256 '00' is not a checksum"),
    (lambda c: first(c).update(file="../train-000000.tar"), r"the name must be train-NNNNNN"),
    (lambda c: first(c).update(file="test_seen-000900.tar"), r"the name must be train-NNNNNN"),
    (lambda c: first(c).update(offsets=[1, 2, 3]), "offsets do not fit"),
    (lambda c: c["patches"].update(num_patches=0), "num_patches is 0"),
    (stranger, "class 'yak' is not among the classes"),
    (unseen_in_train, "is unseen but has images in split train"),
    (empty_class, r"class 'yak' \(train\) has no images in split train"),
]


@pytest.mark.parametrize(("how", "message"), BROKEN)
def test_a_manifest_that_cannot_be_right_is_refused(copy: Path, how: Change, message: str) -> None:
    load_manifest(str(copy))
    with pytest.raises(ValueError, match=message) as caught:
        load_manifest(change(copy, how))
    assert "\n" not in str(caught.value) and "manifest.json" in str(caught.value)
