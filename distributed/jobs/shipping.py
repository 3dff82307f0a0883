"""What a job gets: the files of the checkout that git knows or would add, and paths it can read."""

import hashlib
import os
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from vgse.config import RunConfig
from vgse.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 512 * 2**20  # Ray's own limit of a working directory
_NEVER_TOPS = {".venv", "venv", "runs"}
# Secrets travel by --env-file alone. .gitignore and deploy/Dockerfile.dockerignore have the same.
SECRET_NAMES = (".env*", "*.env", "*.pem", "*.key", "secrets", "id_rsa*", "id_ed25519*")


@dataclass(frozen=True)
class Shipment:
    """The files that a job gets."""

    root: Path
    files: tuple[str, ...]  # relative to root, sorted
    bytes: int
    digest: str  # sha256 over names and contents


def checkout_files(root: Path) -> list[str]:
    """Files below `root` that git tracks or would add, relative to it and sorted.

    Environments, run folders and files that by their names hold secrets stay out.

    Raises:
        ValueError: not a git checkout.
    """
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    try:
        listed = subprocess.run(
            [*command, "--exclude-standard"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        told = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise UserError(
            f"{root}: submit ships what git lists, and git does not ({told}); clone the project"
        ) from None
    return sorted({name for name in listed.stdout.split("\0") if name and _ships(root, name)})


def _ships(root: Path, name: str) -> bool:
    path = Path(name)
    hidden = any(fnmatchcase(part, hide) for part in path.parts for hide in SECRET_NAMES)
    return not hidden and path.parts[0] not in _NEVER_TOPS and (root / name).is_file()


def pack_list(root: Path, leave_out: Iterable[Path] = ()) -> Shipment:
    """What is shipped of the checkout, with its size and a hash of its content.

    Args:
        root: the checkout.
        leave_out: files that stay here, such as one with secrets.

    Raises:
        ValueError: not a git checkout, or more than Ray takes.
    """
    private = {path.resolve() for path in leave_out}
    files = [name for name in checkout_files(root) if (root / name).resolve() not in private]
    sizes = {name: (root / name).stat().st_size for name in files}
    total = sum(sizes.values())
    if total > MAX_BYTES:
        folders: Counter[str] = Counter()
        for name, size in sizes.items():
            folders[str(Path(name).parent)] += size
        largest = ", ".join(f"{f} ({_mib(size)})" for f, size in folders.most_common(3))
        raise UserError(
            f"{root}: the checkout has {_mib(total)} and Ray ships {_mib(MAX_BYTES)} at most; "
            f"largest: {largest}; move data to storage that all nodes share, or name it in "
            ".gitignore"
        )
    digest = hashlib.sha256()
    for name in files:
        content = hashlib.sha256((root / name).read_bytes()).hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return Shipment(root, tuple(files), total, digest.hexdigest())


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def stage(shipment: Shipment, folder: Path) -> None:
    """Lay the files out in an empty folder, as links, without git's own lists.

    Ray applies .gitignore files anew, which would drop what was added to git by force.
    """
    for name in shipment.files:
        if Path(name).name not in {".gitignore", ".rayignore"}:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(shipment.root / name)


def place_paths(config: RunConfig, shipment: Shipment) -> list[str]:
    """Rewrite the paths of a configuration, in place, to what they are called in the job.

    Relative paths count from here and must lie in the shipped checkout. Returns warnings.

    Raises:
        ValueError: one line for the first path that the job could not read or would lose.
    """
    if config.cluster.address is not None:
        raise UserError(
            f"cluster.address is {config.cluster.address}, but a job runs on the cluster it is "
            "submitted to; leave it out"
        )
    places = {
        "storage": config.storage,
        "data.cache": config.data.cache,
        "data.shard_cache": config.data.shard_cache,
    }
    for field, path in places.items():
        if path is not None and not _is_global(path):
            raise UserError(
                f"{field} is {path}, a relative path: nodes work in folders of their own that are "
                "deleted; give an absolute path or URL of storage that all nodes share"
            )
    weights = config.backbone.weights
    if weights not in ("default", "none") and not _is_global(weights):
        raise UserError(
            f"backbone.weights is {weights}, a relative path, which workers cannot find; "
            "give an absolute path on storage that all nodes share"
        )
    if not _is_global(config.data.words):
        config.data.words = _shipped("data.words", config.data.words, shipment, [])
    if _is_global(config.data.shards):
        return []
    given = Path(config.data.shards)
    folder = given.parent if given.name == "manifest.json" else given
    inside = ["manifest.json", *(tar.name for tar in sorted(folder.glob("*.tar")))]
    config.data.shards = _shipped("data.shards", str(folder), shipment, inside)
    if config.data.cache is None:
        config.data.cache = f"{config.storage.rstrip('/')}/cache"
    return [
        f"warning: data.shards {config.data.shards} lies in the checkout, of which every node "
        "unpacks a copy of its own: sure to work on a cluster of one node only; for more, copy "
        "it to storage that all nodes share"
    ]


def _is_global(path: str) -> bool:
    return "://" in path or Path(path).is_absolute()


def _shipped(field: str, path: str, shipment: Shipment, inside: list[str]) -> str:
    here = Path(os.path.abspath(path))
    remedy = "give an absolute path or URL on storage that all nodes share"
    if not here.exists():
        raise UserError(f"{field}: no file {path} in this folder; {remedy}")
    if not here.is_relative_to(shipment.root):
        raise UserError(f"{field}: {path} lies outside the checkout and is not shipped; {remedy}")
    name = here.relative_to(shipment.root).as_posix()
    needed = [f"{name}/{file}" for file in inside] or [name]
    lost = sorted(set(needed) - set(shipment.files))
    if lost:
        others = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise UserError(
            f"{field}: git ignores {lost[0]}{others}, so it is not shipped; {remedy}, or take it "
            "out of .gitignore"
        )
    return name
