import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import shards.manifest
from shards.manifest import Manifest, load_labels, load_manifest, shard_table, write_table
from shards.objects import Retry
from shards.samples import read_shard
from shards_trees import flat_tree, pack_tree, rewrite_table, version_1

ROOT = Path(__file__).resolve().parents[2]

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


def test_a_tilde_is_the_home_folder(packed: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(packed.url).parent))
    assert load_manifest("~/out") == packed


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
    found = [sample.label for shard in packed.shards for sample in read_shard(packed, shard)]
    assert load_labels(packed).tolist() == found


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


def test_a_shard_is_found_by_its_name(packed: Manifest) -> None:
    assert len({shard.file for shard in packed.shards}) == len(packed.shards)
    assert [packed.shards.find(shard.file) for shard in packed.shards] == list(packed.shards)


def test_a_manifest_is_loaded_and_sent_without_its_shards(packed: Manifest, copy: Path) -> None:
    assert len(packed.shards) > 1
    assert b"ShardTable" not in pickle.dumps(packed)
    (copy / "shards.npy").unlink()
    manifest = load_manifest(str(copy), check_files=False)
    assert manifest.num_images("train") == sum(s.count for s in packed.shards_of("train"))
    with pytest.raises(ValueError, match=r"shards\.npy: no such file; copy it or pack again"):
        len(manifest.shards)


def test_a_list_of_few_shards_stands_in_the_manifest_for_others_to_read(
    packed: Manifest, copy: Path
) -> None:
    rows = json.loads((copy / "manifest.json").read_text())["shards"]
    assert [row["file"] for row in rows] == [shard.file for shard in packed.shards]
    assert sum(row["count"] for row in rows) == packed.shards.counts.sum()
    changed = change(copy, lambda content: content["shards"].clear())
    assert load_manifest(changed).fingerprint == packed.fingerprint


def test_a_title_cannot_steer_a_terminal(copy: Path) -> None:
    title = change(copy, lambda content: content.update(source="\x1b[2Jbirds\r\x9b1m"))
    assert load_manifest(title).source == "[2Jbirds1m"


def test_a_table_of_another_pack_is_refused(packed: Manifest, copy: Path) -> None:
    write_table(copy, packed.shards[:1])
    with pytest.raises(ValueError, match=r"shards\.npy: does not belong to the manifest"):
        load_manifest(str(copy))


def test_a_table_that_cannot_be_right_is_refused(packed: Manifest, copy: Path) -> None:
    first, *others = packed.shards
    for entry, message in (
        (replace(first, count=first.count + 1), "the shards of train hold 17 images, its classes"),
        (replace(first, offsets=[first.bytes]), "offsets do not fit its count and bytes"),
        (replace(first, offsets=[0, 1]), "offsets do not fit its count and bytes"),
        (others[0], "not in the order of their names"),
    ):
        with pytest.raises(ValueError, match=message):
            rewrite_table(copy, [entry, *others])
    assert rewrite_table(copy, [first, *others]).fingerprint == packed.fingerprint


def test_a_split_may_hold_more_than_a_million_shards(packed: Manifest) -> None:
    names = [f"train-{number:07d}.tar" for number in (0, 999_999, 1_000_000, 2_000_000)]
    table = shard_table([replace(packed.shards[0], file=name) for name in names])
    assert [shard.file for shard in table] == names
    assert table.find(names[2]) == table[2]


def test_a_manifest_of_the_first_version_is_read_as_it_was(packed: Manifest, copy: Path) -> None:
    (copy / "manifest.json").write_text(json.dumps(version_1(packed)))
    (copy / "shards.npy").unlink()
    first = load_manifest(str(copy))
    assert list(first.shards) == list(packed.shards)
    assert first.class_counts == packed.class_counts
    assert load_labels(first).tolist() == load_labels(packed).tolist()
    assert list(pickle.loads(pickle.dumps(first)).shards) == list(packed.shards)
    # As the demo's fingerprint was before there was a second version: caches go on.
    demo = load_manifest(str(ROOT / "demo" / "shards"), check_files=False)
    assert (demo.version, demo.fingerprint[:16]) == (1, "94217c8f31a8ff4f")


def test_what_many_shards_cost_in_a_manifest_of_the_first_version_is_said(
    packed: Manifest, copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (copy / "manifest.json").write_text(json.dumps(version_1(packed)))
    load_manifest(str(copy))
    assert not caplog.messages
    monkeypatch.setattr(shards.manifest, "_LISTED", 1)
    load_manifest(str(copy))
    load_manifest(packed.url)
    assert len(caplog.messages) == 1 and "of version 1, which every process" in caplog.messages[0]


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


def unseen_in_train_2(content: dict[str, Any]) -> None:
    name = next(row["name"] for row in content["classes"] if row["role"] == "unseen")
    content["class_counts"]["train"][name] = 1


def empty_class(content: dict[str, Any]) -> None:
    content["classes"].append({"name": "yak", "role": "train", "words": ["yak"]})


BROKEN: list[tuple[Change, str]] = [
    (lambda c: c.update(version=9), r"field version is 9, this program reads 2"),
    (lambda c: c.pop("classes"), "field classes is missing"),
    (lambda c: c.pop("class_counts"), "class_counts"),
    (both_roles, "is both seen and unseen"),
    (lambda c: c["classes"].append(c["classes"][0]), "is listed 2 times"),
    (lambda c: c["classes"][0].update(name="a\x1b[2J"), "the name holds control characters"),
    (lambda c: c["classes"][0].update(role="known"), "role 'known' is none of"),
    (lambda c: c["patches"].update(num_patches=0), "num_patches is 0"),
    (lambda c: c["class_counts"]["train"].update(yak=1), "class 'yak' is not among the classes"),
    (unseen_in_train_2, "is unseen but has images in split train"),
    (empty_class, r"class 'yak' \(train\) has no images in split train"),
]
BROKEN_1: list[tuple[Change, str]] = [
    (lambda c: c.pop("shards"), "field shards is missing"),
    (lambda c: c["shards"][0].pop("sha256"), "sha256"),
    (lambda c: c["shards"].append(c["shards"][0]), "is listed 2 times"),
    (lambda c: first(c).update(count=99), r"count is 99, its classes add up to 6"),
    (lambda c: first(c).update(sha256="00"), "sha256 '00' is not a checksum"),
    (lambda c: first(c).update(file="../train-000000.tar"), r"the name must be train-NNNNNN"),
    (lambda c: first(c).update(file="test_seen-000900.tar"), r"the name must be train-NNNNNN"),
    (lambda c: first(c).update(offsets=[1, 2, 3]), "offsets do not fit"),
    (stranger, "class 'yak' is not among the classes"),
    (unseen_in_train, "is unseen but has images in split train"),
]


@pytest.mark.parametrize(("how", "message"), BROKEN)
def test_a_manifest_that_cannot_be_right_is_refused(copy: Path, how: Change, message: str) -> None:
    load_manifest(str(copy))
    with pytest.raises(ValueError, match=message) as caught:
        load_manifest(change(copy, how))
    assert "\n" not in str(caught.value) and "manifest.json" in str(caught.value)


@pytest.mark.parametrize(("how", "message"), BROKEN_1)
def test_nor_is_one_of_the_first_version(
    packed: Manifest, copy: Path, how: Change, message: str
) -> None:
    (copy / "manifest.json").write_text(json.dumps(version_1(packed)))
    test_a_manifest_that_cannot_be_right_is_refused(copy, how, message)
