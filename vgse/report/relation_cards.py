"""Each unseen class as a sum of seen classes, with pictures."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from vgse.knowledge.hierarchy import information_content
from vgse.knowledge.sparse_rows import table_from
from vgse.report.pictures import ClassPictures
from vgse.report.run_files import Arrays, RunFiles, need

NUM_SHOWN = 12
NUM_FOLDED = 300
NUM_TERMS = 5
NUM_ANCESTORS = 3
SMALLEST = 0.005
"""Weights below this are not written out."""


def relations_section(run: RunFiles, pictures: ClassPictures) -> dict[str, Any]:
    """Cards "sheep = 0.41 cow + 0.22 goat + …", best explained first, later ones folded."""
    content = run.relations
    need(content, "relations.npz", "seen", "unseen", "smo")
    unseen = [str(name) for name in content["unseen"]]
    ranks = own_image_ranks(run.embeddings)
    residual = content.get("residual", np.zeros(len(unseen)))
    order = np.argsort(residual, kind="stable")[: NUM_SHOWN + NUM_FOLDED]
    known = _known(run.knowledge, [str(name) for name in content["seen"]])
    cards = [_card(content, int(u), pictures, ranks.get(unseen[u]), known) for u in order]
    shown, folded = cards[:NUM_SHOWN], cards[NUM_SHOWN:]
    return {
        "shown": shown,
        "folded": folded,
        "num_unseen": len(unseen),
        "choice": run.choice.get("line"),
        "warning": run.choice.get("warning"),
        "curve": _curve(run.choice),
    }


def _curve(choice: dict[str, Any]) -> dict[str, Any]:
    """The criterion by weights (rows) and ridge (columns)."""
    settings = choice.get("curve") or []
    ridges = sorted({setting["ridge"] for setting in settings})
    by_weights: dict[tuple[float, ...], dict[float, float]] = {}
    for setting in settings:
        by_weights.setdefault(tuple(setting["weights"]), {})[setting["ridge"]] = setting[
            "criterion"
        ]
    best = tuple(choice.get("weights", ())), choice.get("ridge")
    rows = [
        (weights, [(found.get(ridge), (weights, ridge) == best) for ridge in ridges])
        for weights, found in sorted(by_weights.items())
    ]
    return {"sources": choice.get("sources", []), "ridges": ridges, "rows": rows}


@dataclass(frozen=True)
class _Known:
    """What a hierarchy says of all classes."""

    source: str
    row: dict[str, int]
    weights: csr_array  # [C, A] of ancestors, rare ones more
    ancestors: list[str]
    entries: list[str]  # of the classes, "" where none was found

    def shared(self, one: str, other: str) -> list[str]:
        """The ancestors that say most of what the two have in common."""
        both = self.weights[[self.row[one], self.row[other]]].toarray()
        common = both.min(0)
        order = np.argsort(-common, kind="stable")[: int((common > 0).sum())]
        names = dict.fromkeys(self.ancestors[a].replace("_", " ") for a in order)
        return list(names)[:NUM_ANCESTORS]


def _known(knowledge: Arrays, seen: list[str]) -> list[_Known]:
    found = []
    names = [str(name) for name in knowledge.get("class_names", ())]
    row = {name: i for i, name in enumerate(names)}
    for i, source in enumerate(knowledge.get("sources", ())):
        if knowledge["is_hierarchy"][i]:
            rows = csr_array(table_from(knowledge, f"rows_{i}")).astype(np.float64)
            inside = [row[name] for name in seen]
            common = np.bincount(rows[inside].indices, minlength=rows.shape[1])
            ancestors = [str(name) for name in knowledge[f"columns_{i}"]]
            entries = [str(entry) for entry in knowledge[f"found_{i}"]]
            rows.data *= information_content(common, len(seen))[rows.indices]
            found.append(_Known(str(source), row, rows, ancestors, entries))
    return found


def _card(
    content: Arrays, row: int, pictures: ClassPictures, rank: int | None, known: list[_Known]
) -> dict[str, Any]:
    name = str(content["unseen"][row])
    seen, weights = content["seen"], content["smo"][row]
    terms = terms_of(weights)
    others = [s for s in np.flatnonzero(np.abs(weights) >= SMALLEST) if s not in terms]
    nearest = terms_of(content["wavg"][row])[:3] if "wavg" in content else []
    return {
        "terms": [
            {
                "tile": pictures.tile(str(seen[s])),
                "weight": float(weights[s]),
                "width": round(100 * abs(float(weights[s])) / abs(float(weights[terms[0]]))),
            }
            for s in terms
        ],
        "tile": pictures.tile(str(content["unseen"][row])),
        "num_others": len(others),
        "others": weights[others].sum(),
        "rank": None if rank is None else "nearest" if rank == 1 else f"{_ordinal(rank)} nearest",
        "residual": content["residual"][row] if "residual" in content else None,
        "nearest": [str(seen[s]) for s in nearest],
        "entries": [(it.source, it.entries[it.row[name]]) for it in known],
        "shared": [
            (str(seen[s]), it.source, ancestors)
            for it in known
            for s in terms[:2]
            if (ancestors := it.shared(name, str(seen[s])))
        ],
    }


def terms_of(weights: NDArray[Any]) -> list[int]:
    """Seen classes [≤ NUM_TERMS] of one weight row [S], largest magnitude first."""
    order = np.argsort(-np.abs(weights), kind="stable")[:NUM_TERMS]
    return [int(s) for s in order if abs(weights[s]) >= SMALLEST]


def own_image_ranks(embeddings: Arrays) -> dict[str, int]:
    """For each unseen class 1 if its mixture is nearest to its own images' mean, 2 if second, ….

    Nearness is the cosine after z-scores over the seen classes. Empty without those arrays.
    """
    fields = ("class_names", "embeddings", "own_embeddings", "seen", "unseen")
    if any(field not in embeddings for field in fields):
        return {}
    seen, unseen = embeddings["seen"], embeddings["unseen"]
    mean = embeddings["embeddings"][seen].mean(axis=0)
    scale = embeddings["embeddings"][seen].std(axis=0) + 1e-12
    mixed = unit((embeddings["embeddings"][unseen] - mean) / scale)
    own = unit((embeddings["own_embeddings"][unseen] - mean) / scale)
    cosine = mixed @ own.T  # [U, U]
    ranks = 1 + (cosine > np.diag(cosine)[:, None]).sum(axis=1)
    names = [str(name) for name in embeddings["class_names"][unseen]]
    return {name: int(rank) for name, rank in zip(names, ranks, strict=True)}


def _ordinal(rank: int) -> str:
    teens = rank % 100 in (11, 12, 13)
    return f"{rank}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(rank % 10, 'th')}"


def unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Rows [n, D] of length one; zero rows stay zero."""
    rows = np.nan_to_num(np.asarray(rows, np.float64))
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
