"""Files of the feature cache: in place on a shared disk, or at a URL with a copy on each node."""

import hashlib
import os
import tempfile
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from distributed.run_storage import get_file, is_remote, join, put_file
from shards.access import Access
from vgse.disk import room_for


def unit_path(folder: str, name: str, access: Access) -> Path:
    """Where this node has a file of the cache, or will have it.

    Copies of a cache at a URL lie in the folder that keeps shards of a store, if there is one, and
    otherwise in the system's folder for temporary files.

    Raises:
        ValueError: another user owns the folder of the copies.
    """
    if not is_remote(folder):
        return Path(folder) / name
    digest = hashlib.sha256(folder.encode()).hexdigest()[:16]
    if access.cache is not None:
        return Path(access.cache).expanduser() / "features" / digest / name
    root = Path(tempfile.gettempdir()) / f"vgse-features-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise ValueError(f"{root}: belongs to another user; set data.shard_cache to a folder")
    return root / digest / name


def local_unit(folder: str, name: str, access: Access) -> Path:
    """The file on this node, fetched now if the cache is at a URL and there is no copy yet.

    Raises:
        ValueError: the cache at the URL has no such file.
    """
    path = unit_path(folder, name, access)
    if is_remote(folder) and not path.is_file():
        try:
            get_file(join(folder, name), path)
        except FileNotFoundError:
            raise ValueError(
                f"{join(folder, name)}: missing from the feature cache; run again to compute it"
            ) from None
    return path


def send_unit(folder: str, name: str, access: Access) -> None:
    """Send a file that was made on this node to a cache at a URL."""
    if is_remote(folder):
        put_file(unit_path(folder, name, access), join(folder, name))


def write_tensors(target: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file under a temporary name, then rename it."""
    with room_for(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".part-")
        os.close(handle)
        try:
            save_file({k: v.contiguous() for k, v in tensors.items()}, name, metadata)
            os.chmod(name, 0o644)  # mkstemp's 0600 would keep others of a shared disk from it
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
