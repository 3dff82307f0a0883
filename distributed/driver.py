"""One run from shards to a report: checks, then the stages on the cluster, then the results."""

from contextlib import ExitStack
from pathlib import Path

import yaml

from distributed.cluster import ray_cluster, wants_gpu
from distributed.display import Display
from distributed.features import units_of
from distributed.prepare import Prepared, prepare
from distributed.results import write_results
from distributed.stage_embedding import run_embedding
from distributed.stage_features import run_features
from distributed.stage_start import run_start
from distributed.stage_training import run_training, training_job
from shards.entries import SPLITS
from vgse.config import RunConfig, to_dict
from vgse.formats import written_whole


def train(config: RunConfig, run_id: str, *, resume: bool = False, verbose: bool = False) -> Path:
    """Run everything and return the run folder.

    A folder that holds an unfinished run is gone on with, from its last committed checkpoint.

    Args:
        config: the run's configuration.
        run_id: name of the run folder below `config.storage`.
        resume: allow a run folder that is finished already; its late stages are done again.
        verbose: let Ray's own log through.

    Raises:
        ValueError: one line that names the file or the field, and the remedy.
    """
    prepared = prepare(config)
    run = (Path(config.storage) / run_id).absolute()
    check_run_folder(run, prepared.fingerprint, resume)
    write_config(config, run)
    with Display() as display, ExitStack() as open_things:
        display.line(describe(config, prepared))
        with display.stage("ray") as stage:
            open_things.enter_context(ray_cluster(config.cluster, verbose=verbose))
            gpu = wants_gpu(config.cluster)
            stage.summary = f"{config.cluster.num_workers} {'GPU' if gpu else 'CPU'} workers"
        spec, folder = run_features(config, prepared, gpu, display)
        run_start(config, prepared, spec, folder, run, gpu, display)
        job = training_job(config, prepared, spec, folder, run)
        checkpoint = run_training(job, gpu, display)
        embedded = run_embedding(job, checkpoint, gpu, display, units_of(prepared.manifest, SPLITS))
        write_results(config, prepared, embedded, run, display)
    return run


def check_run_folder(run: Path, fingerprint: str, resume: bool) -> None:
    """Make the run folder, or see that it is an unfinished run of the same configuration.

    Raises:
        ValueError: a finished run without `resume`, or one of another configuration or data.
    """
    if (run / "evaluation.json").is_file() and not resume:
        raise ValueError(
            f"{run}: this run is finished (report.html, evaluation.json); "
            "choose another --run-id, or add --resume to redo what follows training"
        )
    mark = run / "init" / "fingerprint"
    if mark.is_file() and mark.read_text() != fingerprint:
        raise ValueError(
            f"{run}: made with another configuration or other data (see its config.yaml); "
            "choose another --run-id"
        )
    mark.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(mark) as stream:
        stream.write(fingerprint.encode())


def write_config(config: RunConfig, run: Path) -> None:
    """Write the resolved configuration beside the results."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False)
    with written_whole(run / "config.yaml") as stream:
        stream.write(text.encode())


def describe(config: RunConfig, prepared: Prepared) -> str:
    """One line that says what is about to happen."""
    manifest = prepared.manifest
    images = manifest.num_images("train")
    return (
        f"[bold]{manifest.source or manifest.url}[/bold]: {len(prepared.seen)} seen and "
        f"{len(prepared.unseen)} unseen classes, {images:,} training images of "
        f"{manifest.num_patches} patches"
    )
