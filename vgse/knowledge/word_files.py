"""Reading files of word vectors: word2vec, GloVe, fastText text, .npz and .mat."""

import codecs
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast
from zipfile import BadZipFile

import numpy as np
import scipy.io
from numpy.typing import NDArray

from vgse.errors import UserError

Rows = Iterator[tuple[str, NDArray[np.float32]]]
Keep = Callable[[str], bool]


def _read_text(stream: BinaryIO, name: str, keep: Keep) -> Rows:
    size = 0
    for number, line in enumerate(stream, 1):
        if number == 1:
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UserError(f"{name}: is in UTF-16; save it as UTF-8")
            line = line.removeprefix(codecs.BOM_UTF8)
        parts = line.split()  # bytes divide at ASCII space only, words may hold other spaces
        if not parts or (number == 1 and len(parts) == 2 and all(p.isdigit() for p in parts)):
            continue  # word2vec and fastText write a header, GloVe does not
        size = size or len(parts) - 1
        problem = f"{name}, line {number}: expected a word and {size or 'some'} numbers"
        if len(parts) <= size or not size:
            raise UserError(f"{problem}; the file is damaged or holds no word vectors")
        word = b" ".join(parts[:-size]).decode("utf-8", "replace")
        if not keep(word):
            continue  # numbers of millions of words would take minutes
        try:
            vector = np.array([float(part) for part in parts[-size:]], np.float32)
        except ValueError:
            raise UserError(f"{problem}; the file is damaged or holds no word vectors") from None
        yield word, vector


def _read_binary(stream: BinaryIO, name: str, keep: Keep) -> Rows:
    header = stream.readline(64).split()
    if len(header) != 2 or not all(part.isdigit() for part in header):
        raise UserError(f"{name}: no word2vec header; convert the file to .txt or .npz")
    count, size = int(header[0]), int(header[1])
    if not 0 < size <= 10_000:
        raise UserError(f"{name}: header says {size} dimensions; the file is damaged")
    for _ in range(count):
        letters = bytearray()
        while (char := stream.read(1)) != b" ":
            if not char or len(letters) > 1000:
                raise UserError(f"{name}: ends or breaks inside a word; the file is damaged")
            if char != b"\n":
                letters += char
        data, word = stream.read(4 * size), letters.decode("utf-8", "replace")
        if len(data) != 4 * size:
            raise UserError(f"{name}: ends inside the vector of {word!r}; the file is damaged")
        if keep(word):
            yield word, np.frombuffer(data, "<f4")


def _read_npz(stream: BinaryIO, name: str, keep: Keep) -> Rows:
    need = f"{name}: needs the arrays 'words' [n] and 'vectors' [n, D_w]"
    try:
        file = np.load(stream, allow_pickle=False)
        key = next((k for k in ("words", "class_names", "names") if k in file), "")
        if not key or "vectors" not in file:
            raise UserError(need)
        words, vectors = file[key].astype(str).tolist(), file["vectors"].astype(np.float32)
    except (ValueError, TypeError, BadZipFile) as error:
        told = str(error).splitlines()[0]
        raise UserError(told if told == need else f"{need} without objects ({told})") from None
    if vectors.ndim != 2 or len(words) != len(vectors):
        raise UserError(f"{need}, but has {len(words)} words and vectors {list(vectors.shape)}")
    yield from zip(words, vectors, strict=True)


def _read_mat(stream: BinaryIO, name: str, keep: Keep) -> Rows:
    try:
        file = scipy.io.loadmat(cast(Any, stream), squeeze_me=True, chars_as_strings=True)
    except Exception as error:  # damaged files raise almost anything
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name}: no readable .mat ({told}); save it as version 7") from None
    key = next((k for k in ("allclasses_names", "words", "names") if k in file), None)
    place = next((k for k in ("att", "vectors", "wordvec") if k in file), None)
    if key is None or place is None:
        raise UserError(f"{name}: needs 'allclasses_names' [C] and 'att' [D_w, C]")
    names, vectors = [str(n) for n in np.atleast_1d(file[key])], file[place]
    fits = [axis for axis in range(vectors.ndim) if vectors.shape[axis] == len(names)]
    if vectors.ndim != 2 or not fits:
        raise UserError(
            f"{name}: {key} has {len(names)} names, but {place} is {list(vectors.shape)}"
        )
    # xlsa17 keeps classes in the columns of att, which shows in no shape where C = D_w.
    axis = fits[-1] if place == "att" else fits[0]
    yield from zip(names, (vectors.T if axis else vectors).astype(np.float32), strict=True)


_READERS = {".bin": _read_binary, ".npz": _read_npz, ".mat": _read_mat}


def read_rows(stream: BinaryIO, path: str, keep: Keep) -> Rows:
    """Words and their float32 vectors [D_w] from a file's content, no longer compressed.

    The ending of `path` tells the format, text for one that is not known. `keep` tells the words
    whose numbers are wanted; .npz and .mat, which are small, give all.
    """
    endings = [ending.lower() for ending in PurePosixPath(path).suffixes]
    if endings and endings[-1] in (".gz", ".bz2", ".xz", ".zip", ".zst"):
        endings.pop()
    yield from _READERS.get(endings[-1] if endings else "", _read_text)(stream, path, keep)
