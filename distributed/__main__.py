"""Train on a Ray cluster: `python -m distributed train --config configs/demo.yaml`."""

import sys
import time
from pathlib import Path

import jsonargparse
from jsonargparse import ArgumentParser

from vgse.config import RunConfig


def make_parser() -> ArgumentParser:
    """The command line; every field of RunConfig can be set as --section.field."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="python -m distributed",
        description="Learn visually-grounded class embeddings on a Ray cluster.",
        allow_abbrev=False,
    )
    train = ArgumentParser(
        usage="python -m distributed train --config FILE [--run-id NAME] [--section.field VALUE …]",
        description="Train one run, from shards to class embeddings, zero-shot table and report. "
        "A run that was interrupted goes on where it stopped when its --run-id is given again.",
        allow_abbrev=False,
    )
    train.add_argument("--config", action="config", help="YAML file with any of the fields below.")
    train.add_argument(
        "--run-id",
        type=str | None,
        help="Name of the run folder below storage; by default the configuration's name and "
        "the time.",
    )
    train.add_argument(
        "--resume", action="store_true", help="Redo what follows training in a finished run."
    )
    train.add_argument("--verbose", action="store_true", help="Let Ray's own log through.")
    train.add_class_arguments(RunConfig, as_group=False)
    parser.add_subcommands(dest="command").add_subcommand("train", train, help="train one run")
    return parser


def default_run_id(config_files: list[str]) -> str:
    """Name of the configuration file, then date and time."""
    stem = Path(config_files[-1]).stem if config_files else "run"
    return f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and exit status 2."""
    parser = make_parser()
    options = parser.instantiate(parser.parse_args(arguments)).train
    files = [str(file) for file in options.pop("config", None) or []]
    run_id = options.pop("run_id") or default_run_id(files)
    resume, verbose = options.pop("resume"), options.pop("verbose")
    config = RunConfig(**vars(options))
    from distributed.driver import train  # torch and Ray take seconds: not for --help

    try:
        run = train(config, run_id, resume=resume, verbose=verbose)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"stopped; the same command with --run-id {run_id} goes on from here", file=sys.stderr
        )
        return 130
    print(run / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
