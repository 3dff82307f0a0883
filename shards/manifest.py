"""The manifest: what a folder of shards holds, and the checks that it can be trusted."""

import hashlib
import io
import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from shards.objects import FIRST, file_sizes, is_remote, join_url, read_bytes
from vgse.errors import UserError
from vgse.files import written_whole

VERSION = 2
FILE, SHARDS, LABELS, DAMAGED = "manifest.json", "shards.npy", "labels.npy", "damaged.txt"
SPLITS = ("train", "test_seen", "test_unseen")
TRAINING_OF_UNSEEN = "training images of unseen classes"  # a kind of what is left out
ROLES = ("train", "val", "unseen")
_SHARD_NAME = re.compile(r"(train|test_seen|test_unseen)-(\d{6,9})\.tar")
_LISTED = 1000  # of more shards manifest.json has no list
_NO_OFFSET = np.uint64(2**64 - 1)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_log = logging.getLogger(__name__)


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
    offsets: list[int] = field(default_factory=list)


class ShardTable(Sequence[ShardEntry]):
    """Shards as fixed-width records [K] in the order of split and number, which shards.npy holds;
    an entry is made when it is asked for."""

    def __init__(self, records: NDArray[np.void]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, index: slice) -> "ShardTable": ...
    def __getitem__(self, index: int | slice) -> "ShardEntry | ShardTable":
        if isinstance(index, slice):
            return ShardTable(self.records[index])
        row = self.records[index]
        split, offsets = SPLITS[row["split"]], row["offsets"]
        return ShardEntry(
            f"{split}-{int(row['number']):0{int(row['digits'])}d}.tar",
            split,
            int(row["count"]),
            int(row["bytes"]),
            row["sha256"].tobytes().hex(),
            offsets[offsets != _NO_OFFSET].tolist(),
        )

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """Split and number of each as one integer [K]."""
        return self.records["split"].astype(np.uint64) << np.uint64(32) | self.records["number"]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Samples of each [K]."""
        return self.records["count"].astype(np.int64)

    def split_rows(self, split: str) -> slice:
        """Where the shards of a split lie."""
        number = SPLITS.index(split)
        first, end = np.searchsorted(self.records["split"], [number, number + 1])
        return slice(int(first), int(end))

    def find(self, file: str) -> ShardEntry:
        """The shard of that name."""
        match = _SHARD_NAME.fullmatch(file)
        assert match, file
        key = np.uint64(SPLITS.index(match[1]) << 32 | int(match[2]))
        found = self[int(np.searchsorted(self.keys, key))]
        assert found.file == file, (found.file, file)
        return found


def shard_table(entries: Sequence[ShardEntry]) -> ShardTable:
    """The table of shards whose names are sound."""
    records = np.empty(
        len(entries), _record_type(max((len(e.offsets) for e in entries), default=0))
    )
    records["offsets"] = _NO_OFFSET
    for row, entry in zip(records, entries, strict=True):
        number = entry.file.removesuffix(".tar").rpartition("-")[2]
        row["split"], row["digits"], row["number"] = SPLITS.index(entry.split), len(number), number
        row["count"], row["bytes"] = entry.count, entry.bytes
        row["sha256"] = np.frombuffer(bytes.fromhex(entry.sha256), np.uint8)
        row["offsets"][: len(entry.offsets)] = entry.offsets
    return ShardTable(records)


def _record_type(num_offsets: int) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("split", "u1"),
            ("digits", "u1"),
            ("number", "<u4"),
            ("count", "<u4"),
            ("bytes", "<u8"),
            ("sha256", "u1", (32,)),
            ("offsets", "<u8", (num_offsets,)),
        ]
    )


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
    """A packed data set. Class indices and labels count along `class_names`.

    What is here does not grow with the shards, which are read when they are asked for.
    """

    url: str
    version: int
    classes: list[ClassEntry]
    class_counts: dict[str, dict[str, int]]  # images of each class by split
    patches: PatchSpec
    image: ImageSpec
    source: str
    licence: str
    damaged: list[str]  # the first of them; damaged.txt lists all
    num_damaged: int = 0
    stride: int = 64
    plan: str = ""
    labels_sha256: str = ""
    shards_sha256: str = ""
    left_out: dict[str, int] = field(default_factory=dict)  # files that were not packed, by kind
    fingerprint: str = ""  # sha256 (hex) of all but the url: equal for copies of the same shards
    table: ShardTable | None = field(default=None, compare=False, repr=False)  # read already
    splits: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    """Where roles were given anew (`shards.roles`): the split of every sample [T], as a number in
    SPLITS, in the order of the shards."""

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "shards"}

    @cached_property
    def shards(self) -> ShardTable:
        """All shards."""
        return _load_table(self) if self.table is None else self.table

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

    def shards_of(self, split: str) -> ShardTable:
        """The shards that were packed as "train", "test_seen" or "test_unseen", in the order of
        their names."""
        if split not in SPLITS:
            raise UserError(f"{self.url}: no split {split!r}; take one of {', '.join(SPLITS)}")
        return self.shards[self.shards.split_rows(split)]

    def num_images(self, split: str) -> int:
        """How many pictures a split holds."""
        return sum(self.class_counts[split].values())


def load_manifest(url: str, *, check_files: bool = True) -> Manifest:
    """The manifest of a local folder or any fsspec URL (or of a path to its manifest.json).

    `check_files` also reads the table of the shards and looks whether all are there with the right
    length.
    """
    folder = str(url).rstrip("/").removesuffix(FILE).rstrip("/") or "."
    if not is_remote(folder):
        # Workers start elsewhere.
        folder = os.path.abspath(os.path.expanduser(folder.removeprefix("file://")))
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
    problems = _class_problems(manifest)
    if check_files:
        problems = problems or find_problems(manifest) or file_problems(manifest)
        if manifest.version == 1 and len(manifest.shards) > _LISTED:
            _log.warning(
                "%s: is of version 1, which every process reads whole, about %.0f s for its %s "
                "shards; pack into another folder, and it takes milliseconds",
                *(path, 3e-4 * len(manifest.shards), f"{len(manifest.shards):,}"),
            )
    for problem in problems:
        raise UserError(f"{path}: {problem}")
    return manifest


def manifest_json(manifest: Manifest) -> str:
    """The manifest as text, one class a line so that changes show in a diff.

    A list of a few shards stands there for people and other programs; it is not read back.
    """
    lines = []
    content = asdict(replace(manifest, table=None, splits=None))
    for key in ("url", "fingerprint", "table", "splits"):
        del content[key]
    for entry in content["classes"]:
        if entry["synset"] is None:
            del entry["synset"]
    if len(manifest.shards) <= _LISTED:
        content["shards"] = [
            {"file": shard.file, "split": shard.split, "count": shard.count, "bytes": shard.bytes}
            for shard in manifest.shards
        ]
    for key, value in content.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value:
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value)
            text = f"[\n  {rows}\n ]"
        lines.append(f"{json.dumps(key)}: {text}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def write_table(folder: Path, entries: Sequence[ShardEntry]) -> str:
    """Write shards.npy; returns its sha256 (hex)."""
    return _write_array(folder / SHARDS, shard_table(entries).records)


def write_labels(folder: Path, labels: NDArray[np.integer], num_classes: int) -> str:
    """Write labels.npy, the label of every sample in the order of the shards; returns its sha256
    (hex)."""
    small = np.uint16 if num_classes <= 1 << 16 else np.uint32
    return _write_array(folder / LABELS, labels.astype(small))


def _write_array(path: Path, array: NDArray[Any]) -> str:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    with written_whole(path) as stream:
        stream.write(content.getbuffer())
    return hashlib.sha256(content.getbuffer()).hexdigest()


def load_labels(manifest: Manifest) -> NDArray[np.unsignedinteger]:
    """Labels of every sample [T], in the order of the shards, without opening one."""
    return _read_array(join_url(manifest.url, LABELS), manifest.labels_sha256)


def _load_table(manifest: Manifest) -> ShardTable:
    path = join_url(manifest.url, SHARDS)
    records = _read_array(path, manifest.shards_sha256)
    named = records.dtype.names and "offsets" in records.dtype.names
    if (
        not named
        or records.dtype != _record_type(records.dtype["offsets"].shape[0])
        or (records["split"] >= len(SPLITS)).any()
    ):
        raise UserError(f"{path}: holds no table of shards; pack again")
    return ShardTable(records)


def _read_array(path: str, sha256: str) -> NDArray[Any]:
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; copy it or pack again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{path}: does not belong to the manifest beside it; pack again")
    stream = io.BytesIO(data)
    np.lib.format.read_magic(stream)
    _, _, kind = np.lib.format.read_array_header_1_0(stream)
    return np.frombuffer(data, kind, offset=stream.tell())  # np.load would copy it


def _parse(content: Any, folder: str, path: str) -> Manifest:
    version = content.get("version") if isinstance(content, dict) else None
    if version not in (1, VERSION):
        raise UserError(
            f"{path}: field version is {version!r}, this program reads {VERSION}; "
            "pack again or update the program"
        )
    try:
        if version == 1:
            content = _of_version_1(content, path)
        else:
            content = {key: value for key, value in content.items() if key != "shards"}
            content |= {"fingerprint": _digest(content), "table": None}
        parsed = {
            **content,
            "url": folder,
            "splits": None,
            "classes": [_entry(ClassEntry, row) for row in content["classes"]],
            "patches": _entry(PatchSpec, content["patches"]),
            "image": _entry(ImageSpec, content["image"]),
            # A terminal would obey them.
            **{name: _CONTROL.sub("", content[name]) for name in ("source", "licence")},
        }
        manifest: Manifest = _entry(Manifest, parsed)
        return manifest
    except KeyError as error:
        raise UserError(f"{path}: field {error.args[0]} is missing; pack again") from None
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: {error}; pack again") from None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _entry(kind: type, row: Mapping[str, Any]) -> Any:
    """The dataclass of a row, without the fields that a later version may have added."""
    return kind(**_known(row, {item.name for item in fields(kind)}))


def _known(row: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key in names}


def _of_version_1(content: dict[str, Any], path: str) -> dict[str, Any]:
    """The content of a manifest of version 1: its shards are rows with the counts of their classes,
    and its fingerprint, over all of them, stands in caches and checkpoints."""
    rows = [
        {"offsets": [], **_known(row, [*(f.name for f in fields(ShardEntry)), "class_counts"])}
        for row in content["shards"]
    ]
    for problem in _row_problems(rows, {entry["name"] for entry in content["classes"]}):
        raise UserError(f"{path}: {problem}")
    names = [item.name for item in fields(ClassEntry)]
    defaults = {"stride": 64, "plan": "", "labels_sha256": ""}
    known = ["version", "source", "licence", "damaged", *defaults]
    whole = {
        **defaults,
        **_known(content, known),
        "classes": [
            {key: value for key, value in _known(row, names).items() if value is not None}
            for row in content["classes"]
        ],
        "shards": rows,
        "patches": asdict(_entry(PatchSpec, content["patches"])),
        "image": asdict(_entry(ImageSpec, content["image"])),
    }
    fingerprint = _digest(whole)
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for row in rows:
        counts[row["split"]].update(row.pop("class_counts"))
    return {
        **content,
        "class_counts": {split: dict(sorted(found.items())) for split, found in counts.items()},
        "num_damaged": len(content["damaged"]),
        "table": shard_table([ShardEntry(**row) for row in rows]),
        "fingerprint": fingerprint,
    }


def _row_problems(rows: list[dict[str, Any]], classes: Collection[str]) -> list[str]:
    files = Counter(row["file"] for row in rows)
    found = [f"shard {f!r} is listed {n} times; keep one" for f, n in files.items() if n > 1]
    for row in rows:
        name = f"shard {row['file']!r}"
        match = _SHARD_NAME.fullmatch(row["file"])
        if not match or match[1] != row["split"]:
            found.append(f"{name}: the name must be {row['split']}-NNNNNN.tar; pack again")
        if not _SHA256.fullmatch(row["sha256"]):
            found.append(f"{name}: sha256 {row['sha256']!r} is not a checksum; pack again")
        total = sum(row["class_counts"].values())
        if total != row["count"]:
            found.append(f"{name}: count is {row['count']}, its classes add up to {total}")
        for stranger in sorted(set(row["class_counts"]) - set(classes)):
            found.append(f"{name}: class {stranger!r} is not among the classes; pack again")
    return found


def find_problems(manifest: Manifest) -> list[str]:
    """What is wrong within the manifest and its table, a line each; empty if nothing is."""
    return _class_problems(manifest) or _shard_problems(manifest)


def _class_problems(manifest: Manifest) -> list[str]:
    found = []
    roles = defaultdict(list)
    for entry in manifest.classes:
        roles[entry.name].append(entry.role)
        if _CONTROL.search(entry.name):
            found.append(f"class {entry.name!r}: the name holds control characters; pack again")
        if entry.role not in ROLES:
            found.append(f"class {entry.name!r}: role {entry.role!r} is none of {', '.join(ROLES)}")
    for name, given in roles.items():
        if len(set(given)) > 1 and "unseen" in given:
            found.append(f"class {name!r} is both seen and unseen; keep one role")
        elif len(given) > 1:
            found.append(f"class {name!r} is listed {len(given)} times; keep one")
    if manifest.num_patches < 1:
        found.append(f"patches: num_patches is {manifest.num_patches}; it must be at least 1")
    for split in SPLITS:
        for stranger in sorted(set(manifest.class_counts[split]) - set(roles)):
            found.append(f"class_counts: class {stranger!r} is not among the classes; pack again")
    # What else there is counts over classes that must be sound.
    return found or _count_problems(manifest)


def _count_problems(manifest: Manifest) -> list[str]:
    found = []
    for entry in manifest.classes:
        kind = "unseen" if entry.role == "unseen" else "seen"
        allowed = ("test_unseen",) if kind == "unseen" else ("train", "test_seen")
        counts = {split: manifest.class_counts[split].get(entry.name, 0) for split in SPLITS}
        if not counts[allowed[0]]:
            found.append(f"class {entry.name!r} ({entry.role}) has no images in split {allowed[0]}")
        found += [
            f"class {entry.name!r} is {kind} but has images in split {split}"
            for split in SPLITS
            if split not in allowed and counts[split]
        ]
    return found


def _shard_problems(manifest: Manifest) -> list[str]:
    table, stride = manifest.shards, manifest.stride
    records, counts = table.records, table.counts
    if stride < 1:
        return [f"stride is {stride}; it must be at least 1"]
    if not (table.keys[1:] > table.keys[:-1]).all():
        return ["the shards are not in the order of their names; pack again"]
    found = []
    for split in SPLITS:
        total, expected = int(counts[table.split_rows(split)].sum()), manifest.num_images(split)
        if total != expected:
            found.append(f"the shards of {split} hold {total} images, its classes {expected}")
    offsets, sizes = records["offsets"], records["bytes"]
    given = offsets != _NO_OFFSET
    wrong = given.any(1) & (
        (given.sum(1) != -(-counts // stride))
        | (given[:, 1:] & ~(given[:, :-1] & (offsets[:, 1:] >= offsets[:, :-1]))).any(1)
        | (given & (offsets >= sizes[:, None])).any(1)
    )
    rows = np.flatnonzero(wrong | (counts < 1))
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    if len(rows):
        shard = table[int(rows[0])].file
        found.append(f"shard {shard!r}{more}: offsets do not fit its count and bytes; pack again")
    return found


def file_problems(manifest: Manifest) -> list[str]:
    """Shards that are not there or have another length than the manifest says, a line each."""
    sizes = file_sizes(manifest.url, retry=FIRST)
    expected = {shard.file: shard.bytes for shard in manifest.shards}
    missing = [file for file in expected if file not in sizes]
    found = []
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        found.append(f"missing shards: {', '.join(missing[:5])}{more}; copy them or pack again")
    return found + [
        f"shard {file!r} has {sizes[file]} bytes, not {size}: "
        "copied in part or changed; copy it again or pack again"
        for file, size in expected.items()
        if sizes.get(file, size) != size
    ]
