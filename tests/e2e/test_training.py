"""One real run on Ray with two workers, and what unseen accuracy cannot show of it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from benchmarks.quality.controls import shuffle_labels
from distributed.display import Display
from distributed.embedding.embed import Encoder, embed_units, run_embedding
from distributed.embedding.files import load_embedded, save_embedded
from distributed.features.cache import read_unit, units_of
from distributed.features.extract import run_features
from distributed.run import train
from distributed.setup import prepare
from distributed.train.checkpoint import load_module
from distributed.train.data import StepBatch, epoch_batches, epoch_start, open_dataset, plan_of
from distributed.train.metrics import read_metrics
from distributed.train.ray_trainer import training_job
from distributed.train.trainer import TrainingJob, build_model, learning_rate, train_alone
from shards.manifest import SPLITS
from vgse.__main__ import main as vgse_main
from vgse.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from vgse.embeddings import class_embeddings
from vgse.health import nearest_class_mean, normalised_mutual_information
from vgse.images.image_features import read_image_features
from vgse.training.optimizer import make_optimizer

EPOCHS = 15  # of the shared run
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(own_run: Path, reader: Path) -> Path:
    """The folder that holds the packed set, its words and its runs."""
    return reader


@pytest.fixture(scope="module")
def run(own_run: Path) -> Path:
    return own_run


def make_config(root: Path) -> RunConfig:
    """The configuration of `run`, with absolute paths."""
    return RunConfig(
        data=DataConfig(shards=str(root / "data" / "mine"), words=str(root / "glove.txt")),
        model=ModelConfig(num_clusters=20, projection=64),
        training=TrainingConfig(epochs=EPOCHS, batch_size=60, learning_rate=1e-2),
        storage=str(root / "runs"),
    )


@pytest.fixture(scope="module")
def job(run: Path, root: Path) -> TrainingJob:
    """The job that `run` trained, built anew."""
    config = make_config(root)
    prepared = prepare(config)
    with Display() as display:
        spec, folder = run_features(config, prepared, False, display)
    return training_job(config, prepared, spec, folder, run)


def last_checkpoint(run: Path) -> Path:
    return max(path for path in run.glob("checkpoint_*") if path.is_dir())


def held_out_measures(job: TrainingJob, checkpoint: Path | None) -> tuple[float, float]:
    """NMI and nearest-class-mean accuracy on test images of seen classes."""
    head = build_model(job).head.eval()
    if checkpoint is not None:
        load_module(checkpoint, "head", head)
    encoder = Encoder(job, head)
    manifest = open_dataset(job, CPU).manifest
    seen = embed_units(encoder, units_of(manifest, ["train"]))
    held_out = embed_units(encoder, units_of(manifest, ["test_seen"]))
    means = class_embeddings(seen.sums["train"])
    images = held_out.images
    accuracy = nearest_class_mean(
        images.assignments,
        images.labels,
        means,
        np.array(job.classes),
    )
    return normalised_mutual_information(held_out.sums["test_seen"].contingency), accuracy


def test_the_loss_falls_and_clusters_stay_in_use(run: Path) -> None:
    rows = read_metrics(run)
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert rows[-1]["classification"] < 0.85 * rows[0]["classification"]
    assert rows[-1]["used_clusters"] >= 18


def test_training_brings_clusters_nearer_to_the_classes_than_kmeans(
    run: Path, job: TrainingJob
) -> None:
    nmi, accuracy = held_out_measures(job, last_checkpoint(run))
    nmi_kmeans, accuracy_kmeans = held_out_measures(job, None)
    assert nmi > nmi_kmeans + 0.08
    assert accuracy > accuracy_kmeans + 0.02
    clusters = json.loads((run / "evaluation.json").read_text())["clusters"]
    assert clusters["nmi"] == pytest.approx(nmi, abs=1e-6)
    assert clusters["nmi_kmeans"] == pytest.approx(nmi_kmeans, abs=1e-6)
    assert clusters["nearest_class_mean"] == pytest.approx(accuracy, abs=1e-6)


def test_with_shuffled_labels_it_does_not(run: Path, job: TrainingJob, root: Path) -> None:
    shuffled = root / "shuffled"
    units = units_of(open_dataset(job, CPU).manifest, ["train"])
    shuffle_labels(job.folder, units, shuffled, seed=0)
    (root / "runs" / "shuffled").mkdir()
    (root / "runs" / "shuffled" / "init").symlink_to(run / "init")
    lied_to = replace(job, folder=str(shuffled), run=str(root / "runs" / "shuffled"))
    last = root / "runs" / "shuffled" / "last"

    def keep_the_last(row: dict[str, float], folder: Path | None) -> None:
        if row["epoch"] == EPOCHS:
            assert folder is not None
            shutil.copytree(folder, last)

    train_alone(lied_to, on_epoch=keep_the_last)
    nmi, accuracy = held_out_measures(job, last)
    nmi_kmeans, accuracy_kmeans = held_out_measures(job, None)
    assert nmi < nmi_kmeans + 0.02
    assert accuracy < accuracy_kmeans + 0.01


def joint_batches(job: TrainingJob, epoch: int, num_workers: int) -> Iterator[StepBatch]:
    """What all workers see in each step, as one batch."""
    dataset = open_dataset(job, CPU)
    position = epoch_start(dataset, epoch, 0, job.config.seed, num_workers)
    plan = plan_of(position, dataset)
    ranks = [
        epoch_batches(dataset, position.cursor, plan, rank, patch_size=64, device=CPU)
        for rank in range(num_workers)
    ]
    for parts in zip(*ranks, strict=True):
        yield StepBatch(
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("inputs", "labels", "images", "weights")
            ),
            num_images=sum(part.num_images for part in parts),
            total_images=parts[0].total_images,
            done_before=parts[0].done_before,
        )


def test_two_workers_learn_what_one_plain_loop_with_the_joint_batch_learns(
    run: Path, job: TrainingJob
) -> None:
    model = build_model(job)
    optimizer = make_optimizer(model, job.config.training)
    rows = read_metrics(run)
    for epoch in range(3):
        total = images = 0.0
        for batch in joint_batches(job, epoch, num_workers=2):
            for group in optimizer.param_groups:
                rate = learning_rate((epoch + batch.done_before) / EPOCHS)
                group["lr"] = group["peak"] * rate
            output = model(
                batch.inputs, batch.labels, batch.images, batch.weights, batch.total_images
            )
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            total += float(output.loss.detach()) * batch.total_images
            images += batch.total_images
        assert images == 240
        assert rows[epoch]["loss"] == pytest.approx(total / images, rel=1e-5)


def test_an_epoch_shows_every_training_image_once(job: TrainingJob) -> None:
    ids = torch.cat([batch.images for batch in joint_batches(job, 0, num_workers=3)])
    assert len(ids) == len(set(ids.tolist())) == 240


def test_class_embeddings_equal_a_plain_loop_over_the_training_images(
    run: Path, job: TrainingJob
) -> None:
    head = build_model(job).head.eval()
    load_module(last_checkpoint(run), "head", head)
    sums = {label: np.zeros(20) for label in job.classes}
    counts = dict.fromkeys(job.classes, 0)
    for unit in units_of(open_dataset(job, CPU).manifest, ["train"]):
        content = read_unit(job.folder, unit)
        for features, label in zip(content.patches, content.labels.tolist(), strict=True):
            with torch.no_grad():
                sums[label] += head(features.float()).double().mean(0).numpy()
            counts[label] += 1
    with np.load(run / "class_embeddings.npz", allow_pickle=False) as file:
        embeddings, unseen = file["embeddings"], file["unseen"]
    for label in job.classes:
        np.testing.assert_allclose(embeddings[label], sums[label] / counts[label], atol=1e-6)
    with np.load(run / "relations.npz", allow_pickle=False) as file:
        relations = file["smo"]
    np.testing.assert_allclose(embeddings[unseen], relations @ embeddings[job.classes], atol=1e-6)


def test_the_run_folder_holds_what_the_readme_names(run: Path) -> None:
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "init/centroids.npy",
        "class_embeddings.npz",
        "class_embeddings.safetensors",
        "VGSE_SMO_splits.mat",
        "image_features.npz",
        "relations.npz",
        "evaluation.json",
        "health.json",
        "pictures.npz",
        "report.html",
    ):
        assert (run / name).stat().st_size > 0, name
    assert not list(run.glob(".*part*"))


def test_the_exported_features_of_a_run_name_their_pictures(run: Path, tmp_path: Path) -> None:
    assert vgse_main(["export", str(run), "--features", "--out", str(tmp_path)]) == 0
    mat = scipy.io.loadmat(str(tmp_path / "res101.mat"))
    splits = scipy.io.loadmat(str(tmp_path / "VGSE_SMO_splits.mat"))
    files = [str(cell[0][0]) for cell in mat["image_files"]]
    names = [str(cell[0][0]) for cell in splits["allclasses_names"]]
    label = mat["labels"].astype(int).squeeze() - 1
    assert [Path(file).parent.name for file in files] == [names[number] for number in label]
    trained = splits["trainval_loc"].squeeze() - 1
    assert {Path(files[row]).parts[0] for row in trained} == {"train"}
    assert len(set(files)) == len(files) == mat["features"].shape[1]


def test_a_finished_run_is_refused_unless_resumed(run: Path, root: Path) -> None:
    with pytest.raises(ValueError, match=r"this run is finished .* add --resume"):
        train(make_config(root), "mine")


def test_a_resumed_finished_run_gives_the_same_embeddings(run: Path, root: Path) -> None:
    with np.load(run / "class_embeddings.npz", allow_pickle=False) as file:
        before = file["embeddings"]
    train(make_config(root), "mine", resume=True)
    with np.load(run / "class_embeddings.npz", allow_pickle=False) as file:
        # Late stages of `python -m vgse` start from float32 word vectors.
        np.testing.assert_allclose(file["embeddings"], before, atol=1e-6)
    assert len(read_metrics(run)) == EPOCHS


def test_a_backbone_that_learns_is_trained_from_pixels(
    ray_session: None, root: Path, tmp_path: Path
) -> None:
    config = make_config(root)
    config.backbone.train = "last"
    config.training.epochs = 1
    config.backbone.patch_size = config.backbone.image_size = 32
    config.evaluation.models = ["prototype"]
    config.model.max_points_per_centroid = 20  # so that only a sample of patches is cached
    config.cluster.num_workers = config.cluster.loader_workers = 1
    run = train(config, "pixels")
    model = build_model(replace(pixel_job(config, run), run=str(run)))
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}  # type: ignore[union-attr]
    load_module(last_checkpoint(run), "backbone", model.backbone)  # type: ignore[arg-type]
    after = model.backbone.state_dict()  # type: ignore[union-attr]
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert any("conv_head" in key for key in changed)
    assert not any("conv_stem" in key or ".blocks.0." in key for key in changed)
    assert read_metrics(run)[0]["used_clusters"] >= 10


def pixel_job(config: RunConfig, run: Path) -> TrainingJob:
    prepared = prepare(config)
    with Display() as display:
        spec, folder = run_features(config, prepared, False, display)
    return training_job(config, prepared, spec, folder, run)


def test_splits_are_embedded_once_each(run: Path, job: TrainingJob) -> None:
    manifest = open_dataset(job, CPU).manifest
    with np.load(run / "image_features.npz", allow_pickle=False) as file:
        counts = np.bincount(file["split"], minlength=3)
        names = file["split_names"].tolist()
        assert len(set(file["keys"].tolist())) == counts.sum()
    assert dict(zip(names, counts.tolist(), strict=True)) == {
        split: manifest.num_images(split) for split in SPLITS
    }


def test_a_run_with_too_many_images_for_one_file_is_embedded_into_parts_of_its_folder(
    ray_session: None, run: Path, job: TrainingJob, tmp_path: Path
) -> None:
    shutil.copytree(run / "init", tmp_path / "init")
    units = units_of(open_dataset(job, CPU).manifest, SPLITS)
    apart = replace(job, run=str(tmp_path))
    with Display() as display:
        found = run_embedding(apart, last_checkpoint(run), False, display, units, in_memory=0)
    save_embedded(tmp_path, found)
    parts, whole = load_embedded(tmp_path), load_embedded(run)
    for split, sums in whole.sums.items():
        for name, values in vars(sums).items():
            np.testing.assert_array_equal(getattr(parts.sums[split], name), values)
    for name in ("shards", "rows", "labels", "splits", "strongest"):
        np.testing.assert_array_equal(getattr(parts.images, name), getattr(whole.images, name))
    ours, theirs = read_image_features(tmp_path), read_image_features(run)
    assert ours.keys == theirs.keys and ours.sources == theirs.sources
    np.testing.assert_array_equal(ours.features, theirs.features)
    assert not (tmp_path / "image_features.npz").exists()


def test_training_alone_equals_the_plain_loop_and_goes_on_from_its_checkpoint(
    job: TrainingJob, tmp_path: Path
) -> None:
    rows: list[float] = []
    kept = tmp_path / "kept"

    def keep_the_fourth(row: dict[str, float], folder: Path | None) -> None:
        rows.append(row["loss"])
        if row["epoch"] == 4:
            assert folder is not None
            shutil.copytree(folder, kept)

    whole = train_alone(job, on_epoch=keep_the_fourth)
    again: list[float] = []
    resumed = train_alone(job, checkpoint=kept, on_epoch=lambda row, _: again.append(row["loss"]))
    assert again == pytest.approx(rows[4:], rel=1e-6)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)
    assert rows[-1] < 0.8 * rows[0]
