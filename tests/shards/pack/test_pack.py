import json
import os
import resource
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from shards.config import PackConfig
from shards.datasets.dataset import read_source
from shards.manifest import Manifest, load_labels, load_manifest
from shards.pack.executors import choose_run
from shards.pack.pack import STATE, Progress, _plan_hash, pack, plan_shards
from shards.samples import read_shard
from shards_trees import flat_tree, pack_tree, write


def contents(folder: Path) -> dict[str, bytes]:
    """All but the times of the pictures, which differ from copy to copy."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != STATE
    }


def keys(manifest: Manifest) -> list[str]:
    return [sample.key for shard in manifest.shards for sample in read_shard(manifest, shard)]


def test_every_image_is_packed_once_with_its_class(tmp_path: Path) -> None:
    manifest = pack_tree(flat_tree(tmp_path / "set"), tmp_path / "out")
    samples = [s for shard in manifest.shards for s in read_shard(manifest, shard)]
    assert len({sample.key for sample in samples}) == len(samples) == 30
    for sample in samples:
        assert sample.source.startswith(manifest.class_names[sample.label] + "/")
        assert sample.image.shape == (30, 40, 3) and sample.boxes.shape == (4, 4)


def test_shards_mix_classes(tmp_path: Path) -> None:
    manifest = pack_tree(flat_tree(tmp_path / "set"), tmp_path / "out")
    ends = np.cumsum(manifest.shards.counts)
    parts = np.split(load_labels(manifest), ends[:-1])
    assert min(len(set(part.tolist())) for part in parts if len(part) > 3) >= 2


def test_packing_twice_gives_identical_bytes_in_one_process_or_two(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set")
    one = pack_tree(tmp_path / "set", tmp_path / "one", patches="watershed")
    two = pack(
        PackConfig(
            source=f"folder:{tmp_path / 'set'}",
            out=str(tmp_path / "two"),
            unseen_fraction=0.34,
            images_per_shard=6,
            num_patches=4,
            patches="watershed",
        ),
        run=choose_run(2),
    )
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert one.fingerprint == two.fingerprint
    third = pack_tree(tmp_path / "set", tmp_path / "three", patches="watershed", seed=1)
    assert third.fingerprint != one.fingerprint


def test_the_place_of_the_data_set_leaves_no_trace(tmp_path: Path) -> None:
    flat_tree(tmp_path / "a" / "set")
    flat_tree(tmp_path / "b" / "set")
    pack_tree(tmp_path / "a" / "set", tmp_path / "one")
    pack_tree(tmp_path / "b" / "set", tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert not any(str(tmp_path).encode() in data for data in contents(tmp_path / "one").values())


def test_plain_webdataset_reads_the_shards(tmp_path: Path) -> None:
    manifest = pack_tree(flat_tree(tmp_path / "set"), tmp_path / "out")
    shard = manifest.shards_of("train")[0]
    data = webdataset.WebDataset(str(tmp_path / "out" / shard.file), shardshuffle=False)
    theirs = list(data.decode("rgb8"))
    ours = list(read_shard(manifest, shard))
    assert [row["__key__"] for row in theirs] == [sample.key for sample in ours]
    for row, sample in zip(theirs, ours, strict=True):
        assert row["json"]["class"] == manifest.class_names[sample.label]
        assert np.abs(row["jpg"].astype(int) - sample.image).max() <= 3
        assert np.allclose(row["json"]["boxes"], sample.boxes)


class Stopped(Exception):
    """Stands for a kill."""


def stop_after(count: int) -> Callable[..., Iterator[Any]]:
    def run(work: Callable[[Any], Any], pieces: Iterable[Any]) -> Iterator[Any]:
        for number, piece in enumerate(pieces):
            if number == count:
                raise Stopped
            yield work(piece)

    return run


def test_a_killed_pack_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set")
    whole = pack_tree(tmp_path / "set", tmp_path / "whole")
    out = tmp_path / "out"
    config = PackConfig(
        source=f"folder:{tmp_path / 'set'}",
        out=str(out),
        unseen_fraction=0.34,
        images_per_shard=6,
        num_patches=4,
    )
    with pytest.raises(Stopped):
        pack(config, run=stop_after(2))
    assert not (out / "manifest.json").exists()
    finished = sorted(out.glob("*.tar"))
    assert len(finished) == 2
    (out / ".packing" / "train-000002.tar.77.tmp").write_bytes(b"half a shard")
    inodes = [path.stat().st_ino for path in finished]
    seen: list[Progress] = []
    again = pack(config, on_progress=seen.append)
    assert [path.stat().st_ino for path in finished] == inodes
    assert contents(out) == contents(tmp_path / "whole")
    assert again.fingerprint == whole.fingerprint and seen[-1] == Progress(30, 30, 0)


def test_a_shard_changed_after_the_kill_is_made_again(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set")
    pack_tree(tmp_path / "set", tmp_path / "whole")
    config = PackConfig(
        source=f"folder:{tmp_path / 'set'}",
        out=str(tmp_path / "out"),
        unseen_fraction=0.34,
        images_per_shard=6,
        num_patches=4,
    )
    with pytest.raises(Stopped):
        pack(config, run=stop_after(1))
    (tmp_path / "out" / "train-000000.tar").write_bytes(b"bit rot")
    pack(config)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


KILLED = """
import os, signal, sys
from shards.pack import pack as module
from shards.config import PackConfig
from shards.pack.pack import pack
writes = []
encode = module.encode_jpeg
def dying(*args):
    writes.append(1)
    if len(writes) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(*args)
