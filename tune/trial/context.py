"""What the trials of a search share: put together once by the driver, on training images only."""

import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed.features.cache import FeatureSpec, Unit, access_of, read_unit, units_of
from distributed.features.kmeans_init import make_start
from distributed.setup import Prepared
from distributed.train.spec import TrainingJob
from shards.manifest import FILE, LABELS, Manifest, load_labels, manifest_json
from shards.objects import is_remote
from tune.config import SearchConfig
from tune.space import with_params
from tune.trial.objective import Problem, make_problem
from vgse.config import RunConfig
from vgse.errors import UserError
from vgse.files import written_whole
from vgse.zsl.data import Indices


def training_view(manifest: Manifest) -> tuple[Manifest, bytes]:
    """A manifest without the test shards, and its labels.npy.

    Unseen classes are hidden rather than left out, so that labels still count along the same
    class names and the feature cache of the whole data set can be shared.
    """
    labels = load_labels(manifest)
    shards = [shard for shard in manifest.shards if shard.split == "train"]
    stream = io.BytesIO()
    joined = np.concatenate([labels[shard.file] for shard in shards])
    np.save(stream, joined.astype(np.uint32), allow_pickle=False)
    content = stream.getvalue()
    classes = [
        replace(entry, role="hidden") if entry.role == "unseen" else entry
        for entry in manifest.classes
    ]
    digest = hashlib.sha256(content).hexdigest()
    view = replace(manifest, classes=classes, shards=shards, damaged=[], labels_sha256=digest)
    return view, content


def write_view(manifest: Manifest, folder: Path) -> str:
    """Write the training view into a folder and return its URL.

    Local shards are linked there, so that trials from pixels find them beside the manifest;
    shards of a store are not, and the view serves trials on the feature cache only.
    """
    view, labels = training_view(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    if not is_remote(manifest.url):
        for shard in view.shards:
            link = folder / shard.file
            with suppress(FileExistsError):
                os.symlink(Path(manifest.url).absolute() / shard.file, link)
    with written_whole(folder / LABELS) as stream:
        stream.write(labels)
    with written_whole(folder / FILE) as stream:
        stream.write(manifest_json(view).encode())
    return str(folder.absolute())


_STALE_S = 24 * 3600.0
_PART = ".part-"


def start_key(config: RunConfig, classes: Sequence[int]) -> str:
    """A name for all that a start depends on, besides the features it is computed from."""
    model = config.model
    content = [
        model.num_clusters,
        model.projection,
        model.max_points_per_centroid,
        config.seed,
        sorted(classes),
    ]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return f"{model.num_clusters}-{digest}"


def has_start(folder: Path) -> bool:
    """Whether a folder holds a start; its last file says that it is whole."""
    return (folder / "init" / "centroids.npy").is_file()


def ensure_start(
    root: Path,
    config: RunConfig,
    features: str,
    spec: FeatureSpec,
    units: Sequence[Unit],
    classes: Sequence[int],
    num_patches: int,
) -> Path:
    """The folder that holds `init/`, computed if it is not there.

    Args:
        root: where starts are kept, beside the features they belong to.
        config: the trial's configuration.
        features: folder or URL of the feature cache.
        spec: what the cache holds.
        units: units of the training split.
        classes: classes whose patches are clustered.
        num_patches: N, patches an image.

    Raises:
        ValueError: fewer distinct patches than clusters.
    """
    target = root / start_key(config, classes)
    if has_start(target):
        return target
    root.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix=_PART, dir=root))
    try:
        own.chmod(0o755)  # other users of a shared disk may read it
        make_start(
            features,
            units,
            classes,
            config,
            num_patches=num_patches,
            below=spec.sample_below,
            init=own / "init",
        )
        with suppress(OSError):  # another was faster: a folder that holds files stays
            os.rename(own, target)
    finally:
        shutil.rmtree(own, ignore_errors=True)
    if not has_start(target):
        raise UserError(f"{target}: cannot be written; see that the folder is writable")
    return target


