"""One plain sentence on what names, relation and clusters gained, whatever it was."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def summary_sentence(evaluation: Mapping[str, Any]) -> str:
    """What the names, the relation and the clusters each gained, as one sentence.

    Differences are of top-1 on unseen classes, averaged over the models of the table, in
    percentage points. Keys and rows that `evaluation` lacks are left out.
    """
    mean = {
        row["name"]: 100 * float(np.mean([r["zsl"] for r in row["results"].values()]))
        for row in evaluation["rows"]
    }
    parts = _clusters(evaluation.get("clusters") or {})
    if {"smo", "words", "onehot_smo"} <= mean.keys():
        names = mean.get("knowledge", mean["words"])
        gains = {
            "what else is known of the names": names - mean["words"],
            "the relation": mean["onehot_smo"] - names,
            "the clusters": mean["smo"] - mean["onehot_smo"],
        }
        if "knowledge" not in mean:
            del gains["what else is known of the names"]
        by = ", ".join(f"{points:+.1f} by {what}" for what, points in gains.items())
        parts.append(
            f"on unseen classes VGSE-SMO is {_above(mean['smo'] - mean['words'])} the word "
            f"vectors ({by})"
        )
    others = {"paper_smo": "the paper's VGSE-SMO", "image_smo": "the same relation on image means"}
    found = [
        f"{_above(mean['smo'] - mean[name])} {text}"
        for name, text in others.items()
        if {name, "smo"} <= mean.keys()
    ]
    if found:
        parts.append(f"it is {' and '.join(found)}")
    if "given" in mean:
        difference = _above(mean["given"] - mean["random"])
        parts.append(f"the given embeddings are {difference} random vectors")
        if "words" in mean:
            parts.append(f"they are {_above(mean['given'] - mean['words'])} the word vectors")
    if not parts:
        return "The table holds no row to compare."
    sentence = "; ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."


def _above(difference: float) -> str:
    return f"{abs(difference):.1f} points {'above' if difference >= 0 else 'below'}"


def _clusters(clusters: Mapping[str, Any]) -> list[str]:
    """How the trained clusters compare with k-means alone, by the measures known of both."""
    gains, parts = [], []
    for name, text in (
        ("nmi", "NMI {:.3f} against {:.3f}"),
        ("nearest_class_mean", "nearest class mean {:.1%} against {:.1%}"),
    ):
        trained, kmeans = clusters.get(name), clusters.get(f"{name}_kmeans")
        if trained is not None and kmeans is not None:
            gains.append(trained - kmeans)
            parts.append(text.format(trained, kmeans).replace("%", " %"))
    if not gains:
        return []
    if min(gains) > 0:
        verdict = "hold more of the classes than"
    elif max(gains) <= 0:
        verdict = "hold no more of the classes than"
    else:
        verdict = "hold more of the classes by one measure only than"
    return [f"the trained clusters {verdict} k-means alone ({' and '.join(parts)})"]
