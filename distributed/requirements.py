"""What the stages of a run need of data and settings, all of it checked before a cluster starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distributed.features.cache import folder_prefix
from distributed.storage import file_sizes
from shards.manifest import SPLITS, Manifest
from shards.objects import is_remote
from vgse.config import RunConfig
from vgse.errors import UserError
from vgse.xlsa17 import MAX_BYTES
from vgse.zsl.data import Indices, ZslData
from vgse.zsl.folds import validation_folds
from vgse.zsl.models import find_model

if TYPE_CHECKING:
    from distributed.setup import Prepared


def check_requirements(config: RunConfig, prepared: Prepared) -> None:
    """UserError for the first thing that some stage would stop at."""
    for check in (_classes, _images, check_model, _compiler, _evaluation, _cache):
        check(config, prepared)


def class_counts(manifest: Manifest, split: str) -> Indices:
    """Images of each class [C] in a split."""
    counts = manifest.class_counts[split]
    return np.array([counts.get(name, 0) for name in manifest.class_names], np.int64)


def zero_shot_stand_in(prepared: Prepared) -> ZslData:
    """The evaluation's data with three images a class at most and without content: what makes its
    folds complain is found on it too."""
    roles = prepared.seen, prepared.seen, prepared.unseen
    labels = [
        np.repeat(classes, np.minimum(class_counts(prepared.manifest, split)[classes], 3))
        for split, classes in zip(SPLITS, roles, strict=True)
    ]
    ends = np.cumsum([len(part) for part in labels])
    train, test_seen, test_unseen = np.split(np.arange(ends[-1]), ends[:-1])
    return ZslData(
        np.random.default_rng(0).normal(size=(ends[-1], 2)).astype(np.float32),
        np.concatenate(labels),
        train,
        test_seen,
        test_unseen,
        prepared.manifest.class_names,
        prepared.seen,
        prepared.unseen,
        prepared.val,
    )


def _classes(config: RunConfig, prepared: Prepared) -> None:
    where = prepared.manifest.url
    for name, least in (("seen", 2), ("unseen", 1), ("validation", 1)):
        count = len(prepared.val if name == "validation" else getattr(prepared, name))
        if count < least:
            raise UserError(
                f"{where}: {count} {name} classes with word vectors, at least {least} "
                "needed; pack again with another split, or give words to more classes"
            )
    if len(prepared.seen) - len(prepared.val) < 2:
        raise UserError(f"{where}: fewer than 2 seen classes outside the validation split")


def _images(config: RunConfig, prepared: Prepared) -> None:
    manifest = prepared.manifest
    if not class_counts(manifest, "test_seen")[prepared.seen].any():
        raise UserError(
            f"{manifest.url}: no test images of seen classes (split test_seen), which generalised "
            "zero-shot learning is scored on; pack again with a larger --test_fraction, or add "
            "images"
        )
    images = int(class_counts(manifest, "train")[prepared.trained].sum())
    if images < config.cluster.num_workers:
        raise UserError(
            f"{manifest.url}: {images} training images for {config.cluster.num_workers} workers; "
            "lower cluster.num_workers"
        )


def check_model(config: RunConfig, prepared: Prepared) -> None:
    """The part that depends on fields which a search may vary."""
    manifest, model = prepared.manifest, config.model
    images = int(class_counts(manifest, "train")[prepared.trained].sum())
    patches = images * manifest.num_patches
    if model.num_clusters > patches:
        raise UserError(
            f"model.num_clusters is {model.num_clusters}, but the training images have "
            f"{patches} patches; lower it"
        )
    if model.projection > prepared.num_features:
        raise UserError(
            f"model.projection is {model.projection}, but {config.backbone.name} gives "
            f"{prepared.num_features} features; lower it, or set 0 for none"
        )
    sample = min(patches, model.num_clusters * model.max_points_per_centroid)
    if model.projection > sample:
        raise UserError(
            f"model.projection is {model.projection}, but only {sample} patches start the "
            "clusters; lower it, or raise model.max_points_per_centroid or the number of images"
        )
    classes = len(manifest.class_names)
    if classes * model.num_clusters * 8 > MAX_BYTES:
        raise UserError(
            f"model.num_clusters is {model.num_clusters}: embeddings of {classes} classes exceed "
            f"the 2 GB of a .mat array; lower it to {MAX_BYTES // (8 * classes)}"
        )
    alpha, seen = config.relations.alpha, len(prepared.seen)
    if alpha * seen > 1:
        raise UserError(
            f"relations.alpha is {alpha}, but {seen} weights of at least that size cannot "
            f"sum to 1; set it to {1 / seen:.3g} or less"
        )


def _compiler(config: RunConfig, prepared: Prepared) -> None:
    if config.backbone.compile and config.backbone.train != "none":
        compilers = [os.environ.get("CXX"), "c++", "g++", "clang++"]
        if not any(shutil.which(name) for name in compilers if name):
            raise UserError(
                "backbone.compile is set, but there is no C++ compiler; install g++, or leave it"
            )


def _evaluation(config: RunConfig, prepared: Prepared) -> None:
    if not config.evaluation.models:
        raise UserError("evaluation.models is empty; name at least one, such as eszsl")
    for name in config.evaluation.models:
        try:
            find_model(name)
        except UserError as error:
            raise UserError(f"evaluation.models: {error}") from None
    try:
        data, how = zero_shot_stand_in(prepared), config.evaluation
        validation_folds(data, how.holdout, config.seed, how.folds)
    except UserError as error:
        raise UserError(f"{prepared.manifest.url}: {error}") from None


def _cache(config: RunConfig, prepared: Prepared) -> None:
    if is_remote(prepared.cache) or Path(prepared.cache).is_dir():  # which may hold all
        return
    parent = _nearest_folder(prepared.cache)
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise UserError(
            f"data.cache: {prepared.cache} cannot be made, {parent} is not a folder that can be "
            "written; set data.cache to one"
        )


def check_disk(config: RunConfig, prepared: Prepared, run: str | None) -> None:
    """See that features, and what a run folder gets of every image, fit onto local disks; what is
    there already counts as room."""
    manifest, sizes = prepared.manifest, config.model
    images, patches = sum(map(manifest.num_images, SPLITS)), manifest.num_patches
    frozen = config.backbone.train == "none"
    needed: dict[int, int] = {}
    free: dict[int, int] = {}
    names: dict[int, str] = {}

    def add(folder: str, amount: int, there: int) -> None:
        nearest = _nearest_folder(folder)
        disk = nearest.stat().st_dev
        names.setdefault(disk, folder)
        needed[disk] = needed.get(disk, 0) + max(0, amount - there)
        free[disk] = shutil.disk_usage(nearest).free

    if not is_remote(prepared.cache):
        rows = 1 + patches * frozen
        folders = Path(prepared.cache).glob(f"{folder_prefix(config.backbone.name)}*")
        there = sum(size for path in folders for size in file_sizes(str(path)).values())
        add(prepared.cache, 2 * images * rows * prepared.num_features, there)
    if run is not None and not is_remote(run):
        embedded = images * (4 * sizes.num_clusters * (1 + frozen) + 8 * patches)
        add(run, embedded, file_sizes(run).get("embedded.npz", 0))
    for disk, amount in needed.items():
        if amount > free[disk]:
            raise UserError(
                f"{names[disk]}: {amount / 1e9:,.1f} GB are needed for features and embeddings of "
                f"{images:,} images, and its disk has {free[disk] / 1e9:,.1f} GB free; free some, "
                "or choose another storage and data.cache"
            )


def _nearest_folder(path: str) -> Path:
    """The path itself, or the nearest of its parents that is there."""
    nearest = Path(path)
    while not nearest.exists():
        nearest = nearest.parent
    return nearest
