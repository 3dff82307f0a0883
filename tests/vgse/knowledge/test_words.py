"""Word vectors from every format, names of several words, and what bad files are told."""

import gzip
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray

from vgse.knowledge.words import load_word_vectors, normalise_words, words_of

SIZE = 6
VOCABULARY = ["the", "cat", "dog", "polar", "bear", "polar_bear", "sea", "fox", "box", "horse"]
CLASSES = {"dog": ["dog"], "cat": ["cat"], "fox": ["fox"]}


def vector_of(word: str) -> NDArray[np.float32]:
    return np.random.default_rng(sum(word.encode())).normal(size=SIZE).astype(np.float32)


def lines(words: list[str]) -> str:
    return "".join(f"{w} {' '.join(repr(float(x)) for x in vector_of(w))}\n" for w in words)


def write_glove(path: Path) -> None:
    path.write_text(lines(VOCABULARY), encoding="utf-8")


def write_with_header(path: Path) -> None:
    path.write_text(f"{len(VOCABULARY)} {SIZE}\n" + lines(VOCABULARY), encoding="utf-8")


def write_fasttext(path: Path) -> None:  # fastText ends every line with a space
    text = lines(VOCABULARY).replace("\n", " \n")
    path.write_text(f"{len(VOCABULARY)} {SIZE}\n{text}", encoding="utf-8")


def write_tabs(path: Path) -> None:
    path.write_text(lines(VOCABULARY).replace(" ", "\t"), encoding="utf-8")


def binary(words: list[str], newline: bytes = b"\n") -> bytes:
    rows = [w.encode() + b" " + vector_of(w).astype("<f4").tobytes() + newline for w in words]
    return f"{len(words)} {SIZE}\n".encode() + b"".join(rows)


def write_binary(path: Path) -> None:
    path.write_bytes(binary(VOCABULARY))


def write_binary_without_newlines(path: Path) -> None:
    path.write_bytes(binary(VOCABULARY, b""))


def write_npz(path: Path) -> None:
    np.savez(path, words=np.array(VOCABULARY), vectors=np.stack([*map(vector_of, VOCABULARY)]))


def cells(names: list[str]) -> NDArray[np.object_]:
    return np.array([[name] for name in names], object)


def write_mat(path: Path) -> None:
    att = np.stack([vector_of(w) for w in VOCABULARY], 1)  # xlsa17: classes in columns
    scipy.io.savemat(path, {"allclasses_names": cells(VOCABULARY), "att": att})


def write_square_mat(path: Path) -> None:
    words = [*VOCABULARY[: SIZE - 1], "fox"]
    att = np.stack([vector_of(w) for w in words], 1)
    scipy.io.savemat(path, {"allclasses_names": cells(words), "att": att})


