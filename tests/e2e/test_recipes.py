"""docs/recipes.md, command by command, on tiny trees that are laid out as the archives are."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from class_lists import AWA2, CUB
from readme_commands import blocks, run_command
from shards.config import PackConfig
from shards.datasets.classes import read_words
from shards.datasets.dataset import read_source
from shards_trees import write
from vgse.config import load_config
from vgse.formats import read_npz
from vgse.knowledge.wordnet import find_senses, named_synset, read_wordnet
from vgse.knowledge.words import words_of
from vgse.run_folder import read_knowledge

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "recipes.md"
WORDNET = Path("/usr/share/wordnet")
IMAGES = 3  # of a class
SMALLER = {
    "pack": "--workers 1 --num_patches 2 --short_side 32 --images_per_shard 200",
    "train": (
        "--model.num_clusters 8 --model.projection 16 --training.batch_size 32 --training.epochs 1 "
        "--backbone.patch_size 32 --backbone.image_size 32 --cluster.num_workers 1 "
        "--relations.ridge 0.1 --evaluation.models [prototype] --evaluation.folds 2"
    ),
    "evaluate": "--models [prototype] --folds 2",
}


def mapped(kind: str, what: str) -> dict[str, str]:
    """Class -> its words or its synset in the map of a recipe."""
    file = ROOT / "configs" / kind / f"{what}.yaml"
    return {name: " ".join(w) for name, w in read_words(str(file)).items()} if file.exists() else {}


def awa2_tree(root: Path) -> None:
    """JPEGImages/<class>, the mapped classes and a few that need no map."""
    names = [name for name in AWA2 if name in mapped("awa2", "synsets")] + ["killer+whale", "ox"]
    for number, name in enumerate(names):
        for n in range(IMAGES):
            write(root / "JPEGImages" / name / f"{name}_{10001 + n}.jpg", 10 * number + n)
    (root / "classes.txt").write_text("".join(f"{i:8d}\t{n}\n" for i, n in enumerate(names, 1)))
    (root / "trainclasses.txt").write_text("".join(f"{name}\n" for name in names[:-2]))
    (root / "testclasses.txt").write_text("".join(f"{name}\n" for name in names[-2:]))


def cub_tree(root: Path) -> None:
    """images/<number.class> and the numbered tables of CUB_200_2011."""
    wanted = {*mapped("cub", "words"), *mapped("cub", "synsets"), "058.Pigeon_Guillemot"}
    names = [name for name in CUB if name in wanted]
    files = [f"{name}/{name[4:]}_{n:04d}_{n}.jpg" for name in names for n in range(IMAGES)]
    for number, file in enumerate(files):
        write(root / "images" / file, number)
    tables = {
        "images.txt": files,
        "image_class_labels.txt": [1 + names.index(file.split("/")[0]) for file in files],
        "classes.txt": names,
    }
    for name, rows in tables.items():
        (root / name).write_text("".join(f"{i} {row}\n" for i, row in enumerate(rows, 1)))


def sun_tree(root: Path) -> None:
    """images/<letter>/<class>, some with a folder for what follows the class: church/indoor."""
    names = sorted({*mapped("sun", "words"), *mapped("sun", "synsets"), "abbey", "apse_indoor"})
    for number, name in enumerate(names):
        path = re.sub(r"_(indoor|outdoor)$", r"/\1", name)
        for n in range(IMAGES):
            write(root / "images" / name[0] / path / f"sun_{number}{n}.jpg", 10 * number + n)


TREES: dict[str, Callable[[Path], None]] = {"awa2": awa2_tree, "cub": cub_tree, "sun": sun_tree}


def write_xlsa17(kind: str, root: Path, folder: Path) -> list[str]:
    """att_splits.mat and res101.mat of a tree, the last 3 classes unseen; returns all classes."""
    folder.mkdir(parents=True)
    data = read_source(PackConfig(source=f"{kind}:{root}", out="", unseen_fraction=0.3))
    names = [entry.name for entry in data.classes]
    of_source = {image.source: image.class_name for image in data.images}
    files = [str(file.relative_to(root)) for file in sorted(root.rglob("*.jpg"))]
    known = [file for file in files if file in of_source]
    labels = np.array([names.index(of_source[file]) for file in known]) + 1
    unseen = labels > labels.max() - 3
    val = ~unseen & (labels <= 4)
    test = ~unseen & (np.arange(len(labels)) % IMAGES == 1)
    parts = {
        "trainval_loc": ~unseen & ~test,
        "train_loc": ~unseen & ~test & ~val,
        "val_loc": val & ~test,
        "test_seen_loc": test,
        "test_unseen_loc": unseen,
    }
    paths = [f"/BS/someone/work/data/{kind.upper()}/{file}" for file in known]
    cells = [np.array([[text] for text in texts], object) for texts in (names, paths)]
    locations = {name: np.flatnonzero(mask)[:, None] + 1 for name, mask in parts.items()}
    att = {"att": np.eye(len(names)), "allclasses_names": cells[0], **locations}
    scipy.io.savemat(folder / "att_splits.mat", att)
    features = np.random.default_rng(0).normal(size=(16, len(known))) + labels % 7
    images = {"features": features, "labels": labels[:, None], "image_files": cells[1]}
    scipy.io.savemat(folder / "res101.mat", images)
    return names


def write_glove(path: Path, kind: str, names: list[str]) -> None:
    """Vectors of the words that are looked up, of none that the map replaces."""
    random, words = np.random.default_rng(0), mapped(kind, "words")
    asked = sorted({w for name in names for w in words.get(name, " ".join(words_of(name))).split()})
    rows = [" ".join([word, *(f"{x:.4f}" for x in random.normal(size=8))]) for word in asked]
    path.write_text("\n".join(rows) + "\n")


def write_wordnet(folder: Path, kind: str) -> None:
    """A database in which each synset of the map is there, with the senses before it."""
    folder.mkdir()
    senses: dict[str, int] = {}
    for synset in mapped(kind, "synsets").values():
        lemma, _, sense = synset.partition(".n.")
        senses[lemma] = max(senses.get(lemma, 0), int(sense))
    data, index = ["00000001 05 n 01 animal 0 000 | it lives"], []
    for lemma, count in sorted(senses.items()):
        numbers = [len(data) + 1 + sense for sense in range(count)]
        data += [f"{n:08d} 05 n 01 {lemma} 0 001 @ 00000001 n 0000 | a kind" for n in numbers]
        index.append(f"{lemma} n {count} 1 @ {count} 0 {' '.join(f'{n:08d}' for n in numbers)}")
    (folder / "data.noun").write_text("\n".join(data) + "\n")
    (folder / "index.noun").write_text("\n".join(index) + "\n")


def commands(kind: str) -> list[str]:
    """The recipe's commands for one data set, as a shell in this folder hands them to Python."""
    (block,) = [block for block in blocks("bash", RECIPES) if "shards pack" in block]
    loop, count = re.subn(r"for SET in [^;]*;", f"for SET in {kind}:{kind.upper()};", block)
    assert count == 1
    script = f'python() {{ echo python "$@"; }}\n{loop}'
    shell = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert not shell.stderr
    return [re.sub(r" +", " ", line) for line in shell.stdout.splitlines()]


