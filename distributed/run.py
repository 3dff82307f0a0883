"""One run from shards to a report: checks, then the stages on the cluster, then the results."""

from contextlib import ExitStack
from pathlib import Path

import yaml
from rich.text import Text

from distributed import stages
from distributed.cluster import ray_cluster, wants_gpu
from distributed.display import Display
from distributed.embedding.embed import run_embedding
from distributed.embedding.files import save_embedded
from distributed.embedding.results import write_results
from distributed.features.cache import units_of
from distributed.features.extract import run_features
from distributed.features.kmeans_init import has_start, run_kmeans
from distributed.features.sample import run_sample
from distributed.logs import driver_log
from distributed.requirements import check_disk
from distributed.setup import Prepared, learned, prepare, record_roles
from distributed.stages import RunFolder, digest, working_folder
from distributed.storage import absolute, file_sizes, read_bytes, write_bytes
from distributed.train.checkpoint import damage
from distributed.train.ray_trainer import run_training, training_job
from shards.manifest import SPLITS
from shards.objects import FIRST, join_url
from vgse.config import RunConfig, check_name, leaves, to_dict
from vgse.errors import UserError

_LAST = "report.html"  # what the last stage writes


def is_finished(run: Path) -> bool:
    """Whether the run of a folder came to its end."""
    return (run / _LAST).is_file()


def check_run_folder(run: str, config: RunConfig, fingerprint: str, *, resume: bool) -> bool:
    """Make the run folder, or see that it holds a run of the same configuration and data;
    `resume` allows a finished one. Returns whether it is finished."""
    present = file_sizes(run, retry=FIRST)
    finished = _LAST in present
    if finished and not resume:
        results = ("class_embeddings.npz", "relations.npz", "evaluation.json", "report.html")
        raise UserError(
            f"{run}: this run is finished ({', '.join(n for n in results if n in present)} are "
            "there already); choose another --run-id, or add --resume to redo what follows "
            "the embedding"
        )
    mark = join_url(run, "init/fingerprint")
    try:
        before = read_bytes(mark, retry=FIRST).decode(errors="replace")
    except FileNotFoundError:
        before = fingerprint
    if before != fingerprint:
        raise UserError(f"{run}: {_difference(run, config)}; choose another --run-id")
    write_bytes(mark, fingerprint.encode(), retry=FIRST)
    return finished


def write_config(config: RunConfig, run: str) -> None:
    """Write the resolved configuration beside the results."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    write_bytes(join_url(run, "config.yaml"), text.encode(), retry=FIRST)


def _difference(run: str, config: RunConfig) -> str:
    """What a run was made with, in comparison."""
    try:
        content = yaml.safe_load(read_bytes(join_url(run, "config.yaml"), retry=FIRST))
        trees = content, to_dict(config)
        old, new = (dict(leaves(learned(tree))) for tree in trees)
        before, now = ([tree["data"].get(n) for n in ("unseen", "split_seed")] for tree in trees)
    except (FileNotFoundError, yaml.YAMLError, AttributeError, TypeError):
        return "made with another configuration or other data"
    if before != now:
        return "made with other roles of classes (data.unseen or data.split_seed was another)"
    changed = [
        f"{name} was {old.get(name, 'unknown')!r} and is {new.get(name, 'unknown')!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if not changed:
        return (
            "made with other data: the shards, the word vectors or the file of backbone.weights "
            "have changed"
        )
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f"made with another configuration: {'; '.join(changed[:3])}{more}"


def train(config: RunConfig, run_id: str, *, resume: bool = False, verbose: bool = False) -> Path:
    """Run everything that is not done yet; of a finished run `resume` redoes what follows the
    embedding pass. Returns the run folder, or a local one with the report where it is at a URL."""
    check_name("--run-id", run_id)
    prepared = prepare(config)
    config = record_roles(config, prepared)
    url = join_url(absolute(config.storage), run_id)
    finished = check_run_folder(url, config, prepared.fingerprint, resume=resume)
    check_disk(config, prepared, url)
    with working_folder(url) as run, driver_log(run.local, verbose=verbose), Display() as display:
        write_config(config, url)
        manifest = prepared.manifest
        display.line(
            Text.assemble(
                (manifest.source or manifest.url, "bold"),
                f": {len(prepared.seen)} seen and {len(prepared.unseen)} unseen classes, "
                f"{manifest.num_images('train'):,} training images of {manifest.num_patches} "
                "patches",
            )
        )
        if len(prepared.unseen) == 1:
            display.line("T1 of a single unseen class is always 100 %: compare u, s and H")
        embedding = learn_and_embed(config, prepared, run, display, verbose)
        write_results(config, prepared, run, embedding, display, redo=finished)
    return run.local


def learn_and_embed(
    config: RunConfig, prepared: Prepared, run: RunFolder, display: Display, verbose: bool
) -> str:
    """All that needs the cluster; returns a digest of what the embedding was made from."""
    entry = stages.finished_stages(run.url).get("training", {})
    checkpoint = None  # the last one of a training that ended
    if entry.get("inputs") == prepared.fingerprint:
        checkpoint = str(entry.get("checkpoint"))
    inputs = digest(prepared.fingerprint, checkpoint)
    if checkpoint and stages.is_done(run.url, "embedding", inputs):
        display.line(f"training    there already: {checkpoint}")
        files = stages.finished_stages(run.url)["embedding"]["files"]
        display.line(f"embedding   there already: {', '.join(files)}")
        return inputs
    with ExitStack() as cluster:
        with display.stage("ray") as stage_:
            cluster.enter_context(ray_cluster(config.cluster, verbose=verbose))
            gpu = wants_gpu(config.cluster, stage_.say)
            stage_.summary = f"{config.cluster.num_workers} {'GPU' if gpu else 'CPU'} workers"
        sample = None if has_start(run.url) else run_sample(config, prepared)
        spec, folder = run_features(config, prepared, gpu, display, sample=sample)
        job = training_job(config, prepared, spec, folder, run.url)
        run_kmeans(job, prepared, gpu, display, sample)
        if checkpoint and damage(join_url(run.url, checkpoint)) is None:
            display.line(f"training    there already: {checkpoint}")
        else:
            checkpoint = run_training(job, gpu, display).rpartition("/")[2]
            stages.finish_stage(run, "training", prepared.fingerprint, [], checkpoint=checkpoint)
        units = units_of(prepared.manifest, SPLITS)
        embedded = run_embedding(job, join_url(run.url, checkpoint), gpu, display, units)
    inputs = digest(prepared.fingerprint, checkpoint)
    stages.finish_stage(run, "embedding", inputs, save_embedded(run.local, embedded))
    return inputs
