"""The page of the ablation, as Markdown."""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from benchmarks.quality.compare import compare, difference, spread, usual_of_relations
from benchmarks.quality.findings import findings, steps
from benchmarks.quality.knowledge import RunResult, knowledge_section
from benchmarks.quality.settings import SHUFFLED, alpha_rows, chosen_rows
from benchmarks.quality.values import Ablation, Outcome

MEASURES = (
    ("nmi", "NMI"),
    ("nearest_class_mean", "nearest class mean, seen"),
    ("nearest_class_mean_unseen", "nearest class mean, unseen"),
    ("used_clusters", "clusters in use"),
    ("usage_entropy", "usage entropy"),
)
GROUPS = (
    ("training", "Training"),
    ("clusters", "Number of clusters"),
    ("temperature", "Temperature"),
    ("words", "Word vectors"),
)
WORD_ROWS = (
    *("words", "knowledge", "paper_wavg", "paper_smo", "smo", "knowledge_smo"),
    *("onehot_smo", "image_smo", "oracle"),
)


def page(ablation: Ablation) -> str:
    """The whole page."""
    lines = _head(ablation)
    if ablation.repeat is not None:
        lines += ["", *_repeat(ablation.repeat)]
    if ablation.knowledge and ablation.repeat is not None:
        sources = [source["kind"] for source in ablation.config["knowledge"]] or ["words"]
        results = {name: RunResult(**result) for name, result in ablation.knowledge.items()}
        lines += ["", *knowledge_section(sources, results)]
    if ablation.find(SHUFFLED) is None:  # whole runs alone
        return "\n".join([*lines, "", f"Machine: {ablation.machine}.", ""])
    lines += ["", "## What the ablation says", "", *findings(ablation)]
    for group, title in GROUPS:
        outcomes = ablation.of_group(group)
        if outcomes:
            lines += ["", f"## {title}", "", *_clusters(outcomes)]
            lines += ["", *(_unseen(outcomes) if group != "words" else _words(outcomes))]
        if group == "clusters":
            lines += ["", "NMI depends on the number of clusters itself: no scale across D_v."]
        if group == "training":
            lines += ["", *steps(ablation)]
            lines += ["", *_relations(ablation)]
    return "\n".join([*lines, "", f"Machine: {ablation.machine}.", ""])


def _head(ablation: Ablation) -> list[str]:
    count = len(ablation.splits)
    over = f"mean ± standard deviation over the {count} splits" if count > 1 else "one split"
    config = ablation.config
    model, training = config["model"], config["training"]
    lines = [
        "# Quality: what each part adds",
        "",
        "By `python -m benchmarks.quality`. All figures are percent, "
        f"{over}; differences are in points, taken split by split, and **bold** where the mean "
        "exceeds two standard deviations: twice its own, and twice the usual one of its column "
        "(the root mean square over the rows), since that of a few splits can be small by luck. "
        "Every hyper-parameter of the zero-shot models is chosen on validation classes, for each "
        "row, model and split. T1: mean per-class top-1 among unseen classes; H: harmonic mean of "
        "seen and unseen accuracy among all classes. Cluster measures are those of held-out "
        "images.",
        "",
        f"Configuration: {config['backbone']['name']}, frozen; patches of "
        f"{config['backbone']['patch_size']} px; D_v = {model['num_clusters']}, "
        f"τ = {model['temperature']:g}; {training['epochs']} epochs; losses "
        + ", ".join(
            f"{name} {config['loss'][name]:g}"
            for name in ("classification", "semantic", "consistency", "entropy")
        )
        + f"; embeddings normalised by {config['evaluation']['normalise']}; word vectors "
        f"{config['data']['words'].rpartition('/')[2]}; seed {config['seed']}.",
        "",
        "| split | data | seen | of them for validation | unseen | training images |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    if ablation.note:
        lines[-2:-2] = [ablation.note, ""]
    lines += [
        f"| {s['name']} | {s['source']} | {s['seen']} | {s['validation']} | {s['unseen']} | "
        f"{s['training_images']:,} |"
        for s in ablation.splits
    ]
    return lines


def _repeat(content: dict[str, Any]) -> list[str]:
    """Every row of the zero-shot table over whole runs."""

    def difference(row: dict[str, Any], reference: str, measure: str) -> str:
        found = (row[reference] or {}).get(measure)
        if found is None:
            return ""
        return f"{100 * found['mean']:+.1f} ± {100 * found['standard_error']:.1f}"

    def cells(row: dict[str, Any]) -> list[str]:
        shares = [row["zsl"], row["harmonic_mean"]]
        means = [f"{100 * share['mean']:.1f} ± {100 * share['std']:.1f}" for share in shares]
        pairs = product(("minus_words", "minus_paper_smo"), ("zsl", "harmonic_mean"))
        return [row["label"], *means, *(difference(row, *pair) for pair in pairs)]

    against = [
        f"{symbol} minus {other}" for other in ("words", "paper's SMO") for symbol in ("T1", "H")
    ]
    (smo,) = [row for row in content["rows"] if row["name"] == "smo"]
    least = {
        (reference, measure): 100 * (found["mean"] - found["standard_error"])
        for reference in ("minus_words", "minus_paper_smo")
        for measure, found in (smo[reference] or {}).items()
        if found is not None
    }
    sentence = "VGSE-SMO, mean of the difference minus its standard error: " + ", ".join(
        f"{value:+.1f} in {'T1' if measure == 'zsl' else 'H'} against "
        f"{'word vectors' if reference == 'minus_words' else 'the paper'}"
        for (reference, measure), value in least.items()
    )

    def of_clusters(name: str) -> str:
        found = content["clusters"].get(name)
        return f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f}" if found else ""

    models = ", ".join(content["models"])
    return [
        "## Every row",
        "",
        f"Whole runs by `python -m tune repeat`, one for each of {len(content['runs'])} draws "
        f"of the unseen classes; T1 and H are means of {models}. Mean ± standard deviation over "
        "the runs; differences are taken run by run and stand with their standard "
        f"error. Chance is {100 * content['chance']:.1f}.",
        "",
        *_table(["", "T1", "H", *against], map(cells, content["rows"])),
        "",
        f"{sentence}.",
        "",
        *_table(
            ["clusters on held-out images", *(title for _, title in MEASURES[:3])],
            [
                [label, *(of_clusters(f"{name}{suffix}") for name, _ in MEASURES[:3])]
                for label, suffix in (("trained", ""), ("as k-means left them", "_kmeans"))
            ],
        ),
    ]


