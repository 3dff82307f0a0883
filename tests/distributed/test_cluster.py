"""Joining a cluster, waiting for room on it, and what a cluster of ours lets in."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group_table

from distributed import cluster
from distributed.cluster import shortfall, wait_for_room, wants_gpu
from processes import descendants, title
from ray_scaling import scaling_head
from vgse.config import ClusterConfig

ROOT = Path(__file__).resolve().parents[2]


def joined(**fields: object) -> ClusterConfig:
    """Workers on a cluster that is not our own, to which nodes may come."""
    return ClusterConfig(address="auto", **fields)  # type: ignore[arg-type]


def test_the_shortfall_names_what_is_there_and_what_is_free(ray_session: None) -> None:
    config = joined(num_workers=100)
    assert shortfall(config, gpu=False) == "waiting for 100 CPUs (4 there)"
    assert shortfall(config, gpu=True) == "waiting for 100 GPUs (0 there)"
    assert shortfall(joined(num_workers=1), gpu=True) == "waiting for 1 GPU (0 there)"
    assert shortfall(joined(num_workers=4), gpu=False) is None
    assert shortfall(joined(num_workers=100, min_workers=4), gpu=False) is None

    @ray.remote(num_cpus=3)
    class Busy:
        def ready(self) -> None: ...

    busy = Busy.remote()  # type: ignore[attr-defined]
    ray.get(busy.ready.remote())
    lack = _settled(lambda: shortfall(joined(num_workers=2), gpu=False))
    assert lack == "waiting for 2 CPUs (4 there, 1 free)"
    assert shortfall(joined(num_workers=2), gpu=False, taken=False) is None
    ray.kill(busy)
    assert _settled(lambda: shortfall(joined(num_workers=2), gpu=False), until=None) is None


def _settled(look: object, until: object = str) -> object:
    """What a look gives once it is of the kind waited for; Ray's counts lag by a moment."""
    for _ in range(100):
        found = look()  # type: ignore[operator]
        if (found is None) == (until is None):
            return found
        time.sleep(0.1)
    return found


def test_waiting_is_said_and_ends_with_one_line(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_FIRST_LINE_S", 0.2)
    said: list[str] = []
    config = joined(num_workers=100, wait_for_gpus=0.5)
    with pytest.raises(ValueError, match=r"num_workers is 100.* after 0.5 s .*100 CPUs \(4 there"):
        wants_gpu(config, said.append)
    assert said[-1] == "waiting for 100 CPUs (4 there), 0 s at most"
    config = joined(num_workers=2, use_gpu="yes", wait_for_gpus=0.5)
    with pytest.raises(ValueError, match=r"use_gpu is yes, but after 0.5 s .* 2 GPUs \(0 there\)"):
        wants_gpu(config)
    groups = placement_group_table().values()
    assert {group["state"] for group in groups} <= {"REMOVED"}


def test_where_there_is_room_nothing_waits(ray_session: None) -> None:
    said: list[str] = []
    assert wait_for_room(joined(num_workers=4), False, said.append) is None
    assert not wants_gpu(joined(num_workers=4, use_gpu="no"), said.append)
    assert said == []
    none = joined(num_workers=100, cpus_per_worker=0)
    assert wait_for_room(none, False, said.append) is None


def test_auto_trains_on_cpus_and_says_so_where_gpus_could_come(ray_session: None) -> None:
    said: list[str] = []
    assert not wants_gpu(joined(num_workers=2), said.append)
    (line,) = said
    assert line.startswith("0 GPUs for 2 workers: training on CPUs (--cluster.use_gpu yes waits")
    said.clear()
    assert not wants_gpu(ClusterConfig(num_workers=2), said.append)
    assert said == []  # this machine's own cluster will have none


def test_a_cluster_of_ours_is_refused_gpus_at_once(ray_session: None) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"cluster.use_gpu is yes, but training is still waiting"):
        wants_gpu(ClusterConfig(num_workers=2, use_gpu="yes"))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("ends", [True, False])
def test_a_gpu_of_a_process_that_ends_is_waited_for_but_not_one_that_stays_taken(
    ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([0.0, 0.0])

    def available() -> dict[str, float]:
        return {"CPU": 4.0, "GPU": next(free, 1.0) if ends else 0.0}

    monkeypatch.setattr(cluster, "_RELEASE_S", 30.0 if ends else 0.5)
    monkeypatch.setattr(cluster, "_SILENT_S", 2.0 if ends else 0.1)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "available_resources", available)
    monkeypatch.setattr(cluster, "fitting", lambda worker: 1)
    config = ClusterConfig(num_workers=1, use_gpu="yes")
    lines: list[str] = []
    if ends:
        assert wants_gpu(config, lines.append) and not lines
    else:
        with pytest.raises(ValueError, match=r"waiting for 1 GPU \(1 there, 0 free\)"):
            wants_gpu(config, lines.append)
        assert len(lines) == 1 and "GPUs that are taken" in lines[0]


