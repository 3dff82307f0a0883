"""The rows of the table: where the class embeddings of each come from.

A row predicts the unseen classes of whatever fold it is asked for, from the seen classes of that
fold only, so that validation meets the same difficulty as the final table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgse.config import RelationConfig
from vgse.errors import UserError
from vgse.relations import Relations, solve_relations, weighted_average
from vgse.zsl.data import Indices

Embeddings = NDArray[np.float64]
Blocks = list[Embeddings]


@dataclass(frozen=True)
class RowInputs:
    """What rows are made from, each with a row a class; NaN where a class may not be looked at."""

    own: Embeddings  # [C, D_v] embeddings of every class from its own images
    words: Embeddings | None  # [C, D_w] centred, unit length
    image_means: Embeddings | None  # [C, D_f] means of whole-image features
    solve: Callable[..., Relations] = solve_relations


Embed = Callable[[RowInputs, Indices, Indices], Blocks]
"""(inputs, seen [S], unseen [U]) -> blocks [S + U, D_e], to be normalised and then concatenated."""


@dataclass(frozen=True)
class Row:
    """A row of the table; `group` is baseline, ours, control or oracle."""

    name: str
    label: str
    group: str
    embed: Embed


def _words(inputs: RowInputs) -> Embeddings:
    assert inputs.words is not None, "rows that need word vectors are left out where there are none"
    return inputs.words


def _image_means(inputs: RowInputs) -> Embeddings:
    assert inputs.image_means is not None, "rows of image means need image features"
    return inputs.image_means


def _smo_weights(
    inputs: RowInputs, seen: Indices, unseen: Indices, alpha: float, ridge: float
) -> Embeddings:
    words = _words(inputs)
    return inputs.solve(words[unseen], words[seen], alpha=alpha, ridge=ridge).weights


def _predicted(weights: Embeddings, of_seen: Embeddings) -> Embeddings:
    return np.concatenate([of_seen, weights @ of_seen])  # Φ_unseen = r Φ_seen


def random_row(inputs: RowInputs, seen: Indices, unseen: Indices, seed: int) -> Blocks:
    """Gaussian vectors, the same for a class in every fold."""
    vectors = np.random.default_rng(seed).standard_normal(inputs.own.shape)
    return [vectors[np.concatenate([seen, unseen])]]


def words_row(inputs: RowInputs, seen: Indices, unseen: Indices) -> Blocks:
    """Word vectors as they are."""
    return [_words(inputs)[np.concatenate([seen, unseen])]]


def own_row(inputs: RowInputs, seen: Indices, unseen: Indices) -> Blocks:
    """Embeddings from each class's own images, unseen ones included."""
    return [inputs.own[np.concatenate([seen, unseen])]]


def own_images_row(inputs: RowInputs, seen: Indices, unseen: Indices) -> Blocks:
    """Means of each class's own image features, unseen ones included."""
    return [_image_means(inputs)[np.concatenate([seen, unseen])]]


def smo_row(
    inputs: RowInputs, seen: Indices, unseen: Indices, alpha: float, ridge: float
) -> Blocks:
    """Unseen classes by the semantic relations of the least squares problem (SMO)."""
    weights = _smo_weights(inputs, seen, unseen, alpha, ridge)
    return [_predicted(weights, inputs.own[seen])]


def wavg_row(
    inputs: RowInputs, seen: Indices, unseen: Indices, num_neighbours: int, eta: float
) -> Blocks:
    """Unseen classes as weighted averages of their nearest seen classes (WAvg)."""
    words = _words(inputs)
    count = min(num_neighbours, len(seen))
    weights = weighted_average(words[unseen], words[seen], num_neighbours=count, eta=eta)
    return [_predicted(weights, inputs.own[seen])]


def words_smo_row(
    inputs: RowInputs, seen: Indices, unseen: Indices, alpha: float, ridge: float
) -> Blocks:
    """Word vectors beside SMO, each a block of the same weight."""
    return words_row(inputs, seen, unseen) + smo_row(inputs, seen, unseen, alpha, ridge)


def onehot_smo_row(
    inputs: RowInputs, seen: Indices, unseen: Indices, alpha: float, ridge: float
) -> Blocks:
    """No vision at all: every seen class its own dimension, unseen classes by SMO."""
    return [_predicted(_smo_weights(inputs, seen, unseen, alpha, ridge), np.eye(len(seen)))]


