"""The feature cache: what it holds, and what damaged shards and files get."""

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision

from distributed.display import Display
from distributed.features.cache import (
    BackboneConfig,
    FeatureSpec,
    Unit,
    cache_folder,
    feature_spec,
    read_unit,
    units_of,
)
from distributed.features.extract import (
    compute_unit,
    counts_left,
    missing_units,
    run_features,
    whole_picture,
)
from distributed.storage import file_sizes
from shards.manifest import SPLITS, Manifest, load_manifest, shard_table
from shards.objects import ACCESS
from shards.samples import read_raw, read_shard
from tiny import make_tiny
from vgse.config import RunConfig
from vgse.images.backbones import build_backbone
from vgse.images.patches import cut_patches_opencv

SPEC = feature_spec(BackboneConfig(patch_size=64, image_size=128), "float32")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("tiny")
    make_tiny(root, train=3, test=2)
    return load_manifest(str(root / "packed"))


def first_unit(manifest: Manifest) -> Unit:
    return units_of(manifest, ["train"])[0]


def test_units_cover_every_image_once(manifest: Manifest) -> None:
    units = units_of(manifest, ["train", "test_seen", "test_unseen"])
    assert sum(unit.stop - unit.start for unit in units) == 30 + 20 + 8
    assert len({unit.file for unit in units}) == len(units)


def test_a_unit_holds_what_the_backbone_gives_for_each_patch(
    manifest: Manifest, tmp_path: Path
) -> None:
    unit = first_unit(manifest)
    count, damaged = compute_unit(manifest.url, unit, SPEC, str(tmp_path), "cpu")
    content = read_unit(tmp_path, unit)
    assert (count, damaged) == (30, [])
    backbone = build_backbone("efficientnet-lite0")
    shard = manifest.shards_of("train")[0]
    for row, sample in enumerate(read_shard(manifest, shard, stop=3)):
        patches = cut_patches_opencv(sample.image, sample.boxes, 64)
        whole = whole_picture(sample.image, 128)[None]
        with torch.inference_mode():
            expected = backbone(torch.from_numpy(patches).permute(0, 3, 1, 2))
            image = backbone(torch.from_numpy(whole).permute(0, 3, 1, 2))[0]
        torch.testing.assert_close(content.patches[row].float(), expected, atol=5e-3, rtol=5e-3)
        torch.testing.assert_close(content.images[row].float(), image, atol=5e-3, rtol=5e-3)
        assert content.keys[row] == sample.key


def test_features_that_are_not_finite_end_the_stage_that_computes_them(
    manifest: Manifest, tmp_path: Path
) -> None:
    network = torchvision.models.mobilenet_v3_small()
    network.classifier[0].bias.data += 1e6  # more than float16 holds
    torch.save(network.state_dict(), tmp_path / "large.pth")
    config = BackboneConfig("mobilenet_v3_small", str(tmp_path / "large.pth"))
    spec, cache = feature_spec(config, "float32"), str(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"backbone\.weights: mobilenet_v3_small gives .* finite"):
        compute_unit(manifest.url, first_unit(manifest), spec, cache, "cpu")


def test_a_truncated_image_is_skipped_and_named(manifest: Manifest, tmp_path: Path) -> None:
    shutil.copytree(manifest.url, tmp_path / "packed")
    shard = manifest.shards_of("train")[0]
    path = tmp_path / "packed" / shard.file
    data = bytearray(path.read_bytes())
    start = data.index(b"\xff\xd8\xff", shard.offsets[0])
    data[start : start + 400] = bytes(400)  # the JPEG's header is gone
    path.write_bytes(data)
    unit = first_unit(manifest)
    count, damaged = compute_unit(
        str(tmp_path / "packed"), unit, SPEC, str(tmp_path / "cache"), "cpu"
    )
    content = read_unit(tmp_path / "cache", unit)
    assert count == 30
    assert len(damaged) == 1
    assert len(content.keys) == 29
    assert damaged[0] not in content.keys


def test_a_class_whose_pictures_are_all_damaged_is_found_before_the_training(
    manifest: Manifest, tmp_path: Path
) -> None:
    packed, cache = tmp_path / "packed", tmp_path / "cache"
    shutil.copytree(manifest.url, packed)
    shard, unit = manifest.shards_of("train")[0], first_unit(manifest)
    data = bytearray((packed / shard.file).read_bytes())
    name = "texturec"
    for sample in read_raw(manifest, shard):
        if json.loads(sample.json)["class"] == name:
            start = data.index(sample.jpeg)
            data[start : start + 400] = bytes(400)
    (packed / shard.file).write_bytes(data)
    for one in units_of(manifest, SPLITS):
        compute_unit(str(packed), one, SPEC, str(cache), "cpu")
    counts = counts_left(manifest, str(cache), ACCESS)
    assert counts["train"] == manifest.class_counts["train"] | {name: 0}
    assert counts["test_seen"] == manifest.class_counts["test_seen"]
    assert (cache / unit.damage).stat().st_size


