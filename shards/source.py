"""Which bytes of which shards to read, and reading them: from disk, a store or its cache."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from shards import objects
from shards.manifest import Manifest, ShardEntry
from shards.objects import Access
from shards.read_ahead import read_ahead
from shards.shard_cache import keep, read_cached
from vgse.errors import UserError

READ_BYTES = 4 << 20


@dataclass(frozen=True)
class Part:
    """Samples start to stop - 1 of a shard."""

    shard: ShardEntry
    start: int
    stop: int


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


def read_chunks(
    manifest: Manifest, parts: Iterable[Part], access: Access
) -> Iterator[tuple[Chunk, str, bytes]]:
    """Each chunk of the parts with the address of its shard and its bytes.

    Raises ValueError if a shard is missing or cannot be read.
    """
    remote = objects.is_remote(manifest.url)
    cached = remote and access.cache is not None

    def fetch(chunk: Chunk) -> bytes:
        shard = chunk.part.shard
        where = objects.join(manifest.url, shard.file)
        try:
            if cached:
                return read_cached(where, shard, chunk.begin, chunk.end, access)
            return objects.read(where, chunk.begin, chunk.end, retry=access.retry)
        except FileNotFoundError:
            raise UserError(f"{where}: missing shard; copy it or pack again") from None

    chunks = read_ahead(_chunks(manifest, parts), fetch, access.ahead if remote else 0)
    loader = ThreadPoolExecutor(1, thread_name_prefix="shard-cache") if cached else None
    try:
        for chunk, data in chunks:
            if loader and chunk.opens and chunk.after:
                # A failure shows when the shard itself is read.
                after = objects.join(manifest.url, chunk.after.file)
                loader.submit(keep, after, chunk.after, access)
            yield chunk, objects.join(manifest.url, chunk.part.shard.file), data
    finally:
        chunks.close()
        if loader:
            loader.shutdown(wait=False, cancel_futures=True)


def _chunks(manifest: Manifest, parts: Iterable[Part]) -> Iterator[Chunk]:
    for part, following in pairwise(chain(parts, [None])):
        assert part is not None
        shard = part.shard
        after = following.shard if following and following.shard is not shard else None
        opens = True
        for first, last, begin, end in _runs(manifest, part):
            yield Chunk(part, first, last, begin, end, opens, after)
            opens = False


def _runs(manifest: Manifest, part: Part) -> Iterator[tuple[int, int, int, int]]:
    """(first sample, last sample, first byte, last byte) of reads that cover a part."""
    shard, start, stop = part.shard, part.start, part.stop
    assert 0 <= start <= stop <= shard.count, (start, stop, shard)
    if start >= stop:
        return
    if not shard.offsets:
        yield 0, shard.count, 0, shard.bytes
        return
    edges = [*shard.offsets, shard.bytes]
    low, end = start // manifest.stride, -(-stop // manifest.stride)
    while low < end:
        high = low + 1
        while high < end and edges[high + 1] - edges[low] <= READ_BYTES:
            high += 1
        last = min(high * manifest.stride, shard.count)
        yield low * manifest.stride, last, edges[low], edges[high]
        low = high


@dataclass(frozen=True)
class Pass:
    """Samples start to stop - 1 of shard number `shard`, read once, forward.

    `wanted` are the samples [n] of each piece, in the order of the epoch; all of a piece
    stand before all of the next.
    """

    shard: int
    start: int
    stop: int
    wanted: list[NDArray[np.int64]]


def plan_passes(pieces: Iterable[tuple[int, NDArray[np.int64]]], stride: int) -> Iterator[Pass]:
    """Passes for pieces (shard, samples), in order.

    A piece joins the pass before it where that saves opening the shard again: if it stands
    further on in the same shard, with no whole run of `stride` samples unread between them.
    """
    now: Pass | None = None
    for shard, wanted in pieces:
        start, stop = int(wanted.min()), int(wanted.max()) + 1
        joins = (
            now is not None
            and now.shard == shard
            and now.stop <= start < (-(-now.stop // stride) + 1) * stride
        )
        if now is not None and joins:
            now = Pass(shard, now.start, stop, [*now.wanted, wanted])
            continue
        if now is not None:
            yield now
        now = Pass(shard, start, stop, [wanted])
    if now is not None:
        yield now
