"""The zero-shot table for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from vgse.zsl.models import label_of

_MOST_MODELS = 3  # fit 80 columns


def rows_table(caption: str, width: int) -> Table:
    """A table whose first column, at most `width` wide, names class embeddings."""
    table = Table(
        box=box.SIMPLE,
        pad_edge=False,
        padding=0,
        show_edge=False,
        caption=caption,
        caption_justify="left",
    )
    table.add_column("class embeddings", no_wrap=True, overflow="ellipsis", max_width=width)
    return table


def evaluation_table(evaluation: Mapping[str, Any]) -> Table:
    """The rows of evaluation.json in percent: T1 of at most three models, then u, s and H of the
    model whose VGSE-SMO row (or last row) did best on validation, as published and calibrated."""
    rows = evaluation["rows"]
    judged = next((row for row in rows if row["name"] == "smo"), rows[-1])["results"]
    model = max(evaluation["models"], key=lambda name: judged[name]["val_harmonic_mean"])
    names = evaluation["models"][:_MOST_MODELS]
    table = rows_table(
        f"percent, mean over classes; T1: unseen classes among themselves (chance "
        f"{100 * evaluation['chance']:.1f}); u, s, H: among all classes, {label_of(model)}, by "
        "plain arg max (as published), then calibrated: γ, chosen on validation classes, taken off "
        "the scores of seen classes",
        30,
    )
    for name in names:
        label = label_of(name).replace("prototype", "proto-type").replace("-", "- ")
        header = "\n".join([*label.split(), "T1"])  # in narrow columns
        table.add_column(header, justify="right", no_wrap=True, min_width=5)
    for prefix in ("", "γ"):
        for symbol in ("u", "s", "H"):
            table.add_column(f"{prefix}\n{symbol}", justify="right", no_wrap=True, min_width=4)
    for index, row in enumerate(rows):
        results = row["results"]
        shares = [results[name]["zsl"] for name in names]
        for prefix in ("uncalibrated_", ""):
            keys = (f"{prefix}{key}" for key in ("unseen", "seen", "harmonic_mean"))
            shares += [results[model].get(key) for key in keys]  # older files lack some
        last = index + 1 == len(rows) or rows[index + 1]["group"] != row["group"]
        table.add_row(row["label"], *map(_cell, shares), end_section=last)
    return table


def _cell(share: float | None) -> str:
    """At most four characters."""
    return "–" if share is None else f"{100 * share:.1f}".replace("100.0", "100")
