"""The pictures' names on their way from the shards into res101.mat."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import torch
import webdataset
from numpy.typing import NDArray
from safetensors import safe_open

from distributed.embedding.embed import Encoder, embed_units
from distributed.embedding.files import Embedded, load_embedded, save_embedded
from distributed.features.cache import feature_spec, units_of, write_unit
from distributed.features.extract import compute_unit, whole_picture
from distributed.train.trainer import TrainingJob
from shards.manifest import SPLITS, Manifest, load_manifest
from shards.samples import read_raw
from shards_trees import rewrite_table
from tiny import make_tiny
from vgse.config import BackboneConfig, ModelConfig, RunConfig
from vgse.images.backbones import build_backbone
from vgse.run_folder import export_features
from vgse.training.model import ClusterHead

SPEC = feature_spec(BackboneConfig(patch_size=32, image_size=64), "float32")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny set: pictures, shards, and the feature cache of them."""
    root = tmp_path_factory.mktemp("names")
    manifest = make_tiny(root, train=3, test=2)
    for unit in units_of(manifest, SPLITS):
        compute_unit(manifest.url, unit, SPEC, str(root / "cache"), "cpu")
    return root


@pytest.fixture
def manifest(root: Path) -> Manifest:
    return load_manifest(str(root / "packed"))


def embed(root: Path, manifest: Manifest, cache: Path) -> Embedded:
    """The embedding pass over all splits, as tasks of one unit each."""
    head = ClusterHead(ModelConfig(num_clusters=4, projection=0), 1280, 10, 8)
    job = TrainingJob(
        config=RunConfig(),
        run="",
        url=manifest.url,
        spec=SPEC,
        folder=str(cache),
        classes=[],
        num_classes=len(manifest.class_names),
        targets=np.zeros((0, 8)),
        num_features=1280,
        fingerprint="",
    )
    return embed_units(Encoder(job, head), units_of(manifest, SPLITS))


def exported(run: Path, embedded: Embedded) -> dict[str, NDArray[np.generic]]:
    """res101.mat of a run, loaded as zero-shot repositories do."""
    save_embedded(run, embedded)
    export_features(run, run)
    mat: dict[str, NDArray[np.generic]] = scipy.io.loadmat(str(run / "res101.mat"))
    return mat


def test_image_files_of_a_run_name_the_picture_of_each_label_and_column(
    root: Path, manifest: Manifest, tmp_path: Path
) -> None:
    mat = exported(tmp_path, embed(root, manifest, root / "cache"))
    images = sum(manifest.num_images(split) for split in SPLITS)
    assert mat["image_files"].shape == (images, 1)
    files = [str(cell[0][0]) for cell in mat["image_files"]]
    assert len(set(files)) == images
    label = mat["labels"].astype(int).squeeze() - 1
    assert [Path(file).parent.name for file in files] == [manifest.class_names[y] for y in label]
    backbone = build_backbone("efficientnet-lite0")
    columns = mat["features"].T  # [M, D_f]
    for number in range(0, images, 7):
        picture = cv2.imread(str(root / "images" / files[number]))[..., ::-1]
        pixels = torch.from_numpy(whole_picture(picture, 64)[None].copy()).permute(0, 3, 1, 2)
        with torch.inference_mode():
            own = backbone(pixels)[0].numpy()
        away = np.linalg.norm(columns - own, axis=1)
        assert away.argmin() == number


def without_sources(root: Path, manifest: Manifest, target: Path, splits: list[str]) -> None:
    """The cache as earlier versions wrote it, for some splits."""
    for unit in units_of(manifest, SPLITS):
        with safe_open(root / "cache" / unit.file, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            names = dict(file.metadata())
        assert set(names) == {"keys", "sources"}
        if unit.split in splits:
            del names["sources"]
        write_unit(target, unit, tensors, names)


def test_of_a_cache_without_names_the_keys_are_taken_and_of_one_with_some_those(
    root: Path, manifest: Manifest, tmp_path: Path
) -> None:
    without_sources(root, manifest, tmp_path / "cache", ["train"])
    embedded = embed(root, manifest, tmp_path / "cache")
    mat = exported(tmp_path / "run", embedded)
    files = [str(cell[0][0]) for cell in mat["image_files"]]
    trained = embedded.images.splits.count("train")
    assert files[:trained] == embedded.images.keys[:trained]
    assert all(file.endswith(".png") for file in files[trained:])
    assert embedded.images.sources.count("") == trained


def test_a_run_folder_of_an_earlier_version_is_gone_on_with(
    root: Path, manifest: Manifest, tmp_path: Path
) -> None:
    save_embedded(tmp_path, embed(root, manifest, root / "cache"))
    path = tmp_path / "image_features.npz"
    with np.load(path) as file:
        np.savez(path, **{name: file[name] for name in file.files if name != "sources"})
    embedded = load_embedded(tmp_path)
    assert embedded.images.sources == [""] * len(embedded.images.keys)
    mat = exported(tmp_path, embedded)
    assert [str(cell[0][0]) for cell in mat["image_files"]] == embedded.images.keys


TEXTS = ["../../etc/passwd", "/dev/null", "a\x1b[31mb\n", "", "bad\ud800", "x" * 5000, "ünï/画.png"]


def test_texts_of_strangers_are_kept_as_texts_and_never_longer_than_a_path(
    root: Path, manifest: Manifest, tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    shutil.copytree(root / "packed", packed)
    shard = manifest.shards_of("train")[0]
    with (packed / shard.file).open("wb") as file:
        tar = webdataset.TarWriter(file, mtime=0, encoder=False)
        for number, raw in enumerate(read_raw(manifest, shard)):
            meta = {**json.loads(raw.json), "source": TEXTS[number % len(TEXTS)]}
            tar.write({"__key__": raw.key, "jpg": raw.jpeg, "json": json.dumps(meta).encode()})
        tar.close()
    data = (packed / shard.file).read_bytes()
    entry = replace(shard, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    changed = rewrite_table(packed, [entry, *manifest.shards[1:]])
    for unit in units_of(changed, SPLITS):
        compute_unit(changed.url, unit, SPEC, str(tmp_path / "cache"), "cpu")
    embedded = embed(root, changed, tmp_path / "cache")
    known = [text if len(text) < 5000 else "" for text in TEXTS]
    assert embedded.images.sources[: len(TEXTS)] == known
    mat = exported(tmp_path / "run", embedded)
    files = [str(cell[0][0]) for cell in mat["image_files"]]
    shown = [text or key for text, key in zip(known, embedded.images.keys, strict=False)]
    assert files[: len(TEXTS)] == [text.replace("\ud800", "\\ud800") for text in shown]
