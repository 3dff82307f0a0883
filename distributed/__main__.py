"""Train on a Ray cluster: `python -m distributed train --config configs/demo.yaml`."""

import functools
import os
import sys
from typing import Any

import jsonargparse
from jsonargparse import ArgumentParser

from distributed.jobs.env_file import find_token
from vgse.config import RunConfig, config_file_action, default_name
from vgse.errors import UserError


def make_parser() -> ArgumentParser:
    """The command line; every field of RunConfig can be set as --section.field."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    new_parser = functools.partial(ArgumentParser, allow_abbrev=False)
    run = "--config FILE [--run-id NAME]"
    train = new_parser(
        usage=f"python -m distributed train {run} [--section.field VALUE …]",
        description="Train one run, from shards to class embeddings, zero-shot table and report. "
        "A run that was interrupted goes on where it stopped when its --run-id is given again.",
    )
    submit = new_parser(
        usage=f"python -m distributed submit --address URL {run} [--detach] "
        "[--section.field VALUE …] [-- tune …]",
        description="Ship this checkout to a cluster, run `train` there (or the command that "
        "follows --) and follow its log. The same --run-id again goes on with the run.",
    )
    submit.add_argument("--detach", action="store_true", help="Do not follow the log.")
    submit.add_argument(
        "--env-file",
        type=str | None,
        help="File of NAME=VALUE lines that the job gets as environment; never shown or shipped "
        "with the checkout.",
    )
    for parser in (train, submit):
        parser.add_argument(
            "--config", action=config_file_action(), help="YAML file with any field below."
        )
        parser.add_argument(
            "--run-id",
            type=str | None,
            help="Name of the run folder below storage; by default that of the file and the time.",
        )
        parser.add_argument(
            "--resume", action="store_true", help="Redo what follows a finished run's embedding."
        )
        parser.add_argument("--verbose", action="store_true", help="Show run.log and Ray's log.")
        parser.add_class_arguments(RunConfig, as_group=False)
    status = new_parser(description="Show submitted jobs, newest last.")
    status.add_argument("name", nargs="?", type=str | None, help="Run id or job; all if left out.")
    status.add_argument("--follow", action="store_true", help="Print the job's log until it ends.")
    stop = new_parser(
        description="Stop a job. Submitting its --run-id again goes on from the last checkpoint."
    )
    stop.add_argument("name", type=str, help="Run id or job.")
    address = "URL of the cluster's dashboard; by default RAY_API_SERVER_ADDRESS, or this machine."
    for parser in (submit, status, stop):
        parser.add_argument("--address", type=str | None, help=address)
    whole = new_parser(
        prog="python -m distributed",
        description="Learn visually-grounded class embeddings on a Ray cluster.",
    )
    commands = whole.add_subcommands(dest="command")
    commands.add_subcommand("train", train, help="train one run")
    commands.add_subcommand("submit", submit, help="train as a job of a cluster")
    commands.add_subcommand("status", status, help="show or follow submitted jobs")
    commands.add_subcommand("stop", stop, help="stop a submitted job")
    return whole


def _train(config: RunConfig, run_id: str, resume: bool, verbose: bool) -> int:
    from distributed.run import train  # torch and Ray take seconds: not for --help
    from shards.objects import is_remote, join_url

    try:
        run = train(config, run_id, resume=resume, verbose=verbose)
    except KeyboardInterrupt:
        again = f"the same command with --run-id {run_id}"
        print(f"stopped; {again} goes on from here", file=sys.stderr)
        return 130
    report = str(run / "report.html")
    if is_remote(config.storage):
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # a job's machine is not the user's
            print(f"{report} (a copy)")
        report = join_url(config.storage, f"{run_id}/report.html")
    print(report)
    return 0


def _run(name: str, options: Any, command: list[str]) -> int:
    """`train`, or `submit`, of which `command` may follow --."""
    files = [str(file) for file in options.pop("config", None) or []]
    named = [command[0]] if command else files
    run_id = options.pop("run_id") or default_name(named, "run")
    resume, verbose = options.pop("resume"), options.pop("verbose")
    if name == "train":
        return _train(RunConfig(**vars(options)), run_id, resume, verbose)
    from distributed.jobs.submit import submit

    how = {field: options.pop(field) for field in ("address", "env_file", "detach")}
    switches = ["--resume"] * resume + ["--verbose"] * verbose
    return submit(RunConfig(**vars(options)), run_id, **how, switches=switches, command=command)


def _jobs(name: str, options: Any) -> int:
    """`status` or `stop`."""
    from distributed.jobs import client as jobs

    client = jobs.connect(options.address)
    if options.name is None:
        lines = map(jobs.describe_job, jobs.list_jobs(client))
        print("\n".join(lines) or f"no jobs at {client.get_address()}")
        return 0
    job = jobs.latest_job(client, options.name)
    if name == "status" and options.follow:
        return jobs.watch_job(client, str(job.submission_id))
    print(jobs.stop_job(client, job) if name == "stop" else jobs.describe_job(job))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and exit status 2."""
    parser = make_parser()
    given = sys.argv[1:] if arguments is None else list(arguments)
    own = given[: given.index("--")] if "--" in given[1:] and given[0] == "submit" else given
    chosen = parser.instantiate(parser.parse_args(own))
    try:
        if chosen.command != "train":
            find_token()
        options = chosen[chosen.command]
        if chosen.command in ("train", "submit"):
            return _run(chosen.command, options, given[len(own) + 1 :])
        return _jobs(chosen.command, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; python -m distributed status lists the jobs", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
