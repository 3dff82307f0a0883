import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shards.manifest import Manifest
from shards.samples import read_raw, read_shard
from shards.tar import TarWriter, read_members
from shards_trees import flat_tree, pack_tree

Members = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("stream")
    flat_tree(root / "set", images=60)
    return pack_tree(root / "set", root / "out", images_per_shard=150)


def rewrite(manifest: Manifest, out: Path, how: Callable[[Members], Members]) -> Manifest:
    """The first shard with other members, and a manifest that agrees with it."""
    shard = manifest.shards[0]
    with open(Path(manifest.url, shard.file), "rb") as file:
        members = [(m.name, m.data) for m in read_members(file, where=shard.file)]
    data = io.BytesIO()
    tar = TarWriter(data)
    for name, content in how(members):
        tar.add(name, content)
    tar.close()
    (out / shard.file).write_bytes(data.getvalue())
    entry = replace(shard, bytes=tar.bytes, sha256=tar.sha256.hexdigest(), offsets=[])
    return replace(manifest, url=str(out), shards=[entry])


def edited(**fields: object) -> Callable[[Members], Members]:
    def how(members: Members) -> Members:
        content = {**json.loads(members[1][1]), **fields}
        return [members[0], (members[1][0], json.dumps(content).encode()), *members[2:]]

    return how


def test_any_part_of_a_shard_is_read_as_in_the_whole(packed: Manifest) -> None:
    shard = packed.shards_of("train")[0]
    assert shard.count > 2 * packed.stride
    whole = list(read_raw(packed, shard))
    assert [raw.index for raw in whole] == list(range(shard.count))
    stride, count = packed.stride, shard.count
    for start, stop in [(0, 0), (0, 1), (stride - 1, stride + 1), (stride, count), (70, 71)]:
        assert list(read_raw(packed, shard, start=start, stop=stop)) == whole[start:stop]
    bare = replace(shard, offsets=[])
    assert list(read_raw(packed, bare, start=70, stop=75)) == whole[70:75]


def test_a_part_is_read_without_the_rest_of_the_shard(packed: Manifest, tmp_path: Path) -> None:
    shard = packed.shards_of("train")[0]
    data = bytearray(Path(packed.url, shard.file).read_bytes())
    data[: shard.offsets[1]] = bytes(shard.offsets[1])
    (tmp_path / shard.file).write_bytes(data)
    blank = replace(packed, url=str(tmp_path))
    start = packed.stride
    assert list(read_raw(blank, shard, start=start)) == list(read_raw(packed, shard, start=start))
    with pytest.raises(ValueError, match="other than the 150 samples"):
        list(read_raw(blank, shard))


def test_two_samples_with_one_key_are_an_error(packed: Manifest, tmp_path: Path) -> None:
    other = rewrite(packed, tmp_path, lambda members: [*members[:-2], *members[:2]])
    key = next(read_raw(packed, packed.shards[0])).key
    with pytest.raises(ValueError, match=f"key '{key}' stands for two samples"):
        list(read_raw(other, other.shards[0]))


@pytest.mark.parametrize("drop", [0, 1])
def test_a_member_without_its_other_half_is_named(
    packed: Manifest, tmp_path: Path, drop: int
) -> None:
    other = rewrite(packed, tmp_path, lambda members: members[:drop] + members[drop + 1 :])
    with pytest.raises(ValueError, match=r"member '00000000-\w+\.\w+' lacks its other half"):
        list(read_raw(other, other.shards[0]))


def test_a_member_of_another_kind_is_named(packed: Manifest, tmp_path: Path) -> None:
    other = rewrite(packed, tmp_path, lambda members: [("evil.pickle", b"x"), *members[1:]])
    with pytest.raises(ValueError, match=r"'evil\.pickle' is neither \.jpg nor \.json"):
        list(read_raw(other, other.shards[0]))


def test_a_sample_too_few_or_too_many_is_an_error(packed: Manifest, tmp_path: Path) -> None:
    for how in (lambda m: m[:-2], lambda m: [*m, ("extra.jpg", b""), ("extra.json", b"")]):
        other = rewrite(packed, tmp_path, how)
        with pytest.raises(ValueError, match="other than the 150 samples of the manifest"):
            list(read_raw(other, other.shards[0]))


def test_a_truncated_shard_says_so(packed: Manifest, tmp_path: Path) -> None:
    shard = packed.shards[0]
    data = Path(packed.url, shard.file).read_bytes()
    (tmp_path / shard.file).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"{shard.file}: ends inside"):
        list(read_raw(replace(packed, url=str(tmp_path)), shard))


def test_a_missing_shard_is_named(packed: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train-000000\.tar: missing shard; copy it"):
        list(read_raw(replace(packed, url=str(tmp_path)), packed.shards[0]))


def test_a_damaged_jpeg_is_named(packed: Manifest, tmp_path: Path) -> None:
    other = rewrite(packed, tmp_path, lambda m: [(m[0][0], m[0][1][:200]), *m[1:]])
    with pytest.raises(ValueError, match=r"sample 00000000-\w+: not a sound JPEG"):
        list(read_shard(other, other.shards[0]))


BAD = [
    (edited(**{"class": "yak"}), "class 'yak' is not in the manifest"),
    (edited(**{"class": ["cat"]}), r"class \['cat'\] is not in the manifest"),
    (edited(boxes=[[0, 0, 1, 1]]), r"boxes have shape \[1, 4\], not \[4, 4\]"),
    (edited(boxes=[[0, 0, 1, 1]] * 3 + [[0.5, 0, 0.5, 1]]), r"a box is empty or reaches out"),
    (edited(boxes=[[0, 0, 1, 1]] * 3 + [[0, 0, 1.5, 1]]), r"a box is empty or reaches out"),
    (edited(boxes=[[0, 0, 1, 1]] * 3 + [[0, 0, float("nan"), 1]]), r"a box is empty or reaches"),
    (edited(boxes="none"), r"\.json is damaged"),
    (lambda m: [m[0], (m[1][0], b"{"), *m[2:]], r"\.json is damaged"),
    (lambda m: [m[0], (m[1][0], b" " * (2 << 20)), *m[2:]], r"\.json of 2097152 bytes"),
]


@pytest.mark.parametrize(("how", "message"), BAD)
def test_a_sample_whose_json_cannot_be_right_is_refused(
    packed: Manifest, tmp_path: Path, how: Callable[[Members], Members], message: str
) -> None:
    other = rewrite(packed, tmp_path, how)
    with pytest.raises(ValueError, match=rf"train-000000\.tar: sample 00000000-\w+: {message}"):
        list(read_shard(other, other.shards[0]))


def test_a_sound_rewrite_is_read_as_a_control(packed: Manifest, tmp_path: Path) -> None:
    other = rewrite(packed, tmp_path, edited(source="elsewhere.png"))
    assert next(read_shard(other, other.shards[0])).source == "elsewhere.png"
