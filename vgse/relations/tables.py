"""Relations from tables of one's own: embeddings of seen classes and knowledge as arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vgse.config import RelationConfig
from vgse.errors import UserError
from vgse.formats import Indices
from vgse.knowledge.sources import Knowledge, Source, centred_unit_rows
from vgse.relations import Relations, solve_relations
from vgse.relations.predict import choose_knowledge

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class ClassRelation:
    """Unseen classes as mixtures of seen ones, with what was chosen to find them."""

    embeddings: F64  # [U, D_v] r Φ_seen
    relations: Relations  # r [U, S] as `weights`, with the certificate of each row
    source_weights: dict[str, float]
    ridge: float
    criterion: float | None  # leave-out cosine of the choice; None where nothing was chosen
    warning: str | None


def relate_classes(
    embeddings: NDArray[np.floating],
    knowledge: Mapping[str, NDArray[np.floating]],
    seen: Indices,
    unseen: Indices,
    *,
    alpha: float = 0.0,
    ridge: float | Literal["auto"] = "auto",
    seed: int = 0,
) -> ClassRelation:
    """VGSE-SMO for embeddings and knowledge of one's own.

    Args:
        embeddings: Φ_seen [S, D_v], rows in the order of `seen`.
        knowledge: source -> [C, D] rows of all classes, zero where it says nothing of a class.
        seen: [S] rows of the seen classes in the tables of `knowledge`.
        unseen: [U].
        alpha: smallest weight of a seen class.
        ridge: relative ridge of the quadratic program; auto chooses it on seen classes.
        seed: of the folds of the choice.
    """
    sources = [Source(name, np.asarray(rows, np.float64), None) for name, rows in knowledge.items()]
    if not sources:
        raise UserError("knowledge is empty; give at least one table [C, D], such as word vectors")
    for source in sources:
        if source.rows.ndim != 2 or not np.isfinite(source.rows).all():
            raise UserError(f"knowledge of {source.name}: give finite numbers of shape [C, D]")
    sizes = {len(source.rows) for source in sources}
    seen, unseen = np.asarray(seen, np.int64), np.asarray(unseen, np.int64)
    used = np.concatenate([seen, unseen])
    inside = 0 <= used.min() <= used.max() < min(sizes)
    if len(sizes) > 1 or len(np.unique(used)) < len(used) or not inside:
        raise UserError(
            f"seen and unseen must be different rows of every table; they have {sorted(sizes)} rows"
        )
    if len(embeddings) != len(seen) or not np.isfinite(embeddings).all():
        raise UserError(f"embeddings: give {len(seen)} finite rows, one a seen class")
    phi = np.asarray(embeddings, np.float64)
    order = np.argsort(seen)  # folds are drawn over classes in this order
    table = Knowledge([str(c) for c in range(sizes.pop())], sources)
    chosen = choose_knowledge(
        *(table, centred_unit_rows(sources[0].rows, seen), seen[order], phi[order]),
        *(RelationConfig(alpha=alpha, ridge=ridge), seed),
    )
    vectors, choice = chosen.vectors, chosen.selection
    relations = solve_relations(vectors[unseen], vectors[seen], alpha=alpha, ridge=chosen.ridge)
    weights = choice.weights if choice else (1.0,) * len(sources)
    return ClassRelation(
        relations.weights @ phi,
        relations,
        dict(zip(knowledge, weights, strict=True)),
        chosen.ridge,
        choice.criterion if choice else None,
        choice.warning if choice else None,
    )
