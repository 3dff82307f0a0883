"""The zero-shot tables: what each kind of class embedding reaches, and what it is compared with."""

from itertools import groupby
from typing import Any

from vgse.report.page import esc, fold, number, percent
from vgse.report.run_files import RunFiles, need
from vgse.zsl.models import label_of

GROUPS = {
    "baseline": "Baselines",
    "ours": "This method",
    "control": "Controls: the same path with one thing taken away",
    "oracle": "Ceiling: looks at images of the unseen classes, so not zero-shot (bars may be cut)",
}
MEANING = {
    "random": "Random numbers for every class. The floor: near chance in every column.",
    "words": "The word vectors alone: what the names of the classes know.",
    "wavg": "An unseen class is the average of the seen classes with the nearest names.",
    "smo": "An unseen class is the mixture of seen classes that best rebuilds its word vector, "
    "applied to the visual clusters.",
    "smo_negative": "The same, with weights that may be negative: a class may be unlike another.",
    "words_smo": "Word vector and VGSE-SMO side by side, as one longer vector.",
    "onehot_smo": "No vision. A seen class is only its own number, mixed as in VGSE-SMO. "
    "What VGSE-SMO has above this row comes from the clusters, the rest from the mixture.",
    "image_smo": "Means of plain image features in place of cluster shares, mixed the same way. "
    "Shows what clustering adds or costs.",
    "permuted": "VGSE-SMO with the unseen classes exchanged among each other. "
    "Must fall to chance; if it does not, the evaluation leaks.",
    "oracle": "The clusters of each unseen class counted on its own images: "
    "how far better mixtures could go.",
    "image_oracle": "Means of image features on the unseen classes' own images.",
}


def zsl_section(run: RunFiles) -> str:
    """The T1 table, what was gained over two other rows, and the folded u / s / H table."""
    content = run.evaluation
    need(content, "evaluation.json", "rows", "models")
    models = [str(model) for model in content["models"]]
    rows: list[dict[str, Any]] = content["rows"]
    chance = content.get("chance")
    return (
        "<p>Every row is one way to describe a class by numbers. A zero-shot model learns from "
        "the seen classes how pictures and numbers go together, and then names pictures of "
        "classes it never saw. The figure is the accuracy in percent, averaged over the unseen "
        f"classes (T1){_chance(chance)}</p>"
        + _t1_table(rows, models, chance)
        + _gains(rows, models)
        + fold(
            "Seen and unseen classes together (u, s and their harmonic mean H)",
            _gzsl_table(rows, models),
        )
    )


def _chance(chance: Any) -> str:
    if chance is None:
        return "."
    return f'; guessing gives {percent(chance)}, <span class="tick-key">the thin line</span>.'


def _results(row: dict[str, Any], model: str) -> dict[str, Any]:
    results = row.get("results", {}).get(model)
    return results if isinstance(results, dict) else {}


def _t1_table(rows: list[dict[str, Any]], models: list[str], chance: Any) -> str:
    top = _bar_end(rows, models)
    tick = "" if chance is None else f"--chance:{min(100.0, 100 * float(chance) / top):.1f}%"
    head = "".join(f"<th scope=col>{esc(label_of(model))}</th>" for model in models)
    body = ""
    for group, members in groupby(rows, key=lambda row: str(row.get("group", ""))):
        title = GROUPS.get(group, group)
        kind = group if group in GROUPS else "other"
        body += f'<tbody class="{kind}"><tr class="group">'
        body += f'<th colspan="{len(models) + 1}">{esc(title)}</th></tr>'
        for row in members:
            cells = "".join(_bar_cell(_results(row, model).get("zsl"), top) for model in models)
            body += f"<tr>{_row_head(row)}{cells}</tr>"
        body += "</tbody>"
    return (
        f'<div class="scroll"><table class="zsl" style="--n:{len(models)};{tick}"><thead><tr>'
        f"<th scope=col>Class embedding</th>{head}</tr></thead>{body}</table></div>"
    )


def _row_head(row: dict[str, Any]) -> str:
    name = str(row.get("name", ""))
    dimension = row.get("dimension")
    size = f" <small>{esc(dimension)}-d</small>" if dimension is not None else ""
    meaning = f"<p>{MEANING[name]}</p>" if name in MEANING else ""
    return f"<th scope=row>{esc(row.get('label', name))}{size}{meaning}</th>"


def _bar_end(rows: list[dict[str, Any]], models: list[str]) -> float:
    """The accuracy of a full bar; a far ceiling must not squeeze the rows that it is above."""
    fair, every = [0.01], [0.01]
    for row in rows:
        values = [float(_results(row, model).get("zsl") or 0) for model in models]
        every += values
        fair += [] if row.get("group") == "oracle" else values
    return min(max(every), 1.6 * max(fair))


def _bar_cell(value: Any, top: float) -> str:
    share = 0.0 if value is None else max(0.0, float(value) / top)
    kind = "bar cut" if share > 1 else "bar"
    width = f"{100 * min(share, 1.0):.1f}%"
    return f'<td><span class="{kind}" style="--v:{width}"></span><b>{percent(value)}</b></td>'


def _gains(rows: list[dict[str, Any]], models: list[str]) -> str:
    named = {str(row.get("name")): row for row in rows}
    items = []
    for other, text in (("words", "word vectors alone"), ("onehot_smo", "no vision")):
        if "smo" not in named or other not in named:
            continue
        chips = []
        for model in models:
            ours = _results(named["smo"], model).get("zsl")
            theirs = _results(named[other], model).get("zsl")
            if ours is None or theirs is None:
                continue
            points = 100 * (float(ours) - float(theirs))
            sign = "+" if points >= 0.05 else ""
            kind = "up" if points >= 0.05 else "down" if points <= -0.05 else ""
            label = esc(label_of(model))
            chips.append(f'<span class="chip {kind}">{label} {sign}{number(points, 1)}</span>')
        if chips:
            items.append(f"<li>VGSE-SMO against {text}, in points: {' '.join(chips)}</li>")
    return f'<ul class="gains">{"".join(items)}</ul>' if items else ""


def _gzsl_table(rows: list[dict[str, Any]], models: list[str]) -> str:
    head = "".join(f"<th scope=colgroup colspan=4>{esc(label_of(m))}</th>" for m in models)
    columns = (
        "<th scope=col>u</th><th scope=col>s</th><th scope=col>H</th><th scope=col>&gamma;</th>"
    )
    body = ""
    for group, members in groupby(rows, key=lambda row: str(row.get("group", ""))):
        body += f'<tbody class="{group if group in GROUPS else "other"}">'
        for row in members:
            label = esc(row.get("label", row.get("name", "")))
            cells = ""
            for model in models:
                result = _results(row, model)
                cells += f"<td>{percent(result.get('unseen'))}</td>"
                cells += f"<td>{percent(result.get('seen'))}</td>"
                cells += f"<td class=h>{percent(result.get('harmonic_mean'))}</td>"
                cells += f"<td class=muted>{number(result.get('gamma'))}</td>"
            body += f"<tr><th scope=row>{label}</th>{cells}</tr>"
        body += "</tbody>"
    return (
        "<p>Now a picture may be of any class. u: accuracy on unseen classes, s: on seen classes, "
        "H: their harmonic mean. &gamma; is taken off the scores of seen classes and was chosen on "
        "validation classes.</p>"
        '<div class="scroll"><table class="gzsl"><thead><tr><th rowspan=2>Class embedding</th>'
        f"{head}</tr><tr>{columns * len(models)}</tr></thead>{body}</table></div>"
    )
