"""Nouns of a WordNet database folder: index.noun, data.noun and, where there is one, noun.exc.

NLTK reads only its own data folder and needs files that Debian's package lacks. Synsets are found
by the number at the start of their line, so a part of data.noun is as good as the whole.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import fsspec

from vgse.errors import UserError

GLOSS_STEPS = 2
# What morphy of WordNet detaches from nouns.
_ENDINGS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
    ("men", "man"), ("ies", "y"),
)  # fmt: skip
_HYPERNYMS = ("@", "@i")
REMEDY = "give the folder of WordNet's index.noun and data.noun (such as Debian's wordnet-base)"


@dataclass(frozen=True)
class Synset:
    """A sense: its words, the synsets that it is a kind or an instance of, and its gloss."""

    lemmas: tuple[str, ...]
    hypernyms: tuple[int, ...]
    gloss: str


@dataclass(frozen=True)
class WordNet:
    """The nouns of a database; a synset goes by its number in data.noun."""

    folder: str
    index: dict[str, bytes]  # lemma -> its line of index.noun
    exceptions: dict[str, tuple[str, ...]]  # irregular plural -> singulars
    lines: dict[int, bytes]  # synset -> its line of data.noun
    spellings: dict[str, str] = field(default_factory=dict)  # `_plain` lemma -> lemma

    def senses(self, lemma: str) -> list[int]:
        """Synsets of a lemma, the most frequent sense first."""
        parts = self.index[lemma].split()
        try:
            found = [int(part) for part in parts[6 + int(parts[3]) :]]
            complete = len(found) == int(parts[2]) > 0
        except (ValueError, IndexError):
            complete = False
        if not complete:
            raise UserError(f"{self.folder}/index.noun: the line of {lemma} is damaged; {REMEDY}")
        return found

    def synset(self, number: int) -> Synset:
        """The synset of a number; UserError where data.noun lacks it or its line is damaged."""
        line = self.lines.get(number)
        if line is None:
            raise UserError(
                f"{self.folder}/data.noun: no synset {number:08d}, which another line names; "
                "the file is cut short or of another version than index.noun"
            )
        try:
            fields, gloss = line.decode("utf-8").split(" | ", 1)
            parts = fields.split(" ")
            at = 4 + 2 * int(parts[3], 16)
            pointers = [parts[i : i + 4] for i in range(at + 1, at + 1 + 4 * int(parts[at]), 4)]
            hypernyms = tuple(
                int(target)
                for symbol, target, part_of_speech, _ in pointers
                if symbol in _HYPERNYMS and part_of_speech == "n"
            )
            return Synset(tuple(parts[4:at:2]), hypernyms, gloss.strip())
        except (ValueError, IndexError):
            raise UserError(
                f"{self.folder}/data.noun: the line of synset {number:08d} is damaged; {REMEDY}"
            ) from None


def read_wordnet(folder: str) -> WordNet:
    """The nouns of a database folder or fsspec URL."""
    index = {
        line.partition(b" ")[0].decode("utf-8", "replace"): line
        for line in _lines(folder, "index.noun")
        if not line.startswith(b" ")  # the licence
    }
    exceptions = {}
    for line in _lines(folder, "noun.exc", optional=True):
        plural, *singulars = line.decode("utf-8", "replace").split() or [""]
        exceptions[plural] = tuple(singulars)
    lines = {int(line[:8]): line for line in _lines(folder, "data.noun") if line[:8].isdigit()}
    for name, found in (("index.noun", index), ("data.noun", lines)):
        if not found:
            raise UserError(f"{folder}/{name}: holds no noun; {REMEDY}")
    plain = {_plain(lemma): lemma for lemma in index if "-" in lemma or "'" in lemma}
    spellings = {name: lemma for name, lemma in plain.items() if "_" in name}
    return WordNet(folder, index, exceptions, lines, spellings)


def _plain(lemma: str) -> str:
    """A lemma as names of classes have it: `ring-billed_gull` and `brewer's_blackbird` without
    hyphens and possessives."""
    return lemma.replace("'s", "").replace("'", "").replace("-", "_")


def _lines(folder: str, name: str, *, optional: bool = False) -> list[bytes]:
    path = f"{folder.rstrip('/')}/{name}"
    try:
        with fsspec.open(path, "rb") as stream:
            return list(stream.read().splitlines())
    except FileNotFoundError:
        if optional:
            return []
        raise UserError(f"{path}: no such file; {REMEDY}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); {REMEDY}") from None


def singulars(word: str, exceptions: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """The word, its irregular singulars, then what is left without the ending of a plural."""
    yield word
    yield from exceptions.get(word, ())
    if word.endswith("ss") or len(word) <= 2:
        return
    for ending, base in _ENDINGS:
        if word.endswith(ending):
            yield word[: len(word) - len(ending)] + base


def find_lemma(wordnet: WordNet, words: Sequence[str]) -> str | None:
    """The lemma of a name: the whole as a compound, then its longest ending that is a noun.

    The last word of an English name is its head: a "black footed albatross" is an albatross. Where
    no ending is a noun ("barn indoor"), the last word is left out and the rest looked up.
    """
    for end in range(len(words), 0, -1):
        for start in range(end):
            for last in singulars(words[end - 1], wordnet.exceptions):
                parts = [*words[start : end - 1], last]
                for lemma in dict.fromkeys(sign.join(parts) for sign in ("_", "-", "")):
                    if lemma in wordnet.index:
                        return lemma
                if spelled := wordnet.spellings.get(_plain("_".join(parts))):
                    return spelled
    return None


def named_synset(wordnet: WordNet, name: str) -> int | None:
    """The number of `n02084071`, `02084071` or `dog.n.01`; None where the database lacks it."""
    if number := re.fullmatch(r"n?(\d{8})(-n)?", name):
        found = int(number[1])
        return found if found in wordnet.lines else None
    if sense := re.fullmatch(r"(.+)\.n\.(\d+)", name):
        lemma = sense[1].lower().replace(" ", "_")
        senses = wordnet.senses(lemma) if lemma in wordnet.index else []
        return senses[int(sense[2]) - 1] if 0 < int(sense[2]) <= len(senses) else None
    return None


def find_senses(wordnet: WordNet, words: Sequence[str], synset: str | None = None) -> list[int]:
    """Synsets of a class, the likeliest first: the named one alone, or those of its words."""
    if synset is not None:
        number = named_synset(wordnet, synset)
        return [] if number is None else [number]
    lemma = find_lemma(wordnet, words)
    return [] if lemma is None else wordnet.senses(lemma)


def gloss_words(wordnet: WordNet, number: int, steps: int = GLOSS_STEPS) -> Counter[str]:
    """How often a word stands in the gloss of a synset and of its near ancestors."""
    counts: Counter[str] = Counter()
    level = [number]
    for _ in range(steps + 1):
        for near in level:
            counts.update(_words(wordnet.synset(near).gloss))
        level = list(dict.fromkeys(p for n in level for p in wordnet.synset(n).hypernyms))
    return counts


def gloss_frequencies(wordnet: WordNet) -> dict[str, float]:
    """The share of each word in all glosses of the database: rare words say more of a class."""
    counts: Counter[str] = Counter()
    for number in wordnet.lines:
        counts.update(_words(wordnet.synset(number).gloss))
    total = counts.total()
    return {word: count / total for word, count in counts.items()}


def _words(gloss: str) -> list[str]:
    return re.findall(r"[a-z]+", gloss.lower())
