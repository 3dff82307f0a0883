"""SUN: a folder a letter, in it a folder a class, which may hold sub-classes (inn/indoor)."""

import os
from pathlib import Path

from shards.datasets import layout
from shards.datasets.classes import read_names
from shards.datasets.layout import Layout
from vgse.errors import UserError


def read_sun(root: Path) -> Layout:
    """The images of the classes of ClassName.txt, or of all folders that hold images."""
    base = root / "images" if (root / "images").is_dir() else root
    listed = next((root / f for f in ("ClassName.txt", "classes.txt") if (root / f).exists()), None)
    if listed:
        lines = read_names(str(listed))
        folders = [layout.safe_path(base, line.strip("/"), str(listed)) for line in lines]
        missing = [folder.name for folder in folders if not folder.is_dir()]
        if missing:
            raise UserError(f"{base}: no folder for {', '.join(missing[:10])} of {listed.name}")
    else:
        walk = os.walk(base)
        folders = sorted(
            Path(parent) for parent, _, files in walk if any(map(layout.is_image, files))
        )
    named = [(_class_name(folder.relative_to(base)), folder) for folder in folders]
    images = [
        layout.SourceImage(str(path), layout.source_of(path, root), name)
        for name, folder in named
        for path in sorted(folder.iterdir())
        if layout.is_image(path.name)
    ]
    names = layout.unique_names([name for name, _ in named], "class folders")
    return Layout(images, names, layout.listed_unseen(root))


def _class_name(folder: Path) -> str:
    """apartment_building_outdoor of a/apartment_building/outdoor."""
    first, *rest = folder.parts
    return "_".join(rest if rest and len(first) == 1 else folder.parts)
