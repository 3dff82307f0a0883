"""The folders of data sets as their authors publish them, or as anyone lays out pictures."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from shards.datasets.classes import read_names
from shards.datasets.listing import (
    Folder,
    Listing,
    as_utf8,
    file_finder,
    find_folder,
    folder_at,
    scan,
    size_of,
    walk,
)
from vgse.errors import UserError
from vgse.files import read_text


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image file; source is its path within the data set, part a split it came with, stamp
    its size and times."""

    path: str
    source: str
    class_name: str
    part: str = ""
    stamp: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of the file, -1 where there is none."""
        return size_of(self.stamp) if self.stamp else -1


@dataclass(frozen=True)
class Layout:
    """What a data set's folder says by itself; lists are None where it says nothing."""

    images: list[SourceImage]
    class_names: list[str]
    unseen: list[str] | None = None
    val: list[str] | None = None
    left_out: Counter[str] = field(default_factory=Counter)


_FOLDER_PARTS = {
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["val", "valid", "validation"], "val"),
    **dict.fromkeys(["test", "testing"], "test"),
}


def read_folder(root: Path, skip: Iterable[str] = ()) -> Layout:
    """A folder a class, which may be empty, or such folders in train/ and test/, val/ beside or in
    place of test/. `skip` are folders that are no classes."""
    top = folder_at(root)
    bases = _part_folders(scan(top))
    left_out: Counter[str] = Counter()
    tops: list[tuple[tuple[str, str], Folder]] = []
    for base, part in bases or [(top, "")]:
        listing = scan(base)
        loose = len(listing.pictures) + len(listing.linked_pictures)
        left_out["pictures outside class folders"] += loose
        left_out.update(listing.left_out)
        named: dict[str, Folder] = {}
        for folder in listing.folders:
            name = class_of(folder)
            tops.append(((name, part), folder))
            if not folder.linked and named.setdefault(name, folder) is not folder:
                both = f"{named[name].path!r} and {folder.path!r}"
                raise UserError(f"{both} are folders of the same class; rename one")
    if bases:
        beside = len(scan(top).folders) - len(bases)
        left_out["folders beside those of the splits"] = beside
    images: list[SourceImage] = []
    classes = set()
    for (name, part), listing in walk(tops, root=top, left_out=left_out, skip=skip):
        classes.add(name)
        images += _images_of(listing, root, name, part)
    if len(classes) == 1 and images:
        (name,) = classes
        raise UserError(
            f"{root}: holds the folder of one class, {name}; if that holds the classes, give "
            f"--source folder:{root / name}"
        )
    return Layout(images, sorted(classes), left_out=left_out)


def _is_control(sign: str) -> bool:
    return unicodedata.category(sign) == "Cc"


def _part_folders(listing: Listing) -> list[tuple[Folder, str]]:
    """The folders of the splits with their part, if the class folders lie in such."""
    found: dict[str, Folder] = {}
    for folder in listing.folders:
        part = _FOLDER_PARTS.get(os.path.basename(folder.path).lower())
        # A folder of pictures is a class, whatever its name.
        if part and scan(folder).folders and found.setdefault(part, folder) is not folder:
            raise UserError(
                f"{found[part].path!r} and {folder.path!r} are the same split; keep one"
            )
    if "train" not in found or len(found) < 2:
        return []
    roles = {"train": "train", "val": "train" if "test" in found else "test", "test": "test"}
    return [(folder, roles[part]) for part, folder in found.items()]


def class_of(folder: Folder) -> str:
    """The class of a folder's name: é may be one sign or two, blanks around it do not count."""
    return _plain(os.path.basename(folder.path))


def _plain(name: str) -> str:
    plain = unicodedata.normalize("NFC", name).strip()
    if not plain or as_utf8(plain) != plain or any(map(_is_control, plain)):
        raise UserError(f"folder {name!a}: is no name of a class; rename the folder")
    return plain


def read_awa2(root: Path) -> Layout:
    """Animals with Attributes 2: JPEGImages/<class>/, classes.txt, testclasses.txt."""
    base = _require_folder(root, "JPEGImages")
    left_out: Counter[str] = Counter()
    tops = _listed_folders(base, root / "classes.txt")
    images = [
        image
        for name, listing in walk(tops, root=folder_at(root), left_out=left_out)
        for image in _images_of(listing, root, name)
    ]
    names = _unique([name for name, _ in tops], "classes.txt")
    return Layout(images, names, _listed_unseen(root), left_out=left_out)


