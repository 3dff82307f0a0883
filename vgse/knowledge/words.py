"""Word vectors of class names, from the formats that word vectors come in."""

import logging
import re
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast
from zipfile import BadZipFile, ZipFile

import fsspec
import numpy as np
from numpy.typing import NDArray

from vgse.errors import UserError
from vgse.knowledge.word_files import read_rows

_log = logging.getLogger(__name__)


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
    return [word for compound in _compounds(class_name) for word in compound]


def _compounds(class_name: str) -> list[list[str]]:
    """The words of a class name, those that only camel case divides beside each other."""
    # Some file systems store é as e and an accent, which would divide the word.
    name = unicodedata.normalize("NFC", class_name)
    name = re.sub(r"^\s*\d+[.\s_-]+(?=.*[^\W\d_])", "", name)
    parts = [part for part in re.split(r"(?:[^\w']|_)+", name) if part]
    return [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", part).lower().split(" ") for part in parts]


def _compounds_among(class_name: str, words: list[str]) -> list[list[str]]:
    """`words` as `_compounds` divides the name, each by itself where they are others."""
    compounds = _compounds(class_name)
    same = [word for compound in compounds for word in compound] == words
    return compounds if same else [[word] for word in words]


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
    has it, and the mean over its words otherwise; what only camel case divides (`iPod`,
    `PlayStation`) counts as one word where the file has it. A word that the file lacks is looked
    up in its singular. Of several rows of a word the first counts, and one in the wanted case
    before others. Only the wanted rows are kept in memory.

    `path` is a file or any fsspec URL, whose ending tells the format; `class_words` are lower
    case, in the order wanted; `missing` is what to do with classes that have no vector, or
    where they are dropped one of zeros.
    """
    joined = {sign.join(words) for words in class_words.values() for sign in "_-"}
    single = {s for words in class_words.values() for w in words for s in _spellings(w)}
    single |= {
        spelling
        for name, words in class_words.items()
        for compound in _compounds_among(name, words)
        for spelling in _spellings("".join(compound))
    }
    table = _read_table(path, (joined | single) - {""})
    found_vectors = {
        name: _class_vector(words, _compounds_among(name, words), table)
        for name, words in class_words.items()
    }
    lost = [name for name, vector in found_vectors.items() if vector is None]
    if lost and missing == "error":
        raise UserError(
            f"{path}: no vector for {len(lost)} of {len(class_words)} classes: {', '.join(lost)}; "
            "give their words in the manifest, or set data.missing_words to drop"
        )
    vectors = {
        name: vector
        for name, vector in found_vectors.items()
        if vector is not None and (missing != "drop" or vector.any())  # zeros say as little as none
    }
    if not vectors:
        raise UserError(f"{path}: no class has a word vector; is it the right language and case?")
    found = WordVectors(list(vectors), np.stack(list(vectors.values())))
    _refuse_bad_rows(found, path)
    return found


def _read_table(path: str, wanted: set[str]) -> dict[str, NDArray[np.float32]]:
    """The rows of the wanted words."""

    def composed(word: str) -> str:
        return word if word.isascii() else unicodedata.normalize("NFC", word)

    def keep(word: str) -> bool:
        return (word := composed(word)) in wanted or word.lower() in wanted

    table: dict[str, NDArray[np.float32]] = {}
    exact: set[str] = set()
    again: dict[str, None] = {}
    remedy = "set data.words to a word-vector file"
    try:
        with _opened(path) as (stream, name):
            for found, vector in read_rows(stream, name, keep):
                word = composed(found)
                # Tables may hold names of classes, such as "grizzly+bear".
                keys = (word, word.lower(), "_".join(words_of(word)))
                key = next((key for key in keys if key in wanted), None)
                if key is None:
                    continue
                if key == word and key in exact and not np.array_equal(table[key], vector):
                    again[key] = None
                if (key == word and key not in exact) or key not in table:
                    table[key] = vector
                if key == word:
                    exact.add(key)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except (OSError, EOFError, ImportError, BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None
    if again:
        first = "the first row of each counts"
        _log.warning("%s: several rows of %s; %s", path, _listed(list(again)), first)
    return table


@contextmanager
def _opened(path: str) -> Iterator[tuple[BinaryIO, str]]:
    """A file of word vectors, no longer compressed, and the name whose ending tells its format."""
    if not path.lower().endswith(".zip") or "::" in path:
        with fsspec.open(path, "rb", compression="infer") as stream:
            yield stream, path.partition("::")[0]
        return
    with fsspec.open(path, "rb") as stream, ZipFile(stream) as archive:
        files = [file for file in archive.infolist() if not _FOREIGN.search(file.filename)]
        if not files:
            raise UserError(f"{path}: holds no file; give one with word vectors")
        largest = max(files, key=lambda file: file.file_size).filename
        if len(files) > 1:
            names = _listed([file.filename for file in files])
            remedy = f"name one, such as zip://{largest}::{path}"
            raise UserError(f"{path}: holds {len(files)} files ({names}); {remedy}")
        with archive.open(largest) as member:
            yield cast(BinaryIO, member), largest


# Folders, hidden files, and what macOS adds to an archive.
_FOREIGN = re.compile(r"/$|(^|/)(\.|__MACOSX/)")


def _class_vector(
    words: list[str], compounds: list[list[str]], table: dict[str, NDArray[np.float32]]
) -> NDArray[np.float32] | None:
    if not words:
        return None
    for joined in ("_".join(words), "-".join(words)):
        if joined in table:
            return table[joined]
    rows: list[NDArray[np.float32] | None] = []
    for compound in compounds:
        row = _row("".join(compound), table)
        rows += [row] if row is not None else [_row(word, table) for word in compound]
    known = [row for row in rows if row is not None]
    # Half of a name is another thing ("sea lion" is no sea), so all words must be known.
    return np.mean(known, 0, dtype=np.float32) if len(known) == len(rows) else None


def _row(word: str, table: dict[str, NDArray[np.float32]]) -> NDArray[np.float32] | None:
    return next((table[spelling] for spelling in _spellings(word) if spelling in table), None)


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
