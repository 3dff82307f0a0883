"""What is known of class names: a list of sources, brought together as one matrix [C, D_w].

Word vectors say which names stand in the same texts, a hierarchy which classes are of one kind.
Each source is centred over the seen classes, brought to unit rows and weighted; the sources side
by side are centred and brought to unit rows again.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from vgse.config import SourceConfig
from vgse.errors import UserError
from vgse.knowledge.hierarchy import (
    ancestor_weights,
    information_content,
    node_name,
    read_hierarchy,
)
from vgse.knowledge.senses import weigh_senses
from vgse.knowledge.sparse_rows import (
    Block,
    SparseRows,
    Table,
    side_by_side,
    spread,
    table_of,
    unit_rows,
)
from vgse.knowledge.wordnet import (
    WordNet,
    find_senses,
    gloss_frequencies,
    gloss_words,
    read_wordnet,
    singulars,
)
from vgse.knowledge.words import WordVectors, load_word_vectors

_NAMES = {"words": "words", "wordnet": "WordNet", "glosses": "WordNet glosses"}
F64 = NDArray[np.float64]
Indices = NDArray[np.integer]

_ROWS = 1024  # whose lengths are taken at a time
_SIF = 1e-3  # a of a / (a + p): words more frequent than this count less (Arora et al., ICLR 2017)


@dataclass(frozen=True)
class Source:
    """What one source says of all classes."""

    name: str
    rows: Table  # [C, D], zero for a class that the source lacks; a large hierarchy's are sparse
    weight: float | None  # None: to be chosen
    is_hierarchy: bool = False  # columns are ancestors: those of many classes say less
    columns: list[str] = field(default_factory=list)  # names of ancestors, for readers
    found: dict[str, str] = field(default_factory=dict)  # class -> the entry that was found for it


@dataclass(frozen=True)
class Knowledge:
    """All sources, with the classes that are left."""

    class_names: list[str]
    sources: list[Source]

    @property
    def words_alone(self) -> bool:
        """Whether the run's word vectors are all that is known."""
        return [source.name for source in self.sources] == ["words"]

    def of_classes(self, class_names: list[str]) -> "Knowledge":
        """The same for these classes, with zeros for one that was dropped."""
        row = {name: i for i, name in enumerate(self.class_names)}
        kept = [i for i, name in enumerate(class_names) if name in row]
        taken = [row[class_names[i]] for i in kept]
        sources = [
            replace(source, rows=spread(source.rows[taken], kept, len(class_names)))
            for source in self.sources
        ]
        return Knowledge(class_names, sources)


Found = tuple[list[str], Table, list[str], dict[str, str]]
"""Classes that the source has; their rows; names of columns; class -> entry found."""


def load_knowledge(
    configs: Sequence[SourceConfig],
    class_words: Mapping[str, list[str]],
    synsets: Mapping[str, str] | None = None,
    word_vectors: Mapping[str, WordVectors] | None = None,
    seen: Collection[str] | None = None,
) -> Knowledge:
    """Reads all sources.

    Args:
        configs: the sources; weights are relative to the first.
        class_words: class -> its words in lower case, in the order wanted.
        synsets: class -> its synset, such as `n02084071` or `dog.n.01`, where one is named.
        word_vectors: path -> its vectors, where they are read already.
        seen: classes among whose names those of WordNet are understood; all by default.

    Raises:
        UserError: naming at once all classes that any source lacks.
    """
    if not configs:
        raise UserError("knowledge is empty; give at least one source, such as word vectors")
    synsets, names = synsets or {}, list(class_words)
    databases: dict[str, WordNet] = {}
    for config in configs:
        if config.kind in ("wordnet", "glosses") and config.path not in databases:
            databases[config.path] = read_wordnet(config.path)
    known = word_vectors or {}
    vectors = {
        i: _read_vectors(config, class_words, known)
        for i, config in enumerate(configs)
        if config.kind in ("words", "table")
    }
    word_rows = _word_rows(configs, vectors, known)
    context = set(names if seen is None else seen)

    def read(number: int, config: SourceConfig) -> Found:
        if number in vectors:
            return vectors[number].class_names, vectors[number].vectors, [], {}
        if config.kind == "hierarchy":
            return _read_taxonomy(config, class_words)
        wordnet = databases[config.path]
        return _read_wordnet(config, class_words, synsets, wordnet, word_rows, context)

    found = [read(number, config) for number, config in enumerate(configs)]
    lacking = [_without(names, has) for has, _, _, _ in found]
    refused = [
        f"{config.kind} {config.path} lacks {len(lost)} of {len(names)}: {', '.join(lost)}"
        for config, lost in zip(configs, lacking, strict=True)
        if lost and config.missing == "error"
    ]
    if refused:
        raise UserError(
            f"classes without knowledge: {'; '.join(refused)}; give their words or synset in the "
            "manifest, or set missing of the source to zero or drop"
        )
    for config, lost in zip(configs, lacking, strict=True):
        if len(lost) == len(names):
            raise UserError(
                f"{config.kind} {config.path} knows none of the {len(names)} classes, such as "
                f"{', '.join(names[:3])}; is it the right file? Give their words or synsets in "
                "the manifest, or leave this source out"
            )
    dropped = {
        name
        for config, lost in zip(configs, lacking, strict=True)
        if config.missing == "drop"
        for name in lost
    }
    names = _without(names, dropped)
    ignored = _without(names, {name for has, _, _, _ in found for name in has})
    if ignored or not names:
        raise UserError(
            f"no source knows {', '.join(ignored[:20]) or 'any class'}; "
            "give words or synsets in the manifest, or another source"
        )
    sources = []
    row = {name: i for i, name in enumerate(names)}
    for config, (has, rows, columns, entries) in zip(configs, found, strict=True):
        taken = [i for i, name in enumerate(has) if name in row]
        # As files of a run hold it, so that the run folder gives the same choice.
        of_names = rows[taken].astype(np.float32)
        table = spread(of_names, [row[has[i]] for i in taken], len(names))
        weight = None if config.weight == "auto" else float(config.weight)
        is_hierarchy = config.kind in ("wordnet", "hierarchy")
        sources.append(
            Source(
                *(_name(config, known), table, weight),
                *(is_hierarchy, columns, entries),
            )
        )
    return Knowledge(names, sources)


