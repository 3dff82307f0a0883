"""What the trials of a search share: put together once by the driver, on training images only."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from distributed.features.cache import FeatureSpec, Unit, access_of, read_unit, units_of
from distributed.features.kmeans_init import make_start
from distributed.setup import Prepared
from distributed.storage import absolute
from shards.objects import is_remote
from shards.roles import Roles
from tune.config import SearchConfig
from tune.trial.objective import Problem, make_problem
from vgse.config import RunConfig
from vgse.files import disk_errors_in_one_line
from vgse.knowledge.sources import Knowledge
from vgse.knowledge.sparse_rows import spread
from vgse.zsl.data import Indices


@dataclass(frozen=True)
class TrialContext:
    """All that a trial is given: its images are those of the training split alone."""

    config: SearchConfig
    base: RunConfig  # the run that is searched around, for one trial
    folder: str  # of the search
    url: str  # shards
    features: str  # feature cache, a folder or a URL
    starts: str  # folder of the k-means that all trials share
    spec: FeatureSpec
    units: tuple[Unit, ...]  # of the training split
    trained: Indices  # classes that trials train on
    num_patches: int
    num_features: int
    word_vectors: NDArray[np.float64]  # [C, D_w], NaN for unseen classes
    knowledge: Knowledge  # of all classes, zeros for unseen ones
    problem: Problem
    fingerprint: str  # of the base configuration and the data
    device: Literal["cpu", "cuda"]
    roles: Roles | None = None  # of classes, where they are not the shards' own


def trial_base(config: SearchConfig) -> RunConfig:
    """The run that is searched around, as a trial trains it."""
    run = config.run
    training = replace(run.training, classes="train", checkpoint_epochs=1, checkpoint_steps=0)
    cluster = replace(run.cluster, num_workers=config.workers_per_trial, min_workers=None)
    return replace(run, training=training, cluster=cluster)


def make_context(
    config: SearchConfig,
    prepared: Prepared,
    spec: FeatureSpec,
    features: str,
    folder: Path,
    device: Literal["cpu", "cuda"],
) -> TrialContext:
    """Put together what trials need; reads training images' features from the cache `features`."""
    manifest, run = prepared.manifest, config.run
    units = tuple(units_of(manifest, ["train"]))
    contents = [read_unit(features, unit, access_of(run.data)) for unit in units]
    problem = make_problem(
        np.concatenate([content.images.numpy() for content in contents]).astype(np.float32),
        np.concatenate([content.labels.numpy() for content in contents]),
        manifest.class_names,
        prepared.trained,
        prepared.val,
        holdout=run.evaluation.holdout,
        folds=run.evaluation.folds,
        seed=run.seed,
    )
    word_vectors = prepared.word_vectors.copy()
    word_vectors[prepared.unseen] = np.nan
    kept = np.setdiff1d(np.arange(len(manifest.class_names)), prepared.unseen)
    sources = [
        replace(source, rows=spread(source.rows[kept], kept, len(manifest.class_names)), found={})
        for source in prepared.knowledge.sources
    ]
    starts = Path(features) / "starts"
    if is_remote(features):
        starts = Path(run.storage).expanduser().absolute() / "starts" / features.rsplit("/", 1)[-1]
    return TrialContext(
        config=config,
        base=trial_base(config),
        folder=str(folder),
        url=absolute(manifest.url),
        features=features,
        starts=str(starts),
        spec=spec,
        units=units,
        trained=prepared.trained,
        num_patches=manifest.num_patches,
        num_features=prepared.num_features,
        word_vectors=word_vectors,
        knowledge=replace(prepared.knowledge, sources=sources),
        problem=problem,
        fingerprint=prepared.fingerprint,
        device=device,
        roles=prepared.roles,
    )


def start_key(config: RunConfig, classes: Sequence[int]) -> str:
    """A name for all that a start depends on, besides the features it is computed from."""
    model = config.model
    shape = (model.num_clusters, model.projection, model.max_points_per_centroid)
    content = [*shape, config.seed, sorted(classes)]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return f"{model.num_clusters}-{digest}"


def ensure_start(context: TrialContext, config: RunConfig) -> Path:
    """The folder that holds the k-means `init/` of a configuration, computed if it is not there.

    Trials that need the same one wait for the first; a killed trial leaves none: centroids go last.
    """
    classes = context.trained.tolist()
    folder = Path(context.starts) / start_key(config, classes)
    centroids = folder / "init" / "centroids.npy"
    if centroids.is_file():
        return folder
    with disk_errors_in_one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not centroids.is_file():
                make_start(
                    context.features,
                    context.units,
                    classes,
                    config,
                    num_patches=context.num_patches,
                    below=context.spec.sample_below,
                    init=folder / "init",
                    device=context.device,
                )
    return folder
