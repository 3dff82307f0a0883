"""A data set to pack: its classes with roles, and every image with its split."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from shards.config import PackConfig
from shards.datasets.classes import draw, hash_key, make_entries, read_names, read_words, some
from shards.manifest import ClassEntry
from vgse.errors import UserError
from vgse.formats import Indices

SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"]
)
_XLSA17_PARTS = {"trainval_loc": "train", "test_seen_loc": "test", "test_unseen_loc": "test"}


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


@dataclass(frozen=True)
class DataSet:
    """Classes with roles, and images whose part is train, test_seen or test_unseen."""

    classes: list[ClassEntry]
    images: list[SourceImage]
    title: str
    dropped: int  # training images of unseen classes, which are in no split


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
    else:
        layout = LAYOUTS[kind](root)
    if not layout.images:
        raise UserError(f"{root}: no images ({', '.join(sorted(SUFFIXES))}) in class folders")
    words = read_words(config.class_words) if config.class_words else {}
    unseen = _unseen(config, layout, root)
    val = _val(config, layout, unseen)
    classes = make_entries(layout.class_names, unseen, val, words, where=str(root))
    images = assign_parts(layout.images, set(unseen), config.test_fraction)
    _require_images(classes, images, root)
    title = config.title or f"{kind}:{root.resolve().name}"
    return DataSet(classes, images, title, len(layout.images) - len(images))


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


def read_folder(root: Path) -> Layout:
    """A folder a class, which may be empty, or train/ and test/ with a folder a class in each."""
    parts = ["train", "test"] if (root / "train").is_dir() and (root / "test").is_dir() else [""]
    folders = [
        (folder, part)
        for part in parts
        for folder in sorted((root / part).iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    ]
    images = [i for f, part in folders for i in _find_images(f, root, f.name, part)]
    return Layout(images, sorted({folder.name for folder, _ in folders}))


def read_awa2(root: Path) -> Layout:
    """Animals with Attributes 2: JPEGImages/<class>/, classes.txt, testclasses.txt."""
    base = _require_folder(root, "JPEGImages")
    folders = _listed_folders(base, root / "classes.txt")
    named = [(folder.relative_to(base).as_posix(), folder) for folder in folders]
    images = [image for name, folder in named for image in _find_images(folder, root, name)]
    return Layout(images, _unique([name for name, _ in named], "classes.txt"), _listed_unseen(root))


def read_cub(root: Path) -> Layout:
    """Caltech-UCSD Birds: images.txt, image_class_labels.txt and classes.txt, all numbered."""
    base = _require_folder(root, "images")
    classes = _read_numbered(root / "classes.txt")
    labels = _read_numbered(root / "image_class_labels.txt")
    images = []
    for key, relative in _read_numbered(root / "images.txt").items():
        path = safe_path(base, relative, f"{root / 'images.txt'}: image {key}")
        name = classes.get(labels.get(key, ""))
        if name is None:
            raise UserError(f"{root / 'image_class_labels.txt'}: no known class for image {key}")
        images.append(SourceImage(str(path), _source_of(path, root), name))
    return Layout(images, _unique(list(classes.values()), "classes.txt"), _listed_unseen(root))


def read_sun(root: Path) -> Layout:
    """SUN: a folder a letter, in it a folder a class, which may hold sub-classes (inn/indoor).

    The classes are those of ClassName.txt, or all folders that hold images.
    """
    base = root / "images" if (root / "images").is_dir() else root
    listed = next((root / f for f in ("ClassName.txt", "classes.txt") if (root / f).exists()), None)
    if listed:
        folders = _listed_folders(base, listed)
    else:
        walk = os.walk(base)
        folders = sorted(Path(parent) for parent, _, files in walk if any(map(_is_image, files)))
    named = []
    for folder in folders:  # apartment_building_outdoor of a/apartment_building/outdoor
        first, *rest = folder.relative_to(base).parts
        named.append(("_".join(rest if rest and len(first) == 1 else [first, *rest]), folder))
    images = [
        SourceImage(str(path), _source_of(path, root), name)
        for name, folder in named
        for path in sorted(folder.iterdir())
        if _is_image(path.name)
    ]
    return Layout(
        images, _unique([name for name, _ in named], "class folders"), _listed_unseen(root)
    )


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
    found, missing = [], []
    for image in images:
        parts = [part for part in image.source.split("/") if part]
        # The longest tail that exists: a short one could name another class's file.
        tails = ["/".join(parts[first:]) for first in range(len(parts))]
        candidates = (safe_path(base, tail, where) for tail in tails for base in bases)
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            missing.append(image.source)
        else:
            source = path.relative_to(root).as_posix()
            found.append(SourceImage(str(path), source, image.class_name, image.part))
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


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def _find_images(
    folder: Path, root: Path, class_name: str, part: str = ""
) -> Iterator[SourceImage]:
    """All images below `folder`, in the order of their names; hidden folders are left out."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(parent, file) for file in sorted(files) if _is_image(file)):
            yield SourceImage(str(path), _source_of(path, root), class_name, part)


def _source_of(path: Path, root: Path) -> str:
    source = path.relative_to(root).as_posix()
    try:
        source.encode()
    except UnicodeEncodeError:
        raise UserError(f"{source!r}: the file name is not UTF-8; rename the file") from None
    return source


def _require_folder(root: Path, name: str) -> Path:
    if not (root / name).is_dir():
        raise UserError(f"{root}: no folder {name}; is this the data set's own folder?")
    return root / name


def _listed_folders(base: Path, listed: Path) -> list[Path]:
    """The class folders below `base` that a list names."""
    lines = read_names(str(listed))
    folders = [safe_path(base, line.strip("/"), listed.name) for line in lines]
    missing = [line for line, folder in zip(lines, folders, strict=True) if not folder.is_dir()]
    if missing:
        raise UserError(f"{base}: no folder for classes {', '.join(missing[:10])} of {listed.name}")
    return folders


def _read_numbered(path: Path) -> dict[str, str]:
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
