"""What `python -m shards pack` can be told."""

from dataclasses import dataclass, field
from typing import Literal

from vgse.config import bounded, check_fields
from vgse.errors import UserError


@dataclass(kw_only=True)
class PackConfig:
    """Turn a folder of images into tar shards with patch boxes and a manifest."""

    source: str
    """The images: folder:PATH (a folder a class, or train/ and test/ or val/ with a folder a
    class), awa2:PATH, cub:PATH or sun:PATH (the data sets as their authors publish them)."""
    out: str
    """Folder to write: <split>-000000.tar, shards.npy, labels.npy and, last, manifest.json."""
    unseen: str | None = None
    """File with the unseen classes: one a line, or a JSON or YAML list; FILE#a.b takes the
    list under keys a, b. Not needed where the data set has a testclasses.txt."""
    unseen_fraction: float | None = field(default=None, metadata={"range": (0, 1)})
    """Instead of a list: share of the classes, drawn by --seed, that are unseen."""
    val: str | None = None
    """File with the validation classes (seen classes on which choices are made), as above."""
    val_fraction: float = bounded(0.2, 0, 1)
    """Instead of a list: share of the seen classes, drawn by --seed."""
    test_fraction: float = bounded(0.2, 0, 1)
    """Share of each seen class's images that becomes test_seen where the data set has no
    split of its own; drawn by a hash of the file names."""
    all_unseen: bool = False
    """Of unseen classes in train/ and test/, pack the training images, too, as test images: a run
    that takes other unseen classes then has as many images of each. Where no such folders divide
    the images, unseen classes are packed whole anyway."""
    splits: str | None = None
    """att_splits.mat of xlsa17: takes its classes, image splits and, where it has a val_loc, its
    validation classes."""
    features_file: str | None = None
    """res101.mat of xlsa17, whose image_files and labels --splits counts in."""
    synsets: str | None = None
    """JSON or YAML file {class: synset}, such as maple_tree: maple.n.02, for names that WordNet
    lacks or means otherwise."""
    class_words: str | None = None
    """JSON or YAML file {class: words} for names that do not split into words by themselves."""
    patches: Literal["grid", "watershed"] = "grid"
    """How patches are found: an even grid, or regions of a compact watershed."""
    num_patches: int = bounded(9, 1)
    """N, boxes an image; 9 make a grid of 3 x 3."""
    overlap: float = 0.5
    """Share of a grid box that it has in common with its neighbour."""
    short_side: int = bounded(384, 0)
    """Shorter side of stored images in pixels; 0 keeps the size. Smaller images keep theirs."""
    upscale: bool = False
    """Enlarge smaller images to --short_side, too."""
    quality: int = bounded(90, 1, 100)
    """JPEG quality, 1 to 100."""
    images_per_shard: int = bounded(1000, 1)
    """Images in a tar file; 1000 of 384 pixels make about 60 MB."""
    max_pixels: int = bounded(64_000_000, 1)
    """Images with more pixels than this are not decoded but listed as damaged."""
    max_damaged: float = bounded(0.01, 0, 1)
    """Share of unreadable images, in 0..1, above which packing stops."""
    seed: int = 0
    """Seed of all that is drawn: classes and the order of images."""
    title: str | None = None
    """What the manifest calls the source; default: the kind and the folder's name."""
    licence: str = ""
    """Licence or credit of the images, kept in the manifest."""
    workers: int | None = field(default=None, metadata={"range": (1, float("inf"))})
    """Processes; default: one a core. 1 stays in this process."""
    ray: str | None = None
    """Address of a Ray cluster that packs instead ("auto" for the running one); --source and
    --out must then be folders that all its nodes share."""


def validate(config: PackConfig) -> None:
    """Check every field by itself, and those that exclude each other."""
    check_fields(config)
    if config.unseen is not None and config.unseen_fraction is not None:
        raise UserError("give either unseen or unseen_fraction, not both")
    if (config.splits is None) != (config.features_file is None):
        raise UserError("splits and features_file belong together; give both or neither")
    if config.splits is not None and (config.unseen or config.unseen_fraction):
        raise UserError("splits already names the unseen classes; drop unseen and unseen_fraction")
    if "://" in config.out:
        raise UserError(f"out is {config.out}; pack into a local folder, then copy it there")
