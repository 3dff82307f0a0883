"""Submitting a run to a cluster as a Ray job, with the files of the checkout that git lists."""

import hashlib
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from ray.job_submission import JobSubmissionClient

from distributed.jobs import env_file as environment
from distributed.jobs.client import connect, how_to_go_on, list_jobs, one_line, watch_job
from shards.datasets.classes import read_names
from vgse.config import RunConfig, check_name, leaves, to_dict, validate
from vgse.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 512 * 2**20  # Ray's own limit of a working directory
_NEVER_TOPS = {".venv", "venv", "runs"}
# Secrets travel by --env-file alone. .gitignore and deploy/Dockerfile.dockerignore have the same.
SECRET_NAMES = (".env*", "*.env", "*.pem", "*.key", "secrets", "id_rsa*", "id_ed25519*")


def submit(
    config: RunConfig,
    run_id: str,
    *,
    address: str | None,
    env_file: str | None,
    detach: bool,
    switches: Sequence[str],
    command: Sequence[str],
) -> int:
    """Ship the checkout, run `train` with `switches` on the cluster (or the `command` of another
    module) and follow it; returns its exit status."""
    check_name("--run-id", run_id)
    secrets = Path(env_file) if env_file else None
    variables = environment.parse_env_file(secrets) if secrets else {}
    files = checkout_files(ROOT, secrets)
    size, code = total_bytes(ROOT, files), code_hash(ROOT, files)
    if not command:
        validate(config)
        for warning in resolve_paths(config, ROOT, files):
            sys.stderr.write(f"{warning}\n")
        entrypoint = train_command(config, run_id, switches)
    elif (ROOT / command[0] / "__main__.py").is_file():
        entrypoint = shlex.join(["python", "-m", *command])
    else:
        raise UserError(f"-- {command[0]}: no such command; the checkout has no {command[0]}/")
    client = connect(address)
    job = unused_id(client, run_id)
    with tempfile.TemporaryDirectory() as folder, one_line(client.get_address()):
        link_files(ROOT, files, Path(folder))
        runtime_env = {"working_dir": folder}
        if variables:
            environment.write_env_file(Path(folder), variables)
            entrypoint = environment.with_variables(entrypoint)
            runtime_env["worker_process_setup_hook"] = environment.HOOK
        client.submit_job(
            entrypoint=entrypoint,
            submission_id=job,
            runtime_env=runtime_env,
            metadata={"run_id": run_id, "code": code},
        )
    shipped = f"{len(files)} files, {size / 2**20:,.1f} MiB, code {code}"
    sys.stdout.write(f"job {job} at {client.get_address()}: {shipped}\n")
    sys.stdout.flush()
    if detach:
        sys.stdout.write(how_to_go_on(client, job) + "\n")
        return 0
    return watch_job(client, job)


