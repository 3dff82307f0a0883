"""What the trials of a search share: put together once by the driver, on training images only."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed.features import FeatureSpec, Unit, access_of, read_unit, units_of
from distributed.job import TrainingJob
from distributed.prepare import Prepared
from shards.storage import is_remote
from tune.config import SearchConfig
from tune.objective import Problem, make_problem
from tune.space import with_params
from tune.starts import ensure_start
from tune.view import write_view
from vgse.config import RunConfig
from vgse.zsl.data import Indices


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
