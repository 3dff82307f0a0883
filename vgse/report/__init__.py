"""The report of a run: one HTML file with all its pictures inside.

It reads nothing but the run folder, and the page asks nothing of a network.
"""

from collections.abc import Callable
from pathlib import Path

from vgse.files import written_whole
from vgse.report.curves import curves_section
from vgse.report.findings import health_section
from vgse.report.header import data_set_name, files_section, header
from vgse.report.montages import clusters_section
from vgse.report.page import notice, page, resource
from vgse.report.patch_map import tsne_section
from vgse.report.pictures import ClassPictures
from vgse.report.relation_cards import relations_section
from vgse.report.run_files import Missing, RunFiles, load_run
from vgse.report.similarity import check_shapes, similarity_section
from vgse.report.zsl_tables import zsl_section

__all__ = ["render_report", "write_report"]


def write_report(run: Path) -> Path:
    """Write `report.html` into the local run folder `run` and return its path.

    A section whose file is missing says so and names the command that makes it. Raises ValueError
    for a folder that is no run, for a file that cannot be read, and for a full disk.
    """
    text = render_report(load_run(run))
    path = run / "report.html"
    with written_whole(path) as stream:
        stream.write(text.encode())
    return path


def render_report(run: RunFiles) -> str:
    """The whole page; the same run gives the same text."""
    check_shapes(run.embeddings, run.pictures)
    names = run.embeddings.get("class_names", ())
    pictures = ClassPictures(
        run.pictures.get("class_pictures"), {str(name): row for row, name in enumerate(names)}
    )
    top = header(run, pictures)
    patches = ""

    def patch_map() -> str:
        nonlocal patches
        body, patches = tsne_section(run)
        return body

    sections = [
        ("zsl", "Zero-shot accuracy", _or_notice(lambda: zsl_section(run))),
        ("relations", "Unseen from seen", _or_notice(lambda: relations_section(run, pictures))),
        ("clusters", "What the clusters show", _or_notice(lambda: clusters_section(run))),
        ("map", "Map of patches", _or_notice(patch_map)),
        ("similarity", "Who resembles whom", _or_notice(lambda: similarity_section(run, pictures))),
        ("curves", "Training", _or_notice(lambda: curves_section(run))),
        ("health", "Health", _or_notice(lambda: health_section(run))),
        ("files", "Files", _or_notice(lambda: files_section(run))),
    ]
    title = f"VGSE: {data_set_name(run)}"
    return page(title, pictures.style() + patches, top, sections, resource("script.js"))


def _or_notice(render: Callable[[], str]) -> str:
    try:
        return render()
    except Missing as missing:
        return notice(missing)