def unused_id(client: JobSubmissionClient, run_id: str) -> str:
    """An unused submission id: the run id, then run id-2, run id-3 as the run is resubmitted."""
    for job in list_jobs(client, run_id):
        if not job.status.is_terminal():
            raise UserError(
                f"--run-id {run_id}: job {job.submission_id} works on this run "
                f"({job.status.value}); follow it with python -m distributed status "
                f"{job.submission_id} --follow --address {client.get_address()}, or stop it first"
            )
    taken = {job.submission_id for job in list_jobs(client)}
    names = itertools.chain([run_id], (f"{run_id}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)


def train_command(config: RunConfig, run_id: str, switches: Sequence[str]) -> str:
    """The shell command that trains with this configuration, whatever file it came from."""
    arguments = ["python", "-m", "distributed", "train", "--run-id", run_id, *switches]
    defaults = dict(leaves(to_dict(RunConfig())))
    for name, value in leaves(to_dict(config)):
        if value != defaults[name]:
            text = value if isinstance(value, str) else json.dumps(value)
            arguments.append(f"--{name}={text}")
    return shlex.join(arguments)


def checkout_files(root: Path, env_file: Path | None = None) -> list[str]:
    """Files below `root` that git lists, relative to it and sorted, without environments, run
    folders, `env_file` and names of secrets."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise UserError(
            f"{root}: submit ships what git lists, and git does not ({reason}); clone the project"
        ) from None

    def is_shipped(name: str) -> bool:
        path, parts = root / name, Path(name).parts
        if env_file is not None and path.resolve() == env_file.resolve():
            return False
        secret = any(fnmatchcase(part, pattern) for part in parts for pattern in SECRET_NAMES)
        return not secret and parts[0] not in _NEVER_TOPS and path.is_file()

    return sorted({name for name in listed.stdout.split("\0") if name and is_shipped(name)})


def total_bytes(root: Path, files: Sequence[str]) -> int:
    """Size of the files, which must not be more than Ray takes."""
    folders: Counter[str] = Counter()
    for name in files:
        folders[str(Path(name).parent)] += (root / name).stat().st_size
    if (total := folders.total()) > MAX_BYTES:
        largest = [f"{name} ({n / 2**20:,.0f} MiB)" for name, n in folders.most_common(3)]
        raise UserError(
            f"{root}: the checkout has {total / 2**20:,.0f} MiB and Ray ships "
            f"{MAX_BYTES / 2**20:,.0f} MiB at most; largest: {', '.join(largest)}; move data to "
            "storage that all nodes share, or name it in .gitignore"
        )
    return total


def code_hash(root: Path, files: Sequence[str]) -> str:
    """A hash over names and contents, by which it can be told which code ran."""
    digest = hashlib.sha256()
    for name in files:
        content = hashlib.sha256((root / name).read_bytes()).hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()[:12]


def link_files(root: Path, files: Sequence[str], folder: Path) -> None:
    """Links to the files in an empty folder, without .gitignore files: Ray would apply them anew
    and drop what was added to git by force."""
    for name in files:
        if Path(name).name not in {".gitignore", ".rayignore"}:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(root / name)


def resolve_paths(config: RunConfig, root: Path, files: Sequence[str]) -> list[str]:
    """Rewrite the paths of a configuration, in place, to what they are called in the job; relative
    ones count from here and must lie in the shipped checkout. Returns warnings."""
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
        if path not in (None, "default", "none") and not _is_global(path):
            raise UserError(
                f"{field} is {path}, a relative path: nodes work in folders of their own that are "
                f"deleted; give an absolute {remedy} storage that all nodes share"
            )
    if isinstance(config.data.unseen, str):
        config.data.unseen = read_names(config.data.unseen)
    if not _is_global(config.data.words):
        config.data.words = _shipped("data.words", config.data.words, root, files)
    for index, source in enumerate(config.knowledge):
        for name in ("path", "vectors"):
            path = getattr(source, name)
            if path and not _is_global(path):
                is_folder = Path(path).is_dir()
                inside = sorted(file.name for file in Path(path).iterdir()) if is_folder else []
                field = f"knowledge[{index}].{name}"
                setattr(source, name, _shipped(field, path, root, files, inside))
    if _is_global(config.data.shards):
        return []
    given = Path(config.data.shards)
    folder = given.parent if given.name == "manifest.json" else given
    arrays = [name for name in ("shards.npy", "labels.npy") if (folder / name).exists()]
    inside = ["manifest.json", *arrays, *(tar.name for tar in sorted(folder.glob("*.tar")))]
    config.data.shards = _shipped("data.shards", str(folder), root, files, inside)
    if config.data.cache is None:
        config.data.cache = f"{config.storage.rstrip('/')}/cache"
    return [
        f"warning: data.shards {config.data.shards} lies in the checkout, of which every node "
        "unpacks a copy of its own: sure to work on a cluster of one node only; for more, copy "
        "it to storage that all nodes share"
    ]


def _is_global(path: str) -> bool:
    return "://" in path or path.startswith("~") or Path(path).is_absolute()


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
