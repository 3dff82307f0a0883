"""Jobs on a real Ray head on loopback that asks for a token."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from ray_head import TOKEN, Head, free_ports, ray_head
from tiny import make_tiny

SECRET = "hush-7391 'hush' it\"s $ecret"
SHOWN = b"hush-7391"  # no part of any base64 text
JOB = """
import os, sys, time
import ray
ray.init(logging_level="ERROR", log_to_driver=False)
print("cluster has", ray.cluster_resources()["CPU"], "CPUs")
print("length of the secret", len(os.environ.get("SECRET", "")))
print("in a worker", ray.get(ray.remote(lambda: len(os.environ.get("SECRET", ""))).remote()))
print("started", flush=True)
for number in range(int((sys.argv[3:] or [0])[0])):
    print("line", number, flush=True)
    time.sleep(0.5)
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as head:
        (head.checkout / "tune" / "__main__.py").write_text(JOB)
        env_file = head.folder / "secrets"
        env_file.touch(mode=0o600)
        env_file.write_text(f"SECRET={SECRET}\n")
        yield head


def refused(result: tuple[int, str, str]) -> str:
    """The one line of a command that failed by its user's mistake."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert TOKEN not in err
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    return err


def without_token(head: Head) -> dict[str, str]:
    return {k: v for k, v in head.env.items() if not k.startswith("RAY_AUTH")}


def test_an_address_without_a_dashboard_is_named(head: Head) -> None:
    (port,) = free_ports(1)
    told = refused(head.run("status", "--address", f"http://127.0.0.1:{port}"))
    assert f"http://127.0.0.1:{port}: no Ray dashboard answers" in told
    assert "not the dashboard's URL" in refused(head.run("status", "--address", "head:8265"))


def test_a_cluster_without_a_job_agent_says_that_its_port_is_taken() -> None:
    from distributed.jobs.client import one_line

    answer = "Request failed with status code 500: No available agent to submit job."
    told = r"http://head: no node .* 52365 .* is taken, .* another"
    with pytest.raises(ValueError, match=told), one_line("http://head"):
        raise RuntimeError(answer)
    with pytest.raises(ValueError, match=r"http://head: no such job"), one_line("http://head"):
        raise RuntimeError("no such job.")


def test_a_missing_and_a_wrong_token_are_told_apart(head: Head) -> None:
    env = without_token(head)
    status = ("status", "--address", head.address)
    assert "asks for a token and none was sent" in refused(head.run(*status, env=env))
    wrong = env | {"RAY_AUTH_TOKEN": "f" * 64}
    assert "refuses this token (HTTP 403)" in refused(head.run(*status, env=wrong))
    right = env | {"RAY_AUTH_TOKEN": TOKEN, "RAY_ADDRESS": "http://127.0.0.1:9"}
    assert head.run(*status, env=right)[0] == 0  # the address given wins over the environment's


class Version(BaseHTTPRequestHandler):
    """What the dashboard of another Ray answers."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"version": "4", "ray_version": "2.55.1"}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_cluster_with_another_ray_is_refused(head: Head) -> None:
    server = HTTPServer(("127.0.0.1", 0), Version)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told = refused(head.run("status", "--address", f"http://127.0.0.1:{server.server_port}"))
    server.shutdown()
    assert "the cluster runs Ray 2.55.1, this environment has" in told


def test_a_job_is_submitted_listed_guarded_against_a_second_one_and_stopped(head: Head) -> None:
    at = ("--address", head.address)
    job = ("submit", *at, "--run-id", "one", "--detach", "--", "tune", "300", "0")
    code, out, err = head.run(*job)
    assert code == 0, err
    assert "job one at" in out
    assert f"stop it: python -m distributed stop one --address {head.address}" in out
    assert "job one works on this run" in refused(head.run(*job))
    assert "STOPPED" in head.run("stop", "one", *at)[1]
    assert "had ended already" in head.run("stop", "one", *at)[1]
    assert "no such run or job" in refused(head.run("stop", "two", *at))


@pytest.mark.slow
def test_an_id_that_was_taken_meanwhile_is_refused_in_one_line(head: Head) -> None:
    script = f"""
from distributed.jobs.client import connect, one_line
from vgse.errors import UserError
client = connect({head.address!r})
client.submit_job(submission_id="twin", entrypoint="true")
try:
    with one_line({head.address!r}):
        client.submit_job(submission_id="twin", entrypoint="true")
except UserError as error:
    print(error)
"""
    told = subprocess.run(
        [sys.executable, "-c", script],
        cwd=head.checkout,
        env=head.env,
        capture_output=True,
        text=True,
    ).stdout
    assert "twin already exists" in told
    assert len(told.splitlines()) == 1


@pytest.mark.slow
def test_the_exit_status_is_the_jobs_and_its_secret_shows_nowhere(head: Head) -> None:
    secrets = ("--env-file", str(head.folder / "secrets"))
    job = ("submit", "--address", head.address, *secrets, "--run-id", "two", "--", "tune", "0", "7")
    code, out, _ = head.run(*job)
    assert code == 7
    assert "cluster has 2.0 CPUs" in out
    assert f"length of the secret {len(SECRET)}\n" in out
    assert f"in a worker {len(SECRET)}\n" in out
    files = [p for p in head.folder.rglob("*") if p.is_file()]
    told = [p for p in files if SHOWN in p.read_bytes()]
    # One file on the node, which only its owner can read, and no log of Ray's.
    assert {p.name for p in told} == {"secrets", ".job-env"}
    assert all(p.stat().st_mode & 0o077 == 0 for p in told)


