"""What a data set's folder is read into: its images, its classes, and its own splits."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.datasets.classes import read_names
from vgse.errors import UserError

SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"]
)


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image file; source is its path within the data set, part a split it came with."""

    path: str
    source: str
    class_name: str
    part: str = ""


@dataclass(frozen=True)
class Layout:
    """What a data set's folder says by itself; lists are None where it says nothing."""

    images: list[SourceImage]
    class_names: list[str]
    unseen: list[str] | None = None
    val: list[str] | None = None


def safe_path(root: Path, relative: str, where: str) -> Path:
    """`root / relative`, refused if it could leave the data set's folder."""
    parts = relative.replace("\\", "/").split("/")
    if relative.startswith("/") or ".." in parts or not relative:
        raise UserError(f"{where}: {relative!r} leaves the data set's folder; correct the line")
    return root.joinpath(*parts)


def is_image(name: str) -> bool:
    """Whether a file of this name is read; hidden ones are not."""
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def find_images(folder: Path, root: Path, class_name: str, part: str = "") -> Iterator[SourceImage]:
    """All images below `folder`, in the order of their names; hidden folders are left out."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(parent, file) for file in sorted(files) if is_image(file)):
            yield SourceImage(str(path), source_of(path, root), class_name, part)


def source_of(path: Path, root: Path) -> str:
    """The path within the data set, as the shards keep it."""
    source = path.relative_to(root).as_posix()
    try:
        source.encode()
    except UnicodeEncodeError:
        raise UserError(f"{source!r}: the file name is not UTF-8; rename the file") from None
    return source


def require_folder(root: Path, name: str) -> Path:
    """The folder `name` of a data set."""
    if not (root / name).is_dir():
        raise UserError(f"{root}: no folder {name}; is this the data set's own folder?")
    return root / name


def listed_unseen(root: Path) -> list[str] | None:
    """The unseen classes of testclasses.txt, if there is one."""
    path, train = root / "testclasses.txt", root / "trainclasses.txt"
    if not path.exists():
        return None
    unseen = read_names(str(path))
    both = sorted(set(unseen) & set(read_names(str(train)))) if train.exists() else []
    if both:
        raise UserError(
            f"{path}: {', '.join(both[:10])} also in trainclasses.txt: "
            "a class is both seen and unseen; correct a list"
        )
    return unseen


def unique_names(names: list[str], where: str) -> list[str]:
    """The names, sorted; refused if one stands there twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{where}: class names not unique: {', '.join(twice[:10])}")
    return sorted(names)
