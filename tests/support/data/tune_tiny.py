"""Searches on the tiny data set."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from distributed.features.cache import cache_folder, feature_spec, units_of
from distributed.features.extract import compute_unit
from distributed.setup import prepare
from tiny import make_tiny
from tune.config import SearchConfig
from tune.space import Dimension
from tune.trial.context import TrialContext, make_context, trial_base
from vgse.config import BackboneConfig, DataConfig, ModelConfig, RunConfig, TrainingConfig

EPOCHS = 3


def make_search(root: Path, **changes: object) -> SearchConfig:
    """A search of few and short trials over data in root/packed."""
    run = RunConfig(
        data=DataConfig(shards=str(root / "packed"), words=str(root / "words.txt")),
        backbone=BackboneConfig(image_size=64),
        model=ModelConfig(num_clusters=16, projection=64),
        training=TrainingConfig(epochs=EPOCHS, batch_size=60, learning_rate=1e-2),
        storage=str(root / "searches"),
    )
    run.cluster.num_workers = 1
    space = {
        "loss.entropy": Dimension(0.1, 2, log=True),
        "model.num_clusters": Dimension(choices=[12, 16]),
        "training.learning_rate": Dimension(1e-3, 3e-2, log=True),
    }
    config = SearchConfig(run=run, space=space, trials=4, finalists=0, grace_epochs=1)
    return replace(config, **changes)  # type: ignore[arg-type]


def broken_search(root: Path, **changes: object) -> SearchConfig:
    """A search with a learning rate at which the loss overflows; nothing is stopped before."""
    config = make_search(root, seed=4, grace_epochs=EPOCHS, max_concurrent=2, **changes)
    config.space["training.learning_rate"] = Dimension(choices=[1e-2, 1e30])
    return config


def make_trial_context(root: Path, folder: Path, config: SearchConfig) -> TrialContext:
    """What the driver puts together, without Ray."""
    torch.set_num_threads(1)
    prepared = prepare(trial_base(config))
    spec = feature_spec(config.run.backbone, "float32")
    cache = cache_folder(prepared.cache, prepared.manifest, spec)
    for unit in units_of(prepared.manifest, ["train"]):
        if not (Path(cache) / unit.file).is_file():
            compute_unit(prepared.manifest.url, unit, spec, cache, "cpu")
    return make_context(config, prepared, spec, cache, folder, "cpu")


def spoil_test_shards(packed: Path) -> None:
    """Noise in place of all test shards, of the same length: they cannot be read."""
    random = np.random.default_rng(0)
    shards = list(packed.glob("test_*.tar"))
    assert len(shards) >= 2
    for shard in shards:
        shard.write_bytes(random.bytes(shard.stat().st_size))


__all__ = [
    "EPOCHS",
    "broken_search",
    "make_search",
    "make_tiny",
    "make_trial_context",
    "spoil_test_shards",
]
