"""Packing as Ray tasks gives what packing here gives, and survives a dead worker."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shards.config import PackConfig
from shards.manifest import Manifest
from shards.pack.executors import choose_run
from shards.pack.pack import PackedShard, Progress, ShardSpec, pack, pack_shard
from shards_trees import flat_tree

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flat_tree(tmp_path_factory.mktemp("ray") / "set", images=12)


def config(tree: Path, out: Path, **changed: Any) -> PackConfig:
    options: dict[str, Any] = {"unseen_fraction": 0.34, "images_per_shard": 6, "num_patches": 4}
    return PackConfig(source=f"folder:{tree}", out=str(out), **{**options, **changed})


def contents(manifest: Manifest) -> dict[str, bytes]:
    names = [shard.file for shard in manifest.shards] + [
        "shards.npy",
        "labels.npy",
        "manifest.json",
    ]
    return {name: Path(manifest.url, name).read_bytes() for name in names}


def test_ray_tasks_pack_the_same_bytes_and_report_progress(tree: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    there = pack(
        config(tree, tmp_path / "ray"), run=choose_run(None, "auto"), on_progress=seen.append
    )
    here = pack(config(tree, tmp_path / "here"))
    assert contents(there) == contents(here) and len(there.shards) > 8
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1] == Progress(72, 72, 0) and len(seen) == len(there.shards)


def test_a_killed_worker_is_replaced_and_the_shards_are_the_same(
    tree: Path, tmp_path: Path
) -> None:
    def die_once(spec: ShardSpec) -> PackedShard:
        marker = Path(spec.config.out, "died")
        if spec.file == "train-000002.tar" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return pack_shard(spec)

    def run(work: Callable[[Any], Any], pieces: Iterable[Any]) -> Iterator[Any]:
        return choose_run(None, "auto")(die_once, pieces)

    out = tmp_path / "ray"
    there = pack(config(tree, out), run=run)
    assert (out / "died").exists()
    assert contents(there) == contents(pack(config(tree, tmp_path / "here")))
    assert not list(out.rglob("*.tmp"))


def test_damage_found_by_a_task_is_listed_and_too_much_is_one_line(tmp_path: Path) -> None:
    root = flat_tree(tmp_path / "set", images=12)
    (root / "cat" / "cat_0.png").write_bytes(b"no picture")
    manifest = pack(config(root, tmp_path / "out", max_damaged=0.02), run=choose_run(None, "auto"))
    assert len(manifest.damaged) == 1 and manifest.damaged[0].startswith("cat/cat_0.png: ")
    with pytest.raises(ValueError, match=r"1 of 72 images \(1\.4%\) are damaged") as caught:
        pack(config(root, tmp_path / "strict"), run=choose_run(None, "auto"))
    assert "\n" not in str(caught.value)


def test_a_folder_that_tasks_cannot_write_is_one_line(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".packing").write_text("in the way")
    with pytest.raises(ValueError, match=r"finished shards are kept") as caught:
        pack(config(tree, tmp_path / "out"), run=choose_run(None, "auto"))
    assert "\n" not in str(caught.value)
