"""Class splits at run time: nothing of an unseen image reaches k-means, training or a choice.

The cached features of all images that are unseen under the roles of a run are changed: whatever is
learned and chosen has to stay as it was, to the last bit. Changed training images are the control.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed.embedding.embed import Encoder, embed_units
from distributed.embedding.results import own_embeddings
from distributed.features import extract
from distributed.features.cache import FeatureSpec, read_unit, units_of, write_unit
from distributed.features.kmeans_init import load_start, make_start
from distributed.features.sample import sampling_of
from distributed.setup import Prepared, prepare
from distributed.train.ray_trainer import training_job
from distributed.train.trainer import train_alone
from shards.manifest import SPLITS, load_labels, load_manifest
from shards.objects import ACCESS
from tiny import UNSEEN, make_tiny
from tune.config import SearchConfig
from tune.trial.context import make_context, trial_base
from vgse.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from vgse.relations.predict import choose_knowledge
from vgse.run_folder import SPLITS as RUN_SPLITS
from vgse.zsl.data import ZslData
from vgse.zsl.rows import Row, table_rows
from vgse.zsl.table import evaluate

SPEC = FeatureSpec("efficientnet-lite0", "default", 64, 128, "float32")
SIZE = 1280
# texturea and textureb leave the seen classes that were packed, texturek and texturel join them.
OTHERS = ["texturea", "textureb", *UNSEEN[2:]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny set, and a cache of features that were drawn: a class is a direction."""
    root = tmp_path_factory.mktemp("canary")
    make_tiny(root, train=6, test=5)
    directions = np.random.default_rng(0).normal(size=(14, SIZE))
    manifest = load_manifest(str(root / "packed"))
    all_labels, place = load_labels(manifest).astype(np.int64), 0
    for number, unit in enumerate(units_of(manifest, SPLITS)):
        rng = np.random.default_rng(number + 1)
        labels = all_labels[place : place + unit.count]
        place += unit.count
        around = 0.7 * rng.normal(size=(len(labels), 5, SIZE)) + directions[labels][:, None]
        drawn = torch.from_numpy(around).half()
        tensors = {
            "labels": torch.from_numpy(labels),
            "rows": torch.arange(unit.start, unit.stop),
            "images": drawn[:, 0],
            "patches": drawn[:, 1:],
        }
        keys = [f"{unit.shard}-{row}" for row in range(unit.start, unit.stop)]
        write_unit(root / "cache", unit, tensors, {"keys": json.dumps(keys)})
    return root


def config_of(root: Path) -> RunConfig:
    config = RunConfig(
        data=DataConfig(str(root / "packed"), str(root / "words.txt"), unseen=OTHERS),
        model=ModelConfig(num_clusters=8, projection=16),
        training=TrainingConfig(epochs=2, batch_size=20),
    )
    config.evaluation.models = ["prototype"]
    config.storage = str(root / "runs")
    config.cluster.num_workers = 1
    return config


def poisoned(root: Path, name: str, prepared: Prepared, split: str) -> Path:
    """A copy of the cache in which the features of a split's images are loud."""
    target = root / name
    shutil.copytree(root / "cache", target, ignore=shutil.ignore_patterns("starts"))
    for unit in units_of(prepared.manifest, [split]):
        whole = read_unit(target, unit.whole)
        loud = torch.from_numpy(unit.holds(whole.rows.numpy()))
        if split == "train":  # k-means needs some that differ
            loud[::2] = False
        tensors = {"labels": whole.labels.clone(), "rows": whole.rows.clone()}
        for part in ("images", "patches"):
            values = getattr(whole, part).clone()
            values[loud] = (
                1000 * torch.rand(SIZE, generator=torch.Generator().manual_seed(1)).half()
            )
            tensors[part] = values
        write_unit(target, unit.whole, tensors, {"keys": json.dumps(whole.keys)})
    return target


