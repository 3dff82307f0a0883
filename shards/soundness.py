"""What can be wrong with a manifest."""

import math
import re
from collections import Counter

from shards.entries import ROLES, SPLITS, ClassEntry, ShardEntry

_SHARD_NAME = re.compile(r"(train|test_seen|test_unseen)-\d{6}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def find_problems(
    classes: list[ClassEntry], shards: list[ShardEntry], *, num_patches: int, stride: int
) -> list[str]:
    """What is wrong with a manifest's classes and shards, a line each; empty if nothing is."""
    found = _class_problems(classes) + _shard_problems(classes, shards, stride)
    if num_patches < 1:
        found.append(f"patches: num_patches is {num_patches}; it must be at least 1")
    if found:
        return found  # what follows counts over classes and shards that must be sound
    return _count_problems(classes, shards)


def _class_problems(classes: list[ClassEntry]) -> list[str]:
    found = []
    names = Counter(entry.name for entry in classes)
    roles: dict[str, set[str]] = {}
    for entry in classes:
        roles.setdefault(entry.name, set()).add(entry.role)
        if entry.role not in ROLES:
            found.append(f"class {entry.name!r}: role {entry.role!r} is none of {', '.join(ROLES)}")
    for name, count in names.items():
        if len(roles[name]) > 1 and "unseen" in roles[name]:
            found.append(f"class {name!r} is both seen and unseen; keep one role")
        elif count > 1:
            found.append(f"class {name!r} is listed {count} times; keep one")
    return found


def _shard_problems(classes: list[ClassEntry], shards: list[ShardEntry], stride: int) -> list[str]:
    if stride < 1:
        return [f"stride is {stride}; it must be at least 1"]
    found = []
    known = {entry.name for entry in classes}
    for file, count in Counter(shard.file for shard in shards).items():
        if count > 1:
            found.append(f"shard {file!r} is listed {count} times; keep one")
    for shard in shards:
        name = f"shard {shard.file!r}"
        match = _SHARD_NAME.fullmatch(shard.file)
        if not match or match[1] != shard.split:
            found.append(f"{name}: the name must be {shard.split}-NNNNNN.tar; pack again")
        if not _SHA256.fullmatch(shard.sha256):
            found.append(f"{name}: sha256 {shard.sha256!r} is not a checksum; pack again")
        if sum(shard.class_counts.values()) != shard.count or shard.count < 1:
            total = sum(shard.class_counts.values())
            found.append(f"{name}: count is {shard.count}, its classes add up to {total}")
        for stranger in sorted(set(shard.class_counts) - known):
            found.append(f"{name}: class {stranger!r} is not among the classes; pack again")
        if shard.offsets and (
            len(shard.offsets) != math.ceil(shard.count / stride)
            or sorted(shard.offsets) != shard.offsets
            or not 0 <= shard.offsets[0] <= shard.offsets[-1] < shard.bytes
        ):
            found.append(f"{name}: offsets do not fit its count and bytes; pack again")
    return found


def _count_problems(classes: list[ClassEntry], shards: list[ShardEntry]) -> list[str]:
    found = []
    totals: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for shard in shards:
        totals[shard.split].update(shard.class_counts)
    for entry in classes:
        if entry.role == "hidden":
            found += [
                f"class {entry.name!r} is hidden but has images in split {split}"
                for split in SPLITS
                if totals[split][entry.name]
            ]
            continue
        unseen = entry.role == "unseen"
        home = "test_unseen" if unseen else "train"
        if not totals[home][entry.name]:
            found.append(f"class {entry.name!r} ({entry.role}) has no images in split {home}")
        foreign = ("train", "test_seen") if unseen else ("test_unseen",)
        for split in foreign:
            if totals[split][entry.name]:
                kind = "unseen" if unseen else "seen"
                found.append(f"class {entry.name!r} is {kind} but has images in split {split}")
    return found
