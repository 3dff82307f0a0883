"""A folder a class, or train/ and test/ with a folder a class in each."""

from pathlib import Path

from shards.datasets.layout import Layout, find_images


def read_folder(root: Path) -> Layout:
    """The images of all class folders; classes without an image are classes, too."""
    parts = ["train", "test"] if (root / "train").is_dir() and (root / "test").is_dir() else [""]
    folders = [
        (folder, part)
        for part in parts
        for folder in sorted((root / part).iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    ]
    images = [i for f, part in folders for i in find_images(f, root, f.name, part)]
    return Layout(images, sorted({folder.name for folder, _ in folders}))
