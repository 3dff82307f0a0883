"""The sources' weights and the ridge of the relation, chosen by leaving seen classes out.

Folds of the seen classes take turns as unseen: their embeddings are predicted by r Phi from the
other seen classes, and compared with their own and with each other's. No unseen class and no
zero-shot model takes part.
"""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import current_thread, main_thread

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh
from threadpoolctl import threadpool_limits

from vgse.knowledge.sparse_rows import Block, gram_matrix
from vgse.relations.pivoting import Mask, solve_simplex
from vgse.relations.problem import largest_eigenvalue
from vgse.relations.smo import solve_relations

F64 = NDArray[np.float64]
Indices = NDArray[np.int64]
Weights = tuple[float, ...]

RIDGES = (1e-8, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
SOURCE_WEIGHTS = (0.0, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
FEWEST_CLASSES = 10
_NUM_FOLDS, _NUM_REPEATS = 5, 2
MAX_CLASSES = 1500  # more are sampled: Gram matrices grow with the square
_MARGIN_WEIGHT = 0.5  # zero-shot accuracy asks which prediction is nearest, not how near it is
_NUM_PERMUTATIONS, _CHANCE = 300, 0.01
_FIRST_RIDGE = 0.1
_PATIENCE = 2  # ridges that are worse, before a search along them ends
_MAX_ROUNDS = 4
_FULL_SPECTRUM = 400
_THREADS_FROM = 400  # classes; with fewer, most of the time is Python's own

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """One point of the curve."""

    weights: Weights  # of the sources
    ridge: float
    criterion: float  # mean cosine of predicted and own embeddings
    standard_error: float  # of that mean, over classes
    margin: float  # mean cosine minus the largest with the prediction of another held-out class

    @property
    def score(self) -> float:
        """What the choice maximises."""
        return self.criterion + _MARGIN_WEIGHT * self.margin


@dataclass(frozen=True)
class Selection:
    """What was chosen, and from what."""

    weights: Weights
    ridge: float
    criterion: float
    standard_error: float
    permuted: float  # the criterion of the choice with names of held-out classes permuted
    permuted_best: float  # what the search finds in permuted names, one time in a hundred
    curve: list[Setting]
    num_problems: int
    warning: str | None


@dataclass(frozen=True)
class _Fold:
    train: Indices
    held: Indices
    scores: F64  # [S, D_v] embeddings as z-scores over `train`
    permutations: Indices  # [P, H] of the held-out classes


@dataclass(frozen=True)
class _Problem:
    """The relations of a fold's held-out classes, in all that does not depend on the ridge."""

    rows: F64  # [S, S] Gram matrix of the knowledge
    gram: F64  # [T, T], centred
    linear: F64  # [H, T]
    largest: float  # eigenvalue of gram


def select_relation(
    embeddings: NDArray[np.floating],
    blocks: Sequence[Block],
    *,
    weights: Sequence[float | None] | None = None,
    ridge: float | None = None,
    alpha: float = 0.0,
    seed: int = 0,
    max_classes: int = MAX_CLASSES,
) -> Selection:
    """The weights and the ridge with the best score.

    That is the mean cosine between predicted and own embedding, both as z-scores over the fold's
    other classes, in five folds, twice, and half of how far it lies above the largest cosine of the
    own embedding with the prediction of another class of the fold. The best setting is taken as it
    is: settings share classes and folds, so their differences are surer than the standard error,
    and none is simpler.

    Args:
        embeddings: Phi [S, D_v] of the seen classes, from their own images.
        blocks: [S, D] of each source, rows of the same classes; zeros where it lacks one.
        weights: fixed weights of sources, None for one that is to be chosen.
        ridge: a fixed ridge; without it one of `RIDGES`.
        alpha: lower bound of the relation's weights.
        seed: of folds and permutations.
        max_classes: classes that take part at most, drawn by the seed.
    """
    fixed = list(weights) if weights is not None else [None] * len(blocks)
    ridges = RIDGES if ridge is None else (ridge,)
    num_classes = len(embeddings)
    assert len(fixed) == len(blocks) and all(len(block) == num_classes for block in blocks)
    if num_classes < FEWEST_CLASSES:
        return _unchosen(fixed, ridge, num_classes)
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.permutation(num_classes)[:max_classes])
    phi = np.asarray(embeddings, np.float64)[sample]
    grams = [gram_matrix(block[sample]) for block in blocks]
    folds = [
        _fold(phi, held, rng)
        for _ in range(_NUM_REPEATS)
        for held in np.array_split(rng.permutation(len(sample)), _NUM_FOLDS)
    ]
    # lambda_max grows with the classes, and the ridge is relative to that of all of them.
    scale = num_classes / len(sample)
    supports: dict[tuple[Weights, float], list[NDArray[np.uint8]]] = {}  # of each fold, in bits
    problems: dict[Weights, list[_Problem]] = {}
    curve: list[Setting] = []
    chance: list[F64] = []  # [P] criterion of each setting with names permuted
    elsewhere: list[float] = []  # its mean over permutations that leave no name in its place

    def evaluate(candidate: Weights, ridge: float) -> float:
        if candidate not in problems:
            problems.clear()
            problems[candidate] = list(run(partial(_problem, grams, candidate, scale), folds))
        starts: Sequence[Mask | None] = [None] * len(folds)
        if supports:
            nearest = min(supports, key=lambda other: _distance(other, (candidate, ridge)))
            starts = [
                np.unpackbits(bits, axis=1, count=len(fold.train)).view(np.bool_)
                for fold, bits in zip(folds, supports[nearest], strict=True)
            ]
        relations = list(run(partial(_solve, ridge, alpha), problems[candidate], folds, starts))
        supports[candidate, ridge] = [np.packbits(found > alpha, axis=1) for found in relations]
        cosines, permuted, others = np.zeros(len(sample)), np.zeros(_NUM_PERMUTATIONS), 0.0
        margin = 0.0
        for fold, relation in zip(folds, relations, strict=True):
            matrix = _cosines(relation @ fold.scores[fold.train], fold.scores[fold.held])
            cosines[fold.held] += matrix.diagonal() / _NUM_REPEATS
            permuted += matrix[np.arange(len(matrix)), fold.permutations].sum(1) / _NUM_REPEATS
            others += (matrix.sum() - matrix.trace()) / max(1, len(matrix) - 1) / _NUM_REPEATS
            margin += _margins(matrix).sum() / _NUM_REPEATS / len(sample)
        error = cosines.std(ddof=1) / np.sqrt(len(cosines))
        curve.append(Setting(candidate, ridge, float(cosines.mean()), float(error), float(margin)))
        chance.append(permuted / len(sample))
        elsewhere.append(others / len(sample))
        return curve[-1].score

    threads = int(os.environ.get("OMP_NUM_THREADS") or cpu_count())
    if len(sample) < _THREADS_FROM or current_thread() is not main_thread():
        threads = 1  # little to do, or a caller that shares out the cores itself
    # One thread of BLAS a fold: matrices are too small for more.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(min(threads, len(folds))) as pool:
        run = pool.map if threads > 1 else map
        _climb(evaluate, fixed, ridges)
    best = max(range(len(curve)), key=lambda i: curve[i].score)
    permuted_best = float(np.quantile(np.max(chance, axis=0), 1 - _CHANCE))
    warning = None
    if curve[best].criterion <= permuted_best:
        warning = (
            "the names say nothing about the pictures: predicted and own embeddings of held-out "
            f"classes agree to {curve[best].criterion:.3f}, which permuted names reach too "
            f"({permuted_best:.3f}); see that names, words and synsets belong to their classes"
        )
        _log.warning(warning)
    chosen = curve[best]
    return Selection(
        chosen.weights,
        chosen.ridge,
        chosen.criterion,
        chosen.standard_error,
        elsewhere[best],
        permuted_best,
        sorted(curve, key=lambda setting: (setting.weights, setting.ridge)),
        len(curve) * _NUM_REPEATS * len(sample),
        warning,
    )


def _unchosen(fixed: Sequence[float | None], ridge: float | None, num_classes: int) -> Selection:
    warning = f"{num_classes} seen classes are too few to choose the relation by: defaults are used"
    _log.warning(warning)
    weights = tuple(1.0 if weight is None else weight for weight in fixed)
    return Selection(weights, ridge or _FIRST_RIDGE, 0.0, 0.0, 0.0, 0.0, [], 0, warning)


def _climb(
    evaluate: Callable[[Weights, float], float],
    fixed: Sequence[float | None],
    ridges: Sequence[float],
) -> None:
    """Each source alone, then the best weight of one source or the best ridge, in turn."""
    tried: dict[tuple[Weights, int], float] = {}

    def score(weights: Weights, at: int) -> float:
        if (weights, at) not in tried:
            tried[weights, at] = evaluate(weights, ridges[at])
        return tried[weights, at]

    def along_ridges(weights: Weights, start: int, *, to_smallest: bool = False) -> None:
        best = score(weights, start)
        for path in (range(start - 1, -1, -1), range(start + 1, len(ridges))):
            worse = 0
            for at in path:
                worse = worse + 1 if score(weights, at) < best else 0
                best = max(best, score(weights, at))
                if worse == _PATIENCE and not (to_smallest and at < start):
                    break

    count = len(fixed)
    start = int(np.abs(np.log(ridges) - np.log(_FIRST_RIDGE)).argmin())
    first = tuple(float(i == 0) if w is None else w for i, w in enumerate(fixed))
    # The smallest ridge only breaks ties: with word vectors that is the paper's relation.
    along_ridges(first, start, to_smallest=True)
    all_free = all(weight is None for weight in fixed)
    if all_free:
        for i in range(1, count):
            along_ridges(tuple(float(i == j) for j in range(count)), start)
    # Where all are free the first stays at 1, as only ratios matter.
    free = [i for i in range(count) if fixed[i] is None and (i > 0 or not all_free)]

    def best() -> tuple[Weights, int]:
        return max(
            (s for s in tried if s[0][0] == first[0] or not all_free), key=lambda s: tried[s]
        )

    current = first, start
    for _ in range(_MAX_ROUNDS if free else 0):
        before = current
        for i in free:
            weights, at = current
            for weight in SOURCE_WEIGHTS:
                candidate = (*weights[:i], weight, *weights[i + 1 :])
                if any(candidate):
                    score(candidate, at)
            current = best()
        along_ridges(*current)
        current = best()
        if current == before:
            break
    if all_free and np.count_nonzero(current[0][1:]) > 1:
        score((0.0, *current[0][1:]), current[1])


def _fold(phi: F64, held: Indices, rng: np.random.Generator) -> _Fold:
    train = np.setdiff1d(np.arange(len(phi)), held)
    mean, spread = phi[train].mean(0), phi[train].std(0)
    flat = spread <= 1e-9 * np.abs(phi[train]).max(initial=1e-300)
    scores = (phi - mean) / np.where(flat, np.inf, spread)
    permutations = rng.permuted(np.tile(np.arange(len(held)), (_NUM_PERMUTATIONS, 1)), axis=1)
    return _Fold(train, held, scores, permutations)


def _distance(one: tuple[Weights, float], other: tuple[Weights, float]) -> float:
    """How far apart the supports of two settings may be: to start from the nearest saves pivots."""
    shares = [np.square(weights) / np.square(weights).sum() for weights, _ in (one, other)]
    return float(abs(np.log(one[1] / other[1])) + np.abs(shares[0] - shares[1]).sum())


def _problem(grams: Sequence[F64], weights: Weights, scale: float, fold: _Fold) -> _Problem:
    """What `combine_blocks` does to rows, done to their Gram matrices, with `train` as seen."""
    summed = np.zeros_like(grams[0])
    for gram, weight in zip(grams, weights, strict=True):
        if weight:
            summed += weight**2 * _centred_unit_gram(gram, fold.train)
    rows = _centred_unit_gram(summed, fold.train)
    of_train = rows[np.ix_(fold.train, fold.train)]
    mean = of_train.mean(0)
    gram = of_train - mean - mean[:, None] + mean.mean()
    linear = rows[np.ix_(fold.held, fold.train)] - mean
    linear -= linear.mean(1, keepdims=True)
    return _Problem(rows, gram, linear, scale * _largest_eigenvalue(gram))


def _centred_unit_gram(gram: F64, train: Indices) -> F64:
    present = gram.diagonal() > 0
    inside = train[present[train]]
    if not inside.size:
        return np.zeros_like(gram)
    mean = gram[:, inside].mean(1)
    centred = gram - mean - mean[:, None] + mean[inside].mean()
    lengths = np.sqrt(np.maximum(centred.diagonal(), 0.0))
    factors = np.where(present & (lengths > 1e-6 * lengths.max()), 1.0, 0.0)
    factors /= np.where(factors > 0, lengths, 1.0)
    return np.asarray(centred * factors * factors[:, None])


def _largest_eigenvalue(gram: F64) -> float:
    if len(gram) <= _FULL_SPECTRUM:
        return largest_eigenvalue(gram)
    start = np.linspace(1.0, 2.0, len(gram)) * gram[0]  # a start of its own would be random
    return float(eigsh(gram, k=1, v0=start, return_eigenvectors=False)[0])


def _solve(ridge: float, alpha: float, problem: _Problem, fold: _Fold, support: Mask | None) -> F64:
    """Relations [H, T] of the held-out classes; those of `solve_relations`, r <= 1 left out."""
    share = 1.0 - len(problem.gram) * alpha  # r = alpha + share q, q on the simplex
    if share <= 0 or problem.largest <= 1e-12:  # nothing to choose, or classes all alike
        return np.full(problem.linear.shape, 1 / len(problem.gram))
    if alpha < 0:
        support = np.ones(problem.linear.shape, np.bool_)  # the closed form, where it holds
    absolute = max(ridge * problem.largest, 1e-300)
    found, solved = solve_simplex(problem.gram, absolute, problem.linear / share, support)
    relation = alpha + share * found
    if not solved.all():
        values, vectors = eigh(problem.rows)
        points = vectors * np.sqrt(np.maximum(values, 0.0))
        relative = absolute / _largest_eigenvalue(problem.gram)
        rest = points[fold.held[~solved]]
        relation[~solved] = solve_relations(
            rest, points[fold.train], alpha=alpha, ridge=relative
        ).weights
    return relation


def _margins(cosines: F64) -> F64:
    """[H] of [H, H] predictions and own embeddings; 0 for a class that is alone in its fold."""
    if len(cosines) < 2:
        return np.zeros(len(cosines))
    others = np.where(np.eye(len(cosines), dtype=np.bool_), -np.inf, cosines)
    return np.asarray(cosines.diagonal() - others.max(0))


def _cosines(predicted: F64, own: F64) -> F64:
    """[H, H] of every prediction with every own embedding; 0 where one of them is zero."""
    rows = [predicted, own]
    lengths = [np.linalg.norm(row, axis=1, keepdims=True) for row in rows]
    units = [row / np.where(n > 0, n, np.inf) for row, n in zip(rows, lengths, strict=True)]
    return np.asarray(units[0] @ units[1].T)
