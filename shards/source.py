"""Which bytes of which shards to read, and reading them: from disk, a store or its cache."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.manifest import Manifest, ShardEntry
from shards.objects import Access, is_remote, join_url, read_ahead, read_bytes
from shards.shard_cache import cached_copy, read_cached
from vgse.errors import UserError

READ_BYTES = 4 << 20


@dataclass(frozen=True)
class Part:
    """Samples start to stop - 1 of a shard, read once, forward.

    `wanted` are the samples [n] of each piece, in the order of the epoch; all of a piece
    stand before all of the next.
    """

    shard: ShardEntry
    start: int
    stop: int
    wanted: list[NDArray[np.int64]] = field(default_factory=list)


@dataclass(frozen=True)
class Chunk:
    """Samples first to last - 1 of a part's shard, which fill its bytes begin to end - 1."""

    part: Part
    first: int
    last: int
    begin: int
    end: int
    opens: bool  # the first of its part
    after: ShardEntry | None  # the shard of the next part
    url: str


def open_streams(
    manifest: Manifest, parts: Iterable[Part], access: Access
) -> Iterator[dict[str, Any]]:
    """The source of a WebDataset pipeline: each chunk of the parts, as `url`, with its bytes.

    A few MB at a time, whole runs of samples, from the last stored offset before a part's start
    on; of a remote store the next chunks in the background, also those of the next part.
    """
    remote = is_remote(manifest.url)
    cached = remote and access.cache is not None

    def fetch(chunk: Chunk) -> bytes:
        try:
            if cached:
                return read_cached(chunk.url, chunk.part.shard, chunk.begin, chunk.end, access)
            return read_bytes(chunk.url, chunk.begin, chunk.end, retry=access.retry)
        except FileNotFoundError:
            raise UserError(f"{chunk.url}: missing shard; copy it or pack again") from None

    chunks = read_ahead(_chunks(manifest, parts), fetch, access.ahead if remote else 0)
    loader = ThreadPoolExecutor(1, thread_name_prefix="shard-cache") if cached else None
    try:
        for chunk, data in chunks:
            if loader and chunk.opens and chunk.after:
                # A failure shows when the shard itself is read.
                url = join_url(manifest.url, chunk.after.file)
                loader.submit(cached_copy, url, chunk.after, access)
            yield {"url": chunk, "stream": BytesIO(data)}
    finally:
        chunks.close()
        if loader:
            loader.shutdown(wait=False, cancel_futures=True)


def _chunks(manifest: Manifest, parts: Iterable[Part]) -> Iterator[Chunk]:
    for part, following in pairwise(chain(parts, [None])):
        assert part is not None
        shard, start, stop = part.shard, part.start, part.stop
        assert 0 <= start <= stop <= shard.count, (start, stop, shard)
        after = following.shard if following and following.shard is not shard else None
        url = join_url(manifest.url, shard.file)
        edges = [*(shard.offsets or [0]), shard.bytes]
        stride = manifest.stride if shard.offsets else shard.count
        first, end = start // stride, -(-stop // stride) if start < stop else 0
        low = first
        while low < end:
            high = low + 1
            while high < end and edges[high + 1] - edges[low] <= READ_BYTES:
                high += 1
            last = min(high * stride, shard.count)
            opens = low == first
            yield Chunk(part, low * stride, last, edges[low], edges[high], opens, after, url)
            low = high


def plan_parts(
    pieces: Iterable[tuple[ShardEntry, NDArray[np.int64]]], stride: int
) -> Iterator[Part]:
    """Parts for pieces (shard, samples), in order.

    A piece joins the part before it where that saves opening the shard again: if it stands
    further on in the same shard, with no whole run of `stride` samples unread between them.
    """
    now: Part | None = None
    for shard, wanted in pieces:
        start, stop = int(wanted.min()), int(wanted.max()) + 1
        if (
            now is not None
            and now.shard is shard
            and now.stop <= start < (-(-now.stop // stride) + 1) * stride
        ):
            now = Part(shard, now.start, stop, [*now.wanted, wanted])
            continue
        if now is not None:
            yield now
        now = Part(shard, start, stop, [wanted])
    if now is not None:
        yield now
