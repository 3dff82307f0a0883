"""WordNet's nouns: lookup, ancestors, named synsets, and what damaged folders are told."""

from pathlib import Path

import pytest

from vgse.config import SourceConfig
from vgse.errors import UserError
from vgse.knowledge.hierarchy import ancestor_weights
from vgse.knowledge.wordnet import (
    WordNet,
    find_lemma,
    find_senses,
    gloss_frequencies,
    gloss_words,
    read_wordnet,
)
from vgse.knowledge.words import words_of

ROOT = Path(__file__).resolve().parents[3]
DEMO, WHOLE = ROOT / "demo" / "wordnet", Path("/usr/share/wordnet")

LICENCE = "  1 Some licence, with 00000042 in it\n"
DATA = """\
00000001 03 n 01 entity 0 001 ~ 00000002 n 0000 | all there is; "an entity"
00000002 03 n 02 animal 0 beast 0 002 @ 00000001 n 0000 + 00000009 v 0101 | a living thing
00000003 05 n 01 bear 0 001 @ 00000002 n 0000 | a large animal with fur
00000004 05 n 02 polar_bear 0 white_bear 0 001 @ 00000003 n 0000 | a white bear of the ice
00000005 18 n 01 bear 1 001 @ 00000001 n 0000 | an investor who sells
00000006 05 n 01 Winnie 0 001 @i 00000003 n 0000 | a bear in a book
00000007 06 n 01 t-shirt 0 001 @ 00000001 n 0000 | a shirt with short sleeves
00000008 06 n 01 leaf 0 001 @ 00000001 n 0000 | a part of a plant
"""
INDEX = """\
animal n 1 1 @ 1 0 00000002
bear n 2 1 @ 2 1 00000003 00000005
beast n 1 1 @ 1 0 00000002
brown's_white-nosed_bear n 1 1 @ 1 0 00000004
entity n 1 1 ~ 1 0 00000001
leaf n 1 1 @ 1 0 00000008
polar_bear n 1 1 @ 1 0 00000004
t-shirt n 1 1 @ 1 0 00000007
winnie n 1 1 @ 1 0 00000006
"""
FILES = {"data.noun": LICENCE + DATA, "index.noun": LICENCE + INDEX, "noun.exc": "leaves leaf\n"}


def folder_with(path: Path, **changed: str | None) -> str:
    for name, text in {**FILES, **{k.replace("_", "."): v for k, v in changed.items()}}.items():
        if text is not None:
            (path / name).write_text(text, "utf-8")
    return str(path)


def ancestors_of(folder: str, words: list[str]) -> dict[int, float]:
    wordnet = read_wordnet(folder)
    return weights_of(wordnet, find_senses(wordnet, words))


def weights_of(wordnet: WordNet, senses: list[int]) -> dict[int, float]:
    starts = {number: 0.6**i for i, number in enumerate(senses)}
    return ancestor_weights(starts, lambda number: wordnet.synset(number).hypernyms)


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    return read_wordnet(folder_with(tmp_path))


@pytest.mark.parametrize(
    ("words", "lemma"),
    [
        (["polar", "bear"], "polar_bear"),
        (["brown", "bear"], "bear"),
        (["bears"], "bear"),
        (["polar", "bears"], "polar_bear"),
        (["leaves"], "leaf"),
        (["t", "shirt"], "t-shirt"),
        (["bear", "outdoor"], "bear"),
        (["gryphon"], None),
        (["bear's", "gryphon"], None),
        ([], None),
    ],
)
def test_a_name_is_a_compound_first_then_its_head_noun(
    wordnet: WordNet, words: list[str], lemma: str | None
) -> None:
    assert find_lemma(wordnet, words) == lemma


@pytest.mark.parametrize("name", ["Brown_white_nosed_Bear", "031.Brown's White-nosed Bears"])
def test_hyphens_and_possessives_that_a_name_leaves_out_are_found(
    name: str, wordnet: WordNet
) -> None:
    assert find_lemma(wordnet, words_of(name)) == "brown's_white-nosed_bear"
    assert find_lemma(wordnet, words_of("Brown_nosed_Bear")) == "bear"


def test_ancestors_weigh_less_by_step_and_sense_and_the_largest_weight_stays(
    wordnet: WordNet,
) -> None:
    weights = weights_of(wordnet, find_senses(wordnet, ["bear"]))
    assert weights == pytest.approx({3: 1.0, 2: 0.9, 1: 0.81, 5: 0.6})  # 1 is 0.54 through 5
    assert weights_of(wordnet, find_senses(wordnet, ["bear"])[:1]) == pytest.approx(
        {3: 1.0, 2: 0.9, 1: 0.81}
    )


def test_an_instance_has_the_ancestors_of_what_it_is_one_of(wordnet: WordNet) -> None:
    assert weights_of(wordnet, find_senses(wordnet, ["winnie"])) == pytest.approx(
        {6: 1.0, 3: 0.9, 2: 0.81, 1: 0.729}
    )


