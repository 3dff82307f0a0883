"""Sources of knowledge brought together: what they lack, how they are centred and weighted."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from vgse.config import SourceConfig
from vgse.errors import UserError
from vgse.knowledge.sources import (
    Knowledge,
    Source,
    combine_blocks,
    load_knowledge,
    semantic_targets,
    source_blocks,
)
from vgse.knowledge.words import load_word_vectors

NAMES = ["cat", "dog", "wolf", "oak", "pine", "polar_bear", "elm"]
WORDS = {name: name.split("_") for name in NAMES}
SEEN = np.array([0, 1, 3, 4])
TAXONOMY = """\
cat\tmammal
dog\tcanine
wolf\tcanine
canine\tmammal
polar bear\tmammal
oak\ttree
pine\ttree
elm\ttree
tree\tthing
mammal\tthing
"""


@pytest.fixture
def words(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    path = tmp_path / "words.npz"
    np.savez(path, words=np.array(NAMES), vectors=rng.normal(size=(len(NAMES), 5)))
    return str(path)


@pytest.fixture
def taxonomy(tmp_path: Path) -> str:
    (tmp_path / "taxonomy.tsv").write_text(TAXONOMY, "utf-8")
    return str(tmp_path / "taxonomy.tsv")


@pytest.fixture
def knowledge(words: str, taxonomy: str) -> Knowledge:
    return load_knowledge(
        [SourceConfig("words", words), SourceConfig("hierarchy", taxonomy)], WORDS
    )


def row(knowledge: Knowledge, block: np.ndarray, name: str) -> np.ndarray:
    return block[knowledge.class_names.index(name)]


def test_blocks_are_unit_rows_around_the_seen_classes(knowledge: Knowledge) -> None:
    for block in source_blocks(knowledge, SEEN):
        np.testing.assert_allclose(np.linalg.norm(block, axis=1), 1)
    combined = combine_blocks(source_blocks(knowledge, SEEN), [1.0, 1.4], SEEN)
    np.testing.assert_allclose(np.linalg.norm(combined, axis=1), 1)
    assert combined.shape == (7, sum(s.rows.shape[1] for s in knowledge.sources))


def test_weights_say_how_much_a_source_decides(knowledge: Knowledge) -> None:
    blocks = source_blocks(knowledge, SEEN)

    def kinship(weights: list[float]) -> float:
        rows = combine_blocks(blocks, weights, SEEN)
        return float(row(knowledge, rows, "elm") @ row(knowledge, rows, "oak"))

    alone = [kinship([1.0, 0.0]), kinship([0.0, 1.0])]
    assert min(alone) < kinship([1.0, 1.0]) < max(alone)
    assert kinship([2.0, 2.0]) == pytest.approx(kinship([1.0, 1.0]))


def test_the_hierarchy_brings_kin_together(knowledge: Knowledge) -> None:
    block = source_blocks(knowledge, SEEN)[1]
    elm = row(knowledge, block, "elm")
    assert elm @ row(knowledge, block, "oak") > 0 > elm @ row(knowledge, block, "dog")
    columns = knowledge.sources[1].columns
    assert columns == sorted(columns) and "thing" in columns


def test_an_ancestor_of_all_seen_classes_says_nothing(knowledge: Knowledge) -> None:
    source = knowledge.sources[1]
    thing = source.columns.index("thing")
    assert source.rows[:, thing].all()
    assert not source_blocks(knowledge, SEEN)[1][:, thing].any()
    assert source_blocks(knowledge, SEEN)[1][:, source.columns.index("tree")].any()


def test_unseen_classes_do_not_change_the_rows_of_seen_ones(knowledge: Knowledge) -> None:
    def seen_rows() -> np.ndarray:
        blocks = source_blocks(knowledge, SEEN)
        return np.concatenate([*blocks, combine_blocks(blocks, [1.0, 1.4], SEEN)], 1)[SEEN]

    before = seen_rows()
    for source in knowledge.sources:
        source.rows[[2, 5, 6]] = np.random.default_rng(1).normal(size=(3, source.rows.shape[1]))
    np.testing.assert_array_equal(seen_rows(), before)
    knowledge.sources[0].rows[0] += 1
    assert not np.array_equal(seen_rows(), before)


def test_all_classes_that_any_source_lacks_stand_in_one_error(words: str, taxonomy: str) -> None:
    Path(taxonomy).write_text(TAXONOMY.replace("oak\t", "oaks\t").replace("cat\t", "x\t"), "utf-8")
    asked = WORDS | {"gryphon": ["gryphon"]}
    configs = [SourceConfig("words", words), SourceConfig("hierarchy", taxonomy)]
    with pytest.raises(UserError) as caught:
        load_knowledge(configs, asked)
    message = str(caught.value)
    assert "lacks 1 of 8: gryphon;" in message
    assert "lacks 3 of 8: cat, oak, gryphon" in message
    assert "manifest" in message and "\n" not in message


def test_a_class_that_a_source_lacks_has_zeros_there_if_asked(words: str, taxonomy: str) -> None:
    Path(taxonomy).write_text(TAXONOMY.replace("cat\tmammal\n", ""), "utf-8")
    configs = [SourceConfig("words", words), SourceConfig("hierarchy", taxonomy, missing="zero")]
    knowledge = load_knowledge(configs, WORDS)
    names, hierarchy = source_blocks(knowledge, SEEN)
    assert knowledge.class_names == NAMES
    assert not hierarchy[0].any() and names[0].any() and hierarchy[1].any()
    assert np.linalg.norm(combine_blocks([names, hierarchy], [1, 1], SEEN)[0]) == pytest.approx(1)


def test_zeros_of_a_table_count_as_lacking(words: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal(size=(len(NAMES), 3))
    rows[0] = 0
    np.savez(tmp_path / "table.npz", words=np.array(NAMES), vectors=rows)
    configs = [SourceConfig("words", words), SourceConfig("table", str(tmp_path / "table.npz"))]
    with pytest.raises(UserError, match="lacks 1 of 7: cat"):
        load_knowledge(configs, WORDS)
    configs[1].missing = "zero"
    _, table = load_knowledge(configs, WORDS).sources
    assert not table.rows[0].any() and table.rows[1].any()


def test_a_class_that_a_source_lacks_is_left_out_if_asked(words: str, taxonomy: str) -> None:
    Path(taxonomy).write_text(TAXONOMY.replace("cat\tmammal\n", ""), "utf-8")
    configs = [SourceConfig("words", words), SourceConfig("hierarchy", taxonomy, missing="drop")]
    knowledge = load_knowledge(configs, WORDS)
    assert knowledge.class_names == NAMES[1:]
    assert [len(source.rows) for source in knowledge.sources] == [6, 6]


def test_a_class_that_no_source_knows_is_refused(words: str) -> None:
    asked = WORDS | {"gryphon": ["gryphon"]}
    with pytest.raises(UserError, match="no source knows gryphon"):
        load_knowledge([SourceConfig("words", words, missing="zero")], asked)
    with pytest.raises(UserError, match="knowledge is empty"):
        load_knowledge([], WORDS)


def test_a_source_that_knows_no_class_is_refused(words: str, taxonomy: str) -> None:
    Path(taxonomy).write_text("gryphon\tbeast\n", "utf-8")
    configs = [SourceConfig("words", words), SourceConfig("hierarchy", taxonomy, missing="zero")]
    with pytest.raises(UserError, match="knows none of the 7 classes, such as cat, dog, wolf"):
        load_knowledge(configs, WORDS)
    Path(taxonomy).write_text("cat\tbeast\n", "utf-8")
    assert load_knowledge(configs, WORDS).sources[1].found == {"cat": "cat"}


def test_plurals_and_camel_case_are_found_in_a_hierarchy(words: str, taxonomy: str) -> None:
    configs = [SourceConfig("hierarchy", taxonomy)]
    found = load_knowledge(configs, {"12.PolarBears": ["polar", "bears"], "elms": ["elms"]})
    assert found.sources[0].found == {"12.PolarBears": "polar_bear", "elms": "elm"}


def test_a_table_of_ones_own_is_a_source(tmp_path: Path, words: str) -> None:
    lines = [f"{name} {i} {i * i} 1\n" for i, name in enumerate(NAMES, 1)]
    (tmp_path / "table.txt").write_text("".join(lines), "utf-8")
    configs = [
        SourceConfig("words", words),
        SourceConfig("table", str(tmp_path / "table.txt"), weight=0.5),
    ]
    knowledge = load_knowledge(configs, WORDS)
    assert [source.weight for source in knowledge.sources] == [None, 0.5]
    np.testing.assert_array_equal(knowledge.sources[1].rows[1], [2, 4, 1])


WORDNET = {
    "data.noun": (
        "00000001 03 n 01 thing 0 000 | all there is\n"
        "00000002 05 n 01 cat 0 001 @ 00000001 n 0000 | soft fur and claws\n"
        "00000003 18 n 01 cat 1 001 @ 00000001 n 0000 | a spiteful gossip\n"
        "00000004 05 n 01 dog 0 001 @ 00000001 n 0000 | it barks and wags\n"
    ),
    "index.noun": "cat n 2 1 @ 2 1 00000002 00000003\ndog n 1 1 @ 1 1 00000004\n",
}


@pytest.fixture
def wordnet(tmp_path: Path) -> str:
    for name, text in WORDNET.items():
        (tmp_path / name).write_text(text, "utf-8")
    return str(tmp_path)


def test_a_synset_of_the_manifest_goes_before_the_name(wordnet: str) -> None:
    configs, classes = [SourceConfig("wordnet", wordnet)], {"cat": ["cat"], "dog": ["dog"]}
    named = load_knowledge(configs, classes, {"dog": "cat.n.02"}).sources[0]
    assert named.found == {"cat": "cat (n00000002)", "dog": "cat (n00000003)"}
    assert load_knowledge(configs, classes).sources[0].found["dog"] == "dog (n00000004)"
    with pytest.raises(UserError, match="lacks 1 of 2: dog"):
        load_knowledge(configs, classes, {"dog": "n00000009"})


@pytest.fixture
def shrews(tmp_path: Path) -> str:
    """WordNet of six beasts, six humans and the shrew, which is first of all a human."""
    senses = {f"beast{i}": [1000 + i] for i in range(6)}
    senses |= {f"human{i}": [2000 + i] for i in range(6)} | {"shrew": [2006, 1006]}
    roots = "".join(f"{n:08d} 03 n 01 root 0 000 | a\n" for n in (1, 2))
    nouns = "".join(
        f"{n:08d} 03 n 01 {name} 0 001 @ {n // 1000:08d} n 0000 | a\n"
        for name, numbers in senses.items()
        for n in numbers
    )
    lines = [
        f"{name} n {len(numbers)} 1 @ 1 1 {' '.join(f'{n:08d}' for n in numbers)}\n"
        for name, numbers in senses.items()
    ]
    (tmp_path / "data.noun").write_text(roots + nouns, "utf-8")
    (tmp_path / "index.noun").write_text("".join(lines), "utf-8")
    return str(tmp_path)


@pytest.mark.parametrize("how", ["of the run", "a source of words", "a table"])
def test_word_vectors_tell_the_sense_before_tables_whatever_the_order_of_sources(
    how: str, tmp_path: Path, shrews: str
) -> None:
    names = [f"{kind}{i}" for kind in ("beast", "human") for i in range(6)] + ["shrew"]
    rng = np.random.default_rng(0)
    for file, of_shrew in (("words.npz", 0), ("table.npz", 1)):
        vectors = np.eye(4)[[0] * 6 + [1] * 6 + [of_shrew]] + 0.1 * rng.normal(size=(13, 4))
        np.savez(tmp_path / file, words=np.array(names), vectors=vectors)
    words, classes = str(tmp_path / "words.npz"), {name: [name] for name in names}
    sources = [SourceConfig("wordnet", shrews), SourceConfig("table", str(tmp_path / "table.npz"))]
    if how == "a source of words":
        sources.append(SourceConfig("words", words))
    known = {words: load_word_vectors(words, classes)} if how == "of the run" else None
    found = load_knowledge(sources, classes, None, known).sources[0].found
    assert found["shrew"] == f"shrew (n0000{2006 if how == 'a table' else 1006})"


def test_glosses_weigh_rare_words_more(tmp_path: Path, wordnet: str) -> None:
    vectors = {"soft": [1, 0, 0], "fur": [0, 1, 0], "and": [0, 0, 1], "barks": [1, 1, 0]}
    text = "".join(f"{word} {' '.join(map(str, v))}\n" for word, v in vectors.items())
    (tmp_path / "glove.txt").write_text(text, "utf-8")
    config = SourceConfig("glosses", wordnet, vectors=str(tmp_path / "glove.txt"))
    rows = load_knowledge([config], {"cat": ["cat"], "dog": ["dog"]}).sources[0].rows
    soft, fur, both = rows[0]
    assert soft == pytest.approx(fur) and 0 < both < 0.6 * soft  # `and` stands in two glosses
    with pytest.raises(UserError, match="needs vectors"):
        load_knowledge([SourceConfig("glosses", wordnet)], {"cat": ["cat"]})


def test_what_the_semantic_loss_regresses_keeps_the_distances_of_all_sources() -> None:
    rng = np.random.default_rng(0)
    words, tree = rng.normal(size=(7, 5)), rng.integers(0, 3, (7, 9)).astype(float)
    sources = [Source("words", words, None), Source("tree", tree, 0.5)]
    knowledge = Knowledge(NAMES, sources)
    assert np.array_equal(semantic_targets(knowledge, words, SEEN, "words"), words[SEEN])
    alone = Knowledge(NAMES, sources[:1])
    assert np.array_equal(semantic_targets(alone, words, SEEN, "knowledge"), words[SEEN])
    found = semantic_targets(knowledge, words, SEEN, "knowledge")
    rows = combine_blocks(source_blocks(knowledge, SEEN), (1.0, 0.5), SEEN)[SEEN]
    assert found.shape[1] < rows.shape[1] == 14
    np.testing.assert_allclose(found @ found.T, rows @ rows.T, atol=1e-12)
    tree[[2, 5, 6]] = 7  # classes that are not trained on
    again = semantic_targets(knowledge, words, SEEN, "knowledge")
    np.testing.assert_allclose(again @ again.T, found @ found.T, atol=1e-12)


def test_a_table_is_held_once_in_float32_and_worked_on_in_one_copy() -> None:
    table = np.random.default_rng(0).random((1500, 2000), np.float32)
    knowledge = Knowledge([str(i) for i in range(1500)], [Source("tree", table, None, True)])
    before = table.copy()
    tracemalloc.start()
    (block,) = source_blocks(knowledge, np.arange(50))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.7 * block.nbytes  # another copy would make 2
    np.testing.assert_array_equal(table, before)
