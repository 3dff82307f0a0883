"""A data set to pack: its classes with roles, and every image with its split."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from shards.config import PackConfig
from shards.datasets.classes import draw, hash_key, make_entries, read_names, read_words, some
from shards.datasets.listing import (
    BROKEN,
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
from shards.manifest import ClassEntry
from vgse.errors import UserError
from vgse.files import read_text
from vgse.formats import Indices

_XLSA17_PARTS = {"trainval_loc": "train", "test_seen_loc": "test", "test_unseen_loc": "test"}


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


@dataclass(frozen=True)
class DataSet:
    """Classes with roles, and images whose part is train, test_seen or test_unseen."""

    classes: list[ClassEntry]
    images: list[SourceImage]
    title: str
    left_out: dict[str, int]  # how much of which kind is in no split


def read_source(config: PackConfig) -> DataSet:
    """The images and classes of config.source."""
    kind, _, folder = config.source.partition(":")
    root = Path(folder).expanduser().absolute()  # Ray tasks start elsewhere
    if kind not in LAYOUTS or not folder:
        kinds = ", ".join(f"{name}:PATH" for name in LAYOUTS)
        raise UserError(f"source is {config.source!r}; it must be one of {kinds}")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; correct --source")
    if config.splits is not None:
        assert config.features_file is not None
        layout = read_xlsa17(root, config.splits, config.features_file)
    elif kind == "folder":
        layout = read_folder(root, skip=[config.out])
    else:
        layout = LAYOUTS[kind](root)
    if not layout.images:
        found = ", ".join(f"{number} {kind}" for kind, number in layout.left_out.most_common(5))
        raise UserError(f"{root}: no images in class folders" + (f", but {found}" if found else ""))
    words = read_words(config.class_words) if config.class_words else {}
    unseen = _unseen(config, layout, root)
    val = _val(config, layout, unseen)
    classes = make_entries(layout.class_names, unseen, val, words, where=str(root))
    images = assign_parts(layout.images, set(unseen), config.test_fraction)
    _require_images(classes, images, root)
    title = config.title or f"{kind}:{as_utf8(root.resolve().name)}"
    layout.left_out["training images of unseen classes"] = len(layout.images) - len(images)
    return DataSet(classes, images, title, _summary(layout.left_out))


def _summary(left_out: Counter[str], limit: int = 20) -> dict[str, int]:
    """The kinds with the most, in the order of their names, and what the others add up to."""
    kinds = left_out.most_common()
    rest = sum(number for _, number in kinds[limit:])
    chosen = dict(sorted((kind, number) for kind, number in kinds[:limit] if number))
    return {**chosen, **({"others": rest} if rest else {})}


def assign_parts(
    images: list[SourceImage], unseen: set[str], test_fraction: float
) -> list[SourceImage]:
    """The images with their final split: the one they came with, or one drawn by a hash of their
    names; training images of unseen classes are dropped."""
    loose: dict[str, list[SourceImage]] = {}
    placed = []
    for image in images:
        if image.class_name not in unseen and not image.part:
            loose.setdefault(image.class_name, []).append(image)
        elif image.class_name not in unseen:
            placed.append(replace(image, part="train" if image.part == "train" else "test_seen"))
        elif image.part != "train":
            placed.append(replace(image, part="test_unseen"))
    for group in loose.values():
        ranked = sorted(group, key=lambda image: hash_key(image.source))
        num_test = min(round(test_fraction * len(ranked)), len(ranked) - 1)
        for rank, image in enumerate(ranked):
            placed.append(replace(image, part="test_seen" if rank < num_test else "train"))
    return sorted(placed, key=lambda image: image.source)


def _unseen(config: PackConfig, layout: Layout, root: Path) -> list[str]:
    if config.unseen is not None:
        return read_names(config.unseen)
    if config.unseen_fraction is not None:
        return draw(layout.class_names, config.unseen_fraction, config.seed, "unseen")
    if layout.unseen is None:
        raise UserError(
            f"{root}: nothing says which classes are unseen; "
            "give --unseen FILE or --unseen_fraction 0.2"
        )
    return layout.unseen


def _val(config: PackConfig, layout: Layout, unseen: list[str]) -> list[str]:
    if config.val is not None:
        return read_names(config.val)
    if layout.val is not None:
        return layout.val
    seen = [name for name in layout.class_names if name not in set(unseen)]
    return draw(seen, config.val_fraction, config.seed, "val")


def _require_images(classes: list[ClassEntry], images: list[SourceImage], root: Path) -> None:
    counts = Counter((image.class_name, image.part) for image in images)
    parts = {"unseen": "test_unseen"}
    empty = [e.name for e in classes if not counts[e.name, parts.get(e.role, "train")]]
    if empty:
        remedy = "add images or take the classes out"
        raise UserError(f"{root}: classes without images: {some(empty)}; {remedy}")
    twice = [name for name, count in Counter(image.source for image in images).items() if count > 1]
    if twice:
        raise UserError(f"{root}: listed twice: {', '.join(twice[:5])}")


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
        left_out[BROKEN] += listing.left_out[BROKEN]
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
    name = os.path.basename(folder.path)
    plain = unicodedata.normalize("NFC", name).strip()
    if not plain or as_utf8(plain) != plain or any(map(_is_control, plain)):
        raise UserError(f"{folder.path!a}: is no name of a class; rename the folder")
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
        images.append(SourceImage(there, _source_of(there, root), name, stamp=stamp))
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
            left_out.update(listing.left_out)
            listing.pictures += listing.linked_pictures
    else:
        whole = Folder(str(base), os.path.realpath(base))
        found = walk([("", whole)], root=folder_at(root), left_out=left_out)
        listings = [listing for _, listing in found if listing.pictures]
    images: list[SourceImage] = []
    names: dict[str, str] = {}
    for listing in listings:  # apartment_building_outdoor of a/apartment_building/outdoor
        path = listing.folder.path
        first, *rest = path.removeprefix(f"{base}/").split("/")
        names[path] = "_".join(rest if rest and len(first) == 1 else [first, *rest])
        images += _images_of(listing, root, names[path])
    classes = _unique(list(names.values()), "class folders")
    return Layout(images, classes, _listed_unseen(root), left_out=left_out)


def read_xlsa17(root: Path, splits: str, features_file: str) -> Layout:
    """Images, classes and splits of Xian et al.'s files (res101.mat, att_splits.mat), image by
    image."""
    from vgse.xlsa17 import LOCATIONS, cell_texts, read_mat, zero_based  # SciPy is slow to import

    def read_rows(key: str) -> Indices:
        found = zero_based(att[key], f"{splits}: {key}")
        if len(found) and found.max() >= len(files):
            raise UserError(
                f"{splits}: {key} reaches beyond the {len(files)} images; the files do not belong "
                "together"
            )
        return found

    features = read_mat(Path(features_file), "image_files", "labels")
    att = read_mat(Path(splits), "allclasses_names", *LOCATIONS)
    names = cell_texts(att["allclasses_names"])
    files = [file.replace("\\", "/") for file in cell_texts(features["image_files"])]
    labels = zero_based(features["labels"], f"{features_file}: labels")
    if len(files) != len(labels) or not files:
        raise UserError(f"{features_file}: {len(files)} image_files but {len(labels)} labels")
    if labels.max() >= len(names):
        raise UserError(
            f"{features_file}: labels reach beyond the {len(names)} classes of {splits}"
        )
    rows = {key: read_rows(key) for key in LOCATIONS}
    classes = {key: {names[label] for label in labels[rows[key]]} for key in LOCATIONS}
    unseen = classes["test_unseen_loc"]
    both = sorted(unseen & (classes["trainval_loc"] | classes["test_seen_loc"]))
    if both:
        raise UserError(f"{splits}: {', '.join(both[:10])} both seen and unseen; correct the file")
    images = []
    taken: set[int] = set()
    for key, part in _XLSA17_PARTS.items():
        for row in rows[key]:
            if row in taken:
                raise UserError(f"{splits}: image {row + 1} is in two splits; correct the file")
            taken.add(row)
            images.append(SourceImage("", files[row], names[labels[row]], part))
    val = sorted(classes["val_loc"] - classes["train_loc"])
    return Layout(_find_listed(root, images, features_file), sorted(names), sorted(unseen), val)


def _find_listed(root: Path, images: list[SourceImage], where: str) -> list[SourceImage]:
    """The images where they are: the paths in res101.mat are those of its authors' machine."""
    bases = [base for base in (root, root / "JPEGImages", root / "images") if base.is_dir()]
    find = file_finder()
    found: list[SourceImage] = []
    missing = []
    for image in images:
        parts = [part for part in image.source.split("/") if part]
        # The longest tail that exists: a short one could name another class's file.
        tails = ["/".join(parts[first:]) for first in range(len(parts))]
        candidates = (str(safe_path(base, tail, where)) for tail in tails for base in bases)
        there = next(filter(None, map(find, candidates)), None)
        if there is None:
            missing.append(image.source)
        else:
            path, stamp = there
            source = _source_of(path, root)
            found.append(replace(image, path=path, source=source, stamp=stamp))
    if missing:
        raise UserError(
            f"{root}: {len(missing)} of {len(images)} images of {where} are not here, "
            f"first {missing[0]}; correct --source"
        )
    return found


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
        SourceImage(path, _source_of(path, root), name, part, stamp)
        for path, stamp in ((f"{folder}/{file}", stamp) for file, stamp in listing.pictures)
    ]


def _source_of(path: str, root: Path) -> str:
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