@pytest.mark.parametrize("name", ["n00000005", "00000005", "bear.n.02"])
def test_a_named_synset_is_the_only_sense(wordnet: WordNet, name: str) -> None:
    assert find_senses(wordnet, ["gryphon"], name) == [5]


@pytest.mark.parametrize("name", ["n00000099", "bear.n.03", "gryphon.n.01", "bear"])
def test_a_synset_that_is_not_there_is_not_replaced_by_the_name(
    wordnet: WordNet, name: str
) -> None:
    assert find_senses(wordnet, ["bear"], name) == []


def test_a_folder_without_exceptions_is_read(tmp_path: Path) -> None:
    wordnet = read_wordnet(folder_with(tmp_path, noun_exc=None))
    assert find_lemma(wordnet, ["bears"]) == "bear"
    assert find_lemma(wordnet, ["leaves"]) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data_noun": None}, "data.noun: no such file"),
        ({"index_noun": None}, "index.noun: no such file"),
        ({"index_noun": LICENCE}, "index.noun: holds no noun"),
        ({"data_noun": LICENCE}, "data.noun: holds no noun"),
        ({"data_noun": LICENCE + DATA.split("00000003 05")[0]}, "no synset 00000003"),
        ({"data_noun": LICENCE + DATA.replace("bear 0 001", "bear 0 0xy", 1)}, "00000003 is damag"),
        ({"data_noun": LICENCE + DATA.replace("@ 00000002 n 0000 | a large", "@ 00")}, "is damag"),
        ({"index_noun": INDEX.replace("bear n 2 1 @ 2 1 00000003", "bear n 2 1 @ 2 1")}, "of bear"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(
    tmp_path: Path, changed: dict[str, str | None], message: str
) -> None:
    folder = folder_with(tmp_path, **changed)
    with pytest.raises(UserError, match=message) as caught:
        ancestors_of(folder, ["bear"])
    assert "\n" not in str(caught.value)


def test_glosses_count_the_words_of_a_sense_and_two_steps_above(wordnet: WordNet) -> None:
    counts = gloss_words(wordnet, *find_senses(wordnet, ["polar", "bear"]))
    assert counts["white"] == 1 and counts["fur"] == 1 and counts["living"] == 1
    assert counts["a"] == 3 and "entity" not in counts  # three steps above
    frequencies = gloss_frequencies(wordnet)
    assert sum(frequencies.values()) == pytest.approx(1)
    assert frequencies["a"] > frequencies["fur"]


def demo_classes() -> list[list[str]]:
    lines = (ROOT / "demo" / "nouns.txt").read_text("utf-8").splitlines()
    names = [line.partition(":")[0] for line in lines if ":" in line and line[0] not in "# "]
    return [words_of(name) for name in names]


def test_every_class_of_the_demo_is_found_in_the_part_that_ships() -> None:
    wordnet, classes = read_wordnet(str(DEMO)), demo_classes()
    assert len(classes) == 200
    assert [words for words in classes if not find_senses(wordnet, words)] == []
    assert find_senses(wordnet, ["gryphon"]) == []


def test_classes_of_cifar100_are_found_in_the_part_that_ships() -> None:
    folder = ROOT / "configs" / "cifar100"
    lists = [path.read_text("utf-8").split() for path in sorted(folder.glob("unseen-*.txt"))]
    names = sorted({name for of_split in lists for name in of_split})
    wordnet = read_wordnet(str(folder / "wordnet"))
    assert len(names) > 50
    assert [name for name in names if find_lemma(wordnet, words_of(name)) is None] == []


@pytest.mark.skipif(not WHOLE.is_dir(), reason="needs Debian's wordnet-base")
def test_the_part_that_ships_has_the_ancestors_of_the_whole() -> None:
    num_senses = SourceConfig("wordnet").senses

    def ancestors(wordnet: WordNet) -> list[dict[int, float]]:
        return [
            weights_of(wordnet, find_senses(wordnet, words)[:num_senses])
            for words in demo_classes()
        ]

    part, whole = read_wordnet(str(DEMO)), read_wordnet(str(WHOLE))
    assert ancestors(part) == ancestors(whole)
    number = find_senses(part, ["dog"])[0]
    part.lines[number] = part.lines[number].replace(b" @ ", b" ~ ", 1)
    assert ancestors(part) != ancestors(whole)


def test_the_part_that_ships_holds_its_licence() -> None:
    licence = (ROOT / "demo" / "licences" / "WordNet-3.0.txt").read_text("utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in licence
    assert "licences/WordNet-3.0.txt" in (ROOT / "demo" / "LICENSES.md").read_text("utf-8")
    sentence = "provided that you agree to comply with"
    assert sentence in licence
    assert sentence in (DEMO / "data.noun").read_text("utf-8")
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < 300_000
