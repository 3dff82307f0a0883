"""Each unseen class as a sum of seen classes, with pictures."""

from typing import Any

import numpy as np
import numpy.typing as npt

from vgse.report.page import MINUS, esc, fold, number
from vgse.report.pictures import ClassPictures
from vgse.report.run_files import Arrays, RunFiles, need

NUM_SHOWN = 12
NUM_FOLDED = 300
NUM_TERMS = 5
SMALLEST = 0.005
"""Weights below this are not written out."""


def relations_section(run: RunFiles, pictures: ClassPictures) -> str:
    """Cards "sheep = 0.41 cow + 0.22 goat + …", best explained first, later ones folded."""
    content = run.relations
    need(content, "relations.npz", "seen", "unseen", "smo")
    unseen = [str(name) for name in content["unseen"]]
    seen = [str(name) for name in content["seen"]]
    residual = content.get("residual", np.zeros(len(unseen)))
    ranks = own_image_ranks(run.embeddings)
    order = np.argsort(residual, kind="stable")[: NUM_SHOWN + NUM_FOLDED]
    cards = [_card(unseen[u], seen, content, int(u), pictures, ranks.get(unseen[u])) for u in order]
    body = (
        "<p>The words decide the recipe, the pictures fill it: the word vector of an unseen class "
        "is rebuilt from those of seen classes, and the same weights mix their visual clusters. "
        "The classes whose words are rebuilt best come first.</p>"
        f'<div class="relations">{"".join(cards[:NUM_SHOWN])}</div>'
    )
    if len(cards) > NUM_SHOWN:
        rest = f'<div class="relations">{"".join(cards[NUM_SHOWN:])}</div>'
        body += fold(f"Show the other {len(cards) - NUM_SHOWN} unseen classes", rest, kind="more")
    if len(unseen) > len(cards):
        left = len(unseen) - len(cards)
        body += f'<p class="muted">{left:,} more unseen classes are in relations.npz.</p>'
    return body


def terms_of(weights: npt.NDArray[Any]) -> list[int]:
    """Seen classes [≤ NUM_TERMS] of one weight row [S], largest magnitude first."""
    order = np.argsort(-np.abs(weights), kind="stable")[:NUM_TERMS]
    return [int(s) for s in order if abs(weights[s]) >= SMALLEST]


def own_image_ranks(embeddings: Arrays) -> dict[str, tuple[int, int]]:
    """(rank, U) for each unseen class: 1 if its mixture is nearest to its own images' mean.

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
    return {name: (int(rank), len(names)) for name, rank in zip(names, ranks, strict=True)}


def unit(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Rows [n, D] of length one; zero rows stay zero."""
    rows = np.nan_to_num(np.asarray(rows, np.float64))
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _card(
    name: str,
    seen: list[str],
    content: Arrays,
    row: int,
    pictures: ClassPictures,
    rank: tuple[int, int] | None,
) -> str:
    weights = content["smo"][row]
    terms = terms_of(weights)
    top = max([abs(float(weights[s])) for s in terms], default=1.0)
    parts = "".join(
        _term(seen[s], float(weights[s]), top, pictures, first=k == 0) for k, s in enumerate(terms)
    )
    others = [s for s in np.flatnonzero(np.abs(weights) >= SMALLEST) if s not in terms]
    if others:
        share = number(float(weights[others].sum()))
        parts += f'<li class="rest">+ {share} from {len(others)} more</li>'
    notes = []
    if rank is not None:
        notes.append(f"Check by its own images: {_ordinal(rank[0])}nearest of {rank[1]} unseen")
    if "residual" in content:
        notes.append(f"Distance left between the words: {number(content['residual'][row])}")
    if "wavg" in content:
        average = ", ".join(esc(seen[s]) for s in terms_of(content["wavg"][row])[:3])
        notes.append(f"Nearest by name: {average}")
    note = f"<p>{''.join(f'<span>{each}</span>' for each in notes)}</p>" if notes else ""
    return (
        f'<article class="relation"><div class="unseen">{pictures.tag(name, "big")}'
        f'<h3>{esc(name)}</h3></div><div><ul class="terms">{parts}</ul>{note}</div></article>'
    )


def _ordinal(rank: int) -> str:
    """Nothing for 1, then "2nd ", "3rd ", "11th " and so on."""
    if rank == 1:
        return ""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}th " if rank % 100 in (11, 12, 13) else f"{rank}{ending} "


def _term(name: str, weight: float, top: float, pictures: ClassPictures, *, first: bool) -> str:
    sign = MINUS if weight < 0 else "" if first else "+"
    sign = f"= {sign}" if first else sign
    return (
        f'<li><span class="sign">{sign}</span><div>{pictures.tag(name)}'
        f'<i class="weight" style="--v:{100 * abs(weight) / top:.0f}%"></i>'
        f"<b>{abs(weight):.2f}</b> <span class=name>{esc(name)}</span></div></li>"
    )
