"""Cut WordNet down to what names need: `python demo/wordnet.py --names FILE --out FOLDER`.

FILE holds class names, one a line. FOLDER gets index.noun, data.noun and noun.exc with the first
senses of the names and all their ancestors, as vgse.knowledge.wordnet reads them.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from vgse.config import SourceConfig
from vgse.knowledge.hierarchy import ancestor_weights
from vgse.knowledge.wordnet import (
    WordNet,
    find_lemma,
    find_senses,
    read_wordnet,
)
from vgse.knowledge.words import words_of

DEBIAN = "/usr/share/wordnet"  # package wordnet-base


def write_wordnet(
    names: Iterable[str], folder: str, out: Path, synsets: Mapping[str, str] | None = None
) -> int:
    """Write the part that the names need and return how many synsets it has; `synsets`, such as
    maple.n.02, are those of names that are to be looked up otherwise.

    Raises ValueError for names that WordNet lacks.
    """
    wordnet = read_wordnet(folder)
    words = {name: words_of(name) for name in names}
    words |= {synset: [synset.split(".")[0]] for synset in (synsets or {}).values()}
    lemmas = {name: find_lemma(wordnet, of_name) for name, of_name in words.items()}
    lost = [name for name, lemma in lemmas.items() if lemma is None]
    if lost:
        raise ValueError(f"{folder}: no noun for {', '.join(lost)}; rename these classes")
    kept = {
        lemma: find_senses(wordnet, words[name])[: SourceConfig("wordnet").senses]
        for name, lemma in lemmas.items()
        if lemma is not None
    }
    starts = {number: 1.0 for senses in kept.values() for number in senses}
    numbers = sorted(ancestor_weights(starts, lambda n: wordnet.synset(n).hypernyms))
    data = [_synset_line(wordnet, number) for number in numbers]
    index = [
        f"{lemma} n {len(senses)} 0 {len(senses)} 0 {' '.join(f'{n:08d}' for n in senses)}"
        for lemma, senses in sorted(kept.items())
    ]
    every_word = {word for of_name in words.values() for word in of_name}
    irregular = [
        " ".join([plural, *singulars])
        for plural, singulars in sorted(wordnet.exceptions.items())
        if plural in every_word
    ]
    licence = _licence(folder)
    out.mkdir(parents=True, exist_ok=True)
    files = {"index.noun": licence + index, "data.noun": licence + data, "noun.exc": irregular}
    for name, lines in files.items():
        (out / name).unlink(missing_ok=True)
        if lines:
            (out / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return len(numbers)


def _synset_line(wordnet: WordNet, number: int) -> str:
    """The synset's own line without the pointers that are not to its hypernyms."""
    line = wordnet.lines[number].decode("utf-8")
    fields, gloss = line.split(" | ", 1)
    parts = fields.split(" ")
    at = 4 + 2 * int(parts[3], 16)
    pointers = [parts[i : i + 4] for i in range(at + 1, at + 1 + 4 * int(parts[at]), 4)]
    pointers = [pointer for pointer in pointers if pointer[0] in ("@", "@i")]
    words = [*parts[:at], f"{len(pointers):03d}", *(p for pointer in pointers for p in pointer)]
    return f"{' '.join(words)} | {gloss.strip()}"


def _licence(folder: str) -> list[str]:
    """The licence that stands at the head of every file of WordNet."""
    lines = (Path(folder) / "data.noun").read_text("utf-8").splitlines()
    head = [line.rstrip() for line in lines if line.startswith("  ")]
    note = "Synsets and pointers were left out; numbers are those of the whole data.noun."
    return [*head, f"  {len(head) + 1} {note}"]


def main() -> None:
    """Read the command line, write the files, say what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=Path, required=True, help="class names, one a line")
    parser.add_argument("--wordnet", default=DEBIAN, help="folder of data.noun and index.noun")
    parser.add_argument("--synsets", type=Path, help="YAML file {name: synset}")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    names = options.names.read_text("utf-8").split()
    synsets = yaml.safe_load(options.synsets.read_text("utf-8")) if options.synsets else {}
    count = write_wordnet(names, options.wordnet, options.out, synsets)
    print(f"{count} synsets in {options.out}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
