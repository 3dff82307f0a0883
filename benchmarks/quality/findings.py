"""What the ablation says, in words that follow from its numbers."""

import numpy as np
from scipy import stats

from benchmarks.quality.compare import (
    MEASURES,
    Comparison,
    Difference,
    compare,
    difference,
    usual_of_relations,
)
from benchmarks.quality.settings import (
    DEFAULT,
    KMEANS,
    SHUFFLED,
    UNTRAINED,
    alpha_rows,
    chosen_rows,
)
from benchmarks.quality.values import Ablation, Outcome

STEPS = (
    (UNTRAINED, KMEANS, "k-means in place of random prototypes"),
    (KMEANS, "cls", "L_cls, from k-means"),
    (KMEANS, "sem", "L_sem, from k-means"),
    ("cls", "cls_sem", "L_sem beside L_cls"),
    ("sem", "cls_sem", "L_cls beside L_sem"),
    ("cls_sem", "consistency", "consistency beside both"),
    ("cls_sem", "entropy", "entropy beside both"),
    ("entropy", DEFAULT, "consistency beside the three others"),
    ("consistency", DEFAULT, "entropy beside the three others"),
    ("random_start", DEFAULT, "k-means in place of a random start, all four losses"),
    (SHUFFLED, DEFAULT, "true labels in place of shuffled ones, all four losses"),
)
CONTROLS = (UNTRAINED, KMEANS, SHUFFLED)


def findings(ablation: Ablation) -> list[str]:
    """The section "What this says", as a list."""
    compared = compare(ablation)
    default = compared.default
    lines = [_shuffled(ablation, compared), *_against_default(compared), _luck(compared)]
    lines += _validation(ablation, default)
    lines += _relations(default)
    lines.append(_chosen(default))
    lines.append(_permuted(default))
    # A Greek letter is a symbol, and stays small.
    return [f"- {line[0].upper() if line[0].isascii() else line[0]}{line[1:]}" for line in lines]


def steps(ablation: Ablation) -> list[str]:
    """A table of what each step of training changes."""
    compared = compare(ablation)
    lines = [
        "What each step adds; T1 and H are means of the models:",
        "",
        "| step | " + " | ".join(name for name, _ in MEASURES) + " |",
        "| --- |" + " ---: |" * len(MEASURES),
    ]
    for before, after, label in STEPS:
        first, second = ablation.find(before), ablation.find(after)
        if first is not None and second is not None:
            cells = map(str, compared.change(first, second).values())
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def _shuffled(ablation: Ablation, compared: Comparison) -> str:
    """Whether training gains from labels: the control that has to score lower."""
    lied_to = ablation.find(SHUFFLED)
    assert lied_to is not None, "every ablation holds the control"
    gains = compared.change(lied_to, compared.default)
    parts, held = [], True
    for name, get in MEASURES[:2]:
        ours, theirs = get(compared.default), get(lied_to)
        held = held and bool((ours > theirs).all())
        parts.append(f"{name} {ours.mean():.1f} against {theirs.mean():.1f} ({gains[name]})")
    if held:
        verdict = "Training gains from labels: with shuffled ones the clusters hold less"
    else:
        verdict = (
            "**The control fails: clusters trained on shuffled labels hold as much of the "
            "classes on some split, so the trainer is broken or the labels say nothing**"
        )
    return (
        f"{verdict} ({'; '.join(parts)}). On unseen classes, which meet training only through "
        f"the relation, the difference in SMO T1 is {gains['SMO T1']}."
    )


def _against_default(compared: Comparison) -> list[str]:
    """Which settings differ from the configuration by more than two standard deviations."""
    if len(compared.default.results) == 1:
        return ["One split has no spread: no row can be said to differ from another."]
    same: list[str] = []
    lines: list[str] = []
    for outcome in compared.others:
        change = compared.change(compared.default, outcome)
        better = [f"{n} {gap.plain}" for n, gap in change.items() if gap.clear and gap.mean > 0]
        worse = [f"{n} {gap.plain}" for n, gap in change.items() if gap.clear and gap.mean < 0]
        if not better and not worse:
            same.append(outcome.label)
            continue
        parts = [f"better in {', '.join(better)}"] if better else []
        parts += [f"worse in {', '.join(worse)}"] if worse else []
        lines.append(f"{outcome.label}, against the configuration: {'; '.join(parts)}.")
    if same:
        lines.append(
            "Not different from the configuration by more than two standard deviations in any "
            f"of {', '.join(name for name, _ in MEASURES)}: {'; '.join(same)}."
        )
    return lines


