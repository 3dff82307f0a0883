"""A cluster's job server: reaching it, finding, following and stopping jobs."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from distributed.jobs.env_file import find_token
from vgse.errors import UserError

_LOCAL = "http://127.0.0.1:8265"
_REFUSED = {
    401: "the cluster asks for a token and none was sent; set RAY_AUTH_MODE=token and",
    403: "the cluster refuses this token (HTTP 403); take the head node's and",
}


def connect(given: str | None) -> JobSubmissionClient:
    """The job server at an address, reached and of this Ray's version."""
    address = (given or os.environ.get("RAY_API_SERVER_ADDRESS") or _LOCAL).rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--address {address}: not the dashboard's URL, such as http://head:8265")
    token = find_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:  # asked here because Ray's client would wait for minutes
        with one_line(address):
            answer = requests.get(f"{address}/api/version", headers=headers, timeout=10.0)
        if answer.status_code in _REFUSED:
            raise UserError(
                f"--address {address}: {_REFUSED[answer.status_code]} put it into RAY_AUTH_TOKEN, "
                "or into a file that RAY_AUTH_TOKEN_PATH names (by default ~/.ray/auth_token)"
            )
        cluster = str(answer.json()["ray_version"])
    except (requests.RequestException, KeyError, TypeError) as error:
        raise UserError(
            f"--address {address}: what answers is no Ray dashboard ({type(error).__name__}); "
            "the dashboard's port is 8265 unless it was changed"
        ) from None
    if cluster != ray.__version__:
        raise UserError(
            f"--address {address}: the cluster runs Ray {cluster}, this environment has "
            f"{ray.__version__}; install the cluster's here: pip install 'ray[default]=={cluster}'"
        )
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # which Ray prefers to what it is given
    logging.disable(logging.WARNING)  # Ray's client tells of every upload; errors are raised
    with one_line(address):
        return JobSubmissionClient(address)


@contextmanager
def one_line(address: str) -> Iterator[None]:
    """What the job server refuses, or a server that is gone, as one line with its address."""
    try:
        yield
    except (ConnectionError, requests.ConnectionError, requests.Timeout) as error:
        raise UserError(
            f"--address {address}: no Ray dashboard answers ({type(error).__name__}); see that "
            "the cluster runs and that its port is forwarded: ray dashboard cluster.yaml"
        ) from None
    except RuntimeError as error:  # its text may hold the server's traceback, and ends with a dot
        last = str(error).rstrip(".\n ").splitlines()[-1]
        raise UserError(f"--address {address}: {explained(last)}") from None


def explained(reason: str) -> str:
    """What Ray says of a job, and what it leaves out."""
    if "No available agent" not in reason:
        return reason
    return (
        "no node of the cluster takes jobs: the port of its agent, 52365 unless it was changed, is "
        "taken, as by another Ray on that machine; stop the other one, or start this one with "
        "'ray start --dashboard-agent-listen-port PORT'"
    )


def list_jobs(client: JobSubmissionClient, name: str | None = None) -> list[JobDetails]:
    """Submitted jobs, oldest first: all, or those of a run id or submission id."""
    with one_line(client.get_address()):
        jobs = [job for job in client.list_jobs() if job.type == JobType.SUBMISSION]
    if name is not None:
        jobs = [j for j in jobs if name in (j.submission_id, (j.metadata or {}).get("run_id"))]
    return sorted(jobs, key=lambda job: job.start_time or 0)


def latest_job(client: JobSubmissionClient, name: str) -> JobDetails:
    """The newest job of a run id, or the job of a submission id."""
    if jobs := list_jobs(client, name):
        return jobs[-1]
    raise UserError(
        f"{name}: no such run or job at {client.get_address()}; "
        "python -m distributed status lists those that are there"
    )


def describe_job(job: JobDetails) -> str:
    """One line: id, status, when it began and how long it took. No environment, no arguments."""
    began = (job.start_time or 0) / 1000
    ended = (job.end_time or time.time() * 1000) / 1000
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(began))
    code = (job.metadata or {}).get("code", "")
    line = f"{job.submission_id}  {job.status.value}  since {when}  {ended - began:,.0f} s"
    return f"{line}  code {code}" if code else line


def stop_job(client: JobSubmissionClient, job: JobDetails) -> str:
    """Stop a job and wait until it is; returns a line that says what it was."""
    name = str(job.submission_id)
    if job.status.is_terminal():
        return f"{name} had ended already ({job.status.value})"
    with one_line(client.get_address()):
        client.stop_job(name)
        for _ in range(100):  # Ray kills after 3 s
            if (status := client.get_job_status(name)).is_terminal():
                break
            time.sleep(0.2)
    return f"{name} {status.value}"


def watch_job(client: JobSubmissionClient, job: str) -> int:
    """Follow a job's log; ^C asks whether to stop it, and leaves it where nobody can answer."""
    try:
        return _follow_log(client, job)
    except KeyboardInterrupt:
        answer = ""
        with suppress(KeyboardInterrupt, EOFError):
            answer = input("\nstop the job? [y/N] ") if sys.stdin.isatty() else ""
        if answer.strip().lower() in {"y", "yes"}:
            sys.stdout.write(stop_job(client, latest_job(client, job)) + "\n")
        else:
            sys.stdout.write(f"\njob {job} goes on\n{how_to_go_on(client, job)}\n")
        return 130


def how_to_go_on(client: JobSubmissionClient, job: str) -> str:
    """The commands that follow and stop a job, a line each."""
    at = f"--address {client.get_address()}"
    return (
        f"follow it: python -m distributed status {job} --follow {at}\n"
        f"stop it: python -m distributed stop {job} {at}"
    )


def _follow_log(client: JobSubmissionClient, job: str) -> int:
    """Print a job's log until the job ends, also over broken connections; returns its status."""
    printed = failures = 0

    async def print_log() -> None:
        nonlocal printed
        position = 0
        async for text in client.tail_job_logs(job):  # from its beginning, each time
            position += len(text)
            if position > printed:
                sys.stdout.write(text[printed - position :])
                sys.stdout.flush()
                printed = position

    while True:
        before = printed
        try:
            asyncio.run(print_log())
            details = client.get_job_info(job)
            if details.status.is_terminal():
                return _exit_status(details)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            failures = 1 if printed > before else failures + 1
            if failures > 5:
                raise UserError(
                    f"--address {client.get_address()}: lost the connection "
                    f"({type(error).__name__}); the job goes on: python -m distributed status "
                    f"{job} --follow --address {client.get_address()}"
                ) from None
        time.sleep(min(2.0**failures, 10.0) / 2)  # a log ends a moment before its job does


def _exit_status(job: JobDetails) -> int:
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        sys.stderr.write(f"job {job.submission_id} was stopped\n")
        return 130
    code = job.driver_exit_code
    if code is None:  # it never ran: only Ray knows why
        reason = (job.message or "no message").strip().splitlines()
        sys.stderr.write(f"error: job {job.submission_id} failed: {explained(reason[0])}\n")
    return code if code and 0 < code < 256 else 1