@pytest.fixture
def laid_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Makes all that a recipe reads in the working folder, and returns the classes."""

    def lay_out(kind: str) -> list[str]:
        monkeypatch.chdir(tmp_path)
        Path("configs").symlink_to(ROOT / "configs")
        root = tmp_path / "data" / kind.upper()
        TREES[kind](root)
        names = write_xlsa17(kind, root, tmp_path / "data" / "xlsa17" / "data" / kind.upper())
        write_glove(Path(load_config(f"configs/{kind}.yaml").data.words), kind, names)
        write_wordnet(tmp_path / "wordnet", kind)
        return names

    return lay_out


def known_wordnet(kind: str) -> str:
    """The recipe's knowledge, with the WordNet that is laid out."""
    words, wordnet = (vars(source) for source in load_config(f"configs/{kind}.yaml").knowledge)
    return json.dumps([words, {**wordnet, "path": "wordnet"}])


@pytest.mark.parametrize("kind", TREES)
def test_the_packed_classes_have_the_roles_of_the_splits_and_the_mapped_names(
    kind: str, laid_out: Callable[[str], list[str]]
) -> None:
    names = laid_out(kind)
    assert run_command(f"{commands(kind)[0]} {SMALLER['pack']}") == 0
    manifest = json.loads(Path(f"data/{kind}-shards/manifest.json").read_text())
    classes = {entry["name"]: entry for entry in manifest["classes"]}
    unseen = [name for name, entry in classes.items() if entry["role"] == "unseen"]
    assert unseen == names[-3:]
    for name, words in mapped(kind, "words").items():
        assert " ".join(classes[name]["words"]) == words
    for name, synset in mapped(kind, "synsets").items():
        assert classes[name]["synset"] == synset


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind", ["sun", pytest.param("awa2", marks=SLOW), pytest.param("cub", marks=SLOW)]
)
def test_the_commands_of_a_recipe_lead_from_the_archives_to_the_table(
    kind: str,
    ray_session: None,
    laid_out: Callable[[str], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    laid_out(kind)
    ran = []
    for line in commands(kind):
        name = line.split()[3]
        more = SMALLER.get(name, "")
        if name == "train":
            more += f" --knowledge '{known_wordnet(kind)}'"
        capsys.readouterr()
        assert run_command(f"{line} {more}") == 0, line
        ran.append(name)
    assert ran == ["pack", "train", "export", "evaluate"]
    assert "given" in capsys.readouterr().out
    run = Path("runs") / kind
    table = json.loads((run / "evaluation.json").read_text())
    assert {"words", "paper_smo", "smo"} <= {row["name"] for row in table["rows"]}
    assert (run / "report.html").is_file()
    known = read_knowledge(run, read_npz(run / "class_embeddings.npz"))
    assert [source.name for source in known.sources] == ["words", "WordNet"]
    assert set(mapped(kind, "synsets")) <= set(known.sources[1].found)


@pytest.mark.parametrize("kind", TREES)
def test_the_head_of_a_recipe_holds_the_documented_commands(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "configs" / f"{kind}.yaml").read_text().replace("\\\n#", "")
    stated = re.findall(r"^#\s+(python -m (?:shards|distributed) .*)$", text, re.M)
    assert [re.sub(r" +", " ", line) for line in stated] == commands(kind)[:2]


@pytest.mark.parametrize(("kind", "classes"), [("awa2", AWA2), ("cub", CUB)])
def test_maps_name_classes_of_the_data_set(kind: str, classes: list[str]) -> None:
    assert len(set(classes)) == len(classes) == {"awa2": 50, "cub": 200}[kind]
    for what in ("words", "synsets"):
        assert set(mapped(kind, what)) <= set(classes)
    assert all(re.fullmatch(r"[a-z ]+", words) for words in mapped(kind, "words").values())


def test_maps_of_scenes_name_them_as_their_folders_are_read() -> None:
    names = {**mapped("sun", "words"), **mapped("sun", "synsets")}
    assert all(re.fullmatch(r"[a-z]+([_-][a-z]+)*", name) for name in names)


@pytest.mark.slow
@pytest.mark.skipif(not WORDNET.is_dir(), reason="needs Debian's wordnet-base")
def test_mapped_birds_and_animals_are_animals_in_wordnet() -> None:
    wordnet = read_wordnet(str(WORDNET))

    def animal(name: str, kind: str, synsets: dict[str, str]) -> bool:
        words = mapped(kind, "words").get(name, " ".join(words_of(name))).split()
        senses = find_senses(wordnet, words, synsets.get(name))
        return bool(senses) and wordnet.lines[senses[0]].split()[1] == b"05"  # noun.animal

    for kind, classes in (("awa2", AWA2), ("cub", CUB)):
        assert all(animal(name, kind, mapped(kind, "synsets")) for name in classes)
        assert sum(not animal(name, kind, {}) for name in classes) > 9
    for kind in TREES:
        assert all(named_synset(wordnet, synset) for synset in mapped(kind, "synsets").values())
