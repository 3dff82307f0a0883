"""One run from shards to a report: checks, then the stages on the cluster, then the results."""

from contextlib import ExitStack
from pathlib import Path

from rich.markup import escape

from distributed import embedded_files
from distributed.cluster import ray_cluster, wants_gpu
from distributed.display import Display
from distributed.embedded_files import save_embedded
from distributed.features import units_of
from distributed.late_stages import (
    RunFolder,
    digest,
    is_done,
    keep,
    mark_done,
    read_record,
    working_folder,
)
from distributed.prepare import Prepared, prepare
from distributed.run_marks import check_run_folder, write_config
from distributed.run_storage import absolute, join
from distributed.sound_checkpoints import damage, drop_damaged
from distributed.stage_embedding import run_embedding
from distributed.stage_features import run_features
from distributed.stage_results import write_results
from distributed.stage_start import run_start
from distributed.stage_training import run_training, training_job
from shards.entries import SPLITS
from vgse.config import RunConfig, check_name


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

    Raises:
        ValueError: one line that names the file or the field, and the remedy.
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
        for stage, files in (("training", [checkpoint]), ("embedding", embedded_files.FILES)):
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
    keep(run, *embedded_files.FILES)
    mark_done(run, "embedding", inputs, embedded_files.FILES)
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