def test_a_unit_with_damage_is_computed_again_until_its_shard_is_mended(
    manifest: Manifest, tmp_path: Path
) -> None:
    packed, cache = tmp_path / "packed", str(tmp_path / "cache")
    shutil.copytree(manifest.url, packed)
    shard, unit = manifest.shards_of("train")[0], first_unit(manifest)
    whole = (packed / shard.file).read_bytes()
    start = whole.index(b"\xff\xd8\xff", shard.offsets[0])
    (packed / shard.file).write_bytes(whole[:start] + bytes(400) + whole[start + 400 :])
    compute_unit(str(packed), unit, SPEC, cache, "cpu")
    assert missing_units([unit], file_sizes(cache)) == [unit]
    (packed / shard.file).write_bytes(whole)
    compute_unit(str(packed), unit, SPEC, cache, "cpu", again=True)
    assert missing_units([unit], file_sizes(cache)) == []
    assert len(read_unit(cache, unit).keys) == 30


def test_another_patch_size_has_a_cache_of_its_own(manifest: Manifest, tmp_path: Path) -> None:
    other = feature_spec(BackboneConfig(patch_size=32), "float32")
    assert cache_folder("c", manifest, SPEC) == cache_folder("c", manifest, SPEC)
    assert cache_folder("c", manifest, SPEC) != cache_folder("c", manifest, other)


def test_the_cache_is_one_for_the_same_pictures_whatever_words_roles_and_title(
    manifest: Manifest,
) -> None:
    there = cache_folder("c", manifest, SPEC)
    classes = [replace(entry, words=["x"], role="train") for entry in manifest.classes]
    assert cache_folder("c", replace(manifest, classes=classes, source="y"), SPEC) == there
    shard = replace(manifest.shards[0], sha256="0" * 64)
    table = shard_table([shard, *manifest.shards[1:]])
    assert cache_folder("c", replace(manifest, table=table), SPEC) != there
    renamed = [replace(manifest.classes[0], name="zebra"), *manifest.classes[1:]]
    assert cache_folder("c", replace(manifest, classes=renamed), SPEC) != there


def test_weights_count_by_content_and_are_found_from_any_folder(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pth").write_bytes(b"one")
    spec = feature_spec(BackboneConfig(weights="mine.pth"), "float32")
    assert Path(spec.weights) == tmp_path / "mine.pth"
    shutil.copy("mine.pth", "same.pth")
    same = feature_spec(BackboneConfig(weights=str(tmp_path / "same.pth")), "float32")
    assert cache_folder("c", manifest, same) == cache_folder("c", manifest, spec)
    (tmp_path / "mine.pth").write_bytes(b"two")
    other = feature_spec(BackboneConfig(weights="mine.pth"), "float32")
    assert cache_folder("c", manifest, other) != cache_folder("c", manifest, spec)


def test_features_of_an_earlier_version_are_found(manifest: Manifest, tmp_path: Path) -> None:
    spec = FeatureSpec("efficientnet-lite0", "default", 64, 128, "float32")
    content = [manifest.fingerprint, {k: v for k, v in asdict(spec).items() if k != "content"}, 256]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    cache = tmp_path / f"efficientnet-lite0-{digest}"
    cache.mkdir()
    for unit in units_of(manifest, SPLITS):
        (cache / unit.file).write_bytes(b"there")
    config = RunConfig(backbone=BackboneConfig(image_size=128, precision="float32"))
    prepared = SimpleNamespace(manifest=manifest, cache=str(tmp_path))
    _, folder = run_features(config, prepared, False, Display())  # type: ignore[arg-type]
    assert folder == str(cache)


def test_a_damaged_cache_file_is_named(manifest: Manifest, tmp_path: Path) -> None:
    unit = first_unit(manifest)
    (tmp_path / unit.file).write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match=r"train-000000-0000000.safetensors: damaged .* delete"):
        read_unit(tmp_path, unit)
    with pytest.raises(ValueError, match=r"missing from the feature cache; run again"):
        read_unit(tmp_path / "none", unit)


def test_a_killed_writer_leaves_no_file_that_is_read(manifest: Manifest, tmp_path: Path) -> None:
    unit = first_unit(manifest)
    (tmp_path / ".part-abc").write_bytes(b"half")
    compute_unit(manifest.url, unit, SPEC, str(tmp_path), "cpu")
    assert np.isfinite(read_unit(tmp_path, unit).images.float().numpy()).all()