def learned(root: Path, cache: Path, prepared: Prepared, config: RunConfig) -> dict[str, Any]:
    """All that a run and a search learn and choose, without a result on test images."""
    run = root / "runs" / cache.name
    job = training_job(config, prepared, SPEC, cache, run)
    make_start(
        *(job.folder, units_of(prepared.manifest, ["train"]), job.classes, config),
        num_patches=4,
        below=SPEC.sample_below,
        init=run / "init",
    )
    head = train_alone(job).head.eval()
    embedded = embed_units(Encoder(job, head), units_of(prepared.manifest, SPLITS))
    own, seen = own_embeddings(prepared, embedded), prepared.seen
    words = prepared.word_vectors
    choose = partial(choose_knowledge, prepared.knowledge, words)
    chosen = choose(seen, own[seen], config.relations, 0)
    images = embedded.images
    places = [np.flatnonzero(np.array(images.splits) == name) for name in RUN_SPLITS]
    data = ZslData(
        *(images.features.astype(np.float32), images.labels, *places),
        *(prepared.manifest.class_names, seen, prepared.unseen, prepared.val),
    )
    evaluation = evaluate(
        *(data, rows_of(config), own, words, config.evaluation, 0),
        choose_knowledge=lambda of_seen, fold: choose(fold, of_seen, config.relations, 0),
    )
    zero_shot = {
        row["name"]: [row["results"]["prototype"][key] for key in ("params", "val_zsl")]
        for row in evaluation["rows"]
    }
    search = SearchConfig(run=config)
    within = prepare(trial_base(search))
    context = make_context(search, within, SPEC, str(cache), run, "cpu")
    parts = context.problem.features
    return {
        "k-means": [array for array in load_start(run / "init") if array is not None],
        "training": head.state_dict(),
        "embeddings": own[seen],
        "relation": (chosen.vectors[seen], chosen.ridge),
        "zero-shot": zero_shot,
        "search": [part.training.features for part in parts] + [p.unseen_features for p in parts],
    }


def rows_of(config: RunConfig) -> Callable[[int], list[Row]]:
    """Some rows of the table: words, knowledge, clusters and image features."""
    names = ("words", "paper_smo", "smo", "image_smo")
    return lambda seed: [r for r in table_rows(config.relations, seed) if r.name in names]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor | np.ndarray):
        return bool(np.array_equal(np.asarray(a), np.asarray(b)))
    if hasattr(a, "weight"):  # a projection
        return equal([a.weight, a.bias], [b.weight, b.bias])
    return bool(a == b)


@pytest.fixture(scope="module")
def outcomes(root: Path) -> dict[str, dict[str, Any]]:
    torch.set_num_threads(1)
    config = config_of(root)
    prepared = prepare(config)
    assert {prepared.manifest.class_names[label] for label in prepared.unseen} == set(OTHERS)
    caches = {"clean": root / "cache"}
    caches |= {s: poisoned(root, f"loud-{s}", prepared, s) for s in ("test_unseen", "train")}
    return {name: learned(root, cache, prepared, config) for name, cache in caches.items()}


PARTS = ["k-means", "training", "embeddings", "relation", "zero-shot", "search"]


@pytest.mark.parametrize("part", PARTS)
def test_loud_images_of_unseen_classes_change_nothing(
    outcomes: dict[str, dict[str, Any]], part: str
) -> None:
    assert equal(outcomes["clean"][part], outcomes["test_unseen"][part])


@pytest.mark.parametrize("part", [part for part in PARTS if part != "zero-shot"])
def test_loud_training_images_are_seen_at_once(
    outcomes: dict[str, dict[str, Any]], part: str
) -> None:
    assert not equal(outcomes["clean"][part], outcomes["train"][part])


def test_the_sample_of_units_that_were_just_computed_holds_training_images_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "compute_unit", lambda *unit: (0, []))  # it is there
    config = config_of(root)
    prepared = prepare(config)
    cache, manifest = str(root / "cache"), prepared.manifest
    train = units_of(manifest, ["train"])
    whole = [unit.whole for unit in train]
    sampling = sampling_of(config, range(14), 4)
    given = manifest.url, whole, SPEC, cache, "cpu", ACCESS, [], sampling
    _, _, part, _ = extract.compute_units(*given, train)
    assert part is not None and part.population == 4 * manifest.num_images("train")
    _, _, part, _ = extract.compute_units(*given, whole)  # the control
    assert part is not None and part.population > 4 * manifest.num_images("train")
