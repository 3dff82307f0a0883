"""A data set to pack: its classes with roles, and every image with its split."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from shards.config import PackConfig
from shards.datasets.classes import draw, hash_key, make_entries, read_names, read_words, some
from shards.datasets.layouts import LAYOUTS, Layout, SourceImage, read_folder
from shards.datasets.listing import as_utf8
from shards.datasets.xlsa17 import read_xlsa17
from shards.manifest import TRAINING_OF_UNSEEN, ClassEntry
from vgse.errors import UserError


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
    synsets = read_words(config.synsets) if config.synsets else {}
    classes = make_entries(layout.class_names, unseen, val, words, synsets, where=str(root))
    images = assign_parts(layout.images, set(unseen), config)
    _require_images(classes, images, root, {image.class_name for image in layout.images})
    title = config.title or f"{kind}:{as_utf8(root.resolve().name)}"
    layout.left_out[TRAINING_OF_UNSEEN] = len(layout.images) - len(images)
    return DataSet(classes, images, title, _summary(layout.left_out))


def _summary(left_out: Counter[str], limit: int = 20) -> dict[str, int]:
    """The kinds with the most, in the order of their names, and what the others add up to."""
    kinds = left_out.most_common()
    rest = sum(number for _, number in kinds[limit:])
    chosen = dict(sorted((kind, number) for kind, number in kinds[:limit] if number))
    return {**chosen, **({"others": rest} if rest else {})}


def assign_parts(
    images: list[SourceImage], unseen: set[str], config: PackConfig
) -> list[SourceImage]:
    """The images with their final split: the one they came with, or one drawn by a hash of their
    names; training images of unseen classes become test images or are dropped."""
    loose: dict[str, list[SourceImage]] = {}
    placed = []
    for image in images:
        if image.class_name not in unseen and not image.part:
            loose.setdefault(image.class_name, []).append(image)
        elif image.class_name not in unseen:
            placed.append(replace(image, part="train" if image.part == "train" else "test_seen"))
        elif image.part != "train" or config.all_unseen:
            placed.append(replace(image, part="test_unseen"))
    for group in loose.values():
        ranked = sorted(group, key=lambda image: hash_key(image.source))
        num_test = min(round(config.test_fraction * len(ranked)), len(ranked) - 1)
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
        if config.splits is not None and layout.val is not None:
            raise UserError(f"{config.splits} already names validation classes; drop val")
        return read_names(config.val)
    if layout.val is not None:
        return layout.val
    seen = [name for name in layout.class_names if name not in set(unseen)]
    return draw(seen, config.val_fraction, config.seed, "val")


def _require_images(
    classes: list[ClassEntry], images: list[SourceImage], root: Path, listed: set[str]
) -> None:
    counts = Counter((image.class_name, image.part) for image in images)
    parts = {"unseen": "test_unseen"}
    empty = [e.name for e in classes if not counts[e.name, parts.get(e.role, "train")]]
    if empty:
        remedy = "add images or take the classes out"
        unseen = {entry.name for entry in classes if entry.role == "unseen"}
        if unseen.intersection(empty, listed):  # in train/ alone
            remedy += ", or pack the training images of unseen classes: --all_unseen true"
        raise UserError(f"{root}: classes without images: {some(empty)}; {remedy}")
    twice = [name for name, count in Counter(image.source for image in images).items() if count > 1]
    if twice:
        raise UserError(f"{root}: listed twice: {', '.join(twice[:5])}")
