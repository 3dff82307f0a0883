"""Samples out of shards: forward reading, our own decoders for .jpg and .json only."""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.images import decode_jpeg
from shards.manifest import Manifest, ShardEntry
from shards.objects import ACCESS, Access
from shards.source import Part, read_chunks
from shards.tar import Member, read_members
from vgse.errors import UserError

MAX_JSON_BYTES = 1 << 20


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


@dataclass(frozen=True)
class Meta:
    """What the .json of a sample says: boxes float32 [N, 4], label into class_names."""

    boxes: NDArray[np.float32]
    label: int
    source: str


def read_shard(
    manifest: Manifest, shard: ShardEntry, *, start: int = 0, stop: int | None = None
) -> Iterator[Sample]:
    """Samples start to stop - 1 of a shard, decoded, in stored order.

    Raises ValueError that names shard and sample for whatever is damaged.
    """
    labels = label_index(manifest)
    for raw in read_raw(manifest, shard, start=start, stop=stop):
        meta = parse_meta(raw, labels, manifest.num_patches)
        yield Sample(raw.key, raw.index, decode(raw), meta.boxes, meta.label, meta.source)


def read_raw(
    manifest: Manifest,
    shard: ShardEntry,
    *,
    start: int = 0,
    stop: int | None = None,
    access: Access = ACCESS,
) -> Iterator[RawSample]:
    """Samples start to stop - 1 of a shard, undecoded, in stored order; see read_parts."""
    return read_parts(
        manifest, [Part(shard, start, shard.count if stop is None else stop)], access=access
    )


def read_parts(
    manifest: Manifest, parts: Iterable[Part], *, access: Access = ACCESS
) -> Iterator[RawSample]:
    """Samples of one part after the other, undecoded, in stored order.

    Reads a few MB at a time, whole runs of samples, and begins at the last stored offset
    before a part's start; of a remote store the next few MB in the background, also those
    of the next part. Raises ValueError for truncated shards, unpaired or unknown members,
    duplicate keys and another number of samples than the manifest says.
    """
    keys: set[str] = set()
    for chunk, where, data in read_chunks(manifest, parts, access):
        if chunk.opens:
            keys = set()
        before, index = len(keys), chunk.first
        for index, (key, jpeg, text) in enumerate(_pairs(data, where, chunk.begin), chunk.first):
            if key in keys:
                raise UserError(f"{where}: key {key!r} stands for two samples; pack again")
            keys.add(key)
            if index >= chunk.last:
                break
            if chunk.part.start <= index < chunk.part.stop:
                yield RawSample(key, index, jpeg, text, chunk.part.shard.file)
        if len(keys) - before != chunk.last - chunk.first:
            raise UserError(
                f"{where}: other than the {chunk.part.shard.count} samples of the manifest; "
                "pack again"
            )


def label_index(manifest: Manifest) -> dict[str, int]:
    """Label by class name."""
    return {name: label for label, name in enumerate(manifest.class_names)}


def decode(raw: RawSample) -> NDArray[np.uint8]:
    """The picture, uint8 [H, W, 3] RGB; raises ValueError if it is damaged."""
    try:
        return decode_jpeg(raw.jpeg)
    except ValueError as error:
        raise UserError(f"{raw.shard}: sample {raw.key}: {error}") from None


def parse_meta(raw: RawSample, labels: dict[str, int], num_patches: int) -> Meta:
    """Boxes, label and source of a sample. Raises ValueError that names the field."""
    where = f"{raw.shard}: sample {raw.key}"
    if len(raw.json) > MAX_JSON_BYTES:
        raise UserError(f"{where}: .json of {len(raw.json)} bytes; pack again")
    try:
        content: Any = json.loads(raw.json)
        name, source = content["class"], str(content["source"])
        boxes = np.array(content["boxes"], np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: .json is damaged ({error}); pack again") from None
    if not isinstance(name, str) or name not in labels:
        raise UserError(f"{where}: class {name!r} is not in the manifest; pack again")
    if boxes.shape != (num_patches, 4):
        raise UserError(
            f"{where}: boxes have shape {list(boxes.shape)}, not [{num_patches}, 4]; pack again"
        )
    low, high = boxes[:, :2], boxes[:, 2:]
    # Comparisons with NaN are false, so this refuses NaN as well.
    if not (np.all(low >= 0) and np.all(high <= 1) and np.all(high > low)):
        raise UserError(f"{where}: a box is empty or reaches out of 0..1; pack again")
    return Meta(boxes, labels[name], source)


def _pairs(data: bytes, where: str, offset: int) -> Iterator[tuple[str, bytes, bytes]]:
    members = read_members(io.BytesIO(data), where=where, offset=offset)
    for one in members:
        two = next(members, None)
        parts = {_suffix(member, where): member for member in (one, two) if member}
        keys = {member.name.partition(".")[0] for member in parts.values()}
        if len(parts) != 2 or len(keys) != 1:
            raise UserError(f"{where}: member {one.name!r} lacks its other half; pack again")
        yield keys.pop(), parts["jpg"].data, parts["json"].data


def _suffix(member: Member, where: str) -> str:
    suffix = member.name.partition(".")[2]
    if suffix not in ("jpg", "json"):
        raise UserError(f"{where}: member {member.name!r} is neither .jpg nor .json; pack again")
    return suffix