@pytest.mark.slow
def test_a_changed_checkout_is_what_runs_next(head: Head) -> None:
    main = head.checkout / "tune" / "__main__.py"
    job = ("submit", "--address", head.address, "--run-id", "three", "--", "tune", "0", "0")
    assert "changed" not in head.run(*job)[1]
    main.write_text(f"print('changed')\n{JOB}")
    code, out, _ = head.run(*job)
    main.write_text(JOB)
    assert code == 0
    assert "job three-2 at" in out
    assert "\nchanged\n" in out


def interrupted(process: subprocess.Popen[str]) -> str:
    """Press ^C once the job has started; what was printed until then."""
    assert process.stdout
    seen = ""
    for line in process.stdout:
        seen += line
        if line == "started\n":
            break
    process.send_signal(signal.SIGINT)
    return seen


@pytest.mark.slow
def test_an_interrupt_where_nobody_can_answer_leaves_the_job_running(head: Head) -> None:
    at = ("--address", head.address)
    process = head.start("submit", *at, "--run-id", "four", "--", "tune", "300", "0")
    assert "Running entrypoint" in interrupted(process)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "job four goes on" in out
    assert "stop it: python -m distributed stop four" in out
    assert "RUNNING" in head.run("status", "four", *at)[1]
    follower = head.start("status", "four", "--follow", *at)
    assert "started" in interrupted(follower)  # from its beginning
    follower.communicate(timeout=60)
    assert "STOPPED" in head.run("stop", "four", *at)[1]


class Forwarder:
    """A port that leads to the dashboard, as a tunnel does, and whose connections can be cut."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            with suppress(OSError):
                ours, _ = self._server.accept()
                theirs = socket.create_connection(self._target)
                self._open += [ours, theirs]
                for pair in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> int:
        """End what is open now; returns how many connections that were."""
        count = 0
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
                count += 1
        self._open.clear()
        return count


@pytest.mark.slow
def test_a_log_goes_on_where_a_broken_connection_left_it(head: Head) -> None:
    tunnel = Forwarder(head.address)
    job = ("--run-id", "six", "--", "tune", "0", "0", "12")
    process = head.start("submit", "--address", tunnel.address, *job)
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line in ("line 2\n", "line 5\n"):
            assert tunnel.cut() > 0
    assert process.wait(timeout=60) == 0
    assert [line for line in lines if line.startswith("line")] == [f"line {i}" for i in range(12)]


@pytest.mark.slow
def test_an_interrupt_at_a_terminal_asks_and_stops(head: Head) -> None:
    ours, theirs = pty.openpty()
    at = ("--address", head.address)
    job = ("submit", *at, "--run-id", "five", "--", "tune", "300", "0")
    process = subprocess.Popen(
        [sys.executable, "-m", "distributed", *job],
        cwd=head.checkout,
        env=head.env,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    interrupted(process)
    time.sleep(1)
    os.write(ours, b"y\n")
    out = process.communicate(timeout=60)[0]
    assert "stop the job? [y/N]" in out
    assert "five STOPPED" in out
    assert process.returncode == 130
    os.close(ours)
    os.close(theirs)


@pytest.mark.slow
def test_a_run_is_trained_on_the_cluster_and_resubmitted(head: Head) -> None:
    make_tiny(head.folder / "tiny", train=3, test=2)
    config = {
        "data": {
            "shards": str(head.folder / "tiny" / "packed"),
            "words": str(head.folder / "tiny" / "words.txt"),
        },
        "cluster": {"num_workers": 1, "loader_workers": 0},
        "backbone": {"patch_size": 32, "image_size": 32},
        "model": {"num_clusters": 4, "projection": 16},
        "training": {"epochs": 1, "batch_size": 60},
        "evaluation": {"models": ["prototype"]},
        "storage": str(head.folder / "runs"),
    }
    (head.checkout / "ignored.txt").write_text(yaml.safe_dump(config))  # git ignores it: no matter
    secrets = ("--env-file", str(head.folder / "secrets"))
    job = ("submit", "--address", head.address, *secrets, "--config", "ignored.txt")
    code, out, err = head.run(*job, "--run-id", "tiny")
    run = head.folder / "runs" / "tiny"
    assert code == 0, err + out
    assert "training    1 epochs on 1 CPU worker" in out
    assert out.strip().endswith(str(run / "report.html"))
    assert json.loads((run / "evaluation.json").read_text())["rows"]
    assert not [p for p in run.rglob("*") if p.is_file() and SHOWN in p.read_bytes()]
    assert SHOWN.decode() not in out + err
    # The same name is the same run, which is finished; the job's status comes back.
    code, out, err = head.run(*job, "--run-id", "tiny")
    assert code == 2
    assert "job tiny-2 at" in out
    assert "this run is finished" in out


@pytest.mark.slow
def test_a_local_cluster_asks_for_a_token_that_its_owner_alone_can_read(tmp_path: Path) -> None:
    script = """
import os
from distributed.cluster import ray_cluster
from vgse.config import ClusterConfig
with ray_cluster(ClusterConfig(num_workers=1)):
    print(os.environ["RAY_AUTH_MODE"])
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    root = Path(__file__).resolve().parents[3]
    out = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env=env | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert out.stdout.strip() == "token", out.stderr
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
