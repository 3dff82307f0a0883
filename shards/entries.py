"""The parts of a manifest, as data."""

from dataclasses import dataclass, field

SPLITS = ("train", "test_seen", "test_unseen")
ROLES = ("train", "val", "unseen", "hidden")


@dataclass(frozen=True)
class ClassEntry:
    """A class, its role and the words of its name.

    val is a seen class used for choices; hidden is a class none of whose images this manifest
    lists, named so that labels count along the same classes as in the manifest it was made from.
    """

    name: str
    role: str
    words: list[str]


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
