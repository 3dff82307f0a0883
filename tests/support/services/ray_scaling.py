"""A Ray head that adds nodes on demand: processes of this machine that call themselves nodes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_head import end, free_ports


def _config(address: str, types: dict[str, dict[str, float]], most: int) -> dict[str, object]:
    workers = {
        name: {"resources": has, "node_config": {}, "min_workers": 0, "max_workers": most}
        for name, has in types.items()
    }
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "scaling",
        "max_workers": most,
        "upscaling_speed": 10,
        "idle_timeout_minutes": 1,
        "provider": {"type": "fake_multinode", "gcs_address": address},
        "available_node_types": {"ray.head.default": head, **workers},
        "head_node_type": "ray.head.default",
        "auth": {"ssh_user": "nobody"},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        **{
            f"{name}_commands": []
            for name in (
                "initialization",
                "setup",
                "head_setup",
                "worker_setup",
                "head_start_ray",
                "worker_start_ray",
            )
        },
    }


@contextmanager
def scaling_head(types: dict[str, dict[str, float]], most: int) -> Iterator[dict[str, str]]:
    """Start a head without CPUs to which nodes of these types are added, `most` in all.

    Yields:
        The environment in which its address and token are known.
    """
    folder = Path(tempfile.mkdtemp(prefix="vs", dir="/tmp"))  # a short path: sockets lie below it
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text("0011223344556677" * 4)
    gcs, agent, client, metrics = free_ports(4)
    address = f"127.0.0.1:{gcs}"
    (folder / "scaling.yaml").write_text(json.dumps(_config(address, types, most)))
    # With GPUs hidden, no node could start that pretends to have one.
    hidden = ("RAY_", "CUDA_VISIBLE_DEVICES")
    env = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    env |= {
        "PATH": f"{Path(sys.executable).parent}:{env['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "AUTOSCALER_METRIC_PORT": str(metrics),
    }
    command = ["ray", "start", "--head", "--block", f"--port={gcs}", "--num-cpus=0"]
    command += ["--num-gpus=0", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    command += [f"--temp-dir={folder / 'r'}", "--disable-usage-stats"]
    command += [f"--autoscaling-config={folder / 'scaling.yaml'}"]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            command, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            for _ in range(600):
                if "Ray runtime started" in (folder / "head.log").read_text():
                    break
                assert process.poll() is None, (folder / "head.log").read_text()
                time.sleep(0.2)
            yield env | {"RAY_ADDRESS": address}
        finally:
            end(process, patience=20)
            shutil.rmtree(folder, ignore_errors=True)
