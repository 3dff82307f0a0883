"""Submitting a run to a cluster as a Ray job: the checkout goes along, and the log comes back."""

import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.job_submission import JobSubmissionClient

from distributed.jobs import env_file as environment
from distributed.jobs.client import connect, follow, jobs_of, latest_job, one_line, stop
from distributed.jobs.shipping import ROOT, pack_list, place_paths, stage
from vgse.config import RunConfig, check_name, leaves, to_dict, validate
from vgse.errors import UserError

_START_S = 30.0


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    run_id: str
    address: str | None
    env_file: str | None
    detach: bool
    flags: tuple[str, ...] = ()  # switches of `train`
    command: tuple[str, ...] = ()  # a command of another module in place of `train`


def submit(config: RunConfig, request: Request) -> int:
    """Ship the checkout, run the command on the cluster, follow it; returns its exit status.

    Raises:
        ValueError: one line that names the field, the file or the address, and the remedy.
    """
    check_name("--run-id", request.run_id)
    env_file = Path(request.env_file) if request.env_file else None
    variables = environment.read_env_file(env_file) if env_file else {}
    shipment = pack_list(ROOT, [env_file] if env_file else [])
    if request.command:
        entrypoint, warnings = _other(request.command), []
    else:
        validate(config)
        warnings = place_paths(config, shipment)
        entrypoint = train_command(config, request.run_id, request.flags)
    client, address = connect(request.address)
    for line in warnings:
        sys.stderr.write(line + "\n")
    with tempfile.TemporaryDirectory() as folder:
        stage(shipment, Path(folder))
        if variables:
            environment.write(Path(folder), variables)
            entrypoint = environment.with_variables(entrypoint)
        job = send(
            client,
            address,
            submission_id=next_id(client, request.run_id, address),
            entrypoint=entrypoint,
            runtime_env={"working_dir": folder}
            | ({"worker_process_setup_hook": environment.HOOK} if variables else {}),
            metadata={"run_id": request.run_id, "code": shipment.digest[:12]},
        )
    sys.stdout.write(
        f"job {job} at {address}: {len(shipment.files)} files, "
        f"{shipment.bytes / 2**20:,.1f} MiB, code {shipment.digest[:12]}\n"
    )
    sys.stdout.flush()
    if request.detach:
        sys.stdout.write(_how_to("follow", job, address) + _how_to("stop", job, address))
        return 0
    return watch(client, job, address)


def watch(client: JobSubmissionClient, job: str, address: str) -> int:
    """Follow a job; ^C asks whether it is to be stopped, and leaves it where nobody can answer."""
    try:
        return follow(client, job, address)
    except KeyboardInterrupt:
        answer = ""
        if sys.stdin.isatty():
            try:
                answer = input("\nstop the job? [y/N] ")
            except (KeyboardInterrupt, EOFError):
                answer = ""
        if answer.strip().lower() in {"y", "yes"}:
            sys.stdout.write(stop(client, latest_job(client, job, address), address) + "\n")
        else:
            sys.stdout.write(f"\njob {job} goes on\n")
            sys.stdout.write(_how_to("follow", job, address) + _how_to("stop", job, address))
        return 130


def _how_to(what: str, job: str, address: str) -> str:
    verb = f"status {job} --follow" if what == "follow" else f"stop {job}"
    return f"{what} it: python -m distributed {verb} --address {address}\n"


def send(
    client: JobSubmissionClient,
    address: str,
    *,
    submission_id: str,
    entrypoint: str,
    runtime_env: dict[str, Any],
    metadata: dict[str, str],
) -> str:
    """Hand the job over; returns its submission id.

    Raises:
        ValueError: the id is taken, or the cluster refuses the job.
    """
    give_up = time.monotonic() + _START_S
    with one_line(address):
        while True:
            try:
                return client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=submission_id,
                    runtime_env=runtime_env,
                    metadata=metadata,
                )
            except RuntimeError as error:
                if "already exists" in str(error):
                    raise UserError(
                        f"--run-id {submission_id}: the cluster has a job of this name already; "
                        f"see it with python -m distributed status {submission_id} "
                        f"--address {address}, or choose another --run-id"
                    ) from None
                if "No available agent" not in str(error) or time.monotonic() > give_up:
                    raise
                time.sleep(1)  # a head that has just started


def next_id(client: JobSubmissionClient, run_id: str, address: str) -> str:
    """An unused submission id: the run id, then run id-2, run id-3 as the run is resubmitted.

    Raises:
        ValueError: a job of this run is still at work.
    """
    with one_line(address):
        jobs = jobs_of(client)
    for job in jobs:
        if (job.metadata or {}).get("run_id") == run_id and not job.status.is_terminal():
            raise UserError(
                f"--run-id {run_id}: job {job.submission_id} works on this run "
                f"({job.status.value}); follow it with python -m distributed status "
                f"{job.submission_id} --follow --address {address}, or stop it first"
            )
    taken = {job.submission_id for job in jobs}
    number = 1
    while (name := run_id if number == 1 else f"{run_id}-{number}") in taken:
        number += 1
    return name


def train_command(config: RunConfig, run_id: str, flags: Sequence[str] = ()) -> str:
    """The shell command that trains with this configuration, whatever file it came from."""
    arguments = ["python", "-m", "distributed", "train", "--run-id", run_id, *flags]
    defaults = dict(leaves(to_dict(RunConfig())))
    for name, value in leaves(to_dict(config)):
        if value != defaults[name]:
            text = value if isinstance(value, str) else json.dumps(value)
            arguments.append(f"--{name}={text}")
    return shlex.join(arguments)


def _other(command: Sequence[str]) -> str:
    """The shell command of another module of the checkout, such as `tune`."""
    if not (ROOT / command[0] / "__main__.py").is_file():
        raise UserError(f"-- {command[0]}: no such command; the checkout has no {command[0]}/")
    return shlex.join(["python", "-m", *command])
