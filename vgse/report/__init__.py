"""The report of a run: one HTML file with all its pictures inside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vgse.files import written_whole
from vgse.report.accuracy import zsl_section
from vgse.report.charts import curves_section
from vgse.report.montages import clusters_section
from vgse.report.overview import data_set_name, head
from vgse.report.page import page, render, resource
from vgse.report.patch_map import map_section
from vgse.report.pictures import ClassPictures
from vgse.report.relation_cards import relations_section
from vgse.report.run_files import Missing, RunFiles, load_run
from vgse.report.similarity import similarity_section


def write_report(run: Path) -> Path:
    """Write `report.html` into the local run folder `run` and return its path."""
    path, page = run / "report.html", render_report(load_run(run))
    with written_whole(path) as stream:
        stream.write(page.encode())
    return path


def render_report(run: RunFiles) -> str:
    """The whole page, the same for the same run; a section that lacks a file says what makes it."""
    names = run.embeddings.get("class_names", ())
    pictures = ClassPictures(
        run.pictures.get("class_pictures"), {str(name): row for row, name in enumerate(names)}
    )
    top = render("head", head(run, pictures))
    sections: list[tuple[str, str, Callable[[], dict[str, Any]]]] = [
        ("zsl", "Zero-shot accuracy", lambda: zsl_section(run)),
        ("relations", "Unseen from seen", lambda: relations_section(run, pictures)),
        ("clusters", "What the clusters show", lambda: clusters_section(run)),
        ("map", "Map of patches", lambda: map_section(run)),
        ("similarity", "Who resembles whom", lambda: similarity_section(run, pictures)),
        ("curves", "Training", lambda: curves_section(run)),
        ("health", "Health", lambda: {"run": run}),
        ("files", "Files", lambda: {"run": run}),
    ]
    style, bodies = "", []
    for ident, title, prepare in sections:
        try:
            content = prepare()
        except Missing as missing:
            body = render("notice", dict(zip(("file", "field"), missing.args, strict=True)))
        else:
            style += content.pop("style", "")
            body = render(ident, content)
        bodies.append((ident, title, body))
    title = f"VGSE: {data_set_name(run)}"
    return page(title, pictures.style() + style, top, bodies, resource("script.js"))
