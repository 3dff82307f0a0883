"""Make the demo's data from the icon packages: pictures, split, words, WordNet, shards.

    python demo/make_demo.py --icons NODE_MODULES

README.md says which packages to install. The same packages give the same bytes.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from glove import write_words
from icons import FAMILY, Drawing, find_drawings, render, without_twins
from licences import write_licences
from PIL import Image
from wordnet import DEBIAN, write_wordnet

DEMO = Path(__file__).resolve().parent
FEWEST_DRAWINGS = 6
UNSEEN_SHARE = 0.22
VAL_SHARE = 0.2
TEST_SHARE = 0.25


def drawn(names: Iterable[str], *salt: object) -> list[str]:
    """The names in an order that only they and the salt decide."""
    return sorted(names, key=lambda name: hashlib.sha256(repr((*salt, name)).encode()).digest())


def choose_roles(classes: Iterable[str], seed: int) -> tuple[list[str], list[str]]:
    """Unseen classes and validation classes (which are seen), sorted."""
    ranked = drawn(classes, seed, "unseen")
    num_unseen = round(UNSEEN_SHARE * len(ranked))
    seen = drawn(ranked[num_unseen:], seed, "val")
    return sorted(ranked[:num_unseen]), sorted(seen[: round(VAL_SHARE * len(seen))])


def held_out(drawings: list[Drawing], seed: int) -> set[Drawing]:
    """About a quarter of a seen class's drawings, for the test.

    Relatives (see icons.FAMILY) go together, so that no test picture has its twin in another
    finish among the training pictures.
    """
    wanted = max(1, round(TEST_SHARE * len(drawings)))
    groups: dict[str, list[Drawing]] = {}
    for drawing in drawings:
        groups.setdefault(drawing.relatives, []).append(drawing)
    chosen: set[Drawing] = set()
    for key in drawn(groups, seed, drawings[0].class_name):
        if len(chosen) + len(groups[key]) <= wanted:
            chosen.update(groups[key])
    return chosen


def collect(node_modules: Path) -> dict[Drawing, Image.Image]:
    """All drawings that are used, with their pictures. Raises ValueError for a thin class."""
    pictures: dict[Drawing, Image.Image] = {}
    for name, drawings in find_drawings(node_modules, DEMO / "nouns.txt").items():
        rendered = {drawing: render(node_modules, drawing) for drawing in drawings}
        kept = without_twins(drawings, rendered)
        if len(kept) < FEWEST_DRAWINGS:
            raise ValueError(f"class {name}: {len(kept)} drawings, needs {FEWEST_DRAWINGS}")
        pictures.update((drawing, rendered[drawing]) for drawing in kept)
    return pictures


def write_tree(
    folder: Path, pictures: dict[Drawing, Image.Image], unseen: list[str], seed: int
) -> None:
    """PNG files as train/CLASS/SET__ICON.png and test/CLASS/SET__ICON.png."""
    by_class: dict[str, list[Drawing]] = {}
    for drawing in pictures:
        by_class.setdefault(drawing.class_name, []).append(drawing)
    for name, drawings in by_class.items():
        test = set(drawings) if name in unseen else held_out(drawings, seed)
        for drawing in drawings:
            path = folder / ("test" if drawing in test else "train") / name / drawing.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures[drawing].save(path)


def pack(tree: Path, quality: int, seed: int) -> None:
    """Run `python -m shards pack` into a new folder, then put it in the old one's place."""
    fresh = DEMO / "shards.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    options = {
        "source": f"folder:{tree}",
        "out": fresh,
        "unseen": DEMO / "unseen.txt",
        "val": DEMO / "val.txt",
        "patches": "watershed",
        "num_patches": 9,
        "short_side": 128,
        "quality": quality,
        "images_per_shard": 134,
        "seed": seed,
        "title": "emoji",
        "licence": "Apache-2.0, MIT and CC-BY-4.0 by picture: demo/LICENSES.md",
    }
    command = [sys.executable, "-m", "shards", "pack"]
    command += [f"--{key}={value}" for key, value in options.items()]
    subprocess.run(command, cwd=DEMO.parent, check=True)
    shutil.rmtree(DEMO / "shards", ignore_errors=True)
    fresh.rename(DEMO / "shards")


def main() -> None:
    """Read the command line and make everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--icons", type=Path, required=True, help="the node_modules folder")
    parser.add_argument("--glove", type=Path, help="GloVe text file; default: the package")
    parser.add_argument("--wordnet", default=DEBIAN, help="folder of data.noun and index.noun")
    parser.add_argument("--tree", type=Path, help="keep the PNG files in this new folder")
    parser.add_argument("--quality", type=int, default=80, help="JPEG quality")
    parser.add_argument("--seed", type=int, default=0, help="of classes and held-out drawings")
    options = parser.parse_args()

    pictures = collect(options.icons)
    classes = sorted({drawing.class_name for drawing in pictures})
    unseen, val = choose_roles(classes, options.seed)
    for name, names in (("unseen", unseen), ("val", val)):
        (DEMO / f"{name}.txt").write_text("\n".join(names) + "\n", "utf-8")
    num_words = write_words(classes, options.glove, DEMO / "words.txt")
    write_wordnet(classes, options.wordnet, DEMO / "wordnet")
    counts = Counter(drawing.icon_set for drawing in pictures)
    write_licences(options.icons, counts, num_words, DEMO / "LICENSES.md")
    print(f"{len(pictures)} drawings of {len(classes)} classes in {len(FAMILY)} sets")

    with tempfile.TemporaryDirectory() as scratch:
        tree = options.tree or Path(scratch)
        # A file left from an earlier run would be packed, too.
        if (tree / "train").exists():
            raise ValueError(f"{tree}: already holds pictures; name a new folder with --tree")
        write_tree(tree, pictures, unseen, options.seed)
        pack(tree, options.quality, options.seed)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
