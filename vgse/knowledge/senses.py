"""Which senses of its noun a class has: those whose relatives are its relatives by word vectors.

The commonest sense of a word is often not the one that is in the pictures: WordNet has `leopard`
first of all as a pelt, `shrew` as a woman and `turtle` as a collar. Among the other classes of the
data, a sense of the right kind shares ancestors with those that the name's word vector is near to.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from vgse.knowledge.hierarchy import ancestor_weights, information_content
from vgse.knowledge.sparse_rows import table_of
from vgse.knowledge.words import normalise_words

FEWEST_RELATIVES = 10  # seen classes: a correlation over fewer says nothing
_ROWS = 512  # senses that are compared at a time
_EQUAL = 1e-9  # variance, as a share of the mean square, that is rounding

F64 = NDArray[np.float64]
Weights = dict[int, float]


def weigh_senses(
    senses: Mapping[str, Sequence[int]],
    parents: Callable[[int], Sequence[int]],
    word_vectors: Mapping[str, NDArray[np.floating]],
    seen: Collection[str],
    *,
    sense_decay: float,
    decay: float,
    agreement: float,
) -> dict[str, Weights]:
    """Class -> its senses and their weights, the best first at 1.

    Sense i (from 0) has the weight sense_decay^i · exp(agreement · ρ), divided by the largest: ρ is
    Pearson's correlation, over the other seen classes, of what their ancestors share with the
    sense's and of the cosine of the word vectors. It is 0 where a class has no word vector, and
    where fewer than `FEWEST_RELATIVES` seen classes have one. Only names take part, and of other
    classes only seen ones.
    """
    prior = {
        name: {number: sense_decay**i for i, number in enumerate(dict.fromkeys(numbers))}
        for name, numbers in senses.items()
    }
    context = [name for name in prior if name in seen and name in word_vectors]
    ambiguous = [name for name in prior if len(prior[name]) > 1 and name in word_vectors]
    if not agreement or not ambiguous or len(context) < FEWEST_RELATIVES:
        return prior
    counts = [len(prior[name]) for name in ambiguous]
    rows, of_context = _ancestor_tables(
        [{number: 1.0} for name in ambiguous for number in prior[name]],
        [prior[name] for name in context],
        lambda starts: ancestor_weights(starts, parents, decay),
    )
    vectors = np.array([np.ravel(word_vectors[name]) for name in [*context, *ambiguous]])
    units = normalise_words(vectors, np.arange(len(context)))
    at = {name: i for i, name in enumerate(context)}
    rho = _correlations(
        *(rows, of_context, units[len(context) :], units[: len(context)]),
        of_class=np.repeat(np.arange(len(ambiguous)), counts),
        own=np.array([at.get(name, -1) for name in ambiguous]),
    )
    found = dict(prior)
    for name, agreements in zip(ambiguous, np.split(rho, np.cumsum(counts)[:-1]), strict=True):
        numbers, weights = list(prior[name]), np.array(list(prior[name].values()), float)
        weights *= np.exp(agreement * agreements)
        order = np.argsort(-weights, kind="stable")
        found[name] = {numbers[i]: float(weights[i] / weights.max()) for i in order}
    return found


def _ancestor_tables(
    senses: Sequence[Weights], context: Sequence[Weights], ancestors: Callable[[Weights], Weights]
) -> tuple[csr_array, csr_array]:
    """[P, N] and [S, N], whose inner products are the cosines of senses and classes by the
    information content of their ancestors, up to a factor for each sense."""
    of_context = [ancestors(starts) for starts in context]
    columns = sorted({node for row in of_context for node in row})
    at = {node: i for i, node in enumerate(columns)}
    rows, table = (
        table_of([{at[n]: value for n, value in row.items() if n in at} for row in part], len(at))
        for part in (list(map(ancestors, senses)), of_context)
    )
    common = np.bincount(table.indices, minlength=len(columns))
    content = information_content(common, len(context))
    lengths = np.sqrt((table * table) @ content)
    table.data *= content[table.indices]
    return rows, diags_array(1 / np.maximum(lengths, 1e-6)) @ table


def _correlations(
    rows: csr_array,
    context: csr_array,
    vectors: F64,
    of_context: F64,
    *,
    of_class: NDArray[np.integer],
    own: NDArray[np.integer],
) -> F64:
    """[P] correlations, over the context's S classes, of x = `rows` [P, N] `context`ᵀ [N, S] with
    y = `vectors` [A, D] `of_context`ᵀ [D, S] at row `of_class` [P]; 0 where one is constant.

    `own` [A] are the classes' places in the context, which do not count for themselves, or -1.
    x and y would take gigabytes with 20,000 classes; their sums and products need neither.
    """
    among = own >= 0
    y = np.where(among, np.einsum("ad,ad->a", vectors, of_context[own]), 0.0)
    sum_y = vectors @ of_context.sum(0) - y
    sum_yy = np.einsum("ad,ad->a", vectors @ (of_context.T @ of_context), vectors) - y * y
    y, sum_y, sum_yy, among, own = (part[of_class] for part in (y, sum_y, sum_yy, among, own))
    x = np.where(among, (rows * context[own]).sum(1), 0.0)
    sum_x = rows @ context.sum(0) - x
    sum_xx, sum_xy = -x * x, -x * y
    squares, products = context.T @ context, context.T @ of_context
    for first in range(0, len(x), _ROWS):
        part = slice(first, first + _ROWS)
        nodes = np.unique(rows[part].indices)  # the product is dense: it has few of its columns
        block = rows[part][:, nodes]
        sum_xx[part] += (block @ squares[nodes][:, nodes] * block).sum(1)
        sum_xy[part] += np.einsum("pd,pd->p", rows[part] @ products, vectors[of_class[part]])
    n = len(of_context) - among
    of_x, of_y = sum_xx - sum_x**2 / n, sum_yy - sum_y**2 / n
    varies = (of_x > _EQUAL * sum_xx) & (of_y > _EQUAL * sum_yy)
    return np.asarray((sum_xy - sum_x * sum_y / n) / np.sqrt(np.where(varies, of_x * of_y, np.inf)))
