"""Streaming from object storage, against a real S3 server and a connection that fails."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from shards.loader import Batches, Cut, make_loader
from shards.manifest import Manifest, load_manifest
from shards.objects import Access, Retry
from shards.sampler import order_of, select, split_ranges, start_of
from shards.samples import RawSample, read_raw
from shards_s3 import BUCKET, CREDENTIALS, Proxy, free_port, proxy_before, s3_server
from shards_trees import flat_tree, pack_tree

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

URL = f"s3://{BUCKET}/set"
QUICK = Access(retry=Retry(attempts=4, first_wait_s=0.01))

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("s3")
    flat_tree(root / "set", images=60)
    return pack_tree(root / "set", root / "out", images_per_shard=150)


@pytest.fixture(scope="module")
def server(local: Manifest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as address:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        store = s3fs.S3FileSystem(endpoint_url=address, skip_instance_cache=True)
        store.mkdir(BUCKET)
        store.put(local.url, f"{BUCKET}/set", recursive=True)
        shard = local.shards_of("train")[0]
        half = Path(local.url, shard.file).read_bytes()[: shard.bytes // 2]
        store.pipe(f"{BUCKET}/part/{shard.file}", half)
        yield address


@pytest.fixture(scope="module")
def one_proxy(server: str) -> Iterator[Proxy]:
    # One for all tests: a store's client takes a while to make.
    with proxy_before(server) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def proxy(one_proxy: Proxy) -> Proxy:
    one_proxy.trouble, one_proxy.always, one_proxy.shard_reads = [], "pass", []
    return one_proxy


@pytest.fixture
def fresh_client(one_proxy: Proxy) -> Iterator[None]:
    """For tests that change where the store is or who asks."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def samples(manifest: Manifest, access: Access = QUICK) -> list[RawSample]:
    shards = manifest.shards_of("train")
    return [raw for shard in shards for raw in read_raw(manifest, shard, access=access)]


def keys(manifest: Manifest, loader_workers: int, access: Access = QUICK) -> list[str]:
    selection = select(manifest, "train")
    cursor = start_of(manifest, selection, seed=1, block_size=32)
    plan = split_ranges(cursor.remaining, 1, loader_workers, 20)
    order = order_of(cursor, selection)
    batches = Batches(manifest, selection, order, plan, 0, Cut("images", 24), access=access)
    return [key for batch in make_loader(batches) for key in batch.keys]


def test_a_bucket_gives_what_the_folder_gives(local: Manifest, proxy: Proxy) -> None:
    remote = load_manifest(URL)
    assert remote.fingerprint == local.fingerprint
    assert samples(remote) == samples(local)


def test_loader_processes_read_a_bucket_that_their_parent_has_read(
    local: Manifest, proxy: Proxy
) -> None:
    remote = load_manifest(URL)
    assert keys(remote, loader_workers=2) == keys(local, loader_workers=2)


