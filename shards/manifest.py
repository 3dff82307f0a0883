"""The manifest: what a folder of shards holds, and the checks that it can be trusted."""

import hashlib
import io
import json
import math
import os
import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.objects import FIRST, file_sizes, is_remote, join_url, read_bytes
from vgse.errors import UserError

VERSION = 1
FILE = "manifest.json"
LABELS = "labels.npy"
SPLITS = ("train", "test_seen", "test_unseen")
ROLES = ("train", "val", "unseen")
_SHARD_NAME = re.compile(r"(train|test_seen|test_unseen)-\d{6}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ClassEntry:
    """A class, its role (val is a seen class used for choices) and the words of its name.

    `synset` is its entry in WordNet, such as n02084071 or dog.n.01, where the words do not say it.
    """

    name: str
    role: str
    words: list[str]
    synset: str | None = None


@dataclass(frozen=True)
class ShardEntry:
    """One tar file; offsets are the byte positions of every `stride`-th sample."""

    file: str
    split: str
    count: int
    bytes: int
    sha256: str
    class_counts: dict[str, int]
    offsets: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class PatchSpec:
    """How patch boxes were made: "grid" or "watershed", N a picture, and parameters."""

    method: str
    num_patches: int
    params: dict[str, float]


@dataclass(frozen=True)
class ImageSpec:
    """How pictures are stored; largest is the greatest short side among them, in pixels."""

    short_side: int
    quality: int
    largest: int = 0


@dataclass(frozen=True)
class Manifest:
    """A packed data set. Class indices and labels count along `class_names`."""

    url: str
    version: int
    classes: list[ClassEntry]
    shards: list[ShardEntry]
    patches: PatchSpec
    image: ImageSpec
    source: str
    licence: str
    damaged: list[str]
    stride: int = 64
    plan: str = ""
    labels_sha256: str = ""

    @cached_property
    def class_names(self) -> list[str]:
        """Names of all C classes, sorted."""
        return sorted(entry.name for entry in self.classes)

    @cached_property
    def labels(self) -> dict[str, int]:
        """Label by class name."""
        return {name: label for label, name in enumerate(self.class_names)}

    def _indices(self, *roles: str) -> list[int]:
        return sorted(self.labels[entry.name] for entry in self.classes if entry.role in roles)

    @cached_property
    def seen(self) -> list[int]:
        """Indices of the seen classes, validation classes among them."""
        return self._indices("train", "val")

    @cached_property
    def val(self) -> list[int]:
        """Indices of the seen classes on which choices are made."""
        return self._indices("val")

    @cached_property
    def unseen(self) -> list[int]:
        """Indices of the unseen classes."""
        return self._indices("unseen")

    @cached_property
    def class_words(self) -> dict[str, list[str]]:
        """Words of every class name, in the order of class_names."""
        words = {entry.name: entry.words for entry in self.classes}
        return {name: words[name] for name in self.class_names}

    @cached_property
    def synsets(self) -> dict[str, str]:
        """The synsets that are named, by class."""
        return {entry.name: entry.synset for entry in self.classes if entry.synset}

    @property
    def num_patches(self) -> int:
        """N, the boxes of every picture."""
        return self.patches.num_patches

    def shards_of(self, split: str) -> list[ShardEntry]:
        """The shards of "train", "test_seen" or "test_unseen", in the order of their names."""
        if split not in SPLITS:
            raise UserError(f"{self.url}: no split {split!r}; take one of {', '.join(SPLITS)}")
        return sorted((s for s in self.shards if s.split == split), key=lambda shard: shard.file)

    def num_images(self, split: str) -> int:
        """How many pictures a split holds."""
        return sum(shard.count for shard in self.shards_of(split))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over everything but the url: equal for copies of the same shards."""
        content = {key: value for key, value in _as_dict(self).items() if key != "url"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _as_dict(manifest: Manifest) -> dict[str, Any]:
    content = asdict(manifest)
    for entry in content["classes"]:
        if entry["synset"] is None:  # as in manifests that know no synsets
            del entry["synset"]
    return content


def load_manifest(url: str, *, check_files: bool = True) -> Manifest:
    """The manifest of a local folder or any fsspec URL (or of a path to its manifest.json).

    `check_files` also looks whether all shards are there with the right length.
    """
    folder = str(url).rstrip("/").removesuffix(FILE).rstrip("/") or "."
    if not is_remote(folder):
        folder = os.path.abspath(folder.removeprefix("file://"))  # workers start elsewhere
    path = join_url(folder, FILE)
    try:
        content = json.loads(read_bytes(path, retry=FIRST))
    except FileNotFoundError:
        remedy = f"make it with `python -m shards pack --out {folder}`"
        if is_remote(folder):
            remedy = "correct the address, or copy a packed folder there"
        raise UserError(f"{path}: no such file; {remedy}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); pack again") from None
    manifest = _parse(content, folder, path)
    for problem in find_problems(manifest) or (file_problems(manifest) if check_files else []):
        raise UserError(f"{path}: {problem}")
    return manifest


def manifest_json(manifest: Manifest) -> str:
    """The manifest as text, one class or shard a line so that changes show in a diff."""
    lines = []
    for key, value in _as_dict(manifest).items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value:
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value)
            text = f"[\n  {rows}\n ]"
        if key != "url":
            lines.append(f"{json.dumps(key)}: {text}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def load_labels(manifest: Manifest) -> dict[str, npt.NDArray[np.int64]]:
    """Labels of every sample by shard file, [count] each, without opening a shard."""
    path = join_url(manifest.url, LABELS)
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; pack again") from None
    if hashlib.sha256(data).hexdigest() != manifest.labels_sha256:
        raise UserError(f"{path}: does not belong to the manifest beside it; pack again")
    labels = np.load(io.BytesIO(data), allow_pickle=False).astype(np.int64)
    ends = np.cumsum([shard.count for shard in manifest.shards])
    parts = np.split(labels, ends[:-1])
    return {shard.file: part for shard, part in zip(manifest.shards, parts, strict=True)}


def _parse(content: Any, folder: str, path: str) -> Manifest:
    version = content.get("version") if isinstance(content, dict) else None
    if version != VERSION:
        raise UserError(
            f"{path}: field version is {version!r}, this program reads {VERSION}; "
            "pack again or update the program"
        )
    try:
        parsed = {
            **content,
            "url": folder,
            "classes": [_entry(ClassEntry, row) for row in content["classes"]],
            "shards": [_entry(ShardEntry, row) for row in content["shards"]],
            "patches": _entry(PatchSpec, content["patches"]),
            "image": _entry(ImageSpec, content["image"]),
        }
        return _entry(Manifest, parsed)
    except KeyError as error:
        raise UserError(f"{path}: field {error.args[0]} is missing; pack again") from None
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: {error}; pack again") from None


def _entry(kind: type, row: dict[str, Any]) -> Any:
    """The dataclass of a row, without the fields that a later version may have added."""
    names = {item.name for item in fields(kind)}
    return kind(**{key: value for key, value in row.items() if key in names})


def find_problems(manifest: Manifest) -> list[str]:
    """What is wrong within the manifest, a line each; empty if nothing is."""
    found = _class_problems(manifest.classes) + _shard_problems(manifest)
    if manifest.num_patches < 1:
        found.append(f"patches: num_patches is {manifest.num_patches}; it must be at least 1")
    # What else there is counts over classes and shards that must be sound.
    return found or _count_problems(manifest)


def _class_problems(classes: list[ClassEntry]) -> list[str]:
    found = []
    roles = defaultdict(list)
    for entry in classes:
        roles[entry.name].append(entry.role)
        if entry.role not in ROLES:
            found.append(f"class {entry.name!r}: role {entry.role!r} is none of {', '.join(ROLES)}")
    for name, given in roles.items():
        if len(set(given)) > 1 and "unseen" in given:
            found.append(f"class {name!r} is both seen and unseen; keep one role")
        elif len(given) > 1:
            found.append(f"class {name!r} is listed {len(given)} times; keep one")
    return found


def _shard_problems(manifest: Manifest) -> list[str]:
    stride, shards = manifest.stride, manifest.shards
    if stride < 1:
        return [f"stride is {stride}; it must be at least 1"]
    files = Counter(shard.file for shard in shards)
    found = [f"shard {f!r} is listed {n} times; keep one" for f, n in files.items() if n > 1]
    known = set(manifest.class_names)
    for shard in shards:
        name = f"shard {shard.file!r}"
        match = _SHARD_NAME.fullmatch(shard.file)
        if not match or match[1] != shard.split:
            found.append(f"{name}: the name must be {shard.split}-NNNNNN.tar; pack again")
        if not _SHA256.fullmatch(shard.sha256):
            found.append(f"{name}: sha256 {shard.sha256!r} is not a checksum; pack again")
        total = sum(shard.class_counts.values())
        if total != shard.count or shard.count < 1:
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


def _count_problems(manifest: Manifest) -> list[str]:
    found = []
    totals: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for shard in manifest.shards:
        totals[shard.split].update(shard.class_counts)
    for entry in manifest.classes:
        kind = "unseen" if entry.role == "unseen" else "seen"
        allowed = ("test_unseen",) if kind == "unseen" else ("train", "test_seen")
        if not totals[allowed[0]][entry.name]:
            found.append(f"class {entry.name!r} ({entry.role}) has no images in split {allowed[0]}")
        found += [
            f"class {entry.name!r} is {kind} but has images in split {split}"
            for split in SPLITS
            if split not in allowed and totals[split][entry.name]
        ]
    return found


def file_problems(manifest: Manifest) -> list[str]:
    """Shards that are not there or have another length than the manifest says, a line each."""
    sizes = file_sizes(manifest.url, retry=FIRST)
    missing = [shard.file for shard in manifest.shards if shard.file not in sizes]
    found = []
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        found.append(f"missing shards: {', '.join(missing[:5])}{more}; copy them or pack again")
    return found + [
        f"shard {shard.file!r} has {sizes[shard.file]} bytes, not {shard.bytes}: "
        "copied in part or changed; copy it again or pack again"
        for shard in manifest.shards
        if sizes.get(shard.file, shard.bytes) != shard.bytes
    ]