def read_cub(root: Path) -> Layout:
    """Caltech-UCSD Birds: images.txt, image_class_labels.txt and classes.txt, all numbered."""
    base = _require_folder(root, "images")
    classes = _read_numbered(root / "classes.txt")
    labels = _read_numbered(root / "image_class_labels.txt")
    find = file_finder()
    images = []
    for key, relative in _read_numbered(root / "images.txt").items():
        path = safe_path(base, relative, f"{root / 'images.txt'}: image {key}")
        there, stamp = find(str(path)) or (str(path), b"")
        name = classes.get(labels.get(key, ""))
        if name is None:
            raise UserError(f"{root / 'image_class_labels.txt'}: no known class for image {key}")
        images.append(SourceImage(there, source_of(there, root), name, stamp=stamp))
    return Layout(images, _unique(list(classes.values()), "classes.txt"), _listed_unseen(root))


def read_sun(root: Path) -> Layout:
    """SUN: a folder a letter, in it a folder a class, which may hold sub-classes (inn/indoor).

    The classes are those of ClassName.txt, or all folders that hold images.
    """
    base = root / "images" if (root / "images").is_dir() else root
    listed = next((root / f for f in ("ClassName.txt", "classes.txt") if (root / f).exists()), None)
    left_out: Counter[str] = Counter()
    if listed:
        listings = [scan(folder) for _, folder in _listed_folders(base, listed)]
        for listing in listings:
            left_out.update(listing.left_out + listing.other_files)
            listing.pictures += listing.linked_pictures
    else:
        whole = Folder(str(base), os.path.realpath(base))
        found = walk([("", whole)], root=folder_at(root), left_out=left_out)
        listings = [listing for _, listing in found if listing.pictures]
    images: list[SourceImage] = []
    names: dict[str, str] = {}
    for listing in listings:  # apartment_building_outdoor of a/apartment_building/outdoor
        path = listing.folder.path
        first, *rest = _plain(path.removeprefix(f"{base}/")).split("/")
        names[path] = "_".join(rest if rest and len(first) == 1 else [first, *rest])
        images += _images_of(listing, root, names[path])
    classes = _unique(list(names.values()), "class folders")
    return Layout(images, classes, _listed_unseen(root), left_out=left_out)


LAYOUTS = {"folder": read_folder, "awa2": read_awa2, "cub": read_cub, "sun": read_sun}


def safe_path(root: Path, relative: str, where: str) -> Path:
    """`root / relative`, refused if it could leave the data set's folder."""
    parts = relative.replace("\\", "/").split("/")
    if relative.startswith("/") or ".." in parts or not relative:
        raise UserError(f"{where}: {relative!r} leaves the data set's folder; correct the line")
    return root.joinpath(*parts)


def _images_of(listing: Listing, root: Path, name: str, part: str = "") -> list[SourceImage]:
    folder = listing.folder.path
    return [
        SourceImage(path, source_of(path, root), name, part, stamp)
        for path, stamp in ((f"{folder}/{file}", stamp) for file, stamp in listing.pictures)
    ]


def source_of(path: str, root: Path) -> str:
    """What a file is called within the data set."""
    return as_utf8(path.removeprefix(f"{root}/"))


def _require_folder(root: Path, name: str) -> Path:
    if not (root / name).is_dir():
        raise UserError(f"{root}: no folder {name}; is this the data set's own folder?")
    return root / name


def _listed_folders(base: Path, listed: Path) -> list[tuple[str, Folder]]:
    """The class folders below `base` that a list names, with the names."""
    lines = [line.strip("/") for line in read_names(str(listed))]
    folders = [find_folder(str(safe_path(base, line, listed.name))) for line in lines]
    missing = [line for line, folder in zip(lines, folders, strict=True) if folder is None]
    if missing:
        raise UserError(f"{base}: no folder for classes {', '.join(missing[:10])} of {listed.name}")
    return [(n, folder_at(folder)) for n, folder in zip(lines, folders, strict=True) if folder]


def _read_numbered(path: Path) -> dict[str, str]:
    text = read_text(path, remedy="is this the data set's own folder?")
    rows: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = re.fullmatch(r"\s*(\d+)\s+(\S.*?)\s*", line)
        if not match:
            raise UserError(f"{path}: line {number} is {line!r}, not a number and a name")
        if match[1] in rows:
            raise UserError(f"{path}: line {number} repeats number {match[1]}")
        rows[match[1]] = match[2]
    return rows


def _listed_unseen(root: Path) -> list[str] | None:
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


def _unique(names: list[str], where: str) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{where}: class names not unique: {', '.join(twice[:10])}")
    return sorted(names)