def _without(names: Iterable[str], others: Iterable[str]) -> list[str]:
    left_out = set(others)
    return [name for name in names if name not in left_out]


def _name(config: SourceConfig, word_vectors: Mapping[str, WordVectors]) -> str:
    if config.kind in _NAMES and (config.kind != "words" or config.path in word_vectors):
        return _NAMES[config.kind]
    return PurePath(config.path).stem


def _read_vectors(
    config: SourceConfig,
    class_words: Mapping[str, list[str]],
    word_vectors: Mapping[str, WordVectors],
) -> WordVectors:
    return word_vectors.get(config.path) or load_word_vectors(
        config.path, dict(class_words), missing="drop"
    )


def _word_rows(
    configs: Sequence[SourceConfig],
    read: Mapping[int, WordVectors],
    known: Mapping[str, WordVectors],
) -> dict[str, NDArray[np.floating]]:
    """Class -> the vector that decides in which sense its name is meant: of the run's own word
    vectors, else of the first source of words, else of the first table."""
    order = sorted(read, key=lambda i: configs[i].kind != "words")
    first = next(iter([*known.values(), *(read[i] for i in order)]), None)
    return {} if first is None else dict(zip(first.class_names, first.vectors, strict=True))


def _read_wordnet(
    config: SourceConfig,
    class_words: Mapping[str, list[str]],
    synsets: Mapping[str, str],
    wordnet: WordNet,
    word_vectors: Mapping[str, NDArray[np.floating]],
    seen: Collection[str],
) -> Found:
    """The ancestors of each class, or the vectors of its gloss."""

    @cache
    def parents(number: int) -> Sequence[int]:
        return wordnet.synset(number).hypernyms

    senses = {
        name: numbers[: config.senses]
        for name, words in class_words.items()
        if (numbers := find_senses(wordnet, words, synsets.get(name)))
    }
    weighed = weigh_senses(
        *(senses, parents, word_vectors, seen),
        sense_decay=config.sense_decay,
        decay=config.decay,
        agreement=config.sense_agreement,
    )
    best = {name: next(iter(weights)) for name, weights in weighed.items()}
    entries = {
        name: f"{wordnet.synset(number).lemmas[0]} (n{number:08d})" for name, number in best.items()
    }
    if config.kind == "glosses":
        return *_gloss_vectors(config, wordnet, best), [], entries
    rows, columns = _ancestor_rows(
        {
            name: ancestor_weights(weights, parents, config.decay)
            for name, weights in weighed.items()
        }
    )
    return list(weighed), rows, [wordnet.synset(number).lemmas[0] for number in columns], entries


def _read_taxonomy(config: SourceConfig, class_words: Mapping[str, list[str]]) -> Found:
    parents = read_hierarchy(config.path)
    found = {}
    for name, words in class_words.items():
        bases = singulars(words[-1], {}) if words else ()
        names = [node_name(name), "_".join(words), *("_".join([*words[:-1], b]) for b in bases)]
        node = next((node for node in names if node in parents), None)
        if node is not None:
            found[name] = node
    rows, columns = _ancestor_rows(
        {
            name: ancestor_weights({node: 1.0}, lambda n: parents[n], config.decay)
            for name, node in found.items()
        }
    )
    return list(found), rows, columns, found


def _ancestor_rows(weights: Mapping[str, Mapping[Any, float]]) -> tuple[csr_array, list[Any]]:
    """A row a class, and one column a node that any class has, in the nodes' order."""
    columns = sorted({node for of_class in weights.values() for node in of_class})
    column = {node: i for i, node in enumerate(columns)}
    entries = [{column[n]: value for n, value in row.items()} for row in weights.values()]
    return table_of(entries, len(columns)), columns