def gzipped(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def wrapped(path: Path) -> None:
        plain = path.with_suffix("")
        write(plain)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()

    return wrapped


FORMATS = {
    "glove.txt": write_glove,
    "word2vec.txt": write_with_header,
    "fasttext.vec": write_fasttext,
    "tabs.tsv": write_tabs,
    "word2vec.bin": write_binary,
    "no-newlines.bin": write_binary_without_newlines,
    "words.npz": write_npz,
    "words.mat": write_mat,
    "square.mat": write_square_mat,
    "glove.txt.gz": gzipped(write_glove),
    "word2vec.bin.gz": gzipped(write_binary),
}


@pytest.fixture
def glove(tmp_path: Path) -> str:
    write_glove(tmp_path / "glove.txt")
    return str(tmp_path / "glove.txt")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_vectors_in_the_order_asked_for(
    name: str, tmp_path: Path
) -> None:
    FORMATS[name](tmp_path / name)
    words = load_word_vectors(str(tmp_path / name), CLASSES)
    assert words.class_names == ["dog", "cat", "fox"]
    assert words.vectors.dtype == np.float32
    np.testing.assert_allclose(words.vectors, [vector_of(n) for n in CLASSES], rtol=1e-6)


def test_a_joined_name_in_the_file_comes_before_the_mean_of_its_words(glove: str) -> None:
    classes = {"polar bear": ["polar", "bear"], "sea dog": ["sea", "dog"]}
    vectors = load_word_vectors(glove, classes).vectors
    np.testing.assert_allclose(vectors[0], vector_of("polar_bear"), rtol=1e-6)
    np.testing.assert_allclose(vectors[1], (vector_of("sea") + vector_of("dog")) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("plural", "singular"),
    [("dogs", "dog"), ("boxes", "box"), ("foxes", "fox"), ("horses", "horse")],
)
def test_a_plural_that_the_file_lacks_takes_its_singular(
    plural: str, singular: str, glove: str
) -> None:
    vectors = load_word_vectors(glove, {"x": [plural]}).vectors
    np.testing.assert_allclose(vectors[0], vector_of(singular), rtol=1e-6)


def test_horses_are_no_hors_and_glass_is_no_plural(tmp_path: Path) -> None:
    path = tmp_path / "w.txt"
    path.write_text(lines(["hors", "horse", "glas", "wolf", "berry"]), encoding="utf-8")
    classes = {"a": ["horses"], "b": ["wolves"], "c": ["berries"]}
    found = load_word_vectors(str(path), classes).vectors
    np.testing.assert_allclose(found, [vector_of(w) for w in ("horse", "wolf", "berry")], rtol=1e-6)
    with pytest.raises(ValueError, match="1 of 1 classes: glass;"):
        load_word_vectors(str(path), {"glass": ["glass"]})


def test_capitals_in_the_file_serve_where_the_lower_case_word_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "w.txt"
    path.write_text(lines(["Cat", "Dog", "dog"]), encoding="utf-8")
    found = load_word_vectors(str(path), {"cat": ["cat"], "dog": ["dog"]}).vectors
    np.testing.assert_allclose(found, [vector_of("Cat"), vector_of("dog")], rtol=1e-6)


def test_names_of_classes_in_a_mat_file_are_found_by_their_words(tmp_path: Path) -> None:
    names = ["grizzly+bear", "004.Black_footed_Albatross", "dog"]
    rows = np.stack([vector_of(n) for n in names])
    for place, array in {"att": rows.T, "vectors": rows}.items():
        path = tmp_path / f"{place}.mat"
        scipy.io.savemat(path, {"allclasses_names": cells(names), place: array})
        found = load_word_vectors(str(path), {n: words_of(n) for n in names})
        np.testing.assert_allclose(found.vectors, rows, rtol=1e-6)


def test_all_missing_classes_are_named_in_one_line(glove: str) -> None:
    classes = {f"unknown{i}": [f"qq{i}"] for i in range(40)} | CLASSES
    with pytest.raises(ValueError, match="40 of 43 classes") as caught:
        load_word_vectors(glove, classes)
    message = str(caught.value)
    assert all(f"unknown{i}" in message for i in range(40))
    assert "data.missing_words" in message
    assert "\n" not in message


def test_half_of_a_name_is_not_enough(glove: str) -> None:
    with pytest.raises(ValueError, match="sea lion"):
        load_word_vectors(glove, {"sea lion": ["sea", "lion"]})


def test_a_class_without_words_is_missing(glove: str) -> None:
    with pytest.raises(ValueError, match=r"1 of 2 classes: \?\?\?;"):
        load_word_vectors(glove, {"???": [], "dog": ["dog"]})


def test_missing_classes_are_dropped_when_asked_for(glove: str) -> None:
    words = load_word_vectors(glove, {"qq": ["qq"], **CLASSES}, missing="drop")
    assert words.class_names == ["dog", "cat", "fox"]
    with pytest.raises(ValueError, match="no class has a word vector"):
        load_word_vectors(glove, {"qq": ["qq"]}, missing="drop")


def test_two_classes_with_the_same_vector_are_refused(glove: str) -> None:
    with pytest.raises(ValueError, match="same word vector: dog = dogs"):
        load_word_vectors(glove, {"dog": ["dog"], "cat": ["cat"], "dogs": ["dogs"]})


@pytest.mark.parametrize("bad", ["nan", "inf", "0"])
def test_a_zero_or_non_finite_vector_is_refused_by_the_name_of_its_class(
    bad: str, tmp_path: Path
) -> None:
    path = tmp_path / "w.txt"
    path.write_text(lines(["cat"]) + "dog" + f" {bad}" * SIZE + "\n", encoding="utf-8")
    assert len(load_word_vectors(str(path), {"cat": ["cat"]}).vectors) == 1
    with pytest.raises(ValueError, match=r"zero or non-finite word vector for dog"):
        load_word_vectors(str(path), {"cat": ["cat"], "dog": ["dog"]})


def test_zeros_are_dropped_where_classes_without_a_vector_are(tmp_path: Path) -> None:
    path = tmp_path / "w.txt"
    path.write_text(lines(["cat"]) + "dog" + " 0" * SIZE + "\n", encoding="utf-8")
    found = load_word_vectors(str(path), {"cat": ["cat"], "dog": ["dog"]}, missing="drop")
    assert found.class_names == ["cat"]


DAMAGED = {
    "cut-in-a-vector.bin": (binary(["cat", "dog"])[:-9], "ends inside the vector of 'dog'"),
    "cut-in-a-word.bin": (binary(["cat", "dog"])[: -SIZE * 4 - 4], "breaks inside a word"),
    "no-header.bin": (b"\x00\x01\x02" * 50, "no word2vec header"),
    "huge.bin": (b"3 999999999\ncat ", "999999999 dimensions"),
    "bytes.bin": (b"1 4\n\xff\xfe 12", "ends inside the vector"),
    "short-line.txt": (b"cat 1 2 3\ndog 1 2\n", "line 2: expected a word and 3 numbers"),
    "not-a-number.txt": (b"cat 1 2 3\ndog 1 x 3\n", "line 2: expected a word and 3 numbers"),
    "one-word.txt": (b"cat\n", "line 1: expected a word"),
    "not-gzip.txt.gz": (b"cat 1 2 3\n", "cannot be read"),
    "cut.txt.gz": (gzip.compress(lines(VOCABULARY).encode())[:-20], "cannot be read"),
    "not.npz": (b"PK nothing", "needs the arrays"),
    "not.mat": (b"nothing at all" * 20, "no readable .mat"),
    "empty.mat": (b"", "no readable .mat"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_gets_one_line_that_names_it(name: str, tmp_path: Path) -> None:
    content, message = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_word_vectors(str(tmp_path / name), CLASSES)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.txt: no such file; set data\.words"):
        load_word_vectors(str(tmp_path / "none.txt"), CLASSES)
    with pytest.raises(ValueError, match=r"cannot be read .*; set data\.words"):
        load_word_vectors(str(tmp_path), CLASSES)


def test_arrays_of_objects_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "objects.npz"
    np.savez(path, words=np.array(VOCABULARY, object), vectors=np.ones((len(VOCABULARY), 3)))
    with pytest.raises(ValueError, match=r"objects\.npz: needs .* without objects"):
        load_word_vectors(str(path), CLASSES)


def test_tables_whose_arrays_do_not_fit_say_so(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", words=np.array(["a", "b"]), vectors=np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"has 2 words and vectors \[3, 4\]"):
        load_word_vectors(str(tmp_path / "w.npz"), CLASSES)
    np.savez(tmp_path / "v.npz", vectors=np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"v\.npz: needs the arrays 'words'"):
        load_word_vectors(str(tmp_path / "v.npz"), CLASSES)
    content = {"allclasses_names": cells(["a", "b"]), "att": np.ones((3, 4))}
    scipy.io.savemat(tmp_path / "w.mat", content)
    with pytest.raises(ValueError, match=r"has 2 names, but att is \[3, 4\]"):
        load_word_vectors(str(tmp_path / "w.mat"), CLASSES)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("001.Black_footed-Albatross", ["black", "footed", "albatross"]),
        ("grizzly+bear", ["grizzly", "bear"]),
        ("abbey/indoor", ["abbey", "indoor"]),
        ("polarBear", ["polar", "bear"]),
        ("12_airplane", ["airplane"]),
        ("Chuck-will's-widow", ["chuck", "will's", "widow"]),
        ("3d_printer", ["3d", "printer"]),
        ("7", ["7"]),
        ("jalapeño", ["jalapeño"]),
        ("Übergröße", ["übergröße"]),
        (unicodedata.normalize("NFD", "jalapeño"), ["jalapeño"]),
        ("  ", []),
    ],
)
def test_a_class_name_is_divided_into_its_words(name: str, words: list[str]) -> None:
    assert words_of(name) == words


def test_normalised_words_are_centred_on_seen_classes_and_of_length_one() -> None:
    vectors = np.random.default_rng(0).normal(3, 1, (6, 4)).astype(np.float32)
    seen = np.array([0, 2, 5])
    found = normalise_words(vectors, seen)
    centre = vectors[seen].astype(np.float64).mean(0)
    for row, vector in zip(found, vectors, strict=True):
        wanted = vector.astype(np.float64) - centre
        np.testing.assert_allclose(row, wanted / np.linalg.norm(wanted), rtol=1e-12)


def test_a_camel_case_name_is_looked_up_as_one_word_first(tmp_path: Path) -> None:
    words = ["ipod", "i", "pod", "youtube", "you", "tube", "play", "station", "video"]
    (tmp_path / "w.txt").write_text(lines(words))
    names = ["iPod", "YouTube_video", "PlayStation", "you_tube"]
    found = load_word_vectors(str(tmp_path / "w.txt"), {name: words_of(name) for name in names})
    expected = [
        vector_of("ipod"),
        np.mean([vector_of("youtube"), vector_of("video")], 0),
        np.mean([vector_of("play"), vector_of("station")], 0),
        np.mean([vector_of("you"), vector_of("tube")], 0),
    ]
    assert np.allclose(found.vectors, expected, atol=1e-6)


def test_of_several_rows_of_a_word_the_first_counts_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "w.txt").write_text("Cat 1 0\ncat 0 1\ncat 1 1\nCat 3 3\ndog 2 1\ndog 2 1\n")
    found = load_word_vectors(str(tmp_path / "w.txt"), {"cat": ["cat"], "dog": ["dog"]})
    assert found.vectors.tolist() == [[0, 1], [2, 1]]
    assert "several rows of cat; the first row of each counts" in caplog.text


def test_an_accent_of_two_signs_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    text = "caf\u0065\u0301 1 0\r\ndog 0 1\r\n"
    (tmp_path / "w.txt").write_bytes(text.encode("utf-8-sig"))
    found = load_word_vectors(str(tmp_path / "w.txt"), {"caf\u00e9": ["caf\u00e9"]})
    assert found.vectors.tolist() == [[1, 0]]
    (tmp_path / "w.txt").write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match="is in UTF-16; save it as UTF-8"):
        load_word_vectors(str(tmp_path / "w.txt"), {"dog": ["dog"]})


def test_of_a_zip_with_several_word_files_one_must_be_named(tmp_path: Path) -> None:
    path = tmp_path / "glove.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__MACOSX/._glove.2d.txt", b"\0\5")
        archive.writestr("glove.2d.txt", "dog 0 1\ncat 1 0\n")
    wanted = {"dog": ["dog"], "cat": ["cat"]}
    assert load_word_vectors(str(path), wanted).vectors.tolist() == [[0, 1], [1, 0]]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("glove.3d.txt", "dog 0 0 1\ncat 0 1 0\n")
    with pytest.raises(ValueError, match=r"2 files \(glove.2d.txt, .* as zip://glove.3d.txt::"):
        load_word_vectors(str(path), wanted)
    found = load_word_vectors(f"zip://glove.3d.txt::{path}", wanted)
    assert found.vectors.shape == (2, 3)