module.encode_jpeg = dying
pack(PackConfig(source="folder:" + sys.argv[1], out=sys.argv[2], unseen_fraction=0.34,
                images_per_shard=6, num_patches=4))
"""


def test_sigkill_in_mid_shard_leaves_nothing_half_written_in_sight(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set")
    pack_tree(tmp_path / "set", tmp_path / "whole")
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "set"), str(out)]
    assert subprocess.run(command, check=False).returncode == -9
    assert [path.name for path in out.glob("*.tar")] == ["train-000000.tar"]
    assert list(out.glob(".packing/*.tmp"))
    pack_tree(tmp_path / "set", out)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_pack_is_left_as_it_is(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set")
    first = pack_tree(tmp_path / "set", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert pack_tree(tmp_path / "set", tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_pictures_replaced_by_others_of_the_same_size_and_date_are_packed_anew(
    tmp_path: Path,
) -> None:
    root = flat_tree(tmp_path / "set")
    path = write(root / "cat" / "1.bmp", 1)
    first = pack_tree(root, tmp_path / "out", images_per_shard=2)
    shards = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.tar")}
    status = path.stat()
    write(path, 2)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    again = pack_tree(root, tmp_path / "out", images_per_shard=2)
    later = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.tar")}
    changed = [name for name in shards if later[name] != shards[name]]
    assert len(changed) == 1 and first.fingerprint != again.fingerprint
    pack_tree(root, tmp_path / "new", images_per_shard=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_pictures_that_were_only_touched_give_the_same_bytes_again(tmp_path: Path) -> None:
    root = flat_tree(tmp_path / "set")
    first = pack_tree(root, tmp_path / "out")
    before = contents(tmp_path / "out")
    os.utime(root / "cat" / "cat_1.png")
    assert pack_tree(root, tmp_path / "out") == first
    assert contents(tmp_path / "out") == before


def test_a_pack_of_an_earlier_version_is_left_as_it_is(tmp_path: Path) -> None:
    root, out = flat_tree(tmp_path / "set"), tmp_path / "out"
    plan = pack_tree(root, out).plan
    config = PackConfig(source=f"folder:{root}", out=str(out), unseen_fraction=0.34)
    config = replace(config, images_per_shard=6, num_patches=4)
    data = read_source(config)
    old = _plan_hash(plan_shards(data, config), data, config, with_sizes=True)
    (out / STATE).unlink()
    (out / "manifest.json").write_text((out / "manifest.json").read_text().replace(plan, old))
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert pack_tree(root, out).plan == old
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    write(root / "cat" / "cat_1.png", 7, (90, 80))
    with pytest.raises(ValueError, match="packed from other images or settings"):
        pack_tree(root, out)


def test_a_finished_pack_that_lost_a_shard_is_made_again(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set")
    first = pack_tree(tmp_path / "set", tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "train-000000.tar").unlink()
    assert pack_tree(tmp_path / "set", tmp_path / "out") == first
    assert contents(tmp_path / "out") == before


def test_a_folder_with_another_pack_is_refused(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set")
    pack_tree(tmp_path / "set", tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match=r"manifest\.json: packed from other images or settings"):
        pack_tree(tmp_path / "set", tmp_path / "out", quality=50)
    assert contents(tmp_path / "out") == before


def test_a_folder_with_part_of_another_pack_is_refused(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set")
    config = PackConfig(
        source=f"folder:{tmp_path / 'set'}",
        out=str(tmp_path / "out"),
        unseen_fraction=0.34,
        images_per_shard=6,
    )
    with pytest.raises(Stopped):
        pack(config, run=stop_after(1))
    with pytest.raises(ValueError, match="holds part of a pack from other images or settings"):
        pack_tree(tmp_path / "set", tmp_path / "out", seed=3)


def damage(root: Path) -> None:
    (root / "cat" / "cat_1.png").write_bytes(b"no picture at all")
    whole = (root / "dog" / "dog_2.png").read_bytes()
    (root / "dog" / "dog_2.png").write_bytes(whole[: len(whole) // 2])


def test_damaged_images_are_left_out_and_listed_by_name(tmp_path: Path) -> None:
    damage(flat_tree(tmp_path / "set"))
    manifest = pack_tree(tmp_path / "set", tmp_path / "out", max_damaged=0.1)
    assert [line.split(":")[0] for line in manifest.damaged] == ["cat/cat_1.png", "dog/dog_2.png"]
    assert "no picture" in manifest.damaged[0] and "truncated" in manifest.damaged[1]
    assert len(keys(manifest)) == 28
    assert load_manifest(manifest.url) == manifest


def test_too_many_damaged_images_stop_the_pack(tmp_path: Path) -> None:
    damage(flat_tree(tmp_path / "set"))
    with pytest.raises(ValueError, match=r"damaged, more than max_damaged=0\.01 allows") as caught:
        pack_tree(tmp_path / "set", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_class_whose_images_are_all_damaged_is_named(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set")
    for path in (tmp_path / "set" / "cat").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"class 'cat' \(\w+\) has no images in split"):
        pack_tree(tmp_path / "set", tmp_path / "out", max_damaged=0.5)


def test_file_names_never_become_member_names(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set")
    for number, name in enumerate(["..png.png", "a b'$(x).png", "ünï.png", "..%2f..%2fx.png"]):
        write(tmp_path / "set" / "cat" / name, number)
    manifest = pack_tree(tmp_path / "set", tmp_path / "out")
    names = []
    for shard in manifest.shards:
        with tarfile.open(tmp_path / "out" / shard.file) as tar:
            names += tar.getnames()
    assert all(name.replace("-", "").split(".")[0].isalnum() and name.isascii() for name in names)
    sources = {s.source for shard in manifest.shards for s in read_shard(manifest, shard)}
    assert {"cat/ünï.png", "cat/a b'$(x).png"} <= sources


@pytest.mark.parametrize("method", ["grid", "watershed"])
def test_every_image_gets_exactly_n_boxes(tmp_path: Path, method: str) -> None:
    root = flat_tree(tmp_path / "set")
    for number, size in enumerate([(3, 3), (90, 7), (13, 200), (1, 1)]):
        write(root / "cat" / f"odd_{number}.png", number, size)
    manifest = pack_tree(root, tmp_path / "out", patches=method, num_patches=9)
    for shard in manifest.shards:
        for sample in read_shard(manifest, shard):
            assert sample.boxes.shape == (9, 4)


def test_a_full_disk_is_one_line_and_keeps_what_is_finished(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set")
    whole = pack_tree(tmp_path / "set", tmp_path / "whole")
    smallest = whole.shards[0].bytes
    write(tmp_path / "set" / "cat" / "huge.png", 9, (900, 800))
    write(tmp_path / "set" / "dog" / "huge.png", 8, (900, 800))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (smallest + 9000, hard))
        with pytest.raises(ValueError, match=r"File too large; free some space, then run") as error:
            pack_tree(tmp_path / "set", tmp_path / "out", short_side=700)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert keys(pack_tree(tmp_path / "set", tmp_path / "out", short_side=700))


BAD = [
    ({"unseen_fraction": 1.5}, "unseen_fraction is 1.5; it must be in 0..1"),
    ({"quality": 0}, "quality is 0; it must be in 1..100"),
    ({"images_per_shard": 0}, "images_per_shard is 0; it must be at least 1"),
    ({"num_patches": 0}, "num_patches is 0; it must be at least 1"),
    ({"overlap": 1.0}, "overlap is 1.0; it must be at least 0 and below 1"),
    ({"short_side": -1}, "short_side is -1; it must be at least 0"),
    ({"splits": "att_splits.mat"}, "splits and features_file belong together"),
    ({"unseen": "u.txt"}, "give either unseen or unseen_fraction"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_settings_are_refused_before_any_work(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    flat_tree(tmp_path / "set", images=1)
    with pytest.raises(ValueError, match=message):
        pack_tree(tmp_path / "set", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_remote_folder_is_refused_with_the_way_round(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set")
    with pytest.raises(ValueError, match="pack into a local folder, then copy it there"):
        pack(PackConfig(source=f"folder:{tmp_path / 'set'}", out="s3://bucket/x"))


def test_the_manifest_is_readable_json_with_the_licence(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set")
    pack_tree(tmp_path / "set", tmp_path / "out", licence="CC0", title="tiny pictures")
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (content["licence"], content["source"]) == ("CC0", "tiny pictures")
    assert content["patches"] == {"method": "grid", "num_patches": 4, "params": {"overlap": 0.5}}
    assert content["image"] == {"short_side": 384, "quality": 90, "largest": 30}
