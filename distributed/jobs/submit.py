"""Submitting a run to a cluster as a Ray job: the checkout goes along, and the log comes back."""

import itertools
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ray.job_submission import JobSubmissionClient

from distributed.jobs import env_file as environment
from distributed.jobs.client import connect, how_to_go_on, list_jobs, one_line, watch_job
from distributed.jobs.shipping import (
    ROOT,
    checkout_files,
    code_hash,
    link_files,
    resolve_paths,
    total_bytes,
)
from vgse.config import RunConfig, check_name, leaves, to_dict, validate
from vgse.errors import UserError


def submit(
    config: RunConfig,
    run_id: str,
    *,
    address: str | None,
    env_file: str | None,
    detach: bool,
    switches: Sequence[str] = (),
    command: Sequence[str] = (),
) -> int:
    """Ship the checkout, run `train` with `switches` on the cluster (or the `command` of another
    module) and follow it; returns its exit status."""
    check_name("--run-id", run_id)
    secrets = Path(env_file) if env_file else None
    variables = environment.parse_env_file(secrets) if secrets else {}
    files = checkout_files(ROOT, secrets)
    size, code = total_bytes(ROOT, files), code_hash(ROOT, files)
    if command:
        entrypoint = _module_command(command)
    else:
        validate(config)
        for warning in resolve_paths(config, ROOT, files):
            sys.stderr.write(f"{warning}\n")
        entrypoint = train_command(config, run_id, switches)
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
    sys.stdout.write(
        f"job {job} at {client.get_address()}: {len(files)} files, {size / 2**20:,.1f} MiB, "
        f"code {code}\n"
    )
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


def train_command(config: RunConfig, run_id: str, switches: Sequence[str] = ()) -> str:
    """The shell command that trains with this configuration, whatever file it came from."""
    arguments = ["python", "-m", "distributed", "train", "--run-id", run_id, *switches]
    defaults = dict(leaves(to_dict(RunConfig())))
    for name, value in leaves(to_dict(config)):
        if value != defaults[name]:
            text = value if isinstance(value, str) else json.dumps(value)
            arguments.append(f"--{name}={text}")
    return shlex.join(arguments)


def _module_command(command: Sequence[str]) -> str:
    if not (ROOT / command[0] / "__main__.py").is_file():
        raise UserError(f"-- {command[0]}: no such command; the checkout has no {command[0]}/")
    return shlex.join(["python", "-m", *command])
