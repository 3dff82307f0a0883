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
from vgse.relations.predict import PAPER_RIDGE, ChosenKnowledge
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
    chosen: ChosenKnowledge | None = None  # within `seen`

    def of_classes(self, table: Embeddings | None) -> Embeddings:
        """[S + U, D] rows of the fold's classes."""
        assert table is not None, "rows are left out where what they need is missing"
        return table[np.concatenate([self.seen, self.unseen])]

    def words_of_unseen_and_seen(self) -> tuple[Embeddings, Embeddings]:
        """[U, D_w] and [S, D_w], as relations take them."""
        return self._unseen_and_seen(self.words)

    def relation(self, alpha: float) -> Embeddings:
        """r [U, S] on the chosen knowledge with the chosen ridge."""
        assert self.chosen is not None, "rows are left out where what they need is missing"
        vectors = self._unseen_and_seen(self.chosen.vectors)
        return self.solve(*vectors, alpha=alpha, ridge=self.chosen.ridge).weights

    def _unseen_and_seen(self, table: Embeddings | None) -> tuple[Embeddings, Embeddings]:
        rows = self.of_classes(table)
        return rows[len(self.seen) :], rows[: len(self.seen)]


@dataclass(frozen=True)
class Row:
    """A row of the table; `group` is baseline, ours, control or oracle."""

    name: str
    label: str
    group: str
    embed: Callable[[RowInputs], Blocks]
    """inputs -> blocks [S + U, D_e], to be normalised and then concatenated."""


def smo_row(inputs: RowInputs, alpha: float) -> Blocks:
    """VGSE-SMO: Φ_unseen = r Φ_seen, r on the chosen knowledge."""
    of_seen = inputs.own[inputs.seen]
    return [np.concatenate([of_seen, inputs.relation(alpha) @ of_seen])]


def paper_smo_row(inputs: RowInputs, alpha: float, ridge: float = PAPER_RIDGE) -> Blocks:
    """VGSE-SMO on the word vectors alone."""
    of_seen, words = inputs.own[inputs.seen], inputs.words_of_unseen_and_seen()
    weights = inputs.solve(*words, alpha=alpha, ridge=ridge).weights
    return [np.concatenate([of_seen, weights @ of_seen])]


def paper_wavg_row(inputs: RowInputs, num_neighbours: int, eta: float) -> Blocks:
    """VGSE-WAvg: φ(u) = Σ exp(-eta ||w_u - w_n||) φ(n) over the nearest seen classes n.

    The distance is Euclidean and the sum is not divided by that of its weights (docs/method.md).
    """
    count, of_seen = min(num_neighbours, len(inputs.seen)), inputs.own[inputs.seen]
    words = inputs.words_of_unseen_and_seen()
    weights = weighted_average(*words, num_neighbours=count, eta=eta, divided=False)
    return [np.concatenate([of_seen, weights @ of_seen])]


def random_row(inputs: RowInputs, seed: int) -> Blocks:
    """Gaussian vectors, the same for a class in every fold."""
    return [inputs.of_classes(np.random.default_rng(seed).standard_normal(inputs.own.shape))]


def words_row(inputs: RowInputs) -> Blocks:
    """Word vectors as they are."""
    return [inputs.of_classes(inputs.words)]


def knowledge_row(inputs: RowInputs) -> Blocks:
    """All that is known of the names, at the chosen weights."""
    assert inputs.chosen is not None, "rows are left out where what they need is missing"
    return [inputs.of_classes(inputs.chosen.vectors)]


def own_row(inputs: RowInputs) -> Blocks:
    """Embeddings from each class's own images, unseen ones included."""
    return [inputs.of_classes(inputs.own)]


def derangement(count: int, seed: int) -> Indices:
    """A permutation of 0..count-1 that moves every entry (for count ≥ 2): one random cycle."""
    order = np.random.default_rng(seed).permutation(count)
    moved = np.empty(count, np.int64)
    moved[order] = np.roll(order, 1)
    return moved


def table_rows(relations: RelationConfig, seed: int, *, words_alone: bool = False) -> list[Row]:
    """The rows of the default table in their order.

    With `words_alone` those that would repeat another are left out: the row of all knowledge, and
    where the relation is given as the paper has it, its own row.
    """
    smo = partial(smo_row, alpha=relations.alpha)
    wavg = partial(paper_wavg_row, num_neighbours=relations.num_neighbours, eta=relations.eta)

    def knowledge_and_smo(inputs: RowInputs) -> Blocks:
        return knowledge_row(inputs) + smo(inputs)

    def one_hot(inputs: RowInputs) -> Blocks:
        return [np.concatenate([np.eye(len(inputs.seen)), inputs.relation(relations.alpha)])]

    def image_means(inputs: RowInputs) -> Blocks:
        of_seen = image_oracle(inputs)[0][: len(inputs.seen)]
        return [np.concatenate([of_seen, inputs.relation(relations.alpha) @ of_seen])]

    def permuted(inputs: RowInputs) -> Blocks:  # has to fail
        (block,) = smo(inputs)
        num_seen = len(inputs.seen)
        moved = num_seen + derangement(len(inputs.unseen), seed)
        return [block[np.concatenate([np.arange(num_seen), moved])]]

    def image_oracle(inputs: RowInputs) -> Blocks:
        return [inputs.of_classes(inputs.image_means)]

    paper, negative = partial(paper_smo_row, alpha=0.0), partial(paper_smo_row, alpha=-1.0)
    both = f"{'words' if words_alone else 'knowledge'} + VGSE-SMO"
    rows = [
        Row("random", "random vectors", "baseline", partial(random_row, seed=seed)),
        Row("words", "word vectors", "baseline", words_row),
        Row("knowledge", "all knowledge of the names", "baseline", knowledge_row),
        Row("paper_wavg", "VGSE-WAvg, paper", "paper", wavg),
        Row("paper_smo", "VGSE-SMO, paper", "paper", paper),
        Row("paper_smo_negative", "VGSE-SMO, paper, alpha = -1", "paper", negative),
        Row("smo", "VGSE-SMO", "ours", smo),
        Row("knowledge_smo", both, "ours", knowledge_and_smo),
        Row("onehot_smo", "no vision: one-hot + SMO", "control", one_hot),
        Row("image_smo", "no clusters: image means + SMO", "control", image_means),
        Row("permuted", "VGSE-SMO, unseen rows permuted", "control", permuted),
        Row("oracle", "VGSE, own images", "oracle", own_row),
        Row("image_oracle", "image means, own images", "oracle", image_oracle),
    ]
    repeated = set()
    if words_alone:
        repeated.add("knowledge")
        same = {0.0: "paper_smo", -1.0: "paper_smo_negative"}.get(relations.alpha)
        if same is not None and relations.ridge == PAPER_RIDGE:
            repeated.add(same)
    return [row for row in rows if row.name not in repeated]


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
