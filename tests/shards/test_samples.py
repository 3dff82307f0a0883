import io
import json
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from webdataset import tariterators

from shards.loader import Batches, Cut
from shards.manifest import Manifest, load_manifest, shard_table
from shards.sampler import order_of, select, split_ranges, start_of
from shards.samples import read_raw, read_shard
from shards_trees import flat_tree, pack_tree
from vgse.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
Members = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("stream")
    flat_tree(root / "set", images=60)
    return pack_tree(root / "set", root / "out", images_per_shard=150)


def in_folder(manifest: Manifest, out: Path, data: bytes) -> Manifest:
    """The manifest with the first shard alone, which holds `data`."""
    shard = manifest.shards[0]
    (out / shard.file).write_bytes(data)
    entry = replace(shard, bytes=len(data), offsets=[])
    return replace(manifest, url=str(out), table=shard_table([entry]))


def rewrite(
    manifest: Manifest,
    out: Path,
    how: Callable[[Members], Members] = lambda members: members,
    *,
    mode: str = "w",
    change: Callable[[tarfile.TarInfo], None] = lambda info: None,
) -> Manifest:
    """The first shard with other members, or other headers."""
    with tarfile.open(Path(manifest.url, manifest.shards[0].file)) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode, format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
        for name, content in how(members):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            tar.addfile(info, io.BytesIO(content))
    return in_folder(manifest, out, data.getvalue())


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
    with pytest.raises(ValueError, match="other than the samples 0 to 149"):
        list(read_raw(blank, shard))


def test_a_member_that_is_there_twice_is_an_error(packed: Manifest, tmp_path: Path) -> None:
    other = rewrite(packed, tmp_path, lambda members: [*members[:-2], *members[:2]])
    key = next(read_raw(packed, packed.shards[0])).key
    with pytest.raises(UserError, match=f"member '{key}.jpg' is there twice"):
        list(read_raw(other, other.shards[0]))


