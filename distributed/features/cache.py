"""Features of a frozen backbone, cached as files and read back by mmap.

A unit, at most 256 consecutive images of a shard, is one file of the cache and one block of the
epoch's order. Files appear whole or not at all: runs and trials share a cache.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distributed.storage import download_file, upload_file
from shards.manifest import Manifest
from shards.objects import ACCESS, PATIENT, Access, is_remote, join_url
from shards.sampler import samples_of
from shards.shard_cache import forget_oldest
from vgse.config import BackboneConfig, DataConfig
from vgse.errors import UserError
from vgse.files import written_whole
from vgse.images.backbones import weights_content, weights_file

UNIT = 256  # images at most


@dataclass(frozen=True)
class FeatureSpec:
    """What is computed: all a cache's key depends on, apart from the data."""

    name: str
    weights: str  # "default", "none", or the path of a file
    patch_size: int
    image_size: int
    precision: str
    seed: int | None = None  # None: all patches; otherwise only the sample that starts the clusters
    sample_below: int = 2**64 - 1  # patches whose hash lies below this are the sample
    content: str = ""  # a digest of the weights, which the key holds in place of their path


@dataclass(frozen=True)
class Unit:
    """Images start..stop of a shard."""

    shard: str
    split: str
    start: int
    stop: int
    rows: NDArray[np.int64] | None = field(default=None, compare=False)
    """The images [n] of the split where others lie between them, by their place in the shard."""

    @property
    def whole(self) -> "Unit":
        """All images from start to stop, as the cache holds them."""
        return replace(self, rows=None)

    @property
    def count(self) -> int:
        """Images of the split."""
        return self.stop - self.start if self.rows is None else len(self.rows)

    def holds(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some places in the shard are of the split."""
        return np.ones(len(rows), bool) if self.rows is None else np.isin(rows, self.rows)

    @property
    def file(self) -> str:
        """Name of the unit's file in the cache."""
        return f"{self.shard.removesuffix('.tar')}-{self.start:07d}.safetensors"

    @property
    def damage(self) -> str:
        """Name of the file that lists images which could not be read, if there ever were any."""
        return f"{self.file}.damaged"


@dataclass(frozen=True)
class UnitFeatures:
    """What the cache holds of a unit; tensors are views of the mapped file."""

    keys: list[str]
    labels: Tensor  # int64 [n]
    images: Tensor  # float16 [n, D_f], whole pictures
    patches: Tensor  # float16 [n, N, D_f], or [m, D_f] of the sampled patches
    rows: Tensor  # int64 [n], each image's place in its shard
    sources: list[str]  # [n] paths in the data set, "" where not known


def feature_spec(config: BackboneConfig, precision: str) -> FeatureSpec:
    """The spec of a frozen backbone, all patches."""
    return FeatureSpec(
        config.name,
        str(weights_file(config.weights) or config.weights),
        config.patch_size,
        config.image_size,
        precision,
        content=weights_content(config.name, config.weights),
    )


def units_of(manifest: Manifest, splits: Sequence[str]) -> list[Unit]:
    """All units of some splits, in the order of the shards' names."""
    units = []
    for split in splits:
        samples = samples_of(manifest, split)
        for number, shard in enumerate(samples.shards):
            rows = samples.places(number)
            for start in range(0, shard.count, UNIT):
                unit = Unit(shard.file, split, start, min(start + UNIT, shard.count))
                if rows is not None:
                    own = rows[(rows >= start) & (rows < unit.stop)]
                    unit = unit if len(own) == unit.count else replace(unit, rows=own)
                if unit.count:
                    units.append(unit)
    return units


def access_of(config: DataConfig) -> Access:
    """How the configuration wants remote shards to be read."""
    limit = int(config.shard_cache_gb * 1e9) or None
    return Access(retry=PATIENT, cache=config.shard_cache, cache_bytes=limit)


def cache_folder(root: str, manifest: Manifest, spec: FeatureSpec) -> str:
    """The folder or URL of some pictures and a spec below the cache's root. Shards' checksums cover
    pictures and boxes; words, roles and whatever else the manifest says take no part."""
    pictures = sorted([shard.file, shard.sha256] for shard in manifest.shards)
    given = asdict(spec)
    given["weights"] = given.pop("content") or spec.weights
    return _folder(root, spec, [pictures, manifest.class_names, given, UNIT])  # labels count names


def earlier_cache_folder(root: str, manifest: Manifest, spec: FeatureSpec, weights: str) -> str:
    """Where earlier versions kept the same, by all that the manifest says and the configured
    `weights`."""
    given = asdict(spec)
    given["weights"] = weights
    if (content := given.pop("content")) and weights not in ("default", "none"):
        given["weights"] += f"#{content}"
    return _folder(root, spec, [manifest.fingerprint, given, UNIT])


def _folder(root: str, spec: FeatureSpec, content: list[Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return join_url(root, f"{folder_prefix(spec.name)}{digest}")


def folder_prefix(backbone: str) -> str:
    """What the names of all folders of a backbone's features begin with."""
    return f"{backbone.replace('/', '-')}-"


def local_folder(access: Access) -> Path:
    """Where this node keeps copies of what lies at a URL."""
    if access.cache is not None:
        return Path(access.cache).expanduser()
    root = Path(tempfile.gettempdir()) / f"vgse-features-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise UserError(f"{root}: belongs to another user; set data.shard_cache to a folder")
    return root


def unit_path(folder: str, name: str, access: Access) -> Path:
    """Where this node has a file of the cache, or keeps its copy of one at a URL."""
    if not is_remote(folder):
        return Path(folder) / name
    digest = hashlib.sha256(folder.encode()).hexdigest()[:16]
    return local_folder(access) / "features" / digest / name


def write_unit(
    folder: str | Path,
    unit: Unit,
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    access: Access = ACCESS,
) -> None:
    """Add a unit's file to the cache; of a cache at a URL a copy stays on this node as long as
    there is room for it."""
    path = unit_path(str(folder), unit.file, access)
    with written_whole(path) as stream:
        stream.write(save({k: tensor.contiguous() for k, tensor in tensors.items()}, metadata))
    if is_remote(str(folder)):
        size = path.stat().st_size
        upload_file(path, join_url(str(folder), unit.file))
        forget_oldest(local_folder(access), size, access.cache_bytes)


def read_unit(folder: str | Path, unit: Unit, access: Access = ACCESS) -> UnitFeatures:
    """A unit of the cache, mapped rather than read, of a cache at a URL by way of a copy.

    Where the unit names its `rows`, those alone; sampled patches stay those of the whole unit.
    """
    whole = _read_whole(folder, unit, access)
    if unit.rows is None:
        return whole
    kept = np.flatnonzero(unit.holds(whole.rows.numpy()))
    chosen = torch.from_numpy(kept)
    return UnitFeatures(
        keys=[whole.keys[i] for i in kept],
        labels=whole.labels[chosen],
        images=whole.images[chosen],
        patches=whole.patches[chosen] if whole.patches.dim() == 3 else whole.patches,
        rows=whole.rows[chosen],
        sources=[whole.sources[i] for i in kept],
    )


def _read_whole(folder: str | Path, unit: Unit, access: Access) -> UnitFeatures:
    path = unit_path(str(folder), unit.file, access)
    url = join_url(str(folder), unit.file)
    try:
        if not is_remote(url):
            return _mapped(path)
        for _ in range(3):  # another process may remove the copy before it is mapped
            try:
                content = _mapped(path)
            except FileNotFoundError:
                download_file(url, path)
                with suppress(FileNotFoundError):
                    content, size = _mapped(path), path.stat().st_size
                    forget_oldest(local_folder(access), size, access.cache_bytes)
                    return content
                continue
            with suppress(OSError):
                os.utime(path)  # in use: the last to be forgotten
            return content
    except FileNotFoundError:
        pass
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete the file and run again") from None
    raise UserError(f"{url}: missing from the feature cache; run again to compute it")


def _mapped(path: Path) -> UnitFeatures:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        keys = json.loads(metadata["keys"])
        # Files of earlier versions hold none.
        sources = json.loads(metadata.get("sources", "null")) or [""] * len(keys)
        names = ("labels", "images", "patches", "rows")
        tensors = {name: file.get_tensor(name) for name in names}
    return UnitFeatures(keys=keys, sources=sources, **tensors)
