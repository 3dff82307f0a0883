"""Word vectors of class names, from the formats that word vectors come in."""

import re
import unicodedata
import zlib
from dataclasses import dataclass
from typing import Literal

import fsspec
import numpy as np
from numpy.typing import NDArray

from vgse.errors import UserError
from vgse.knowledge.word_files import read_rows


@dataclass(frozen=True)
class WordVectors:
    """Word vectors of classes: `vectors[c]` belongs to `class_names[c]`."""

    class_names: list[str]
    vectors: NDArray[np.float32]  # [C, D_w]


def words_of(class_name: str) -> list[str]:
    """The lower-case words of a class name: "001.Black_footed-Albatross" -> black, footed, ...

    Underscores, pluses, hyphens, slashes and camel case divide words; a running number in front
    of a name ("001.", "12_") is left out.
    """
    # Some file systems store é as e and an accent, which would divide the word.
    name = unicodedata.normalize("NFC", class_name)
    name = re.sub(r"^\s*\d+[.\s_-]+(?=.*[^\W\d_])", "", name)
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"(?:[^\w']|_)+", spaced.lower()) if word]


def _spellings(word: str) -> list[str]:
    """The word, then what may be its singular: enough for class names, which are nouns."""
    found = [word]
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        if word.endswith("ies"):
            found.append(word[:-3] + "y")
        if word.endswith("ves"):
            found += [word[:-3] + "f", word[:-3] + "fe"]
        if word.endswith(("ches", "shes", "sses", "xes", "zes")):
            found.append(word[:-2])
        found.append(word[:-1])  # before "es": horses are no hors
        if word.endswith("es"):
            found.append(word[:-2])
    return found


def load_word_vectors(
    path: str, class_words: dict[str, list[str]], *, missing: Literal["error", "drop"] = "error"
) -> WordVectors:
    """One vector a class, read from word2vec, GloVe, fastText, .npz or .mat.

    A name of several words takes the vector of the joined name (`polar_bear`) where the file
    has it, and the mean over its words otherwise. A word that the file lacks is looked up in
    its singular. Only the wanted rows are kept in memory.

    `path` is a file or any fsspec URL, whose ending tells the format; `class_words` are lower
    case, in the order wanted; `missing` is what to do with classes that have no vector.
    """
    joined = {sign.join(words) for words in class_words.values() for sign in "_-"}
    single = {s for words in class_words.values() for w in words for s in _spellings(w)}
    wanted = (joined | single) - {""}
    table: dict[str, NDArray[np.float32]] = {}
    remedy = "set data.words to a word-vector file"
    try:
        with fsspec.open(path, "rb", compression="infer") as stream:
            keep = wanted.__contains__
            rows = read_rows(stream, path, lambda word: keep(word) or keep(word.lower()))
            for word, vector in rows:
                # Tables may hold names of classes, such as "grizzly+bear".
                keys = (word, word.lower(), "_".join(words_of(word)))
                key = next((key for key in keys if key in wanted), None)
                if key is not None and (key == word or key not in table):
                    table[key] = vector
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except (OSError, EOFError, ImportError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None

    found_vectors = {name: _class_vector(words, table) for name, words in class_words.items()}
    lost = [name for name, vector in found_vectors.items() if vector is None]
    if lost and missing == "error":
        raise UserError(
            f"{path}: no vector for {len(lost)} of {len(class_words)} classes: {', '.join(lost)}; "
            "give their words in the manifest, or set data.missing_words to drop"
        )
    vectors = {name: vector for name, vector in found_vectors.items() if vector is not None}
    if not vectors:
        raise UserError(f"{path}: no class has a word vector; is it the right language and case?")
    found = WordVectors(list(vectors), np.stack(list(vectors.values())))
    _refuse_bad_rows(found, path)
    return found


def _class_vector(
    words: list[str], table: dict[str, NDArray[np.float32]]
) -> NDArray[np.float32] | None:
    if not words:
        return None
    for joined in ("_".join(words), "-".join(words)):
        if joined in table:
            return table[joined]
    rows = [next((table[s] for s in _spellings(w) if s in table), None) for w in words]
    known = [row for row in rows if row is not None]
    # Half of a name is another thing ("sea lion" is no sea), so all words must be known.
    return np.mean(known, 0, dtype=np.float32) if len(known) == len(rows) else None


def _refuse_bad_rows(words: WordVectors, path: str) -> None:
    bad = ~np.isfinite(words.vectors).all(1) | ~words.vectors.any(1)
    if bad.any():
        names = [words.class_names[i] for i in np.flatnonzero(bad)]
        raise UserError(f"{path}: zero or non-finite word vector for {_listed(names)}")
    _, first, group = np.unique(words.vectors, axis=0, return_index=True, return_inverse=True)
    twins = [(int(first[g]), i) for i, g in enumerate(group) if first[g] != i]
    if twins:
        pairs = [f"{words.class_names[a]} = {words.class_names[b]}" for a, b in twins]
        raise UserError(
            f"{path}: classes with the same word vector: {_listed(pairs)}; "
            "give one of each pair other words in the manifest"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more


def normalise_words(
    vectors: NDArray[np.floating], seen: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Rows [C, D_w] centred on the mean of the seen classes, then brought to length 1."""
    centred = vectors.astype(np.float64) - vectors[seen].astype(np.float64).mean(0)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
