"""From own embeddings and word vectors to relations, and to embeddings of unseen classes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgse.config import RelationConfig
from vgse.formats import ClassEmbeddings, Indices
from vgse.relations import Relations, solve_relations, weighted_average

_SUPPORT = 1e-6


@dataclass(frozen=True)
class Related:
    """The relations of all unseen classes to all seen ones, in each of the three ways."""

    smo: Relations  # at the configured alpha
    smo_negative: Relations  # at alpha = -1
    wavg: NDArray[np.float64]  # [U, S]


def relate(
    word_vectors: NDArray[np.floating],
    seen: Indices,
    unseen: Indices,
    config: RelationConfig,
    solve: Callable[..., Relations] = solve_relations,
) -> Related:
    """Solves the relations of `unseen` [U] to `seen` [S], both rows of `word_vectors` [C, D_w].

    `solve` takes and returns what `solve_relations` does.
    """
    of_unseen, of_seen = word_vectors[unseen], word_vectors[seen]
    smo = solve(of_unseen, of_seen, alpha=config.alpha, ridge=config.ridge)
    negative = smo
    if config.alpha != -1:
        negative = solve(of_unseen, of_seen, alpha=-1.0, ridge=config.ridge)
    count = min(config.num_neighbours, len(seen))
    wavg = weighted_average(of_unseen, of_seen, num_neighbours=count, eta=config.eta)
    return Related(smo, negative, wavg)


def predict_unseen(
    own_embeddings: NDArray[np.floating], related: Related, seen: Indices, unseen: Indices
) -> NDArray[np.float32]:
    """[C, D_v]: `own_embeddings` with the rows of `unseen` replaced by r Φ_seen."""
    embeddings = np.array(own_embeddings, np.float32)
    embeddings[unseen] = related.smo.weights @ own_embeddings[seen].astype(np.float64)
    return embeddings


def relation_summary(related: Related, alpha: float) -> dict[str, Any]:
    """The key `relations` of evaluation.json: how good the solutions of SMO are."""
    support = (np.abs(related.smo.weights) > _SUPPORT).sum(1)
    return {
        "alpha": alpha,
        "max_gap": float(related.smo.gap.max()),
        "max_violation": float(related.smo.violation.max()),
        "fallbacks": int(related.smo.fallback.sum()),
        "median_support": float(np.median(support)),
    }


def relation_arrays(classes: ClassEmbeddings, related: Related) -> dict[str, NDArray[Any]]:
    """The arrays of relations.npz."""
    names = np.array(classes.class_names)
    return {
        "seen": names[classes.seen],
        "unseen": names[classes.unseen],
        "smo": related.smo.weights,
        "smo_negative": related.smo_negative.weights,
        "wavg": related.wavg,
        "residual": related.smo.residual,
        "gap": related.smo.gap,
    }
