"""Image folders to tar shards with patch boxes, and tar shards to batches."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.loader import Batch
    from shards.manifest import Manifest

__all__ = ["iterate_patches", "load_manifest", "pack_images"]


def pack_images(source: str, out: str, **settings: Any) -> "Manifest":
    """Pack the images of `source`, such as "folder:PATH", into the folder `out`.

    `settings` are the other fields of `shards.config.PackConfig`, such as `unseen="unseen.txt"`.
    Returns the manifest; what was packed before in the same way is not packed again.
    """
    from shards.config import PackConfig
    from shards.pack.executors import choose_run
    from shards.pack.pack import pack

    config = PackConfig(source=source, out=out, **settings)
    return pack(config, run=choose_run(config.workers, config.ray))


def load_manifest(folder: str) -> "Manifest":
    """The manifest of a folder or URL of shards, its file sizes checked."""
    from shards.manifest import load_manifest

    return load_manifest(folder)


def iterate_patches(
    manifest: "Manifest",
    split: str = "train",
    *,
    size: int = 96,
    batch_size: int = 64,
    seed: int = 0,
    epoch: int = 0,
    loader_workers: int = 0,
) -> "Iterator[Batch]":
    """Every image of `split` (train, test_seen or test_unseen) once, in the order of an epoch.

    Yields batches with `patches` uint8 [B, N, size, size, 3] in RGB, `boxes` float32 [B, N, 4] in
    0..1, `labels` int64 [B] into `manifest.class_names` and `keys` [B].
    """
    from shards import loader, sampler

    selection = sampler.select(manifest, split)
    cursor = sampler.start_of(manifest, selection, seed=seed, epoch=epoch)
    plan = sampler.split_ranges(cursor.remaining, 1, loader_workers, batch_size)
    order = sampler.order_of(cursor, selection)
    cut = loader.Cut("patches", size)
    yield from loader.make_loader(loader.Batches(manifest, selection, order, plan, 0, cut))