def image_smo_row(
    inputs: RowInputs, seen: Indices, unseen: Indices, alpha: float, ridge: float
) -> Blocks:
    """No clusters: seen classes as means of image features, unseen classes by SMO."""
    weights = _smo_weights(inputs, seen, unseen, alpha, ridge)
    return [_predicted(weights, _image_means(inputs)[seen])]


def permuted_row(
    inputs: RowInputs, seen: Indices, unseen: Indices, alpha: float, ridge: float, seed: int
) -> Blocks:
    """SMO with every unseen row given to another unseen class: has to fail."""
    (block,) = smo_row(inputs, seen, unseen, alpha, ridge)
    moved = len(seen) + derangement(len(unseen), seed)
    return [block[np.concatenate([np.arange(len(seen)), moved])]]


def derangement(count: int, seed: int) -> Indices:
    """A permutation of 0..count-1 that moves every entry (for count ≥ 2): one random cycle."""
    order = np.random.default_rng(seed).permutation(count)
    moved = np.empty(count, np.int64)
    moved[order] = np.roll(order, 1)
    return moved


def table_rows(relations: RelationConfig, seed: int) -> list[Row]:
    """The rows of the default table in their order."""
    smo: dict[str, Any] = {"alpha": relations.alpha, "ridge": relations.ridge}
    negative: dict[str, Any] = {"alpha": -1.0, "ridge": relations.ridge}
    wavg: dict[str, Any] = {"num_neighbours": relations.num_neighbours, "eta": relations.eta}
    return [
        Row("random", "random vectors", "baseline", partial(random_row, seed=seed)),
        Row("words", "word vectors", "baseline", words_row),
        Row("wavg", "VGSE-WAvg", "ours", partial(wavg_row, **wavg)),
        Row("smo", "VGSE-SMO", "ours", partial(smo_row, **smo)),
        Row("smo_negative", "VGSE-SMO, alpha = -1", "ours", partial(smo_row, **negative)),
        Row("words_smo", "words + VGSE-SMO", "ours", partial(words_smo_row, **smo)),
        Row("onehot_smo", "no vision: one-hot + SMO", "control", partial(onehot_smo_row, **smo)),
        Row(
            "image_smo", "no clusters: image means + SMO", "control", partial(image_smo_row, **smo)
        ),
        Row(
            "permuted",
            "VGSE-SMO, unseen rows permuted",
            "control",
            partial(permuted_row, **smo, seed=seed),
        ),
        Row("oracle", "VGSE, own images", "oracle", own_row),
        Row("image_oracle", "image means, own images", "oracle", own_images_row),
    ]


def given_rows(with_words: bool, seed: int) -> list[Row]:
    """The rows for embeddings from elsewhere, which stand in `RowInputs.own`."""
    rows = [Row("random", "random vectors", "baseline", partial(random_row, seed=seed))]
    if with_words:
        rows.append(Row("words", "word vectors", "baseline", words_row))
    return [*rows, Row("given", "the given embeddings", "ours", own_row)]


def assembled(blocks: Blocks, num_seen: int, normalise: str) -> Embeddings:
    """[S + U, D_e]: blocks normalised, brought to the same mean length, and concatenated.

    `normalise` is "none", "l2" (unit rows) or "z" (z-scores of each dimension over the fold's
    seen classes, then unit rows: an unseen class may be far outside in a dimension that hardly
    varies among seen ones). Blocks are scaled as a whole, so that of two blocks none rules.
    """
    return np.concatenate(
        [_same_weight(_normalised(b, num_seen, normalise), num_seen) for b in blocks], 1
    )


def _normalised(block: Embeddings, num_seen: int, normalise: str) -> Embeddings:
    block = np.asarray(block, np.float64)
    if normalise == "none":
        return block
    if normalise == "z":
        spread = block[:num_seen].std(0)
        # A dimension that all seen classes share up to rounding says nothing.
        flat = spread <= 1e-9 * np.abs(block[:num_seen]).max(initial=1e-300)
        block = (block - block[:num_seen].mean(0)) / np.where(flat, np.inf, spread)
    elif normalise != "l2":
        raise UserError(f"evaluation.normalise is {normalise!r}: choose none, l2 or z")
    lengths = np.linalg.norm(block, axis=1, keepdims=True)
    return block / np.where(lengths > 0, lengths, 1)


def _same_weight(block: Embeddings, num_seen: int) -> Embeddings:
    length = np.sqrt(np.mean(np.square(block[:num_seen]).sum(1)))
    return block / length if length > 0 else block
