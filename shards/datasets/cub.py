"""Caltech-UCSD Birds: images.txt, image_class_labels.txt and classes.txt, all numbered."""

import re
from pathlib import Path

from shards.datasets import layout
from shards.datasets.layout import Layout
from vgse.errors import UserError


def read_cub(root: Path) -> Layout:
    """The images of images.txt with their classes."""
    base = layout.require_folder(root, "images")
    classes = _read_numbered(root / "classes.txt")
    labels = _read_numbered(root / "image_class_labels.txt")
    images = []
    for key, relative in _read_numbered(root / "images.txt").items():
        path = layout.safe_path(base, relative, f"{root / 'images.txt'}: image {key}")
        name = classes.get(labels.get(key, ""))
        if name is None:
            raise UserError(f"{root / 'image_class_labels.txt'}: no known class for image {key}")
        images.append(layout.SourceImage(str(path), layout.source_of(path, root), name))
    return Layout(
        images,
        layout.unique_names(list(classes.values()), "classes.txt"),
        layout.listed_unseen(root),
    )


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
