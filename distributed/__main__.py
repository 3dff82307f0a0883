"""Train on a Ray cluster: `python -m distributed train --config configs/demo.yaml`."""

import os
import sys
from typing import Any

import jsonargparse
from jsonargparse import ArgumentParser

from distributed.jobs.env_file import find_token
from vgse.config import RunConfig, default_name
from vgse.errors import UserError

_ADDRESS = "URL of the cluster's dashboard; by default RAY_API_SERVER_ADDRESS, or this machine."


def make_parser() -> ArgumentParser:
    """The command line; every field of RunConfig can be set as --section.field."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="python -m distributed",
        description="Learn visually-grounded class embeddings on a Ray cluster.",
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(dest="command")
    train = ArgumentParser(
        usage="python -m distributed train --config FILE [--run-id NAME] [--section.field VALUE …]",
        description="Train one run, from shards to class embeddings, zero-shot table and report. "
        "A run that was interrupted goes on where it stopped when its --run-id is given again.",
        allow_abbrev=False,
    )
    _add_run_arguments(train)
    commands.add_subcommand("train", train, help="train one run")
    submit = ArgumentParser(
        usage="python -m distributed submit --address URL --config FILE [--run-id NAME] "
        "[--detach] [--section.field VALUE …] [-- tune …]",
        description="Ship this checkout to a cluster, run `train` there (or the command that "
        "follows --) and follow its log. The same --run-id again goes on with the run.",
        allow_abbrev=False,
    )
    submit.add_argument("--address", type=str | None, help=_ADDRESS)
    submit.add_argument("--detach", action="store_true", help="Do not follow the log.")
    submit.add_argument(
        "--env-file",
        type=str | None,
        help="File of NAME=VALUE lines that the job gets as environment; never shown or shipped "
        "with the checkout.",
    )
    _add_run_arguments(submit)
    commands.add_subcommand("submit", submit, help="train as a job of a cluster")
    status = ArgumentParser(description="Show submitted jobs, newest last.", allow_abbrev=False)
    status.add_argument("name", nargs="?", type=str | None, help="Run id or job; all if left out.")
    status.add_argument("--follow", action="store_true", help="Print the job's log until it ends.")
    status.add_argument("--address", type=str | None, help=_ADDRESS)
    commands.add_subcommand("status", status, help="show or follow submitted jobs")
    stop = ArgumentParser(
        description="Stop a job. Submitting its --run-id again goes on from the last checkpoint.",
        allow_abbrev=False,
    )
    stop.add_argument("name", type=str, help="Run id or job.")
    stop.add_argument("--address", type=str | None, help=_ADDRESS)
    commands.add_subcommand("stop", stop, help="stop a submitted job")
    return parser


def _add_run_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action="config", help="YAML file with any of the fields below.")
    parser.add_argument(
        "--run-id",
        type=str | None,
        help="Name of the run folder below storage; by default the configuration's name and "
        "the time.",
    )
    parser.add_argument(
        "--resume", action="store_true", help="Redo what follows the embedding in a finished run."
    )
    parser.add_argument("--verbose", action="store_true", help="Show run.log and Ray's own log.")
    parser.add_class_arguments(RunConfig, as_group=False)


def _train(options: Any) -> int:
    run_id, resume, verbose, config = _run_options(options)
    from distributed.run import train  # torch and Ray take seconds: not for --help
    from shards.objects import is_remote, join_url

    try:
        run = train(config, run_id, resume=resume, verbose=verbose)
    except KeyboardInterrupt:
        print(
            f"stopped; the same command with --run-id {run_id} goes on from here", file=sys.stderr
        )
        return 130
    report = str(run / "report.html")
    if is_remote(config.storage):
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # a job's machine is not the user's
            print(f"{report} (a copy)")
        report = join_url(config.storage, f"{run_id}/report.html")
    print(report)
    return 0


def _run_options(options: Any) -> tuple[str, bool, bool, RunConfig]:
    files = [str(file) for file in options.pop("config", None) or []]
    run_id = options.pop("run_id") or default_name(files, "run")
    resume, verbose = options.pop("resume"), options.pop("verbose")
    return run_id, resume, verbose, RunConfig(**vars(options))


def _submit(options: Any, command: list[str]) -> int:
    from distributed.jobs.submit import submit

    address, detach = options.pop("address"), options.pop("detach")
    env_file, named = options.pop("env_file"), options.run_id
    run_id, resume, verbose, config = _run_options(options)
    if command and not named:
        run_id = default_name([command[0]], "run")
    return submit(
        config,
        run_id,
        address=address,
        env_file=env_file,
        detach=detach,
        switches=["--resume"] * resume + ["--verbose"] * verbose,
        command=command,
    )


def _status(options: Any) -> int:
    from distributed.jobs.client import connect, describe_job, latest_job, list_jobs, watch_job

    client = connect(options.address)
    if options.name is None:
        lines = map(describe_job, list_jobs(client))
        print("\n".join(lines) or f"no jobs at {client.get_address()}")
        return 0
    job = latest_job(client, options.name)
    if options.follow:
        return watch_job(client, str(job.submission_id))
    print(describe_job(job))
    return 0


def _stop(options: Any) -> int:
    from distributed.jobs.client import connect, latest_job, stop_job

    client = connect(options.address)
    print(stop_job(client, latest_job(client, options.name)))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and exit status 2."""
    parser = make_parser()
    given = sys.argv[1:] if arguments is None else list(arguments)
    own = given[: given.index("--")] if "--" in given[1:] and given[0] == "submit" else given
    chosen = parser.instantiate(parser.parse_args(own))
    try:
        if chosen.command == "train":
            return _train(chosen.train)
        find_token()
        if chosen.command == "submit":
            return _submit(chosen.submit, given[len(own) + 1 :])
        return _status(chosen.status) if chosen.command == "status" else _stop(chosen.stop)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; python -m distributed status lists the jobs", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