WAIT = """
import ray
from distributed.cluster import ray_cluster, wants_gpu
from vgse.config import ClusterConfig
config = ClusterConfig(num_workers=2, use_gpu="yes", wait_for_gpus={seconds})
with ray_cluster(config):
    print("at first:", ray.cluster_resources().get("GPU", 0), flush=True)
    try:
        print("GPUs:", wants_gpu(config, lambda line: print(line, flush=True)))
    except ValueError as error:
        print("refused:", error)
"""


def run_code(code: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_cluster_that_scales_from_nothing_gets_its_gpus() -> None:
    with scaling_head({"gpu": {"CPU": 1, "GPU": 1}}, most=2) as env:
        said = run_code(WAIT.format(seconds=120), env).splitlines()
    assert said[0] == "at first: 0"
    # A quick autoscaler may have the nodes there before the first line is due.
    assert [line for line in said[1:-1] if not line.startswith("waiting for 2 GPUs (")] == []
    assert said[-1] == "GPUs: True"


@pytest.mark.slow
def test_a_cluster_that_cannot_scale_so_far_is_refused_in_one_line() -> None:
    with scaling_head({"gpu": {"CPU": 1, "GPU": 1}}, most=1) as env:
        said = run_code(WAIT.format(seconds=25), env).splitlines()
    assert said[-1].startswith("refused: cluster.use_gpu is yes, but after 25 s training is still ")


def listening(parent: int) -> dict[str, str]:
    """Addresses on which the processes below one listen, each with its process's name."""
    sockets: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                sockets[f"socket:[{fields[9]}]"] = fields[1].rsplit(":", 1)[0]
    found = {}
    for pid in [parent, *descendants(parent)]:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                number = os.readlink(handle)
                if number in sockets:
                    found[f"{number} {title(pid)[:60]}"] = sockets[number]
    return found


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's tables")
def test_a_cluster_of_ours_listens_on_loopback_alone(ray_session: None) -> None:
    @ray.remote
    def work() -> int:
        return os.getpid()

    ray.get([work.remote() for _ in range(4)])
    found = listening(os.getpid())
    assert len(found) >= 4
    assert {k: v for k, v in found.items() if v not in LOOPBACK} == {}


OPEN = """
import os
import distributed
from test_cluster import LOOPBACK, listening
from distributed.cluster import ray_cluster
from vgse.config import ClusterConfig
with ray_cluster(ClusterConfig(num_workers=1)):
    print("open:", sum(v not in LOOPBACK for v in listening(os.getpid()).values()))
"""


@pytest.mark.slow
def test_it_listens_further_only_when_asked() -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env["PYTHONPATH"] = f"{ROOT}:{ROOT}/tests/distributed:{ROOT}/tests/support/services"
    assert int(run_code(OPEN, env).split()[-1]) == 0
    asked = env | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    assert int(run_code(OPEN, asked).split()[-1]) > 0


KNOCK = """
import sys
from ray._raylet import GcsClient
try:
    GcsClient(address=sys.argv[1]).internal_kv_keys(b"", namespace=None)
    print("let in")
except Exception as error:
    print("refused:", error)
"""


def test_a_cluster_of_ours_lets_nobody_in_without_its_token(ray_session: None) -> None:
    address = ray.get_runtime_context().gcs_address
    token = Path.home() / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o077 == 0
    bare = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    code = f"import sys; sys.argv[1:] = [{address!r}]\n{KNOCK}"
    known = run_code(code, bare | {"RAY_AUTH_MODE": "token"})
    assert known == "let in\n"
    wrong = run_code(code, bare | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
    assert wrong.startswith("refused: ") and "oken" in wrong
    none = run_code(code, bare | {"RAY_AUTH_MODE": "disabled"})
    assert none.startswith("refused: ")


PRIVATE = """
import os
os.umask(0)
from distributed.cluster import ray_cluster
from vgse.config import ClusterConfig
with ray_cluster(ClusterConfig(num_workers=1)):
    print(oct(os.stat(os.path.expanduser("~/.ray/auth_token")).st_mode & 0o777))
"""


@pytest.mark.slow
def test_a_new_token_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    assert run_code(PRIVATE, env | {"HOME": str(tmp_path)}).strip() == "0o600"
    (tmp_path / ".ray" / "auth_token").chmod(0o644)
    assert run_code(PRIVATE, env | {"HOME": str(tmp_path)}).strip() == "0o600"


@pytest.mark.parametrize("home", ["/proc/no-home", "/dev/null"])
def test_a_user_without_a_home_gets_a_token_for_the_process(
    monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    cluster._private_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_an_address_where_nothing_listens_is_named_with_its_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        cluster._await_answer(address, "RAY_ADDRESS")
        cluster._await_answer(f"ray://{address}", "RAY_ADDRESS")
    with pytest.raises(ValueError, match=rf"RAY_ADDRESS: no .* {address} .* or unset RAY_ADDRESS"):
        cluster._await_answer(address, "RAY_ADDRESS")
    with pytest.raises(ValueError, match=r"cluster\.address: no .* or leave it out"):
        cluster._await_answer(address, "cluster.address")
    for odd in ("head", "http://head:8265", ":6379", "head:port"):
        with pytest.raises(ValueError, match=r"RAY_ADDRESS is .* give the head's HOST:PORT"):
            cluster._await_answer(odd, "RAY_ADDRESS")
