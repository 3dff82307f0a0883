"""Many runs: `python -m tune search --config FILE`, `python -m tune repeat --config FILE`."""

import sys
from pathlib import Path
from typing import Any

import jsonargparse
from jsonargparse import ArgumentParser

from distributed.jobs.env_file import find_token
from tune.config import SearchConfig
from vgse.config import RunConfig, config_file_action, default_name
from vgse.errors import UserError


def make_parser() -> ArgumentParser:
    """The command line; every field of SearchConfig is an option, such as --run.seed."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="python -m tune",
        description="Search loss weights, numbers of clusters and learning rates on a Ray cluster, "
        "or repeat one configuration.",
        allow_abbrev=False,
    )
    search = ArgumentParser(
        usage="python -m tune search --config FILE [--search-id NAME] [--resume] [--trials N] "
        "[--run.section.field VALUE …]",
        description="Run trials scored on validation classes that play the unseen ones, stop poor "
        "ones early (ASHA), propose new ones (TPE), retrain the best and score those on test "
        "images. A search that was interrupted goes on with --search-id NAME --resume; all of its "
        "trials that ended are kept.",
        allow_abbrev=False,
    )
    search.add_argument(
        "--config", action=config_file_action(), help="YAML file with any of the fields below."
    )
    search.add_argument(
        "--search-id",
        type=str | None,
        help="Name of the search folder below run.storage; by default the configuration's name "
        "and the time.",
    )
    search.add_argument("--resume", action="store_true", help="Go on with a search that is there.")
    search.add_argument("--verbose", action="store_true", help="Let Ray's own log through.")
    search.add_class_arguments(SearchConfig, as_group=False, sub_configs=True)
    repeat = ArgumentParser(
        usage="python -m tune repeat --config FILE (--splits N | --seeds N) [--repeat-id NAME] "
        "[--resume] [--section.field VALUE …]",
        description="Do one run for each of several class splits, or seeds, and show mean and "
        "standard deviation of every row of the zero-shot table, with differences paired by run. "
        "What was interrupted goes on with --repeat-id NAME --resume, also with a larger N.",
        allow_abbrev=False,
    )
    repeat.add_argument(
        "--config", action=config_file_action(), help="YAML file of a run's configuration."
    )
    repeat.add_argument(
        "--splits",
        type=int,
        default=0,
        help="Class splits: data.split_seed (or 0) and those that follow draw unseen classes.",
    )
    repeat.add_argument("--seeds", type=int, default=0, help="Seeds: `seed` and those that follow.")
    repeat.add_argument(
        "--repeat-id",
        type=str | None,
        help="Name of the folder of the runs below storage; by default the configuration's name "
        "and the time.",
    )
    repeat.add_argument("--resume", action="store_true", help="Go on with a repeat that is there.")
    repeat.add_argument("--verbose", action="store_true", help="Let Ray's own log through.")
    repeat.add_class_arguments(RunConfig, as_group=False)
    analyse = ArgumentParser(
        description="Write search.html of a search folder again: trials, importance of each field, "
        "learning curves, validation beside test.",
        allow_abbrev=False,
    )
    analyse.add_argument("folder", type=Path, metavar="SEARCH", help="Search folder.")
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand("search", search, help="run a search, or go on with one")
    commands.add_subcommand("repeat", repeat, help="one configuration over class splits or seeds")
    commands.add_subcommand("analyse", analyse, help="write the page of a search")
    return parser


def _search(options: Any) -> int:
    files = [str(file) for file in options.pop("config", None) or []]
    search_id = options.pop("search_id") or default_name(files, "search")
    resume, verbose = options.pop("resume"), options.pop("verbose")
    from tune.report.analyse import analyse  # torch and Ray take seconds: not for --help
    from tune.search import Interrupted, search

    try:
        folder = search(SearchConfig(**vars(options)), search_id, resume=resume, verbose=verbose)
    except (Interrupted, KeyboardInterrupt):
        return _stopped("--search-id", search_id)
    print(analyse(folder))
    return 0


def _repeat(options: Any) -> int:
    files = [str(file) for file in options.pop("config", None) or []]
    repeat_id = options.pop("repeat_id") or default_name(files, "repeat")
    how = {name: options.pop(name) for name in ("splits", "seeds", "resume", "verbose")}
    from tune.repeat import repeat

    try:
        print(repeat(RunConfig(**vars(options)), repeat_id, **how))
    except KeyboardInterrupt:
        return _stopped("--repeat-id", repeat_id)
    return 0


def _stopped(option: str, name: str) -> int:
    print(
        f"stopped; the same command with {option} {name} --resume goes on from here",
        file=sys.stderr,
    )
    return 130


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and exit status 2."""
    parser = make_parser()
    given = with_stored_config(sys.argv[1:] if arguments is None else list(arguments))
    chosen = parser.instantiate(parser.parse_args(given))
    try:
        if chosen.command == "analyse":
            from tune.report.analyse import analyse

            print(analyse(chosen.analyse.folder))
            return 0
        find_token()
        return _search(chosen.search) if chosen.command == "search" else _repeat(chosen.repeat)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def with_stored_config(arguments: list[str]) -> list[str]:
    """`search --search-id NAME --resume` without --config: with the search's own search.yaml, and
    so for a repeat."""
    flat = [part for argument in arguments for part in argument.split("=", 1)]
    command = flat[0] if flat else ""
    if command not in ("search", "repeat") or "--resume" not in flat or "--config" in flat:
        return arguments
    values = dict(zip(flat, [*flat[1:], ""], strict=True))
    option = "--run.storage" if command == "search" else "--storage"
    folder = Path(values.get(option, RunConfig().storage)) / values.get(f"--{command}-id", "")
    path = folder / f"{command}.yaml"
    if f"--{command}-id" not in values or not path.is_file():
        return arguments
    return [command, "--config", str(path), *arguments[1:]]


if __name__ == "__main__":
    sys.exit(main())
