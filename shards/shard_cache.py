"""Local copies of remote shards and of units of the feature cache at a URL, shared by all processes
and runs of a machine.

A copy appears under the sha256 of its content once it is right. There is no lock: of two processes
the second replaces it by an equal one. A `.part-` file of a killed process is removed later.
"""

import hashlib
import os
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

from shards.manifest import ShardEntry
from shards.objects import FULL, Access, read_bytes
from shards.read_ahead import read_ahead
from vgse.errors import UserError

CHUNK_BYTES = 8 << 20
_STALE_S = 3600.0  # a part that is being written changes every few seconds
_PROCESSES = 32  # of a node that may add copies at once, before each looks again

# Threads of one process wait for each other; nothing of it outlives the process.
_loading: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
_allowance: dict[str, int] = {}  # bytes that this process may still add to a folder unseen


def read_cached(url: str, shard: ShardEntry, start: int, stop: int, access: Access) -> bytes:
    """Bytes start to stop of a shard from its local copy, which is made if there is none, or from
    the store where the disk has no room for it."""
    for _ in range(3):  # another process may remove the copy between the two steps
        path = cached_copy(url, shard, access)
        if path is None:
            break
        try:
            return read_bytes(str(path), start, stop)
        except FileNotFoundError:
            continue
    return read_bytes(url, start, stop, retry=access.retry)


def cached_copy(url: str, shard: ShardEntry, access: Access) -> Path | None:
    """The local copy of a shard, loaded now if it is not there; None if there is no room."""
    assert access.cache is not None
    folder = Path(access.cache).expanduser()
    path = folder / f"{shard.sha256}.tar"
    with _loading[str(path)]:
        if _is_whole(path, shard):
            return path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not _make_room(folder, shard.bytes, access.cache_bytes):
                return None
            _load(url, shard, path, access)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in FULL:
                return None
            raise UserError(
                f"{folder}: the shard cache cannot be written ({error.strerror}); "
                "choose another folder"
            ) from error
    return path


def _is_whole(path: Path, shard: ShardEntry) -> bool:
    try:
        if path.stat().st_size != shard.bytes:
            return False
        os.utime(path)  # in use: the last to be forgotten
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        pass  # another user's cache: good to read
    return True


def _load(url: str, shard: ShardEntry, path: Path, access: Access) -> None:
    def fetch(start: int) -> bytes:
        stop = min(start + CHUNK_BYTES, shard.bytes)
        return read_bytes(url, start, stop, retry=access.retry)

    digest = hashlib.sha256()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with open(handle, "wb") as file:
            for _, data in read_ahead(range(0, shard.bytes, CHUNK_BYTES), fetch, access.ahead):
                file.write(data)
                file.flush()
                digest.update(data)
            os.fsync(file.fileno())
        if digest.hexdigest() != shard.sha256:
            raise UserError(f"{url}: {changed(digest.hexdigest(), shard)}")
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def changed(digest: str, shard: ShardEntry) -> str:
    """What to say of a shard whose sha256 is not the manifest's."""
    return (
        f"sha256 is {digest[:12]}…, the manifest has {shard.sha256[:12]}…: "
        "changed after packing; copy it again or pack again"
    )


def _make_room(folder: Path, needed: int, limit: int | None) -> bool:
    """Whether a copy of `needed` bytes may be added, after forgetting what is oldest."""
    copies, total = _copies(folder)
    if limit is None:
        return True
    if needed > limit:
        return False
    _forget(copies, total + needed - limit)
    return True


def forget_oldest(folder: Path, added: int, limit: int | None) -> None:
    """Bring shards and units of features below `folder` back under `limit` bytes, now that this
    process has added some; it looks at them again only when they can have come near the limit."""
    if limit is None:
        return
    with _loading[str(folder)]:
        left = _allowance.get(str(folder), 0) - added
        if left < 0:
            copies, total = _copies(folder)
            total -= _forget(copies, total - round(0.95 * limit))
            left = (limit - total) // _PROCESSES
        _allowance[str(folder)] = left


def _copies(folder: Path) -> tuple[list[tuple[float, int, str]], int]:
    """Time of the last use, bytes and path of each copy, and the bytes of all there is; half
    copies that nobody goes on with are removed."""
    copies, total = [], 0
    features = folder / "features"
    units = [Path(item.path) for item in os.scandir(features)] if features.is_dir() else []
    for place, ending in [(folder, ".tar"), *((unit, ".safetensors") for unit in units)]:
        for item in os.scandir(place):
            part = item.name.startswith(".part-") or item.name.endswith(".partial")
            if not part and not item.name.endswith(ending):
                continue
            try:
                found = item.stat()
                if part and time.time() - found.st_mtime > _STALE_S:
                    os.unlink(item.path)
                    continue
            except FileNotFoundError:
                continue  # another process was faster
            total += found.st_size
            if not part:
                copies.append((found.st_mtime, found.st_size, item.path))
    return copies, total


def _forget(copies: list[tuple[float, int, str]], excess: int) -> int:
    """Remove copies, the oldest first, of so many bytes in all; returns what that was."""
    removed = 0
    for _, size, path in sorted(copies):
        if removed >= excess:
            break
        Path(path).unlink(missing_ok=True)  # who reads it now can finish
        removed += size
    return removed
