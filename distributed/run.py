"""One run from shards to a report: checks, then the stages on the cluster, then the results."""

from contextlib import ExitStack
from pathlib import Path

import yaml
from rich.markup import escape

from distributed.cluster import ray_cluster, wants_gpu
from distributed.display import Display
from distributed.embedding import files as embedding_files
from distributed.embedding.embed_stage import run_embedding
from distributed.embedding.files import save_embedded
from distributed.features.cache import units_of
from distributed.features.extract_stage import run_features
from distributed.features.kmeans_stage import run_start
from distributed.late_stages import write_results
from distributed.setup import Prepared, learned, prepare
from distributed.stages import (
    RunFolder,
    digest,
    is_done,
    keep,
    mark_done,
    read_record,
    working_folder,
)
from distributed.storage import absolute, file_sizes, join, read, write
from distributed.train.checkpoint import damage, drop_damaged
from distributed.train.ray_trainer import run_training, training_job
from shards.manifest import SPLITS
from shards.objects import FIRST
from vgse.config import RunConfig, check_name, leaves, to_dict
from vgse.errors import UserError

LAST = "report.html"  # what the last stage writes
_RESULTS = ("class_embeddings.npz", "relations.npz", "evaluation.json", LAST)


def check_run_folder(run: str, config: RunConfig, fingerprint: str, *, resume: bool) -> bool:
    """Make the run folder, or see that it holds a run of the same configuration and data.

    Args:
        run: folder or URL.
        config: the configuration, to name what differs.
        fingerprint: of all that decides what is learned.
        resume: allow a finished run.

    Returns:
        Whether the run was finished.

    Raises:
        ValueError: a finished run without `resume`, one of another configuration or other data,
            or a store that cannot be reached or written.
    """
    there = file_sizes(run, retry=FIRST)
    finished = LAST in there
    if finished and not resume:
        raise UserError(
            f"{run}: this run is finished ({', '.join(n for n in _RESULTS if n in there)} are "
            "there already); choose another --run-id, or add --resume to redo what follows "
            "the embedding"
        )
    mark = join(run, "init/fingerprint")
    try:
        before = read(mark, retry=FIRST).decode(errors="replace")
    except FileNotFoundError:
        before = fingerprint
    if before != fingerprint:
        raise UserError(f"{run}: {_difference(run, config)}; choose another --run-id")
    write(mark, fingerprint.encode(), retry=FIRST)
    return finished


def write_config(config: RunConfig, run: str) -> None:
    """Write the resolved configuration beside the results."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    write(join(absolute(run), "config.yaml"), text.encode(), retry=FIRST)


def _difference(run: str, config: RunConfig) -> str:
    """What a run was made with, in comparison."""
    try:
        content = yaml.safe_load(read(join(run, "config.yaml"), retry=FIRST))
        old, new = (dict(leaves(learned(tree))) for tree in (content, to_dict(config)))
    except (FileNotFoundError, yaml.YAMLError, AttributeError, TypeError):
        return "made with another configuration or other data"
    changed = [
        f"{name} was {old.get(name, 'unknown')!r} and is {new.get(name, 'unknown')!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if not changed:
        return "made with other data: the shards or the word vectors have changed"
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return f"made with another configuration: {'; '.join(changed[:3])}{more}"


def train(config: RunConfig, run_id: str, *, resume: bool = False, verbose: bool = False) -> Path:
    """Run everything that is not done yet, and return the run folder.

    A folder that holds an unfinished run is resumed: training from its last committed
    checkpoint, and after that with the first stage whose files are not there.

    Args:
        config: the run's configuration.
        run_id: name of the run folder below `config.storage`.
        resume: allow a run folder that is finished already; what follows its embedding pass is
            done again.
        verbose: let Ray's own log through.

    Returns:
        The run folder, or for one at a URL a folder with a copy of its report.
    """
    check_name("--run-id", run_id)
    prepared = prepare(config)
    url = join(absolute(config.storage), run_id)
    finished = check_run_folder(url, config, prepared.fingerprint, resume=resume)
    with working_folder(url) as run, Display() as display:
        write_config(config, url)
        display.line(describe(config, prepared))
        embedding = learn_and_embed(config, prepared, run, display, verbose)
        write_results(config, prepared, run, embedding, display, redo=finished)
    return run.local


def learn_and_embed(
    config: RunConfig, prepared: Prepared, run: RunFolder, display: Display, verbose: bool
) -> str:
    """All that needs the cluster, which is not started if it is done.

    Returns:
        A digest of what the embedding was made from.
    """
    checkpoint = finished_training(run.url, prepared.fingerprint)
    if checkpoint and is_done(run.url, "embedding", digest(prepared.fingerprint, checkpoint)):
        for stage, files in (("training", [checkpoint]), ("embedding", embedding_files.FILES)):
            display.line(f"{stage:<11} there already: {', '.join(files)}")
        return digest(prepared.fingerprint, checkpoint)
    with ExitStack() as cluster:
        with display.stage("ray") as stage_:
            cluster.enter_context(ray_cluster(config.cluster, verbose=verbose))
            gpu = wants_gpu(config.cluster, stage_.say)
            stage_.summary = f"{config.cluster.num_workers} {'GPU' if gpu else 'CPU'} workers"
        spec, folder = run_features(config, prepared, gpu, display)
        run_start(config, prepared, spec, folder, run.url, gpu, display)
        job = training_job(config, prepared, spec, folder, run.url)
        if checkpoint and damage(join(run.url, checkpoint)) is None:
            display.line(f"training    there already: {checkpoint}")
        else:
            for line in drop_damaged(run.url):
                display.line(f"training    {escape(line)}")
            checkpoint = run_training(job, gpu, display).rpartition("/")[2]
            mark_done(run, "training", prepared.fingerprint, [], checkpoint=checkpoint)
        units = units_of(prepared.manifest, SPLITS)
        embedded = run_embedding(job, join(run.url, checkpoint), gpu, display, units)
    inputs = digest(prepared.fingerprint, checkpoint)
    save_embedded(run.local, embedded)
    keep(run, *embedding_files.FILES)
    mark_done(run, "embedding", inputs, embedding_files.FILES)
    return inputs


def finished_training(run: str, fingerprint: str) -> str | None:
    """Name of the last checkpoint of a training that ended; None if it did not."""
    entry = read_record(run).get("training")
    if not isinstance(entry, dict) or entry.get("inputs") != fingerprint:
        return None
    return str(entry.get("checkpoint"))


def describe(config: RunConfig, prepared: Prepared) -> str:
    """One line that says what is about to happen."""
    manifest = prepared.manifest
    images = manifest.num_images("train")
    return (
        f"[bold]{escape(manifest.source or manifest.url)}[/bold]: {len(prepared.seen)} seen and "
        f"{len(prepared.unseen)} unseen classes, {images:,} training images of "
        f"{manifest.num_patches} patches"
    )
