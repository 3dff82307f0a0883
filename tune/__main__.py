"""Search for a configuration: `python -m tune search --config configs/search-demo.yaml`."""

import sys
from pathlib import Path
from typing import Any

import jsonargparse
from jsonargparse import ArgumentParser

from distributed.jobs.env_file import find_token
from tune.config import SearchConfig
from vgse.config import config_file_action, default_name
from vgse.errors import UserError


def make_parser() -> ArgumentParser:
    """The command line; every field of SearchConfig is an option, such as --run.seed."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="python -m tune",
        description="Search loss weights, numbers of clusters and learning rates on a Ray cluster.",
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
    analyse = ArgumentParser(
        description="Write search.html of a search folder again: trials, importance of each field, "
        "learning curves, validation beside test.",
        allow_abbrev=False,
    )
    analyse.add_argument("folder", type=Path, metavar="SEARCH", help="Search folder.")
    commands = parser.add_subcommands(dest="command")
    commands.add_subcommand("search", search, help="run a search, or go on with one")
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
        print(
            f"stopped; the same command with --search-id {search_id} --resume goes on from here",
            file=sys.stderr,
        )
        return 130
    print(analyse(folder))
    return 0


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
        return _search(chosen.search)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def with_stored_config(arguments: list[str]) -> list[str]:
    """`search --search-id NAME --resume` without --config: with the search's own search.yaml."""
    flat = [part for argument in arguments for part in argument.split("=", 1)]
    if flat[:1] != ["search"] or "--resume" not in flat or "--config" in flat:
        return arguments
    values = dict(zip(flat, [*flat[1:], ""], strict=True))
    storage = values.get("--run.storage", SearchConfig().run.storage)
    path = Path(storage) / values.get("--search-id", "") / "search.yaml"
    if "--search-id" not in values or not path.is_file():
        return arguments
    return ["search", "--config", str(path), *arguments[1:]]


if __name__ == "__main__":
    sys.exit(main())
