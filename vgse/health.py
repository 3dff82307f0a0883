"""How good the clusters are by themselves: what unseen accuracy cannot reveal."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def normalised_mutual_information(contingency: NDArray[np.integer]) -> float:
    """NMI 2 I(X; Y) / (H(X) + H(Y)), in 0..1, from counts [classes, clusters]; 0 if both are
    constant."""
    joint, rows, columns, total = _shares(contingency)
    inside = joint > 0
    information = float(
        (joint[inside] * np.log(joint[inside] / np.outer(rows, columns)[inside])).sum()
    )
    return max(0.0, 2 * information / total) if total > 0 else 0.0


def chance_information(contingency: NDArray[np.integer], images: float) -> float:
    """NMI that clusters have on average with labels dealt out at random, in 0..1.

    The first term of the expectation of I under independence, (R - 1)(K - 1) / 2n, with the
    patches of the n `images` counted as one draw each: an upper bound, useful while it is small.
    """
    _, rows, columns, total = _shares(contingency)
    freedom = max(0, (rows > 0).sum() - 1) * max(0, (columns > 0).sum() - 1)
    return min(1.0, freedom / max(1.0, images) / total) if total > 0 else 0.0


def _shares(contingency: NDArray[np.integer]) -> tuple[Floats, Floats, Floats, float]:
    """Shares of the cells, rows and columns, and the sum of both marginal entropies."""
    joint = contingency / max(1, contingency.sum())
    rows, columns = joint.sum(1), joint.sum(0)
    return joint, rows, columns, _entropy(rows) + _entropy(columns)


def _entropy(shares: NDArray[np.floating]) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def nearest_class_mean(
    embeddings: NDArray[np.floating],
    labels: NDArray[np.integer],
    class_means: NDArray[np.floating],
    classes: NDArray[np.integer],
) -> float:
    """Per-class mean accuracy, in 0..1, of giving images a_n [M, D_v] the class with the nearest
    mean, a row of [C, D_v]; NaN where no image is of one of `classes`."""
    return mean_accuracy(nearest_class_hits(embeddings, labels, class_means, classes))


def nearest_class_hits(
    embeddings: NDArray[np.floating],
    labels: NDArray[np.integer],
    class_means: NDArray[np.floating],
    classes: NDArray[np.integer],
) -> NDArray[np.int64]:
    """[2, K]: of each of `classes` the images with the nearest mean, and all; adds up over batches
    of images."""
    if not len(classes):
        return np.zeros((2, 0), np.int64)
    keep = np.isin(labels, classes)
    points, truth = embeddings[keep].astype(np.float64), labels[keep]
    means = class_means[classes].astype(np.float64)
    distances = (means**2).sum(1) - 2 * points @ means.T  # ‖x‖² does not change the order
    distances[:, np.isnan(means).any(1)] = np.inf  # classes without images have no mean
    right = classes[distances.argmin(1)] == truth
    size = int(max(classes, default=-1)) + 1
    return np.stack([np.bincount(t, minlength=size)[classes] for t in (truth[right], truth)])


def mean_accuracy(hits: NDArray[np.integer]) -> float:
    """Mean over the classes of `nearest_class_hits` that have images; NaN where none has."""
    right, count = hits[:, hits[1] > 0]
    return float(np.mean(right / count)) if len(count) else math.nan


def own_class_mean(
    embeddings: NDArray[np.floating], labels: NDArray[np.integer], classes: NDArray[np.integer]
) -> float:
    """As `nearest_class_mean`, of means of these images themselves, an image's own without it; a
    class with one image is left out."""
    classes = np.array([c for c in classes if (labels == c).sum() > 1], np.int64)
    keep = np.isin(labels, classes)
    points, truth = embeddings[keep].astype(np.float64), np.searchsorted(classes, labels[keep])
    if not len(points):
        return math.nan
    counts = np.bincount(truth)
    sums = np.stack([points[truth == c].sum(0) for c in range(len(classes))])
    means = sums / counts[:, None]
    distances = (points**2).sum(1)[:, None] - 2 * points @ means.T + (means**2).sum(1)
    # Without x the mean is (n m - x) / (n - 1), and further away by n / (n - 1).
    images = np.arange(len(points))
    distances[images, truth] *= (counts / (counts - 1))[truth] ** 2
    right = distances.argmin(1) == truth
    return float(np.mean([right[truth == c].mean() for c in range(len(classes))]))


def usage(counts: NDArray[np.integer]) -> tuple[int, float]:
    """Clusters that hold any patch, and the entropy of cluster usage relative to ln D_v (0..1)."""
    shares = counts / max(1, counts.sum())
    ceiling = math.log(max(2, len(counts)))
    return int((counts > 0).sum()), _entropy(shares) / ceiling


def findings(
    metrics: list[dict[str, Any]], num_clusters: int, num_classes: int
) -> list[dict[str, str]]:
    """{"cause", "sentence"} of all that `metrics`, the lines of metrics.jsonl, show to be wrong."""
    if not metrics:
        return []
    found: dict[str, str] = {}
    last = metrics[-1]
    if not math.isfinite(last.get("loss", 0.0)):
        found["diverged"] = (
            f"the loss is {last['loss']} in epoch {last.get('epoch', len(metrics))}: lower "
            "training.learning_rate, or check that features and word vectors are finite"
        )
    if last["used_clusters"] < 0.5 * num_clusters:
        found["dead clusters"] = (
            f"only {last['used_clusters']} of {num_clusters} clusters hold patches: raise "
            "loss.entropy, lower model.num_clusters, or start from kmeans"
        )
    classification = last.get("classification")
    if len(metrics) > 1 and classification and classification > 0.98 * math.log(num_classes):
        found["stuck at ln S"] = (
            f"the class loss stays at {classification:.2f}, that of guessing among {num_classes} "
            "classes: lower model.temperature, raise training.learning_rate, or check the labels"
        )
    if last["usage_entropy"] < 0.5:
        found["uneven clusters"] = (
            f"cluster usage has {last['usage_entropy']:.0%} of the largest entropy: a few clusters "
            "take most patches; raise loss.entropy"
        )
    first = metrics[0]
    chance = first.get("nmi_chance", 1.0)
    # Of few images the bound is high, and clusters of sound labels stay below 1.2 times as much.
    if first.get("epoch") == 1 and chance < 0.15 and first.get("nmi", 1.0) < 1.2 * chance:
        found["labels unrelated to images"] = (
            f"in the first epoch clusters told no more of the classes (NMI {first['nmi']:.2f}) "
            f"than of labels dealt out at random (up to {chance:.2f}): check that labels and "
            "images belong together, with python -m shards check"
        )
    restarts, lost = last.get("restarts", 0), last.get("restart_seconds", 0.0)
    share = lost / max(1e-9, lost + sum(row.get("seconds", 0.0) for row in metrics))
    if restarts and share > 0.1:
        found["restarts"] = (
            f"{restarts} restart{'' if restarts == 1 else 's'} after lost workers cost {lost:,.0f} "
            f"s, {share:.0%} of the training: find out why they died (see Ray's log), or set "
            "training.checkpoint_steps so that less is done again"
        )
    stalls = last.get("worker_stalls") or [0.0]
    worst = int(np.argmax(stalls))
    others = float(np.median(np.delete(stalls, worst))) if len(stalls) > 1 else 1.0
    if stalls[worst] > 0.2 and others < 0.5 * stalls[worst]:
        found["one slow worker"] = (
            f"worker {worst} waited for data {stalls[worst]:.0%} of the time, the others "
            f"{others:.0%}, and all wait for the slowest: look at the disk, network and load of "
            "its node"
        )
    stall = last.get("loader_stall", 0.0)
    if stall > 0.2:
        found["slow loading"] = (
            f"training waited for data {stall:.0%} of the time: raise cluster.loader_workers, or "
            "bring the shards nearer"
        )
    return [{"cause": cause, "sentence": sentence} for cause, sentence in found.items()]
