"""A whole run whose shards lie in object storage, with a connection that dies on the way."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from shards_s3 import BUCKET, CREDENTIALS, proxy_before, s3_server
from tiny import make_tiny
from vgse.formats import read_npz

ROOT = Path(__file__).resolve().parents[2]


def train(root: Path, run_id: str, shards: str, env: dict[str, str]) -> Path:
    config = {
        "data": {"words": str(root / "words.txt"), "cache": str(root / f"cache-{run_id}")},
        "model": {"num_clusters": 20, "projection": 64},
        "training": {"epochs": 2, "batch_size": 60},
        "storage": str(root / "runs"),
    }
    path = root / f"{run_id}.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "distributed", "train", "--config", str(path)]
    command += ["--data.shards", shards, "--run-id", run_id]
    if run_id == "cached":
        command += ["--data.shard_cache", str(root / "shard-cache")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "runs" / run_id


@pytest.mark.slow
def test_a_run_on_object_storage_gives_the_embeddings_of_a_run_on_disk(tmp_path: Path) -> None:
    s3fs = pytest.importorskip("s3fs")
    manifest = make_tiny(tmp_path)
    with s3_server() as address, proxy_before(address) as proxy:
        store = s3fs.S3FileSystem(
            endpoint_url=address, key="testing", secret="testing", skip_instance_cache=True
        )
        store.mkdir(BUCKET)
        store.put(manifest.url, f"{BUCKET}/set", recursive=True)
        env = {**CREDENTIALS, "AWS_ENDPOINT_URL": proxy.url}
        proxy.trouble = [("cut", 20_000), "503"]
        streamed = train(tmp_path, "streamed", f"s3://{BUCKET}/set", env)
        assert not proxy.trouble
        cached = train(tmp_path, "cached", f"s3://{BUCKET}/set", env)
    local = train(tmp_path, "local", manifest.url, {})
    expected = read_npz(local / "class_embeddings.npz").embeddings
    for run in (streamed, cached):
        found = read_npz(run / "class_embeddings.npz").embeddings
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(list((tmp_path / "shard-cache").glob("*.tar"))) == len(manifest.shards)
