"""Samples out of shards of a disk, a store or its cache: WebDataset's own stages between strict
ones; no pickle is read."""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import chain, pairwise
from typing import Any

import numpy as np
import webdataset as wds
from numpy.typing import NDArray
from webdataset.tariterators import group_by_keys, tar_file_expander

from shards.images import decode_jpeg
from shards.manifest import Manifest, ShardEntry
from shards.objects import ACCESS, Access, is_remote, join_url, read_bytes
from shards.read_ahead import read_ahead
from shards.shard_cache import cached_copy, read_cached
from vgse.errors import UserError

wds.utils.enforce_security = True  # no `pipe:` command and no pickle, should anything reach them

MAX_JSON_BYTES = 1 << 20
READ_BYTES = 4 << 20
_BLOCK = 512
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,89}\.(jpg|json)")


@dataclass(frozen=True)
class RawSample:
    """A sample as it is stored; index counts within the shard."""

    key: str
    index: int
    jpeg: bytes
    json: bytes
    shard: str


@dataclass(frozen=True)
class Sample:
    """A decoded sample; image uint8 [H, W, 3] RGB, boxes float32 [N, 4] in 0..1."""

    key: str
    index: int
    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    label: int
    source: str


class DamagedImage(UserError):
    """A picture that cannot be decoded, in a shard that is otherwise sound."""


@dataclass(frozen=True)
class Part:
    """Samples start to stop - 1 of a shard, read once, forward; `wanted` are the samples [n] of
    each piece, in the order of the epoch, all of them before those of the next."""

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


def read_shard(
    manifest: Manifest, shard: ShardEntry, *, start: int = 0, stop: int | None = None
) -> Iterator[Sample]:
    """Samples start to stop - 1 of a shard, decoded, in stored order."""
    for raw in read_raw(manifest, shard, start=start, stop=stop):
        yield decode_sample(raw, manifest)


def read_raw(
    manifest: Manifest,
    shard: ShardEntry,
    *,
    start: int = 0,
    stop: int | None = None,
    access: Access = ACCESS,
) -> Iterator[RawSample]:
    """Samples start to stop - 1 of a shard, undecoded, in stored order."""
    part = Part(shard, start, shard.count if stop is None else stop)
    return read_parts(manifest, [part], access=access)


def read_parts(
    manifest: Manifest, parts: Iterable[Part], *, access: Access = ACCESS
) -> Iterator[RawSample]:
    """Samples of one part after the other, undecoded, in stored order."""
    streams = partial(open_streams, manifest, parts, access)
    stages = [streams, check_members, tar_file_expander, group_by_keys, check_samples]
    return iter(wds.DataPipeline(*stages))


