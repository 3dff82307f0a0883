"""What a job gets: the files of the checkout that git knows or would add, and paths it can read."""

import hashlib
import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from vgse.config import RunConfig
from vgse.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 512 * 2**20  # Ray's own limit of a working directory
_NEVER_TOPS = {".venv", "venv", "runs"}
# Secrets travel by --env-file alone. .gitignore and deploy/Dockerfile.dockerignore have the same.
SECRET_NAMES = (".env*", "*.env", "*.pem", "*.key", "secrets", "id_rsa*", "id_ed25519*")


def checkout_files(root: Path, env_file: Path | None = None) -> list[str]:
    """Files below `root` that git tracks or would add, relative to it and sorted.

    Environments, run folders, `env_file` and files that by their names hold secrets stay out.
    """
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    try:
        listed = subprocess.run(
            [*command, "--exclude-standard"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise UserError(
            f"{root}: submit ships what git lists, and git does not ({reason}); clone the project"
        ) from None
    names = {name for name in listed.stdout.split("\0") if name and _is_shipped(root, name)}
    if env_file is not None:
        names = {name for name in names if (root / name).resolve() != env_file.resolve()}
    return sorted(names)


def _is_shipped(root: Path, name: str) -> bool:
    parts = Path(name).parts
    secret = any(fnmatchcase(part, pattern) for part in parts for pattern in SECRET_NAMES)
    return not secret and parts[0] not in _NEVER_TOPS and (root / name).is_file()


def total_bytes(root: Path, files: Sequence[str]) -> int:
    """Size of the files, which must not be more than Ray takes."""
    folders: Counter[str] = Counter()
    for name in files:
        folders[str(Path(name).parent)] += (root / name).stat().st_size
    if (total := folders.total()) > MAX_BYTES:
        largest = ", ".join(f"{name} ({_mib(size)})" for name, size in folders.most_common(3))
        raise UserError(
            f"{root}: the checkout has {_mib(total)} and Ray ships {_mib(MAX_BYTES)} at most; "
            f"largest: {largest}; move data to storage that all nodes share, or name it in "
            ".gitignore"
        )
    return total


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def code_hash(root: Path, files: Sequence[str]) -> str:
    """A hash over names and contents, by which it can be told which code ran."""
    digest = hashlib.sha256()
    for name in files:
        content = hashlib.sha256((root / name).read_bytes()).hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()[:12]


def link_files(root: Path, files: Sequence[str], folder: Path) -> None:
    """Lay the files out in an empty folder, as links, without git's own lists.

    Ray applies .gitignore files anew, which would drop what was added to git by force.
    """
    for name in files:
        if Path(name).name not in {".gitignore", ".rayignore"}:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(root / name)


def resolve_paths(config: RunConfig, root: Path, files: Sequence[str]) -> list[str]:
    """Rewrite the paths of a configuration, in place, to what they are called in the job.

    Relative paths count from here and must lie in the shipped checkout. Returns warnings.
    """
    if config.cluster.address is not None:
        raise UserError(
            f"cluster.address is {config.cluster.address}, but a job runs on the cluster it is "
            "submitted to; leave it out"
        )
    for field, path, remedy in (
        ("storage", config.storage, "path or URL of"),
        ("data.cache", config.data.cache, "path or URL of"),
        ("data.shard_cache", config.data.shard_cache, "path or URL of"),
        ("backbone.weights", config.backbone.weights, "path on"),
    ):
        if path in (None, "default", "none") or _is_global(path):
            continue
        raise UserError(
            f"{field} is {path}, a relative path: nodes work in folders of their own that are "
            f"deleted; give an absolute {remedy} storage that all nodes share"
        )
    if not _is_global(config.data.words):
        config.data.words = _shipped("data.words", config.data.words, root, files)
    if _is_global(config.data.shards):
        return []
    given = Path(config.data.shards)
    folder = given.parent if given.name == "manifest.json" else given
    inside = ["manifest.json", *(tar.name for tar in sorted(folder.glob("*.tar")))]
    config.data.shards = _shipped("data.shards", str(folder), root, files, inside)
    if config.data.cache is None:
        config.data.cache = f"{config.storage.rstrip('/')}/cache"
    return [
        f"warning: data.shards {config.data.shards} lies in the checkout, of which every node "
        "unpacks a copy of its own: sure to work on a cluster of one node only; for more, copy "
        "it to storage that all nodes share"
    ]


def _is_global(path: str) -> bool:
    return "://" in path or Path(path).is_absolute()


def _shipped(
    field: str, path: str, root: Path, files: Sequence[str], inside: Sequence[str] = ()
) -> str:
    """A path of this folder, as it is called in the shipped checkout."""
    here = Path(os.path.abspath(path))
    remedy = "give an absolute path or URL on storage that all nodes share"
    if not here.exists():
        raise UserError(f"{field}: no file {path} in this folder; {remedy}")
    if not here.is_relative_to(root):
        raise UserError(f"{field}: {path} lies outside the checkout and is not shipped; {remedy}")
    name = here.relative_to(root).as_posix()
    needed = [f"{name}/{file}" for file in inside] or [name]
    if lost := sorted(set(needed) - set(files)):
        others = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise UserError(
            f"{field}: git ignores {lost[0]}{others}, so it is not shipped; {remedy}, or take it "
            "out of .gitignore"
        )
    return name
