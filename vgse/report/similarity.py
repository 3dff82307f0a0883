"""Which classes look alike, and whether the words would have said so."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from vgse.report.pictures import ClassPictures, Pixels, indexed_png
from vgse.report.relation_cards import unit
from vgse.report.run_files import RunFiles, need

MAX_SEEN, MAX_UNSEEN = 280, 120
NUM_PAIRS = 6
ANCHORS = np.array([[33, 66, 135], [104, 158, 204], [246, 244, 240], [232, 148, 96], [150, 38, 44]])

Matrix = NDArray[np.float64]


def similarity_section(run: RunFiles, pictures: ClassPictures) -> dict[str, Any]:
    """Two heatmaps with the same order of classes, how far they agree, and the odd pairs."""
    content = run.embeddings
    need(content, "class_embeddings.npz", "class_names", "embeddings", "seen", "unseen")
    seen, unseen = _spread(content["seen"], MAX_SEEN), _spread(content["unseen"], MAX_UNSEEN)
    if len(seen) < 2:
        return {"maps": {}}
    visual = centred_cosine(content["embeddings"], content["seen"], scale=True)
    order = np.concatenate([_ordered(visual, seen), _ordered(visual, unseen)])
    names = [str(name) for name in content["class_names"][order]]
    looks = visual[np.ix_(order, order)]
    matrices = {"class embeddings": looks}
    compared: dict[str, Any] = {"agreement": {}, "alike": [], "close": []}
    if "word_vectors" in content:
        words = centred_cosine(content["word_vectors"], content["seen"], scale=False)
        words = matrices["word vectors"] = words[np.ix_(order, order)]
        difference = (looks - words)[: len(seen), : len(seen)]

        def show(pairs: list[tuple[int, int]]) -> list[dict[str, Any]]:
            return [
                {
                    "tiles": [pictures.tile(names[a]), pictures.tile(names[b])],
                    "looks": looks[a, b],
                    "words": words[a, b],
                }
                for a, b in pairs
            ]

        compared = {
            "agreement": _agreement(looks, words, len(seen)),
            "alike": show(odd_pairs(difference, NUM_PAIRS)),
            "close": show(odd_pairs(-difference, NUM_PAIRS)),
        }
    limit = _limit(list(matrices.values()))
    indices = {
        of: np.clip((matrix / limit + 1) / 2 * 255, 0, 255).round().astype(np.uint8)
        for of, matrix in matrices.items()
    }
    return compared | {
        "maps": {of: indexed_png(picture, palette()) for of, picture in indices.items()},
        "data": {
            "names": names,
            "seen": len(seen),
            "limit": limit,
            "palette": palette().tobytes().hex(),
        },
        "anchors": ANCHORS.tolist(),
        "left": len(content["class_names"]) - len(order),
    }


def centred_cosine(rows: NDArray[Any], seen: NDArray[Any], *, scale: bool) -> Matrix:
    """Cosine [C, C] between rows [C, D] less the seen classes' mean.

    With `scale` each dimension is divided by its deviation over the seen classes first.
    """
    rows = np.asarray(rows, np.float64)
    rows = rows - rows[seen].mean(axis=0)
    rows = unit(rows / (rows[seen].std(axis=0) + 1e-12) if scale else rows)
    return np.asarray(rows @ rows.T)


def palette() -> Pixels:
    """256 different colours u8 [256, 3] from blue over near white to red."""
    steps = np.linspace(0, len(ANCHORS) - 1, 256)
    columns = [np.interp(steps, np.arange(len(ANCHORS)), ANCHORS[:, c]) for c in range(3)]
    return np.stack(columns, axis=1).round().astype(np.uint8)


def odd_pairs(difference: Matrix, count: int) -> list[tuple[int, int]]:
    """Pairs of rows with the largest entries of `difference` [n, n], each row used once."""
    first, second = np.triu_indices(len(difference), 1)
    used: set[int] = set()
    pairs: list[tuple[int, int]] = []
    for k in np.argsort(-difference[first, second], kind="stable"):
        a, b = int(first[k]), int(second[k])
        if difference[a, b] <= 0 or len(pairs) == count:
            break
        if a not in used and b not in used:
            pairs.append((a, b))
            used |= {a, b}
    return pairs


def _spread(rows: NDArray[Any], most: int) -> NDArray[np.int64]:
    rows = np.asarray(rows, np.int64)
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]


def _ordered(cosine: Matrix, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(rows) < 3:
        return rows
    distance = np.clip(1 - cosine[np.ix_(rows, rows)], 0, 2)
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return rows[leaves_list(tree)]


def _limit(matrices: list[Matrix]) -> float:
    """Common end of the colour scale: nearly all cells off the diagonals lie inside."""
    cells = [np.abs(m[~np.eye(len(m), dtype=bool)]) for m in matrices]
    top = float(np.quantile(np.concatenate(cells), 0.995)) if len(cells[0]) else 1.0
    return round(min(1.0, max(0.1, float(np.ceil(top * 20)) / 20)), 2)


def _agreement(looks: Matrix, words: Matrix, seen: int) -> dict[str, float]:
    """The correlation of both similarities over pairs of seen and over pairs of unseen classes."""
    found = {}
    for role, part in (("seen", slice(seen)), ("unseen", slice(seen, None))):
        pairs = np.triu_indices(len(looks[part]), 1)
        a, b = looks[part, part][pairs], words[part, part][pairs]
        if len(a) > 2 and a.std() > 0 and b.std() > 0:
            found[role] = float(np.corrcoef(a, b)[0, 1])
    return found
