"""Images, classes and splits of xlsa17 (Xian et al.): res101.mat and att_splits.mat."""

from dataclasses import replace
from pathlib import Path

from shards.datasets.layouts import Layout, SourceImage, safe_path, source_of
from shards.datasets.listing import file_finder
from vgse.errors import UserError
from vgse.formats import Indices

_PARTS = {"trainval_loc": "train", "test_seen_loc": "test", "test_unseen_loc": "test"}


def read_xlsa17(root: Path, splits: str, features_file: str) -> Layout:
    """Images, classes and splits of Xian et al.'s files (res101.mat, att_splits.mat), image by
    image; of files without train_loc and val_loc, as many repositories have them, no validation
    classes."""
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
    att = read_mat(Path(splits), "allclasses_names", *_PARTS, also=LOCATIONS)
    names = cell_texts(att["allclasses_names"])
    files = [file.replace("\\", "/") for file in cell_texts(features["image_files"])]
    labels = zero_based(features["labels"], f"{features_file}: labels")
    if len(files) != len(labels) or not files:
        raise UserError(f"{features_file}: {len(files)} image_files but {len(labels)} labels")
    if labels.max() >= len(names):
        raise UserError(
            f"{features_file}: labels reach beyond the {len(names)} classes of {splits}"
        )
    rows = {key: read_rows(key) for key in LOCATIONS if key in att}
    classes = {key: {names[label] for label in labels[at]} for key, at in rows.items()}
    unseen = classes["test_unseen_loc"]
    both = sorted(unseen & (classes["trainval_loc"] | classes["test_seen_loc"]))
    if both:
        raise UserError(f"{splits}: {', '.join(both[:10])} both seen and unseen; correct the file")
    images = []
    taken: set[int] = set()
    for key, part in _PARTS.items():
        for row in rows[key]:
            if row in taken:
                raise UserError(f"{splits}: image {row + 1} is in two splits; correct the file")
            taken.add(row)
            images.append(SourceImage("", files[row], names[labels[row]], part))
    val = sorted(classes.get("val_loc", set()) - classes.get("train_loc", set())) or None
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
            source = source_of(path, root)
            found.append(replace(image, path=path, source=source, stamp=stamp))
    if missing:
        raise UserError(
            f"{root}: {len(missing)} of {len(images)} images of {where} are not here, "
            f"first {missing[0]}; correct --source"
        )
    return found
