"""Checks before any cluster is started: what can be found wrong is found here."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distributed.requirements import check_requirements
from distributed.storage import absolute
from distributed.train.loggers import check_tracking
from shards.manifest import Manifest, load_manifest
from shards.objects import is_remote, join_url
from shards.roles import Roles, asked_roles, with_roles
from vgse.config import RunConfig, SourceConfig, to_dict, validate
from vgse.errors import UserError
from vgse.images.backbones import build_backbone, weights_content, weights_file
from vgse.knowledge.sources import Knowledge, load_knowledge, semantic_targets
from vgse.knowledge.words import WordVectors, load_word_vectors, normalise_words


@dataclass(frozen=True)
class Prepared:
    """A run's data, checked. Class indices count along manifest.class_names."""

    manifest: Manifest  # with the roles of this run
    roles: Roles | None  # None: the shards' own
    seen: NDArray[np.int64]  # [S]
    unseen: NDArray[np.int64]  # [U]
    val: NDArray[np.int64]  # validation classes, part of seen
    trained: NDArray[np.int64]  # classes that are trained on: seen, or seen without val
    word_vectors: NDArray[np.float64]  # [C, D_w], centred, rows of length 1; NaN if dropped
    knowledge: Knowledge  # of all classes; zeros if dropped
    targets: NDArray[np.float64]  # [len(trained), D] of the semantic loss
    num_features: int
    cache: str
    fingerprint: str


def prepare(config: RunConfig) -> Prepared:
    """Load and check everything a run needs."""
    validate(config)
    check_tracking(config.tracking)
    manifest = load_manifest(config.data.shards)
    roles = asked_roles(manifest, config.data.unseen, config.data.split_seed)
    manifest = with_roles(manifest, roles)
    words = load_word_vectors(
        config.data.words, manifest.class_words, missing=config.data.missing_words
    )
    knowledge = _load_knowledge(config, words, manifest)
    row = {name: i for i, name in enumerate(manifest.class_names)}
    kept = np.array([row[name] for name in knowledge.class_names])
    has_words = set(knowledge.class_names)
    of_kept = [name in has_words for name in words.class_names]
    seen, unseen, val = (
        np.array(indices, np.int64)[np.isin(indices, kept)]
        for indices in (manifest.seen, manifest.unseen, manifest.val)
    )
    vectors = np.full((len(row), words.vectors.shape[1]), np.nan)
    vectors[kept] = words.vectors[of_kept]
    vectors = normalise_words(vectors, seen) if len(seen) else vectors
    knowledge = knowledge.of_classes(manifest.class_names)
    trained = np.setdiff1d(seen, val) if config.training.classes == "train" else seen
    target = config.loss.semantic_target
    targets = semantic_targets(knowledge, vectors, trained, target) if len(seen) else vectors[:0]
    prepared = Prepared(
        manifest=manifest,
        roles=roles,
        seen=seen,
        unseen=unseen,
        val=val,
        trained=trained,
        word_vectors=vectors,
        knowledge=knowledge,
        targets=targets,
        num_features=_check_backbone(config),
        cache=_cache_root(config),
        fingerprint=_fingerprint(config, manifest, vectors if target == "words" else targets),
    )
    check_requirements(config, prepared)
    return prepared


def record_roles(config: RunConfig, prepared: Prepared) -> RunConfig:
    """The configuration with the names of the unseen classes in place of a file or a draw."""
    if prepared.roles is None:
        return config
    return replace(config, data=replace(config.data, unseen=list(prepared.roles.unseen)))


def _load_knowledge(
    config: RunConfig,
    words: WordVectors,
    manifest: Manifest,
) -> Knowledge:
    """All sources for the classes that have words."""
    sources = []
    for index, source in enumerate(config.knowledge or [SourceConfig("words")]):
        if source.kind != "words" and not source.path:
            raise UserError(
                f"knowledge[{index}]: {source.kind} needs a path; name its file or folder"
            )
        if source.kind == "words" and source.path in ("", config.data.words):
            source = replace(source, path=config.data.words)
        elif source.kind == "glosses" and source.vectors is None:
            source = replace(source, vectors=config.data.words)
        sources.append(source)
    of_words = {name: manifest.class_words[name] for name in words.class_names}
    seen = {manifest.class_names[i] for i in manifest.seen}
    read = {config.data.words: words}
    return load_knowledge(sources, of_words, manifest.synsets, read, seen)


def _check_backbone(config: RunConfig) -> int:
    """One blank picture of each size, since some networks take one size only; returns D_f."""
    backbone = build_backbone(config.backbone.name, config.backbone.weights)
    for name in ("patch_size", "image_size"):
        size = getattr(config.backbone, name)
        try:
            with torch.inference_mode():
                backbone(torch.zeros(1, 3, size, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"backbone.{name} is {size}, which {config.backbone.name} does not take "
                f"({str(error).splitlines()[0]}); vision transformers want 224"
            ) from None
    return backbone.num_features


def _cache_root(config: RunConfig) -> str:
    """Folder or URL: beside local shards, in the storage of a run whose shards are remote."""
    if config.data.cache:
        return absolute(config.data.cache)
    if is_remote(config.data.shards):
        return join_url(absolute(config.storage), "cache")
    return join_url(absolute(config.data.shards.removesuffix("manifest.json")), "features")


def learned(content: dict[str, Any]) -> dict[str, Any]:
    """Those sections and fields of a configuration that decide what is learned."""
    sections = ("backbone", "model", "loss", "training", "seed")
    chosen = {name: content[name] for name in sections if name in content}
    free = ("checkpoint_epochs", "checkpoint_steps", "checkpoints_kept", "accumulate", "compile")
    for section in ("training", "backbone"):
        if isinstance(chosen.get(section), dict):
            chosen[section] = {k: v for k, v in chosen[section].items() if k not in free}
    return chosen


def _fingerprint(config: RunConfig, manifest: Manifest, targets: NDArray[np.float64]) -> str:
    """Of all that decides what is learned: a checkpoint goes on only under the same."""
    content = learned(to_dict(config))
    if config.loss.semantic_target == "words":
        del content["loss"]["semantic_target"]
    if config.training.optimizer == "adamw":
        # As it was before there was a choice: runs of then can be resumed.
        del content["training"]["optimizer"], content["training"]["momentum"]
    if weights_file(config.backbone.weights) is not None:  # what it holds, not its path
        content["backbone"]["weights"] = weights_content(
            config.backbone.name, config.backbone.weights
        )
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    digest.update(manifest.fingerprint.encode())
    digest.update(np.ascontiguousarray(targets).tobytes())
    return digest.hexdigest()