def _luck(compared: Comparison) -> str:
    """How much of what is called a difference may be luck."""
    splits = len(compared.default.results)
    if splits == 1:
        return "One split was given: give several for a spread."
    tried = len(MEASURES) * len(compared.others)
    return (
        f"With {splits} splits a difference that is truly nothing is called one in "
        f"{100 * compared.luck():.1f} % of cases (Student's t, where the usual deviation of its "
        f"column is its own): of {tried} comparisons with the configuration "
        f"{tried * compared.luck():.1f} by luck. Splits share images and classes, so their spread "
        "is smaller than that over new data."
    )


def _validation(ablation: Ablation, default: Outcome) -> list[str]:
    """Whether validation would have chosen the configuration, and whether it tells of the test."""
    rows = [o for o in ablation.outcomes if o.group != "words" and o.name not in CONTROLS]
    distinct = [default, *(o for o in rows if o.results != default.results)]
    if len(distinct) < 3:
        return []
    validation = np.array([o.accuracy("smo", "val_zsl").mean() for o in distinct])
    test = np.array([o.accuracy("smo").mean() for o in distinct])
    rank = 1 + int((validation > validation[0]).sum())
    best, top = distinct[int(validation.argmax())], distinct[int(test.argmax())]
    correlation = float(stats.spearmanr(validation, test).statistic)
    line = (
        f"Among the {len(distinct)} settings that train on true labels the configuration is "
        f"number {rank} by SMO T1 on validation classes ({validation[0]:.1f})"
    )
    if best is not default:
        gap = difference(best.accuracy("smo", "val_zsl"), default.accuracy("smo", "val_zsl"))
        line += f"; the best is {best.label} ({validation.max():.1f}, {gap.plain})"
    return [
        f"{line}. On test {top.label} is highest ({test.max():.1f}; the configuration "
        f"{test[0]:.1f}). Rank correlation of validation with test over the settings: "
        f"{correlation:.2f}. (Validation classes are among those trained on, for every setting "
        "alike.)"
    ]


def _relations(default: Outcome) -> list[str]:
    """What the relation, the clusters and vision gain on unseen classes."""
    smo, lines = default.accuracy("smo"), []
    usual = usual_of_relations(default)
    for row, label in (
        ("words", "word vectors"),
        ("onehot_smo", "the same relation with no vision (one-hot)"),
        ("image_smo", "the same relation on means of image features"),
        ("paper_smo", "the paper's VGSE-SMO"),
        ("paper_wavg", "WAvg"),
        ("paper_smo_negative", "the paper's SMO with alpha = -1"),
    ):
        gap = difference(smo, default.accuracy(row), usual)
        lines.append(f"{gap} points against {label}{_verdict(gap)}")
    both = difference(default.accuracy("knowledge_smo"), smo, usual)
    words, oracle = default.accuracy("words"), default.accuracy("oracle")
    way = 100 * (smo.mean() - words.mean()) / (oracle.mean() - words.mean())
    return [
        f"Unseen classes by VGSE-SMO, T1 averaged over the models ({smo.mean():.1f}): "
        + "; ".join(lines)
        + ".",
        f"What is known of the names beside VGSE-SMO changes it by {both} points{_verdict(both)}.",
        f"From word vectors ({words.mean():.1f}) to embeddings of the unseen classes' own images "
        f"({oracle.mean():.1f}) VGSE-SMO goes {way:.0f} % of the way: the rest is for better "
        "relations.",
    ]


def _verdict(gap: Difference) -> str:
    return "" if gap.clear or gap.std is None else " (no clear difference)"


def _chosen(default: Outcome) -> str:
    """What choosing the relation on validation classes gives on test."""
    smo, usual = default.accuracy("smo"), usual_of_relations(default)
    parts = [
        f"{label} {difference(default.chosen(rows), smo, usual)}"
        for label, rows in (
            ("alpha", alpha_rows(default.row_names())),
            ("alpha, or WAvg with its parameters", chosen_rows(default.row_names())),
        )
    ]
    return (
        "Chosen on validation classes, for each model and split, instead of set beforehand, T1 "
        f"changes by: {'; '.join(parts)}."
    )


def _permuted(default: Outcome) -> str:
    """The control of the evaluation: rows of unseen classes given to others."""
    permuted = default.accuracy("permuted")
    chance = float(np.mean([100 * result["chance"] for result in default.results]))
    sound = permuted.mean() <= 2 * chance
    verdict = "fails as it has to" if sound else "**does not fail: the evaluation is unsound**"
    return (
        f"VGSE-SMO with the rows of unseen classes permuted {verdict} "
        f"({permuted.mean():.1f}; chance {chance:.1f})."
    )