def _table(titles: Iterable[str], rows: Iterable[Sequence[str]]) -> list[str]:
    titles = list(titles)
    lines = ["| " + " | ".join(titles) + " |", "| --- |" + " ---: |" * (len(titles) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _clusters(outcomes: list[Outcome]) -> list[str]:
    return _table(
        ["", *(title for _, title in MEASURES)],
        [[o.label, *(spread(o.measure(name)) for name, _ in MEASURES)] for o in outcomes],
    )


def _unseen(outcomes: list[Outcome]) -> list[str]:
    models = outcomes[0].models
    titles = [
        *(f"SMO T1, {m}" for m in models),
        *(f"SMO H, {m}" for m in models),
        *(f"own images T1, {m}" for m in models),
        "SMO T1 on validation",
    ]
    return _table(
        ["", *titles],
        [
            [
                o.label,
                *(spread(o.accuracy("smo", "zsl", m)) for m in models),
                *(spread(o.accuracy("smo", "harmonic_mean", m)) for m in models),
                *(spread(o.accuracy("oracle", "zsl", m)) for m in models),
                spread(o.accuracy("smo", "val_zsl")),
            ]
            for o in outcomes
        ],
    )


def _words(outcomes: list[Outcome]) -> list[str]:
    """T1, averaged over the models, of the rows that words matter to."""
    rows = [row for row in WORD_ROWS if row in outcomes[0].row_names()]
    lines = ["T1, mean of the models:", ""]
    return lines + _table(
        ["", *(outcomes[0].row_label(row) for row in rows)],
        [[o.label, *(spread(o.accuracy(row)) for row in rows)] for o in outcomes],
    )


def _relations(ablation: Ablation) -> list[str]:
    """Rows of the default table, of one trained model."""
    outcome = compare(ablation).default
    models, smo, usual = outcome.models, outcome.accuracy("smo"), usual_of_relations(outcome)
    cells = [
        [
            outcome.row_label(row),
            *(spread(outcome.accuracy(row, "zsl", m)) for m in models),
            *(spread(outcome.accuracy(row, "harmonic_mean", m)) for m in models),
            spread(outcome.accuracy(row)),
            str(difference(outcome.accuracy(row), smo, usual)) if row != "smo" else "",
            spread(outcome.accuracy(row, "val_zsl")),
        ]
        for row in outcome.row_names()
    ]
    alphas = alpha_rows(outcome.row_names())
    relations = chosen_rows(outcome.row_names())
    for rows, label in (
        (alphas, "VGSE-SMO, alpha chosen on validation"),
        (relations, "VGSE, relation chosen on validation"),
    ):
        chosen = outcome.chosen(rows)
        cells.append(
            [
                label,
                *(spread(outcome.chosen(rows, "zsl", m)) for m in models),
                *(spread(outcome.chosen(rows, "harmonic_mean", m)) for m in models),
                spread(chosen),
                str(difference(chosen, smo, usual)),
                spread(outcome.chosen(rows, "val_zsl")),
            ]
        )
    titles = [
        *(f"T1, {m}" for m in models),
        *(f"H, {m}" for m in models),
        "T1, mean",
        "minus VGSE-SMO",
        "T1 on validation",
    ]
    return ["## Relations", "", f"Of {outcome.label}.", "", *_table(["", *titles], cells)]
