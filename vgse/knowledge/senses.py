"""Which senses of its noun a class has: those whose relatives are its relatives by word vectors.

The commonest sense of a word is often not the one that is in the pictures: WordNet has `leopard`
first of all as a pelt, `shrew` as a woman and `turtle` as a collar. Among the other classes of the
data, a sense of the right kind shares ancestors with those that the name's word vector is near to.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import diags_array

from vgse.knowledge.hierarchy import ancestor_weights
from vgse.knowledge.sparse_rows import table_of

FEWEST_RELATIVES = 10  # seen classes: a correlation over fewer says nothing
_ROWS = 2048  # senses that are compared at a time

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
        name: {number: sense_decay**i for i, number in enumerate(numbers)}
        for name, numbers in senses.items()
    }
    names = list(senses)
    context = [i for i, name in enumerate(names) if name in seen and name in word_vectors]
    ambiguous = [name for name in names if len(senses[name]) > 1 and name in word_vectors]
    if not agreement or not ambiguous or len(context) < FEWEST_RELATIVES:
        return prior
    of_context = [ancestor_weights(prior[names[i]], parents, decay) for i in context]
    of_senses = [
        ancestor_weights({number: 1.0}, parents, decay)
        for name in ambiguous
        for number in senses[name]
    ]
    shared = _shared_ancestors(of_senses, of_context)
    cosines = _cosines(ambiguous, [names[i] for i in context], word_vectors)
    column = {names[i]: at for at, i in enumerate(context)}
    start = 0
    found = dict(prior)
    for name, row in zip(ambiguous, cosines, strict=True):
        numbers = senses[name]
        others = np.arange(len(context)) != column.get(name, -1)
        rho = _correlations(shared[start : start + len(numbers), others], row[others])
        start += len(numbers)
        weights = np.array(list(prior[name].values())) * np.exp(agreement * rho)
        order = np.argsort(-weights, kind="stable")
        found[name] = {numbers[i]: float(weights[i] / weights.max()) for i in order}
    return found


def _shared_ancestors(
    of_senses: Sequence[Mapping[int, float]], of_context: Sequence[Mapping[int, float]]
) -> NDArray[np.float32]:
    """[P, S] cosines of senses and classes by the information content of their ancestors, up to a
    factor for each sense."""
    columns = sorted({node for row in of_context for node in row})
    at = {node: i for i, node in enumerate(columns)}
    rows, context = (
        table_of([{at[n]: value for n, value in row.items() if n in at} for row in part], len(at))
        for part in (of_senses, of_context)
    )
    common = np.bincount(context.indices, minlength=len(columns))
    content = np.log(len(of_context) / np.maximum(common, 1))
    lengths = np.sqrt((context * context) @ content)
    context.data *= content[context.indices]
    scale = diags_array(1 / np.maximum(lengths, 1e-6), dtype=np.float32)
    other = (scale @ context).T.tocsc()
    shared = np.empty((len(of_senses), len(of_context)), np.float32)
    for first in range(0, len(of_senses), _ROWS):
        part = slice(first, first + _ROWS)
        shared[part] = (rows[part] @ other).toarray()
    return shared


def _cosines(
    names: Sequence[str], context: Sequence[str], word_vectors: Mapping[str, NDArray[np.floating]]
) -> F64:
    """[A, S] of word vectors, centred over the context."""
    of_context, of_names = (
        np.array([word_vectors[name] for name in part], np.float64).reshape(len(part), -1)
        for part in (context, names)
    )
    centre = of_context.mean(0)
    units = [
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        for rows in (of_names - centre, of_context - centre)
    ]
    return np.asarray(units[0] @ units[1].T)


def _correlations(rows: NDArray[np.float32], target: F64) -> F64:
    """[n] of each row with the target [S]; 0 where one of them is constant."""
    centred = rows - rows.mean(1, keepdims=True, dtype=np.float64)
    aim = target - target.mean()
    scale = np.linalg.norm(centred, axis=1) * np.linalg.norm(aim)
    return np.asarray((centred @ aim) / np.where(scale > 1e-12, scale, np.inf))
