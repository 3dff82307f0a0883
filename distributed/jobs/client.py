"""A cluster's job server: reaching it, finding, following and stopping jobs."""

import asyncio
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from vgse.errors import UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_RETRIES = 5
_TIMEOUT_S = 10.0


def connect(given: str | None) -> tuple[JobSubmissionClient, str]:
    """The job server at an address, reached and of this Ray's version; and that address.

    Args:
        given: URL of the cluster's dashboard; by default RAY_API_SERVER_ADDRESS, or this machine.

    Raises:
        ValueError: no answer, a wrong or missing token, or a cluster with another Ray.
    """
    address = (given or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS).rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--address {address}: not the dashboard's URL, such as http://head:8265")
    _reach(address)
    # Ray would let these two win over the address that the user gave.
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    logging.getLogger("ray.dashboard").setLevel(logging.ERROR)
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("ray._private").setLevel(logging.ERROR)
    with one_line(address):
        client = JobSubmissionClient(address)
    theirs = getattr(client, "_server_ray_version", None)
    if theirs is not None and theirs != ray.__version__:
        raise UserError(
            f"--address {address}: the cluster runs Ray {theirs}, this environment has "
            f"{ray.__version__}; install the cluster's here: pip install 'ray[default]=={theirs}'"
        )
    return client, address


def _reach(address: str) -> None:
    """See that somebody listens, since Ray's client would wait for minutes."""
    parts = urlsplit(address)
    if requests.utils.get_environ_proxies(address):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), _TIMEOUT_S).close()
    except OSError as error:
        raise UserError(_unreachable(address, str(error))) from None


def _unreachable(address: str, why: str) -> str:
    return (
        f"--address {address}: no Ray dashboard answers ({why}); see that the cluster runs and "
        "that its port is forwarded: ray dashboard cluster.yaml"
    )


@contextmanager
def one_line(address: str) -> Iterator[None]:
    """Say what the job server refused in one line.

    Raises:
        ValueError: naming the address and the remedy.
    """
    try:
        yield
    except AuthenticationError as error:
        if "required" in str(error):
            told = "the cluster asks for a token and none was sent; set RAY_AUTH_MODE=token and"
        else:
            told = "the cluster refuses this token (HTTP 403); take the head node's and"
        raise UserError(
            f"--address {address}: {told} put it into RAY_AUTH_TOKEN, or into a file that "
            "RAY_AUTH_TOKEN_PATH names (by default ~/.ray/auth_token)"
        ) from None
    except (ConnectionError, requests.exceptions.ConnectionError, aiohttp.ClientError) as error:
        raise UserError(_unreachable(address, type(error).__name__)) from None
    except (requests.exceptions.RequestException, KeyError) as error:
        raise UserError(
            f"--address {address}: what answers is no Ray dashboard ({type(error).__name__}); "
            "the dashboard's port is 8265 unless it was changed"
        ) from None
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"--address {address}: {lines[-1]}") from None


def jobs_of(client: JobSubmissionClient, name: str | None = None) -> list[JobDetails]:
    """Submitted jobs, oldest first: all, or those of a run id or submission id."""
    jobs = [job for job in client.list_jobs() if job.type == JobType.SUBMISSION]
    if name is not None:
        jobs = [
            job
            for job in jobs
            if name in (job.submission_id, (job.metadata or {}).get("run_id", job.submission_id))
        ]
    return sorted(jobs, key=lambda job: job.start_time or 0)


def latest_job(client: JobSubmissionClient, name: str, address: str) -> JobDetails:
    """The newest job of a run id, or the job of a submission id.

    Raises:
        ValueError: there is none.
    """
    with one_line(address):
        jobs = jobs_of(client, name)
    if not jobs:
        raise UserError(
            f"{name}: no such run or job at {address}; "
            "python -m distributed status lists those that are there"
        )
    return jobs[-1]


def describe(job: JobDetails) -> str:
    """One line: id, status, when it began and how long it took. No environment, no arguments."""
    began = (job.start_time or 0) / 1000
    ended = (job.end_time or time.time() * 1000) / 1000
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(began))
    code = (job.metadata or {}).get("code", "")
    line = f"{job.submission_id}  {job.status.value}  since {when}  {ended - began:,.0f} s"
    return f"{line}  code {code}" if code else line


def stop(client: JobSubmissionClient, job: JobDetails, address: str) -> str:
    """Stop a job and wait until it is; returns a line that says what it was."""
    name = str(job.submission_id)
    if job.status.is_terminal():
        return f"{name} had ended already ({job.status.value})"
    with one_line(address):
        client.stop_job(name)
        for _ in range(100):  # Ray kills after 3 s
            if (status := client.get_job_status(name)).is_terminal():
                break
            time.sleep(0.2)
    return f"{name} {status.value}"


_NATIVE_STACK = re.compile(  # what Ray's handler prints of its own code when a job is stopped
    r"\*\*\* SIG[A-Z]+ received at|PC: @ |\s+@\s+0x[0-9a-f]+ "
    r"|\[[\d-]+ [\d:,]+ [A-Z] [\d ]+\] logging\.cc:"
)


def follow(client: JobSubmissionClient, submission_id: str, address: str) -> int:
    """Print a job's log as it comes, until the job ends; returns the job's exit status.

    A connection that breaks is taken up again where it broke.

    Raises:
        ValueError: the cluster is gone; the job may go on.
    """
    printed, unfinished = 0, ""

    def write(text: str) -> None:
        nonlocal printed, unfinished
        printed += len(text)
        *lines, unfinished = (unfinished + text).split("\n")
        sys.stdout.writelines(f"{line}\n" for line in lines if not _NATIVE_STACK.match(line))
        sys.stdout.flush()

    failures = 0
    while True:
        before = printed
        try:
            asyncio.run(_tail(client, submission_id, printed, write))
            job = _ended(client, submission_id)
            if job is not None:
                sys.stdout.write(unfinished)
                return _exit_status(job)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            failures = 1 if printed > before else failures + 1
            if failures > _RETRIES:
                raise UserError(
                    f"--address {address}: lost the connection ({type(error).__name__}); the job "
                    f"goes on: python -m distributed status {submission_id} --follow "
                    f"--address {address}"
                ) from None
        time.sleep(min(2.0**failures, 10.0) / 2)


async def _tail(
    client: JobSubmissionClient, submission_id: str, skip: int, write: Callable[[str], None]
) -> None:
    async for text in client.tail_job_logs(submission_id):
        if len(text) > skip:
            write(text[skip:])
        skip = max(skip - len(text), 0)


def _ended(client: JobSubmissionClient, submission_id: str) -> JobDetails | None:
    for _ in range(25):  # the log ends a moment before the job does
        job = client.get_job_info(submission_id)
        if job.status.is_terminal():
            return job
        time.sleep(0.2)
    return None


def _exit_status(job: JobDetails) -> int:
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        sys.stderr.write(f"job {job.submission_id} was stopped\n")
        return 130
    code = job.driver_exit_code
    if code is None:  # it never ran: only Ray knows why
        told = (job.message or "no message").strip().splitlines()
        sys.stderr.write(f"error: job {job.submission_id} failed: {told[0]}\n")
        return 1
    return code if 0 < code < 256 else 1
