"""Which classes look alike, and whether the words would have said so."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from vgse.errors import UserError
from vgse.report.page import attribute_json, esc, number
from vgse.report.pictures import ClassPictures, Pixels, indexed_png
from vgse.report.relation_cards import unit
from vgse.report.run_files import Arrays, RunFiles, need

MAX_SEEN, MAX_UNSEEN = 280, 120
NUM_PAIRS = 6
ANCHORS = np.array([[33, 66, 135], [104, 158, 204], [246, 244, 240], [232, 148, 96], [150, 38, 44]])

Matrix = npt.NDArray[np.float64]


def similarity_section(run: RunFiles, pictures: ClassPictures) -> str:
    """Two heatmaps with the same order of classes, how far they agree, and the odd pairs."""
    content = run.embeddings
    need(content, "class_embeddings.npz", "class_names", "embeddings", "seen", "unseen")
    seen, unseen = _spread(content["seen"], MAX_SEEN), _spread(content["unseen"], MAX_UNSEEN)
    if len(seen) < 2:
        return '<p class="notice">One seen class alone has nothing to be compared with.</p>'
    visual = centred_cosine(content["embeddings"], content["seen"], scale=True)
    order = np.concatenate([_ordered(visual, seen), _ordered(visual, unseen)])
    names = [str(name) for name in content["class_names"][order]]
    looks = visual[np.ix_(order, order)]
    body = (
        "<p>Each cell compares two classes: red for alike, blue for unlike. Seen classes come "
        "first, then unseen ones, each ordered so that similar classes are neighbours; both maps "
        "keep that order.</p>"
    )
    maps = [("By pictures", "class embeddings", looks)]
    if "word_vectors" in content:
        words = centred_cosine(content["word_vectors"], content["seen"], scale=False)
        words = words[np.ix_(order, order)]
        maps.append(("By words", "word vectors", words))
        body += _agreement(looks, words, len(seen))
    limit = _limit([matrix for _, _, matrix in maps])
    figures = "".join(_figure(*each, limit, len(seen), len(unseen)) for each in maps)
    data = attribute_json(
        {"names": names, "seen": len(seen), "limit": limit, "palette": palette().tobytes().hex()}
    )
    body += f'<div class="heatmaps" data-maps="{data}">{figures}</div>{_legend(limit)}'
    left = len(content["class_names"]) - len(order)
    if left > 0:
        body += f'<p class="muted">{left:,} of the classes are left out of the maps.</p>'
    if len(maps) == 2:
        body += _pairs(looks, maps[1][2], names, len(seen), pictures)
    return body


def centred_cosine(rows: npt.NDArray[Any], seen: npt.NDArray[Any], *, scale: bool) -> Matrix:
    """Cosine [C, C] between rows [C, D] less the seen classes' mean.

    With `scale` each dimension is divided by its deviation over the seen classes first, so that
    clusters that all classes share do not drown the others.
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


def _spread(rows: npt.NDArray[Any], most: int) -> npt.NDArray[np.int64]:
    rows = np.asarray(rows, np.int64)
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]


def _ordered(cosine: Matrix, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
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


def _figure(title: str, of: str, matrix: Matrix, limit: float, seen: int, unseen: int) -> str:
    indices = np.clip((matrix / limit + 1) / 2 * 255, 0, 255).round().astype(np.uint8)
    share = 100 * seen / (seen + unseen)
    name = esc(f"{title}: similarity of {seen + unseen} classes by {of}")
    return (
        f"<figure><figcaption><b>{title}</b> <small>cosine of {of}</small></figcaption>"
        f'<div class="heat" style="--seen:{share:.2f}%"><img alt="{name}" '
        f'src="{indexed_png(indices, palette())}"></div>'
        f'<p class="axis" style="--seen:{share:.2f}%"><span>{seen} seen</span>'
        f"<span>{unseen} unseen</span></p></figure>"
    )


def _legend(limit: float) -> str:
    stops = ",".join(f"rgb({r} {g} {b})" for r, g, b in ANCHORS)
    return (
        f'<p class="legend"><span>{number(-limit)}</span>'
        f'<i style="background:linear-gradient(90deg,{stops})"></i><span>{number(limit)}</span></p>'
    )


def _agreement(looks: Matrix, words: Matrix, seen: int) -> str:
    parts = []
    for text, start, stop in (("seen", 0, seen), ("unseen", seen, len(looks))):
        pairs = np.triu_indices(stop - start, 1)
        a, b = looks[start:stop, start:stop][pairs], words[start:stop, start:stop][pairs]
        if len(a) > 2 and a.std() > 0 and b.std() > 0:
            parts.append(f"{number(np.corrcoef(a, b)[0, 1])} over pairs of {text} classes")
    if not parts:
        return ""
    return (
        f"<p>Pictures and words correlate at {' and '.join(parts)}. The embeddings of "
        "unseen classes were mixed by the words, so only the first figure is evidence.</p>"
        if len(parts) == 2
        else f"<p>Pictures and words correlate at {parts[0]}.</p>"
    )


def _pairs(
    looks: Matrix, words: Matrix, names: list[str], seen: int, pictures: ClassPictures
) -> str:
    difference = (looks - words)[:seen, :seen]
    columns = ""
    for title, matrix in (
        ("Look alike, though the words are far apart", difference),
        ("Close in words, though they look different", -difference),
    ):
        items = "".join(
            f"<li>{pictures.tag(names[a])}{pictures.tag(names[b])}<span><span>{esc(names[a])} · "
            f"{esc(names[b])}</span><small>pictures {number(looks[a, b])}, "
            f"words {number(words[a, b])}</small></span></li>"
            for a, b in odd_pairs(matrix, NUM_PAIRS)
        )
        if items:
            columns += f"<div><h3>{title}</h3><ul>{items}</ul></div>"
    return f'<div class="pairs">{columns}</div>' if columns else ""


def check_shapes(content: Arrays, pictures: Arrays) -> None:
    """Raise ValueError where class pictures and class names do not belong together."""
    if "class_names" in content and "class_pictures" in pictures:
        names, images = len(content["class_names"]), len(pictures["class_pictures"])
        if names != images:
            raise UserError(
                f"pictures.npz: class_pictures has {images} rows for {names} class_names in "
                "class_embeddings.npz; write both with the same run"
            )