def plan_parts(
    pieces: Iterable[tuple[ShardEntry, NDArray[np.int64]]], stride: int
) -> Iterator[Part]:
    """Parts for pieces (shard, samples), in order; a piece further on in the same shard joins the
    part before it, unless a whole run of `stride` samples lies unread between them."""
    now: Part | None = None
    for shard, wanted in pieces:
        start, stop = int(wanted.min()), int(wanted.max()) + 1
        if (
            now is not None
            and now.shard == shard
            and now.stop <= start < (-(-now.stop // stride) + 1) * stride
        ):
            now = Part(shard, now.start, stop, [*now.wanted, wanted])
            continue
        if now is not None:
            yield now
        now = Part(shard, start, stop, [wanted])
    if now is not None:
        yield now


def open_streams(
    manifest: Manifest, parts: Iterable[Part], access: Access
) -> Iterator[dict[str, Any]]:
    """The source of a WebDataset pipeline: each chunk of the parts, as `url`, with its bytes; of a
    remote store the next ones are fetched in the background."""
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
    """Whole runs of samples, a few MB each, from the last stored offset before a part's start."""
    for part, following in pairwise(chain(parts, [None])):
        assert part is not None
        shard, start, stop = part.shard, part.start, part.stop
        assert 0 <= start <= stop <= shard.count, (start, stop, shard)
        after = following.shard if following and following.shard != shard else None
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


def check_members(streams: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The streams, each looked through before WebDataset reads it: it would unpack a compressed
    tar or a sparse member of any size, and skip links and names such as __x__ without a word."""
    for stream in streams:
        _require_plain_members(stream["stream"].getvalue(), stream["url"])
        yield stream


def _require_plain_members(data: bytes, chunk: Chunk) -> None:
    if len(data) < chunk.end - chunk.begin:
        end = chunk.begin + len(data)
        raise UserError(f"{chunk.url}: ends at byte {end} of {chunk.end}; copy it again")
    names: set[str] = set()
    at = 0
    while (header := data[at : at + _BLOCK]).strip(b"\0"):
        size_field = header[124:135]
        if header[257:262] != b"ustar" or set(size_field) - set(b"01234567"):
            place = chunk.begin + at
            raise UserError(f"{chunk.url}: no tar header at byte {place}; copy or pack it again")
        name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
        if header[156:157] not in (b"0", b"\0") or header[345] or not _NAME.fullmatch(name):
            raise UserError(
                f"{chunk.url}: member {name!r} is neither .jpg nor .json under a plain name; "
                "pack again"
            )
        if name in names:
            raise UserError(f"{chunk.url}: member {name!r} is there twice; pack again")
        names.add(name)
        at += _BLOCK + -(-int(size_field, 8) // _BLOCK) * _BLOCK
        if at > len(data):
            raise UserError(f"{chunk.url}: ends inside member {name!r}; copy it again")
    if len(names) != 2 * (chunk.last - chunk.first) or data[at:].strip(b"\0"):
        raise _other_count(chunk)


def check_samples(samples: Iterable[dict[str, Any]]) -> Iterator[RawSample]:
    """The samples that were asked for; refuses half ones, and chunks that gave too few, as at a
    damaged header, where WebDataset ends a shard without a word."""
    chunk: Chunk | None = None
    keys: set[str] = set()
    index = 0
    try:
        for sample in samples:
            if chunk is not sample["__url__"]:
                _require_all_read(chunk, index)
                chunk = sample["__url__"]
                index, keys = chunk.first, set() if chunk.opens else keys
            key: str = sample["__key__"]
            if "jpg" not in sample or "json" not in sample:
                raise UserError(f"{chunk.url}: sample {key!r} lacks its other half; pack again")
            if key in keys:
                raise UserError(f"{chunk.url}: key {key!r} stands for two samples; pack again")
            keys.add(key)
            if chunk.part.start <= index < chunk.part.stop:
                file = chunk.part.shard.file
                yield RawSample(key, index, sample["jpg"], sample["json"], file)
            index += 1
    except tarfile.TarError as error:
        damaged: Chunk = error.args[-1]  # WebDataset adds the stream and its address
        raise UserError(
            f"{damaged.url}: damaged tar header at byte {damaged.begin}; copy it again"
        ) from error
    _require_all_read(chunk, index)


def _require_all_read(chunk: Chunk | None, index: int) -> None:
    if chunk is not None and index != chunk.last:
        raise _other_count(chunk)


def _other_count(chunk: Chunk) -> UserError:
    return UserError(
        f"{chunk.url}: bytes {chunk.begin} to {chunk.end} hold other than the samples "
        f"{chunk.first} to {chunk.last - 1} of the manifest, or a damaged header; copy it again "
        "or pack again"
    )


def decode_sample(raw: RawSample, manifest: Manifest) -> Sample:
    """The picture with its boxes, label and source; DamagedImage if it cannot be decoded."""
    num_patches = manifest.num_patches
    where = f"{raw.shard}: sample {raw.key}"
    if len(raw.json) > MAX_JSON_BYTES:
        raise UserError(f"{where}: .json of {len(raw.json)} bytes; pack again")
    try:
        content: Any = json.loads(raw.json)
        name, source = content["class"], str(content["source"])
        boxes = np.array(content["boxes"], np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: .json is damaged ({error}); pack again") from None
    if not isinstance(name, str) or name not in manifest.labels:
        raise UserError(f"{where}: class {name!r} is not in the manifest; pack again")
    if boxes.shape != (num_patches, 4):
        raise UserError(
            f"{where}: boxes have shape {list(boxes.shape)}, not [{num_patches}, 4]; pack again"
        )
    # Comparisons with NaN are false, so this refuses NaN as well.
    if not (boxes.min() >= 0 and boxes.max() <= 1 and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise UserError(f"{where}: a box is empty or reaches out of 0..1; pack again")
    try:
        image = decode_jpeg(raw.jpeg)
    except UserError as error:
        raise DamagedImage(f"{where}: {error}") from None
    return Sample(raw.key, raw.index, image, boxes, manifest.labels[name], source)
