"""Shards in a bucket that cannot be reached for a while, or for good, in the middle of training."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fault_runs import (
    PIXELS,
    Ended,
    assert_same_result,
    committed_step,
    only_line,
    record,
    start_run,
)
from shards_s3 import BUCKET, CREDENTIALS, Proxy, proxy_before, s3_server

OUTAGE_S = 60.0


@dataclass(frozen=True)
class Bucket:
    """The packed set in a bucket, behind a proxy that makes trouble."""

    proxy: Proxy
    data: dict[str, dict[str, str]]
    env: dict[str, str]


@pytest.fixture(scope="module")
def bucket(tiny_runs: Path) -> Iterator[Bucket]:
    s3fs = pytest.importorskip("s3fs")
    with s3_server() as address, proxy_before(address) as proxy:
        store = s3fs.S3FileSystem(
            endpoint_url=address, key="testing", secret="testing", skip_instance_cache=True
        )
        store.mkdir(BUCKET)
        for path in (tiny_runs / "packed").iterdir():
            if path.is_file():
                store.put(str(path), f"{BUCKET}/set/{path.name}")
        cache = str(tiny_runs / "bucket-features")
        data = {"data": {"shards": f"s3://{BUCKET}/set", "cache": cache}}
        yield Bucket(proxy, data, {**CREDENTIALS, "AWS_ENDPOINT_URL": proxy.url})


@pytest.fixture(scope="module")
def reference(tiny_runs: Path, bucket: Bucket) -> Ended:
    return start_run(tiny_runs, "store-whole", PIXELS, bucket.data, env=bucket.env).end()


@pytest.mark.slow
def test_a_bucket_that_is_gone_for_a_minute_costs_a_minute_and_for_good_ends_in_one_line(
    tiny_runs: Path, bucket: Bucket, reference: Ended
) -> None:
    run = start_run(tiny_runs, "away", PIXELS, bucket.data, env=bucket.env)
    run.wait_for_checkpoints()
    bucket.proxy.always = "503"
    time.sleep(OUTAGE_S)
    gone_at = committed_step(run.folder)
    bucket.proxy.always = "pass"
    back = time.monotonic()
    run.wait_for_checkpoints(gone_at)
    record(
        f"shards in a bucket that does not answer for {OUTAGE_S:.0f} s",
        ["(nothing: training waits and goes on)"],
        tiny_runs,
        seconds=OUTAGE_S + time.monotonic() - back,
    )
    bucket.proxy.always = "503"
    gone = time.monotonic()
    try:
        stopped = run.end(2)
    finally:
        bucket.proxy.always = "pass"
    waited = time.monotonic() - gone
    assert "restart" not in stopped.output
    line = only_line(stopped)
    assert f"s3://{BUCKET}/set" in line
    assert "then run the same command again" in line
    again = start_run(tiny_runs, "away", PIXELS, bucket.data, env=bucket.env).end()
    assert again.output
    record(
        "shards in a bucket that does not come back; the same command later",
        [line],
        tiny_runs,
        waited_s=waited,
        difference=assert_same_result(run.folder, reference.folder),
    )