def sweep(root: Path, *, older_than: float = _STALE_S) -> int:
    """Delete what killed writers left; returns how many folders that were."""
    swept = 0
    for folder in root.glob(f"{_PART}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > older_than:
                shutil.rmtree(folder, ignore_errors=True)
                swept += 1
    return swept


@dataclass(frozen=True)
class Material:
    """All that a trial is given: units and pixels of the training split alone.

    The feature cache may hold test units of other runs beside them; no trial asks for one."""

    config: SearchConfig
    base: RunConfig  # the run that is searched around, for one trial
    folder: str  # of the search
    url: str  # training view of the shards
    features: str  # feature cache, a folder or a URL
    starts: str  # k-means that all trials share
    spec: FeatureSpec
    units: tuple[Unit, ...]  # of the training split
    trained: Indices  # classes that trials train on
    num_classes: int  # C
    num_patches: int
    num_features: int
    word_vectors: NDArray[np.float64]  # [C, D_w]
    problem: Problem
    fingerprint: str  # of the base configuration and the data
    device: str


def trial_base(config: SearchConfig) -> RunConfig:
    """The run that is searched around, as a trial trains it."""
    run = config.run
    training = replace(
        run.training,
        classes="train",
        checkpoint_epochs=1,
        checkpoint_steps=0,
    )
    cluster = replace(run.cluster, num_workers=config.workers_per_trial, min_workers=None)
    return replace(run, training=training, cluster=cluster)


def gather(
    config: SearchConfig,
    prepared: Prepared,
    spec: FeatureSpec,
    features: str,
    folder: Path,
    device: str,
) -> Material:
    """Put together what trials need; reads training images' features from the cache.

    Args:
        config: the search.
        prepared: the data, checked, for `trial_base(config)`.
        spec: what the feature cache holds.
        features: folder or URL of the feature cache, complete for the training split.
        folder: of the search.
        device: "cpu" or "cuda".

    Raises:
        ValueError: too few classes or images for the objective.
    """
    manifest = prepared.manifest
    units = tuple(units_of(manifest, ["train"]))
    access = access_of(config.run.data)
    contents = [read_unit(features, unit, access) for unit in units]
    problem = make_problem(
        np.concatenate([content.images.numpy() for content in contents]).astype(np.float32),
        np.concatenate([content.labels.numpy() for content in contents]),
        manifest.class_names,
        prepared.trained,
        prepared.val,
        holdout=config.run.evaluation.holdout,
        seed=config.run.seed,
    )
    vectors = prepared.word_vectors.copy()
    vectors[prepared.unseen] = np.nan
    return Material(
        config=config,
        base=trial_base(config),
        folder=str(folder),
        url=write_view(manifest, folder / "data"),
        features=features,
        starts=str(starts_root(features, config.run)),
        spec=spec,
        units=units,
        trained=prepared.trained,
        num_classes=len(manifest.class_names),
        num_patches=manifest.num_patches,
        num_features=prepared.num_features,
        word_vectors=vectors,
        problem=problem,
        fingerprint=prepared.fingerprint,
        device=device,
    )


def starts_root(features: str, run: RunConfig) -> Path:
    """Where starts lie: beside the features they come from, or with the searches if those are at
    a URL."""
    if is_remote(features):
        return Path(run.storage).absolute() / "starts" / features.rsplit("/", 1)[-1]
    return Path(features) / "starts"


def trial_job(
    material: Material, params: Mapping[str, Any], *, features: str | None = None
) -> TrainingJob:
    """What a trial trains, with its start computed if no trial has done so before.

    `features` names another folder of patch features than the shared cache.

    Raises:
        ValueError: fewer distinct patches than clusters.
    """
    config = with_params(material.base, params)
    start = ensure_start(
        Path(material.starts),
        config,
        material.features,
        material.spec,
        material.units,
        material.trained.tolist(),
        material.num_patches,
    )
    content = json.dumps([material.fingerprint, dict(params)], sort_keys=True)
    return TrainingJob(
        config=config,
        run=str(start),
        url=material.url,
        spec=material.spec,
        folder=features or material.features,
        classes=material.trained.tolist(),
        num_classes=material.num_classes,
        word_vectors=material.word_vectors[material.trained].astype(np.float32),
        num_features=material.num_features,
        precision=material.spec.precision,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
    )
