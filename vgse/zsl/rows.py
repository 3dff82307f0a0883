"""The rows of the table: where the class embeddings of each come from.

A row predicts the unseen classes of whatever fold it is asked for, from the seen classes of that
fold only, so that validation meets the same difficulty as the final table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vgse.config import RelationConfig
from vgse.relations import Relations, solve_relations, weighted_average
from vgse.zsl.data import Indices

Embeddings = NDArray[np.float64]
Blocks = list[Embeddings]


@dataclass(frozen=True)
class RowInputs:
    """What the rows of a fold are made from; NaN where a class may not be looked at."""

    seen: Indices  # [S]
    unseen: Indices  # [U]
    own: Embeddings  # [C, D_v] embeddings of every class from its own images
    words: Embeddings | None = None  # [C, D_w] centred, unit length
    image_means: Embeddings | None = None  # [C, D_f] means of whole-image features
    solve: Callable[..., Relations] = solve_relations

    def of_classes(self, table: Embeddings | None) -> Embeddings:
        """[S + U, D] rows of the fold's classes."""
        assert table is not None, "rows are left out where what they need is missing"
        return table[np.concatenate([self.seen, self.unseen])]

    def words_of_unseen_and_seen(self) -> tuple[Embeddings, Embeddings]:
        """[U, D_w] and [S, D_w], as relations take them."""
        words = self.of_classes(self.words)
        return words[len(self.seen) :], words[: len(self.seen)]


@dataclass(frozen=True)
class Row:
    """A row of the table; `group` is baseline, ours, control or oracle."""

    name: str
    label: str
    group: str
    embed: Callable[[RowInputs], Blocks]
    """inputs -> blocks [S + U, D_e], to be normalised and then concatenated."""


def _smo(inputs: RowInputs, of_seen: Embeddings, alpha: float, ridge: float) -> Blocks:
    """Φ_unseen = r Φ_seen after Φ_seen `of_seen` [S, D]."""
    weights = inputs.solve(*inputs.words_of_unseen_and_seen(), alpha=alpha, ridge=ridge).weights
    return [np.concatenate([of_seen, weights @ of_seen])]


def smo_row(inputs: RowInputs, alpha: float, ridge: float) -> Blocks:
    """VGSE-SMO."""
    return _smo(inputs, inputs.own[inputs.seen], alpha, ridge)


def wavg_row(inputs: RowInputs, num_neighbours: int, eta: float) -> Blocks:
    """VGSE-WAvg."""
    count, of_seen = min(num_neighbours, len(inputs.seen)), inputs.own[inputs.seen]
    words = inputs.words_of_unseen_and_seen()
    weights = weighted_average(*words, num_neighbours=count, eta=eta)
    return [np.concatenate([of_seen, weights @ of_seen])]


def random_row(inputs: RowInputs, seed: int) -> Blocks:
    """Gaussian vectors, the same for a class in every fold."""
    return [inputs.of_classes(np.random.default_rng(seed).standard_normal(inputs.own.shape))]


def words_row(inputs: RowInputs) -> Blocks:
    """Word vectors as they are."""
    return [inputs.of_classes(inputs.words)]


def own_row(inputs: RowInputs) -> Blocks:
    """Embeddings from each class's own images, unseen ones included."""
    return [inputs.of_classes(inputs.own)]


def derangement(count: int, seed: int) -> Indices:
    """A permutation of 0..count-1 that moves every entry (for count ≥ 2): one random cycle."""
    order = np.random.default_rng(seed).permutation(count)
    moved = np.empty(count, np.int64)
    moved[order] = np.roll(order, 1)
    return moved


def table_rows(relations: RelationConfig, seed: int) -> list[Row]:
    """The rows of the default table in their order."""
    alpha, ridge = relations.alpha, relations.ridge
    smo = partial(smo_row, alpha=alpha, ridge=ridge)
    wavg = partial(wavg_row, num_neighbours=relations.num_neighbours, eta=relations.eta)

    def words_and_smo(inputs: RowInputs) -> Blocks:
        return words_row(inputs) + smo(inputs)

    def one_hot(inputs: RowInputs) -> Blocks:
        return _smo(inputs, np.eye(len(inputs.seen)), alpha, ridge)

    def image_means(inputs: RowInputs) -> Blocks:
        return _smo(inputs, image_oracle(inputs)[0][: len(inputs.seen)], alpha, ridge)

    def permuted(inputs: RowInputs) -> Blocks:  # has to fail
        (block,) = smo(inputs)
        num_seen = len(inputs.seen)
        moved = num_seen + derangement(len(inputs.unseen), seed)
        return [block[np.concatenate([np.arange(num_seen), moved])]]

    def image_oracle(inputs: RowInputs) -> Blocks:
        return [inputs.of_classes(inputs.image_means)]

    return [
        Row("random", "random vectors", "baseline", partial(random_row, seed=seed)),
        Row("words", "word vectors", "baseline", words_row),
        Row("wavg", "VGSE-WAvg", "ours", wavg),
        Row("smo", "VGSE-SMO", "ours", smo),
        Row("smo_negative", "VGSE-SMO, alpha = -1", "ours", partial(smo, alpha=-1.0)),
        Row("words_smo", "words + VGSE-SMO", "ours", words_and_smo),
        Row("onehot_smo", "no vision: one-hot + SMO", "control", one_hot),
        Row("image_smo", "no clusters: image means + SMO", "control", image_means),
        Row("permuted", "VGSE-SMO, unseen rows permuted", "control", permuted),
        Row("oracle", "VGSE, own images", "oracle", own_row),
        Row("image_oracle", "image means, own images", "oracle", image_oracle),
    ]


def external_rows(with_words: bool, seed: int) -> list[Row]:
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
    ready = []
    for block in blocks:
        rows = _normalised(np.asarray(block, np.float64), num_seen, normalise)
        length = np.sqrt(np.mean(np.square(rows[:num_seen]).sum(1)))
        ready.append(rows / length if length > 0 else rows)
    return np.concatenate(ready, 1)


def _normalised(block: Embeddings, num_seen: int, normalise: str) -> Embeddings:
    if normalise == "none":
        return block
    if normalise == "z":
        spread = block[:num_seen].std(0)
        # A dimension that all seen classes share up to rounding says nothing.
        flat = spread <= 1e-9 * np.abs(block[:num_seen]).max(initial=1e-300)
        block = (block - block[:num_seen].mean(0)) / np.where(flat, np.inf, spread)
    lengths = np.linalg.norm(block, axis=1, keepdims=True)
    return block / np.where(lengths > 0, lengths, 1)