def _gloss_vectors(
    config: SourceConfig, wordnet: WordNet, senses: Mapping[str, int]
) -> tuple[list[str], NDArray[np.floating]]:
    """Classes, and the mean vector of the words of each one's glosses, frequent words weighing
    less."""
    if config.vectors is None:
        raise UserError("a source of kind glosses needs vectors: name a file of word vectors")
    counts = {name: gloss_words(wordnet, number) for name, number in senses.items()}
    words = {word: [word] for word in sorted({w for of_class in counts.values() for w in of_class})}
    if not words:
        return [], np.zeros((0, 0))
    read = load_word_vectors(config.vectors, words, missing="drop")
    vectors = dict(zip(read.class_names, read.vectors, strict=True))
    frequencies = gloss_frequencies(wordnet)
    rows = {}
    for name, of_class in counts.items():
        known = [word for word in of_class if word in vectors]
        weights = [of_class[word] * _SIF / (_SIF + frequencies[word]) for word in known]
        if known:
            rows[name] = np.average([vectors[word] for word in known], 0, weights)
    return list(rows), np.array(list(rows.values())).reshape(len(rows), -1)


def source_blocks(knowledge: Knowledge, seen: Indices) -> list[Block]:
    """[C, D] of each source: centred over the seen classes, unit rows.

    Ancestors weigh the square root of their information content ln(S / classes that have it), so
    that the inner product of two classes sums that of the ancestors they share (after Resnik,
    "Using Information Content to Evaluate Semantic Similarity in a Taxonomy", IJCAI 1995).
    Only seen classes decide how common an ancestor is and where the centre lies. A class that a
    source lacks has zeros.
    """
    blocks: list[Block] = []
    for source in knowledge.sources:
        rows = source.rows.astype(np.float64)  # a copy, large with thousands of ancestors:
        if isinstance(rows, csr_array):
            blocks.append(_sparse_block(rows, seen, source.is_hierarchy))
            continue
        if source.is_hierarchy:
            rows *= np.sqrt(information_content((rows[seen] != 0).sum(0), len(seen)))
        blocks.append(_centre(rows, seen))  # changed in place
    return blocks


def _sparse_block(rows: csr_array, seen: Indices, is_hierarchy: bool) -> SparseRows:
    num_rows, num_columns = rows.shape
    if is_hierarchy:
        common = np.bincount(rows[seen].indices, minlength=num_columns)
        rows.data *= np.sqrt(information_content(common, len(seen)))[rows.indices]
        rows.eliminate_zeros()
    plain = SparseRows(rows, np.zeros((num_rows, 0)), np.zeros((0, num_columns)))
    return unit_rows(plain, seen)


def centred_unit_rows(rows: NDArray[np.floating], seen: Indices) -> F64:
    """`rows` minus the mean of the seen ones, at length 1; rows of zeros stay out of both."""
    return _centre(rows.astype(np.float64), seen)


def _centre(rows: F64, seen: Indices) -> F64:
    """`centred_unit_rows` in the memory of `rows`."""
    present: NDArray[np.bool_] = (rows != 0).any(axis=1)
    inside = np.asarray(seen)[present[seen]]
    if len(inside):
        rows -= rows[inside].mean(0)
    rows[~present] = 0.0
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        lengths = np.linalg.norm(part, axis=1, keepdims=True)
        part /= np.where(lengths > 1e-12, lengths, np.inf)
    return rows


def combine_blocks(blocks: Sequence[Block], weights: Sequence[float], seen: Indices) -> F64:
    """[C, D_w]: weighted blocks side by side, centred over the seen classes, unit rows.

    Where a block is sparse, rows with the same inner products with those of seen classes.
    """
    used = [(block, weight) for block, weight in zip(blocks, weights, strict=True) if weight]
    dense = [b if weight == 1 else b * weight for b, weight in used if isinstance(b, np.ndarray)]
    if len(dense) == len(used):
        return _centre(np.concatenate(dense, axis=1), seen)
    sparse = [b.times(np.full(len(b), w)) for b, w in used if isinstance(b, SparseRows)]
    return side_by_side([*dense, *sparse], seen)


def semantic_targets(
    knowledge: Knowledge, words: NDArray[np.floating], classes: Indices, target: str
) -> F64:
    """[S, D] of what L_sem regresses for `classes` [S]: their rows of `words` [C, D_w], or of all
    sources, each at its given weight or 1, as nothing has been learned yet to choose one by.

    Where the sources have more columns than there are classes, D is at most S: the loss depends on
    distances alone, which a rotation into the span of the rows keeps.
    """
    if target == "words" or knowledge.words_alone:
        return np.asarray(words, np.float64)[classes]
    weights = [1.0 if source.weight is None else source.weight for source in knowledge.sources]
    rows = combine_blocks(source_blocks(knowledge, classes), weights, classes)[classes]
    if rows.shape[1] <= len(rows):
        return rows
    values, vectors = np.linalg.eigh(rows @ rows.T)
    kept = values > 1e-9 * max(values[-1], 1e-30)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0)))[:, kept][:, ::-1])
