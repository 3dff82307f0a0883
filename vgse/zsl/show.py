"""The zero-shot table for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from vgse.zsl.models import label_of


def evaluation_table(evaluation: Mapping[str, Any]) -> Table:
    """The rows of evaluation.json in percent: T1 of at most four models, which fit 80 columns, then
    u, s and H of the model whose VGSE-SMO row (or last row) did best on validation."""
    rows = evaluation["rows"]
    judged = next((row for row in rows if row["name"] == "smo"), rows[-1])["results"]
    model = max(evaluation["models"], key=lambda name: judged[name]["val_harmonic_mean"])
    names = evaluation["models"][:4]
    table = Table(
        box=box.SIMPLE,
        pad_edge=False,
        padding=0,
        show_edge=False,
        caption=f"percent, mean over classes; T1: unseen classes among themselves "
        f"(chance {100 * evaluation['chance']:.1f}); u, s, H: among all classes, {label_of(model)}",
        caption_justify="left",
    )
    table.add_column("class embeddings", no_wrap=True, overflow="ellipsis", max_width=32)
    for name in names:
        table.add_column(
            "\n".join([*label_of(name).split(), "T1"]), justify="right", no_wrap=True, min_width=5
        )
    for symbol in ("u", "s", "H"):
        table.add_column(symbol, justify="right", no_wrap=True, min_width=4)
    for index, row in enumerate(rows):
        results = row["results"]
        shares = [results[name]["zsl"] for name in names]
        shares += [results[model][key] for key in ("unseen", "seen", "harmonic_mean")]
        last = index + 1 == len(rows) or rows[index + 1]["group"] != row["group"]
        cells = (f"{100 * share:.1f}" for share in shares)
        table.add_row(row["label"], *cells, end_section=last)
    return table
