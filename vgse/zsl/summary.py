"""One plain sentence on what the clusters and the relation gained, whatever it was."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def mean_zsl(evaluation: Mapping[str, Any], row: str) -> float | None:
    """Top-1 of `row`, 0..1, averaged over the table's models; None where it has no such row."""
    for entry in evaluation["rows"]:
        if entry["name"] == row:
            return float(np.mean([r["zsl"] for r in entry["results"].values()]))
    return None


def _difference(evaluation: Mapping[str, Any], first: str, second: str) -> float | None:
    a, b = mean_zsl(evaluation, first), mean_zsl(evaluation, second)
    return None if a is None or b is None else 100 * (a - b)


def _above(difference: float) -> str:
    return f"{abs(difference):.1f} points {'above' if difference >= 0 else 'below'}"


def _pairs(clusters: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Measures that are known of the trained clusters and of k-means alone."""
    pairs = {}
    for name in ("nmi", "nearest_class_mean"):
        trained, kmeans = clusters.get(name), clusters.get(f"{name}_kmeans")
        if trained is not None and kmeans is not None:
            pairs[name] = (trained, kmeans)
    return pairs


def _clusters(clusters: Mapping[str, Any]) -> str | None:
    pairs = _pairs(clusters)
    if not pairs:
        return None
    gains = [trained - kmeans for trained, kmeans in pairs.values()]
    if min(gains) > 0:
        verdict = "hold more of the classes than"
    elif max(gains) <= 0:
        verdict = "hold no more of the classes than"
    else:
        verdict = "hold more of the classes by one measure only than"
    parts = []
    if "nmi" in pairs:
        parts.append("NMI {:.3f} against {:.3f}".format(*pairs["nmi"]))
    if "nearest_class_mean" in pairs:
        trained, kmeans = pairs["nearest_class_mean"]
        parts.append(f"nearest class mean {100 * trained:.1f} % against {100 * kmeans:.1f} %")
    return f"the trained clusters {verdict} k-means alone ({' and '.join(parts)})"


def summary_sentence(evaluation: Mapping[str, Any]) -> str:
    """What the clusters gained and what the relation gained, as one sentence.

    Differences are of top-1 on unseen classes, averaged over the models of the table, in
    percentage points. Keys and rows that `evaluation` lacks are left out.
    """
    parts = []
    clusters = evaluation.get("clusters") or {}
    if measured := _clusters(clusters):
        parts.append(measured)
    no_vision = _difference(evaluation, "smo", "onehot_smo")
    no_clusters = _difference(evaluation, "smo", "image_smo")
    if no_vision is not None and no_clusters is not None:
        parts.append(
            f"on unseen classes VGSE-SMO is {_above(no_vision)} the same relation without any "
            f"vision and {_above(no_clusters)} it on image means, which is all that the clusters "
            "gained there"
        )
    relation = _difference(evaluation, "smo", "words")
    if relation is not None:
        verb = "gained" if relation > 0 else "lost"
        parts.append(f"the relation {verb} {abs(relation):.1f} points against the word vectors")
    given = _difference(evaluation, "given", "random")
    if given is not None:
        parts.append(f"the given embeddings are {_above(given)} random vectors")
        words = _difference(evaluation, "given", "words")
        if words is not None:
            parts.append(f"they are {_above(words)} the word vectors")
    if not parts:
        return "The table holds no row to compare."
    sentence = "; ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."
