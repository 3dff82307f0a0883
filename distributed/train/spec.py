"""What a run trains: the job that workers get, its model, optimiser and learning rate."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from distributed.features.cache import FeatureSpec
from distributed.features.kmeans_init import load_start
from vgse.config import RunConfig
from vgse.images.backbones import build_backbone
from vgse.training.model import ClusterHead, TrainingModel

WARM_UP = 0.05


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker needs; travels from the driver by Ray."""

    config: RunConfig
    run: str  # run folder
    url: str  # shards
    spec: FeatureSpec
    folder: str  # feature cache
    classes: list[int]  # classes trained on, indices into class_names; S of them
    num_classes: int  # C
    word_vectors: np.ndarray  # float32 [S, D_w]
    num_features: int
    precision: str
    fingerprint: str  # of configuration and data
    num_images: int = 0  # of an epoch
    progress: Any = None  # actor of distributed.train.callbacks.TrainingProgress


def learning_rate(progress: float) -> float:
    """Factor in 0..1 of the peak rate after a share `progress` of the training: linear warm-up
    over the first 5%, then half a cosine to zero."""
    if progress < WARM_UP:
        return (progress + 1e-3) / (WARM_UP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP))))


def build_model(job: TrainingJob) -> TrainingModel:
    """Backbone (only when it learns), head started from k-means, and losses."""
    config = job.config
    torch.manual_seed(config.seed)
    backbone = None
    if config.backbone.train != "none":
        backbone = build_backbone(config.backbone.name, config.backbone.weights)
        backbone.learn(config.backbone.train)
        if config.backbone.compile:
            backbone.compile_blocks()
    head = ClusterHead(config.model, job.num_features, len(job.classes), job.word_vectors.shape[1])
    projection, centroids = load_start(f"{job.run}/init")
    from_kmeans = config.model.init == "kmeans"
    head.start(projection, torch.from_numpy(centroids) if from_kmeans else None)
    return TrainingModel(backbone, head, torch.from_numpy(job.word_vectors), config.loss)