def test_a_key_that_stands_in_two_runs_of_samples_is_an_error(
    packed: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.samples.READ_BYTES", 1)
    shard = packed.shards_of("train")[0]
    data = bytearray(Path(packed.url, shard.file).read_bytes())
    one, two = shard.offsets[0], shard.offsets[1]
    for at in (two, data.index(data[two : two + 8], two + 1)):  # headers of .jpg and .json
        data[at : at + 17] = data[one : one + 17]
        data[at : at + 512] = _summed(data[at : at + 512])
    (tmp_path / shard.file).write_bytes(data)
    other = replace(packed, url=str(tmp_path))
    with pytest.raises(UserError, match="stands for two samples"):
        list(read_raw(other, shard))


def _summed(header: bytes | bytearray) -> bytes:
    """The header with the checksum that it ought to have."""
    blank = header[:148] + b" " * 8 + header[156:]
    return bytes(header[:148] + b"%06o\0 " % sum(blank) + header[156:])


@pytest.mark.parametrize("drop", [0, 1, -1])
def test_a_sample_without_its_other_half_is_an_error(
    packed: Manifest, tmp_path: Path, drop: int
) -> None:
    def how(members: Members) -> Members:
        del members[drop]
        return [*members, ("extra.jpg", b"")]

    other = rewrite(packed, tmp_path, how)
    with pytest.raises(UserError, match=r"sample '\S+' lacks its other half"):
        list(read_raw(other, other.shards[0]))


@pytest.mark.parametrize(
    "name",
    ["x.pyd", "x.pickle", "x.jpg.pth", "__x__", "__x__.json", "../x.jpg", "/etc/x.jpg", "a/b.jpg"],
)
def test_a_member_that_packing_never_writes_is_an_error(
    packed: Manifest, tmp_path: Path, name: str
) -> None:
    other = rewrite(packed, tmp_path, lambda members: [(name, members[0][1]), *members[1:]])
    with pytest.raises(UserError, match=r"under a plain name|other half"):
        list(read_raw(other, other.shards[0]))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_links_folders_and_sparse_members_are_errors(
    packed: Manifest, tmp_path: Path, kind: bytes
) -> None:
    def change(info: tarfile.TarInfo) -> None:
        if info.name.endswith(".jpg"):
            info.type, info.linkname = kind, "/etc/passwd"

    other = rewrite(packed, tmp_path, change=change)
    with pytest.raises(UserError, match="under a plain name"):
        list(read_raw(other, other.shards[0]))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_shard_is_refused(packed: Manifest, tmp_path: Path, mode: str) -> None:
    other = rewrite(packed, tmp_path, mode=mode)
    with pytest.raises(UserError, match=r"train-000000\.tar: no tar header at byte 0"):
        list(read_raw(other, other.shards[0]))


def test_a_huge_size_is_refused_before_it_is_read(packed: Manifest, tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = 1 << 32
    other = in_folder(packed, tmp_path, info.tobuf(tarfile.USTAR_FORMAT))
    with pytest.raises(UserError, match=r"ends inside member 'a\.jpg'"):
        list(read_raw(other, other.shards[0]))


@pytest.mark.parametrize("sample", [0, 1, 63, 64, 149])
@pytest.mark.parametrize("place", [2, 105, 130, 150, 257])
def test_a_flipped_byte_of_any_header_is_an_error(
    packed: Manifest, tmp_path: Path, sample: int, place: int
) -> None:
    shard = packed.shards_of("train")[0]
    data = bytearray(Path(packed.url, shard.file).read_bytes())
    with tarfile.open(Path(packed.url, shard.file)) as tar:
        at = tar.getmembers()[2 * sample].offset + place
    data[at] ^= 1
    (tmp_path / shard.file).write_bytes(data)
    with pytest.raises(UserError, match=rf"{shard.file}: .*(header|is neither|ends inside)"):
        list(read_raw(replace(packed, url=str(tmp_path)), shard))


def test_a_sample_too_few_or_too_many_is_an_error(packed: Manifest, tmp_path: Path) -> None:
    for how in (lambda m: m[:-2], lambda m: [*m, ("extra.jpg", b""), ("extra.json", b"")]):
        other = rewrite(packed, tmp_path, how)
        with pytest.raises(UserError, match="other than the samples 0 to 149 of the manifest"):
            list(read_raw(other, other.shards[0]))


def test_a_truncated_shard_says_so(packed: Manifest, tmp_path: Path) -> None:
    shard = packed.shards[0]
    data = Path(packed.url, shard.file).read_bytes()
    (tmp_path / shard.file).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"{shard.file}: ends at byte"):
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


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_nothing_that_a_shard_or_its_address_holds_is_run(
    packed: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ran"
    bomb = pickle.dumps(Bomb(mark))
    pickle.loads(bomb)
    assert mark.exists()  # the bomb works
    mark.unlink()

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("reached")

    monkeypatch.setattr(tariterators.gopen, "gopen", never)
    monkeypatch.setattr("webdataset.autodecode.Decoder.__call__", never)
    monkeypatch.setattr(pickle, "loads", never)
    for name in ("x.pyd", "x.pickle", "x.jpg"):
        how = lambda members, name=name: [(name, bomb), *members]  # noqa: E731
        other = rewrite(packed, tmp_path, how)
        with pytest.raises(UserError):
            list(read_raw(other, other.shards[0]))
    command = f"touch {mark}"
    for url in (f"pipe:{command}", f"pipe:{command};#/set", f"pipe://{command}"):
        with pytest.raises(UserError):
            load_manifest(url)
        with pytest.raises(UserError):
            list(read_raw(replace(packed, url=url), packed.shards[0]))
    selection = select(packed, "train")
    cursor = start_of(packed, selection, seed=0)
    plan = split_ranges(cursor.remaining, 1, 0, 16)
    batches = Batches(packed, selection, order_of(cursor, selection), plan, 0, Cut("patches", 8))
    assert sum(len(batch) for batch in batches) == sum(selection.counts)
    assert not mark.exists()


PLAIN = """
import webdataset as wds

samples = wds.WebDataset("demo/shards/train-{000000..000007}.tar", shardshuffle=False)
for sample in samples.decode("rgb8", only=["jpg", "json"]):
    image, meta = sample["jpg"], sample["json"]  # uint8 [H, W, 3]; class, source, boxes, size
    print(sample["__key__"], meta["class"], len(meta["boxes"]), image.shape)
"""


def test_the_demo_shards_are_read_by_plain_webdataset() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = [line.split(" ", 3) for line in done.stdout.splitlines()]
    manifest = load_manifest(str(ROOT / "demo" / "shards"))
    shards = manifest.shards_of("train")
    ours = [sample for shard in shards for sample in read_shard(manifest, shard)]
    assert [row[0] for row in rows] == [sample.key for sample in ours]
    assert [row[1] for row in rows] == [manifest.class_names[sample.label] for sample in ours]
    assert {row[2] for row in rows} == {str(manifest.num_patches)}
    assert [row[3] for row in rows] == [str(sample.image.shape) for sample in ours]