def test_reads_are_ranges_of_bounded_length(
    local: Manifest, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = local.shards_of("train")[0]
    edges = [*shard.offsets, shard.bytes]
    monkeypatch.setattr("shards.samples.READ_BYTES", 1)  # a run of samples at a time
    list(read_raw(load_manifest(URL), shard, access=QUICK))
    expected = [f"bytes={low}-{high - 1}" for low, high in pairwise(edges)]
    assert len(expected) == 3 and sorted(proxy.shard_reads) == sorted(expected)


def test_an_epoch_in_one_process_reads_every_byte_once(local: Manifest, proxy: Proxy) -> None:
    keys(load_manifest(URL), loader_workers=0)
    read = [[int(x) for x in r.removeprefix("bytes=").split("-")] for r in proxy.shard_reads]
    total = sum(shard.bytes for shard in local.shards_of("train"))
    assert sum(high + 1 - low for low, high in read) == total


def test_a_connection_that_dies_in_mid_shard_is_made_again(local: Manifest, proxy: Proxy) -> None:
    remote = load_manifest(URL)
    proxy.trouble = [("cut", 5000), "pass", ("cut", 0)]
    assert samples(remote) == samples(local)
    assert proxy.trouble == []
    assert len(proxy.shard_reads) == len(local.shards_of("train")) + 2


def test_two_refusals_are_waited_out(local: Manifest, proxy: Proxy) -> None:
    remote = load_manifest(URL)
    proxy.trouble = ["503", "503"]
    assert samples(remote) == samples(local)
    assert proxy.trouble == []


def test_a_store_that_goes_on_refusing_is_one_line(local: Manifest, proxy: Proxy) -> None:
    remote = load_manifest(URL)
    proxy.always = "503"
    with pytest.raises(
        ValueError, match=r"pictures/set/train-0000\d\d\.tar: cannot be read, 4 a"
    ) as e:
        samples(remote, replace(QUICK, ahead=0))
    assert len(proxy.shard_reads) == 4  # no layer below tries again by itself
    assert "\n" not in str(e.value) and "then run the same command again" in str(e.value)


def test_a_connection_that_always_dies_stops_the_loader_with_one_line(
    local: Manifest, proxy: Proxy
) -> None:
    remote = load_manifest(URL)
    proxy.always = ("cut", 3000)
    with pytest.raises(ValueError, match=r"\.tar: cannot be read, 4 attempts in") as caught:
        keys(remote, loader_workers=1)
    assert "\n" not in str(caught.value)


def test_a_shard_that_was_copied_in_part_is_told_from_a_dead_connection(
    local: Manifest, proxy: Proxy
) -> None:
    with pytest.raises(ValueError, match=r"bytes instead of \d+; copied in part\?"):
        samples(replace(local, url=f"s3://{BUCKET}/part", table=local.shards))


def test_a_shard_that_is_not_in_the_bucket_is_named_at_once(local: Manifest, proxy: Proxy) -> None:
    with pytest.raises(ValueError, match=r"nowhere/train-000000\.tar: missing shard; copy it"):
        samples(replace(local, url=f"s3://{BUCKET}/nowhere", table=local.shards))


def test_a_bucket_that_does_not_exist_is_one_line(proxy: Proxy) -> None:
    message = r"s3://no-such-bucket/set/manifest\.json: no such file; correct the address"
    with pytest.raises(ValueError, match=message):
        load_manifest("s3://no-such-bucket/set")


def test_an_address_where_nobody_answers_is_one_line(
    fresh_client: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("shards.manifest.FIRST", QUICK.retry)
    with pytest.raises(ValueError, match=rf"{URL}/manifest\.json: cannot be read, 4 a") as caught:
        load_manifest(URL)
    assert "\n" not in str(caught.value) and "store's address" in str(caught.value)


def test_missing_credentials_are_named_at_once(
    fresh_client: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"credentials \(for S3: AWS_ENDPOINT_URL, AWS_ACC") as e:
        load_manifest(URL)
    assert "\n" not in str(e.value) and "attempts" not in str(e.value)


def test_with_a_cache_a_bucket_is_read_once(local: Manifest, proxy: Proxy, tmp_path: Path) -> None:
    remote = load_manifest(URL)
    access = replace(QUICK, cache=str(tmp_path / "cache"))
    first = keys(remote, 2, access)
    requests = len(proxy.shard_reads)
    assert requests and first == keys(local, 2)
    assert keys(remote, 2, access) == first and len(proxy.shard_reads) == requests
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert names == {f"{shard.sha256}.tar" for shard in local.shards_of("train")}


WRITER = """
import sys
from shards.objects import Access
from shards.manifest import load_manifest
from shards.samples import read_raw
manifest = load_manifest(sys.argv[1])
list(read_raw(manifest, manifest.shards_of("train")[0], access=Access(cache=sys.argv[2])))
"""


def test_a_killed_writer_leaves_no_copy_in_sight_and_nobody_waiting(
    local: Manifest, proxy: Proxy, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    proxy.trouble = [("stall", 5000)]
    command = [sys.executable, "-c", WRITER, URL, str(cache)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    writer = subprocess.Popen(command, env=environment)
    assert proxy.stalled.wait(60)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    (left,) = cache.iterdir()
    assert left.name.startswith(".part-")
    access = replace(QUICK, cache=str(cache))
    remote = load_manifest(URL)
    assert samples(remote, access) == samples(local)
    assert left.exists()  # it might be another process's: time will tell
    os.utime(left, (0, 0))
    cached = cache / f"{local.shards_of('train')[0].sha256}.tar"
    cached.unlink()
    assert samples(remote, access) == samples(local)
    assert not left.exists() and cached.exists()
