"""Animals with Attributes 2: JPEGImages/<class>/, classes.txt, testclasses.txt."""

from pathlib import Path

from shards.datasets import layout
from shards.datasets.classes import read_names
from shards.datasets.layout import Layout
from vgse.errors import UserError


def read_awa2(root: Path) -> Layout:
    """The images of the classes of classes.txt."""
    base = layout.require_folder(root, "JPEGImages")
    names = read_names(str(root / "classes.txt"))
    missing = [name for name in names if not layout.safe_path(base, name, "classes.txt").is_dir()]
    if missing:
        raise UserError(f"{base}: no folder for classes {', '.join(missing[:10])} of classes.txt")
    images = [image for name in names for image in layout.find_images(base / name, root, name)]
    return Layout(images, layout.unique_names(names, "classes.txt"), layout.listed_unseen(root))
