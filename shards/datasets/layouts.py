"""Data set layouts: the images and classes that a folder holds, and what it says of splits."""

import os
import re
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
    """`root / relative`, refused with a ValueError if it could leave the data set's folder."""
    parts = relative.replace("\\", "/").split("/")
    if relative.startswith("/") or ".." in parts or not relative:
        raise UserError(f"{where}: {relative!r} leaves the data set's folder; correct the line")
    return root.joinpath(*parts)


def find_images(folder: Path, root: Path, class_name: str, part: str = "") -> Iterator[SourceImage]:
    """All images below `folder`, in the order of their names; hidden files are left out."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            if file.startswith(".") or Path(file).suffix.lower() not in SUFFIXES:
                continue
            path = Path(parent, file)
            yield SourceImage(str(path), _source(path, root), class_name, part)


def _source(path: Path, root: Path) -> str:
    source = path.relative_to(root).as_posix()
    try:
        source.encode()
    except UnicodeEncodeError:
        raise UserError(f"{source!r}: the file name is not UTF-8; rename the file") from None
    return source


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _read_folder(root: Path) -> Layout:
    parts = ["train", "test"] if (root / "train").is_dir() and (root / "test").is_dir() else [""]
    folders = [(folder, part) for part in parts for folder in _folders(root / part)]
    images = [i for f, part in folders for i in find_images(f, root, f.name, part)]
    return Layout(images, sorted({folder.name for folder, _ in folders}))


def _read_awa2(root: Path) -> Layout:
    base = _require_folder(root, "JPEGImages")
    names = read_names(str(root / "classes.txt"))
    missing = [name for name in names if not safe_path(base, name, "classes.txt").is_dir()]
    if missing:
        raise UserError(f"{base}: no folder for classes {', '.join(missing[:10])} of classes.txt")
    images = [image for name in names for image in find_images(base / name, root, name)]
    return Layout(images, _unique(names, "classes.txt"), _listed(root, "testclasses.txt"))


def _read_cub(root: Path) -> Layout:
    base = _require_folder(root, "images")
    classes = _numbered(root / "classes.txt")
    labels = _numbered(root / "image_class_labels.txt")
    images = []
    for key, relative in _numbered(root / "images.txt").items():
        path = safe_path(base, relative, f"{root / 'images.txt'}: image {key}")
        name = classes.get(labels.get(key, ""))
        if name is None:
            raise UserError(f"{root / 'image_class_labels.txt'}: no known class for image {key}")
        images.append(SourceImage(str(path), _source(path, root), name))
    names = _unique(list(classes.values()), "classes.txt")
    return Layout(images, names, _listed(root, "testclasses.txt"))


def _read_sun(root: Path) -> Layout:
    base = root / "images" if (root / "images").is_dir() else root
    listed = next((root / f for f in ("ClassName.txt", "classes.txt") if (root / f).exists()), None)
    if listed:
        folders = [
            safe_path(base, line.strip("/"), str(listed)) for line in read_names(str(listed))
        ]
        missing = [folder.name for folder in folders if not folder.is_dir()]
        if missing:
            raise UserError(f"{base}: no folder for {', '.join(missing[:10])} of {listed.name}")
    else:
        # A class may hold sub-classes (inn/indoor); then its own folder holds no images.
        folders = sorted(
            Path(parent)
            for parent, _, files in os.walk(base)
            if any(Path(file).suffix.lower() in SUFFIXES for file in files)
        )
    named = [(sun_class_name(folder.relative_to(base)), folder) for folder in folders]
    images = [
        SourceImage(str(path), _source(path, root), name)
        for name, folder in named
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    names = _unique([name for name, _ in named], "class folders")
    return Layout(images, names, _listed(root, "testclasses.txt"))


def sun_class_name(folder: Path) -> str:
    """Name of a nested class folder: a/apartment_building/outdoor, without the letter."""
    parts = (
        folder.parts[1:] if len(folder.parts) > 1 and len(folder.parts[0]) == 1 else folder.parts
    )
    return "_".join(parts)


LAYOUTS = {"folder": _read_folder, "awa2": _read_awa2, "cub": _read_cub, "sun": _read_sun}


def _require_folder(root: Path, name: str) -> Path:
    if not (root / name).is_dir():
        raise UserError(f"{root}: no folder {name}; is this the data set's own folder?")
    return root / name


def _listed(root: Path, name: str) -> list[str] | None:
    path = root / name
    if not path.exists():
        return None
    unseen = read_names(str(path))
    train = root / "trainclasses.txt"
    both = sorted(set(unseen) & set(read_names(str(train)))) if train.exists() else []
    if both:
        raise UserError(
            f"{path}: {', '.join(both[:10])} also in trainclasses.txt: "
            "a class is both seen and unseen; correct a list"
        )
    return unseen


def _numbered(path: Path) -> dict[str, str]:
    if not path.exists():
        raise UserError(f"{path}: no such file; is this the data set's own folder?")
    rows: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = re.fullmatch(r"\s*(\d+)\s+(\S.*?)\s*", line)
        if not match:
            raise UserError(f"{path}: line {number} is {line!r}, not a number and a name")
        if match[1] in rows:
            raise UserError(f"{path}: line {number} repeats number {match[1]}")
        rows[match[1]] = match[2]
    return rows


def _unique(names: list[str], where: str) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{where}: class names not unique: {', '.join(twice[:10])}")
    return sorted(names)
