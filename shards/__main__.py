"""python -m shards pack | check."""

import os
import sys
from dataclasses import astuple
from pathlib import Path

import jsonargparse
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from shards.config import PackConfig
from shards.manifest import FILE, SPLITS, Manifest, load_manifest
from vgse.config import config_file_action
from vgse.errors import UserError


def make_parser() -> jsonargparse.ArgumentParser:
    """The command line: `pack` takes the fields of PackConfig, `check` a folder or URL."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog="python -m shards", description="Image folders to tar shards, and their check."
    )
    pack = jsonargparse.ArgumentParser(
        description="Turn a folder of images into tar shards with patch boxes and a manifest. "
        "Can be stopped and started again: finished shards are kept."
    )
    pack.add_argument(
        "--config", action=config_file_action(), help="YAML file with any of these options."
    )
    pack.add_class_arguments(PackConfig)
    check = jsonargparse.ArgumentParser(
        description="Read every shard and say what is wrong; exit code 1 if anything is. "
        "Draws some pictures with their boxes into check.png."
    )
    check.add_argument("folder", type=str, help="Folder or URL with manifest.json.")
    check.add_argument("--picture", type=str | None, help="Where to draw; default DIR/check.png.")
    check.add_argument("--workers", type=int | None, help="Processes; default one a core.")
    commands = parser.add_subcommands()
    commands.add_subcommand("pack", pack, help="images to shards")
    commands.add_subcommand("check", check, help="are the shards sound?")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns 0, 1 (check found damage) or 2 (one line on stderr says why)."""
    options = make_parser().parse_args(arguments)
    try:
        return (_pack if options.subcommand == "pack" else _check)(options[options.subcommand])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _pack(options: jsonargparse.Namespace) -> int:
    from shards.pack.executors import choose_run
    from shards.pack.pack import Progress, pack

    values = options.as_dict()
    values.pop("config", None)
    config = PackConfig(**values)
    damaged = TextColumn("images, {task.fields[damaged]} damaged,")
    columns = TextColumn("packing"), BarColumn(), MofNCompleteColumn(), damaged
    console = Console(markup=False, emoji=False, highlight=False)
    with Bar(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("pack", total=None, damaged=0)

        def show(progress: Progress) -> None:
            done, total, num_damaged = astuple(progress)
            bar.update(task, total=total, completed=done, damaged=num_damaged)

        manifest = pack(config, run=choose_run(config.workers, config.ray), on_progress=show)
    console.print(_table(manifest))
    for kind, number in manifest.left_out.items():
        console.print(f"left out: {number:,} {kind}")
    for line in manifest.damaged[:10]:
        console.print(f"left out: {line}")
    console.print(f"{manifest.url}/{FILE}")
    return 0


def _check(options: jsonargparse.Namespace) -> int:
    from shards.objects import is_remote
    from shards.pack.check import check, draw_samples
    from shards.pack.executors import choose_run

    manifest = load_manifest(options.folder, check_files=False)
    found = check(manifest, run=choose_run(options.workers))
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(_table(manifest))
    for problem in found:
        console.print(problem, soft_wrap=True)
    picture = options.picture
    if not picture and not is_remote(manifest.url):
        if os.access(manifest.url, os.W_OK):
            picture = str(Path(manifest.url, "check.png"))
        else:
            console.print("the folder cannot be written: --picture FILE draws boxes elsewhere")
    if picture and not found:
        console.print(f"boxes drawn in {draw_samples(manifest, picture)}")
    console.print(_count(len(found), "problem") if found else "all shards are sound")
    return 1 if found else 0


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _table(manifest: Manifest) -> Table:
    table = Table(title=f"{manifest.source}: {len(manifest.classes)} classes")
    for column in ("split", "classes", "images", "fewest", "most", "shards", "MB"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in SPLITS:
        shards = manifest.shards_of(split)
        counts = manifest.class_counts[split].values()
        fewest, most = min(counts, default=0), max(counts, default=0)
        numbers = [len(counts), sum(counts), fewest, most, len(shards)]
        megabytes = shards.records["bytes"].sum() / 1e6
        table.add_row(split, *map(str, numbers), f"{megabytes:.1f}")
    table.caption = (
        f"{len(manifest.seen)} seen ({len(manifest.val)} of them for validation), "
        f"{len(manifest.unseen)} unseen; {manifest.num_patches} patches "
        f"({manifest.patches.method}); {manifest.num_damaged} damaged images left out"
    )
    return table


if __name__ == "__main__":
    sys.exit(main())
