"""From what is known of class names to relations, and to embeddings of unseen classes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vgse.config import RelationConfig
from vgse.errors import UserError
from vgse.formats import ClassEmbeddings, Indices
from vgse.knowledge.sources import (
    Knowledge,
    Source,
    centred_unit_rows,
    combine_blocks,
    source_blocks,
)
from vgse.relations import Relations, solve_relations, weighted_average
from vgse.relations.select import MAX_CLASSES, Selection, Setting, select_relation

F64 = NDArray[np.float64]

PAPER_RIDGE = 1e-8
_VERSION = 3  # of what a choice means: 2 took the best cosine, without its margin
FOLD_CLASSES = 400  # by which a relation is chosen in a validation fold: there are several
_SUPPORT = 1e-6


@dataclass(frozen=True)
class ChosenKnowledge:
    """What relations are solved on, within the seen classes of one problem."""

    vectors: F64  # [C, D_k]
    ridge: float
    selection: Selection | None = None  # None where nothing was to be chosen


def choose_knowledge(
    knowledge: Knowledge,
    words: NDArray[np.floating],
    seen: Indices,
    embeddings: NDArray[np.floating],
    config: RelationConfig,
    seed: int,
    *,
    earlier: Mapping[str, Any] | None = None,
    max_classes: int = MAX_CLASSES,
) -> ChosenKnowledge:
    """The sources with the weights and the ridge that do best on seen classes left out.

    Word vectors alone with a ridge that is given stay as the paper takes them, `words`.

    Args:
        knowledge: of all C classes.
        words: [C, D_w] word vectors, centred and at unit length.
        seen: [S]; no other class takes part in the choice.
        embeddings: Φ_seen [S, D_v], from the seen classes' training images.
        config: alpha, and the ridge where it is given.
        seed: of the folds.
        earlier: a `selection_summary`, which is taken where it answers the same question.
        max_classes: seen classes that take part at most.
    """
    if knowledge.words_alone and config.ridge != "auto":
        return ChosenKnowledge(np.asarray(words, np.float64), float(config.ridge))
    blocks = source_blocks(knowledge, seen)
    question = _question(knowledge, config, seed)
    if earlier is not None and earlier.get("question") == question:
        selection = _read_selection(earlier)
    else:
        selection = select_relation(
            np.asarray(embeddings, np.float32),  # as the run folder holds them
            [block[seen] for block in blocks],
            weights=[source.weight for source in knowledge.sources],
            ridge=None if config.ridge == "auto" else float(config.ridge),
            alpha=config.alpha,
            seed=seed,
            max_classes=max_classes,
        )
    vectors = combine_blocks(blocks, selection.weights, seen)
    return ChosenKnowledge(vectors, selection.ridge, selection)


def _question(knowledge: Knowledge, config: RelationConfig, seed: int) -> dict[str, Any]:
    weights = [source.weight for source in knowledge.sources]
    asked = {"alpha": config.alpha, "ridge": config.ridge, "weights": weights, "seed": seed}
    return {"version": _VERSION, **asked}


def selection_summary(
    knowledge: Knowledge, chosen: ChosenKnowledge, config: RelationConfig, seed: int
) -> dict[str, Any]:
    """The contents of relations.json: the choice, its curve and the control."""
    names = [source.name for source in knowledge.sources]
    content: dict[str, Any] = {
        "version": 1,
        "sources": names,
        "question": _question(knowledge, config, seed),
        "ridge": chosen.ridge,
        "weights": [1.0] * len(names),
        "warning": None,
        "curve": [],
    }
    if chosen.selection is not None:
        content |= asdict(chosen.selection)
        content["weights"] = list(chosen.selection.weights)
    return content


def _read_selection(content: Mapping[str, Any]) -> Selection:
    curve = [Setting(**{**row, "weights": tuple(row["weights"])}) for row in content["curve"]]
    numbers = ("ridge", "criterion", "standard_error", "permuted", "permuted_best")
    return Selection(
        weights=tuple(content["weights"]),
        curve=curve,
        num_problems=content["num_problems"],
        warning=content["warning"],
        **{name: content[name] for name in numbers},
    )


def words_criterion(summary: Mapping[str, Any]) -> float | None:
    """The best criterion of the word vectors alone in a `selection_summary`."""
    if "words" not in summary["sources"]:
        return None
    at = summary["sources"].index("words")
    alone = [
        row["criterion"]
        for row in summary["curve"]
        if all((weight > 0) == (i == at) for i, weight in enumerate(row["weights"]))
    ]
    return max(alone, default=None)


def selection_line(summary: Mapping[str, Any]) -> str:
    """The choice in one line, such as "words 1 : WordNet 2, ridge 0.1, …"."""
    pairs = zip(summary["sources"], summary["weights"], strict=True)
    text = " : ".join(f"{name} {weight:g}" for name, weight in pairs)
    text += f", ridge {summary['ridge']:g}"
    if not summary["curve"]:
        return text
    notes = [f"chance {summary['permuted_best']:.2f}"]
    words = words_criterion(summary)
    if words is not None and len(summary["sources"]) > 1:
        notes.insert(0, f"words alone {words:.3f}")
    return f"{text}, leave-out cosine {summary['criterion']:.3f} ({', '.join(notes)})"


@dataclass(frozen=True)
class Related:
    """The relations of all unseen classes to all seen ones."""

    smo: Relations  # of the chosen knowledge, at its ridge and the configured alpha
    paper: Relations  # of the word vectors at alpha = 0, the ridge only breaking ties
    paper_negative: Relations  # at alpha = -1
    wavg: F64  # [U, S], rows summing to 1


def relate(
    chosen: ChosenKnowledge,
    words: NDArray[np.floating],
    seen: Indices,
    unseen: Indices,
    config: RelationConfig,
    solve: Callable[..., Relations] = solve_relations,
) -> Related:
    """Solves the relations of `unseen` [U] to `seen` [S]; `words` is [C, D_w].

    `solve` takes and returns what `solve_relations` does.
    """
    of_unseen, of_seen = words[unseen], words[seen]
    vectors = chosen.vectors
    count = min(config.num_neighbours, len(seen))
    return Related(
        solve(vectors[unseen], vectors[seen], alpha=config.alpha, ridge=chosen.ridge),
        solve(of_unseen, of_seen, alpha=0.0, ridge=PAPER_RIDGE),
        solve(of_unseen, of_seen, alpha=-1.0, ridge=PAPER_RIDGE),
        weighted_average(of_unseen, of_seen, num_neighbours=count, eta=config.eta),
    )


def paper_wavg(
    unseen: NDArray[np.floating], seen: NDArray[np.floating], config: RelationConfig
) -> F64:
    """[U, S] of VGSE-WAvg as the table has it, rows not divided by their sum."""
    count = min(config.num_neighbours, len(seen))
    return weighted_average(unseen, seen, num_neighbours=count, eta=config.eta, divided=False)


def predict_unseen(
    own_embeddings: NDArray[np.floating], related: Related, seen: Indices, unseen: Indices
) -> NDArray[np.float32]:
    """[C, D_v]: `own_embeddings` with the rows of `unseen` replaced by r Φ_seen."""
    embeddings = np.array(own_embeddings, np.float32)
    embeddings[unseen] = related.smo.weights @ own_embeddings[seen].astype(np.float64)
    return embeddings


def predict_in_turns(
    knowledge: Knowledge,
    words: NDArray[np.floating],
    seen: Indices,
    turns: Sequence[Indices],
    own: NDArray[np.floating],
    config: RelationConfig,
    seed: int,
) -> tuple[F64, list[ChosenKnowledge]]:
    """[C, D_v] seen classes as predicted by the others where it is their turn to be unseen, NaN for
    all other classes, and what was chosen in each fold.

    `turns` are the classes of each fold; `own` is [C, D_v], `words` [C, D_w].
    """
    predicted = np.full(own.shape, np.nan)
    choices = []
    for unseen in turns:
        rest = np.setdiff1d(seen, unseen)
        chosen = choose_knowledge(
            *(knowledge, words, rest, own[rest], config, seed), max_classes=FOLD_CLASSES
        )
        vectors, options = chosen.vectors, {"alpha": config.alpha, "ridge": chosen.ridge}
        weights = solve_relations(vectors[unseen], vectors[rest], **options).weights
        predicted[unseen] = weights @ own[rest].astype(np.float64)
        choices.append(chosen)
    return predicted, choices


def relation_summary(relations: Relations, alpha: float) -> dict[str, Any]:
    """The key `relations` of evaluation.json: how good the solutions of SMO are."""
    support = (np.abs(relations.weights) > _SUPPORT).sum(1)
    return {
        "alpha": alpha,
        "max_gap": float(relations.gap.max()),
        "max_violation": float(relations.violation.max()),
        "fallbacks": int(relations.fallback.sum()),
        "median_support": float(np.median(support)),
    }


def relation_arrays(classes: ClassEmbeddings, related: Related) -> dict[str, NDArray[Any]]:
    """The arrays of relations.npz."""
    names = np.array(classes.class_names)
    return {
        "seen": names[classes.seen],
        "unseen": names[classes.unseen],
        "smo": related.smo.weights,
        "paper_smo": related.paper.weights,
        "smo_negative": related.paper_negative.weights,
        "wavg": related.wavg,
        "residual": related.smo.residual,
        "gap": related.smo.gap,
    }


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
    tables = {name: np.asarray(rows, np.float64) for name, rows in knowledge.items()}
    if not tables:
        raise UserError("knowledge is empty; give at least one table [C, D], such as word vectors")
    for name, rows in tables.items():
        if rows.ndim != 2 or not np.isfinite(rows).all():
            raise UserError(f"knowledge of {name}: give finite numbers of shape [C, D]")
    sources = [Source(name, rows, None) for name, rows in tables.items()]
    sizes = {len(rows) for rows in tables.values()}
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
        *(table, centred_unit_rows(next(iter(tables.values())), seen), seen[order], phi[order]),
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
