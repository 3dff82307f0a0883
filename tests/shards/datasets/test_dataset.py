import os
import shutil
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest
import scipy.io

from shards.config import PackConfig
from shards.datasets.dataset import DataSet, read_source
from shards_trees import (
    NAMES,
    awa2_tree,
    cub_tree,
    flat_tree,
    split_tree,
    sun_tree,
    write,
    xlsa17_files,
)
from vgse.errors import UserError

PARTS = ("trainval_loc", "test_seen_loc", "test_unseen_loc")


def read(source: str, **options: Any) -> DataSet:
    return read_source(PackConfig(source=source, out="unused", **options))


def roles(data: DataSet) -> dict[str, str]:
    return {entry.name: entry.role for entry in data.classes}


def parts(data: DataSet) -> Counter[tuple[str, str]]:
    return Counter((image.class_name, image.part) for image in data.images)


def names_file(path: Path, *names: str) -> str:
    path.write_text("\n".join(names) + "\n")
    return str(path)


def test_a_flat_folder_gives_a_fifth_of_each_seen_class_to_test_seen(tmp_path: Path) -> None:
    unseen = names_file(tmp_path / "unseen.txt", "cat", "dog")
    data = read(f"folder:{flat_tree(tmp_path / 'set')}", unseen=unseen)
    counts = parts(data)
    assert counts["cat", "test_unseen"] == 5 and counts["cat", "train"] == 0
    for name in set(NAMES) - {"cat", "dog"}:
        assert (counts[name, "train"], counts[name, "test_seen"]) == (4, 1)
    again = read(f"folder:{tmp_path / 'set'}", unseen=unseen, seed=5)
    assert {i.source: i.part for i in again.images} == {i.source: i.part for i in data.images}


def test_train_and_test_folders_are_kept_apart(tmp_path: Path) -> None:
    unseen = names_file(tmp_path / "unseen.txt", "cat")
    data = read(f"folder:{split_tree(tmp_path / 'set')}", unseen=unseen)
    counts = parts(data)
    assert (counts["dog", "train"], counts["dog", "test_seen"]) == (4, 2)
    assert counts["cat", "test_unseen"] == 2
    assert not any(i.class_name == "cat" and i.source.startswith("train") for i in data.images)
    assert data.left_out == {"training images of unseen classes": 4}


@pytest.mark.parametrize("name", ["test", "val"])
def test_training_images_of_unseen_classes_are_packed_where_asked(
    tmp_path: Path, name: str
) -> None:
    unseen = names_file(tmp_path / "unseen.txt", "cat")
    source = f"folder:{split_tree(tmp_path / 'set')}"
    (tmp_path / "set" / "test").rename(tmp_path / "set" / name)
    counts = parts(read(source, unseen=unseen))
    every = read(source, unseen=unseen, all_unseen=True)
    assert parts(every) == {**counts, ("cat", "test_unseen"): 6}
    assert not every.left_out
    shutil.rmtree(tmp_path / "set" / name / "cat")
    with pytest.raises(UserError, match=r"without images: cat; .* --all_unseen true"):
        read(source, unseen=unseen)
    assert parts(read(source, unseen=unseen, all_unseen=True))["cat", "test_unseen"] == 4


def test_data_sets_without_training_folders_pack_all_images_of_unseen_classes_anyway(
    tmp_path: Path,
) -> None:
    splits, features = xlsa17_files(awa2_tree(tmp_path / "awa2"), tmp_path / "mat")
    unseen = {"unseen_fraction": 0.4}
    given: list[tuple[str, dict[str, Any]]] = [
        (f"folder:{flat_tree(tmp_path / 'flat')}", unseen),
        (f"cub:{cub_tree(tmp_path / 'cub')}", unseen),
        (f"sun:{sun_tree(tmp_path / 'sun')}", unseen),
        (f"awa2:{tmp_path / 'awa2'}", {}),
        (f"awa2:{tmp_path / 'awa2'}", {"splits": splits, "features_file": features}),
    ]
    for source, options in given:
        assert read(source, **options, all_unseen=True) == read(source, **options)


def test_awa2_takes_its_own_test_classes(tmp_path: Path) -> None:
    data = read(f"awa2:{awa2_tree(tmp_path)}")
    assert {n for n, role in roles(data).items() if role == "unseen"} == {"eel", "killer+whale"}
    words = {entry.name: entry.words for entry in data.classes}
    assert words["killer+whale"] == ["killer", "whale"]


def test_cub_classes_lose_their_number_in_the_words_only(tmp_path: Path) -> None:
    unseen = names_file(tmp_path / "u.txt", "004.Crow")
    data = read(f"cub:{cub_tree(tmp_path / 'set')}", unseen=unseen)
    words = {entry.name: entry.words for entry in data.classes}
    assert words["001.Black_footed_Albatross"] == ["black", "footed", "albatross"]
    assert len(data.images) == 20 and roles(data)["004.Crow"] == "unseen"


@pytest.mark.parametrize("listed", [True, False])
def test_sun_joins_nested_folders_to_a_class_name(tmp_path: Path, listed: bool) -> None:
    root = sun_tree(tmp_path)
    if not listed:
        (root / "ClassName.txt").unlink()
    data = read(f"sun:{root}", unseen_fraction=0.4)
    expected = ["abbey", "apse_indoor", "bakery", "bar", "inn_outdoor"]
    assert [entry.name for entry in data.classes] == expected
    assert len(data.images) == 25


def test_xlsa17_files_decide_image_by_image(tmp_path: Path) -> None:
    splits, features = xlsa17_files(awa2_tree(tmp_path / "set"), tmp_path / "mat")
    data = read(f"awa2:{tmp_path / 'set'}", splits=splits, features_file=features)
    counts = parts(data)
    assert roles(data) == {
        **dict.fromkeys(["antelope", "cat", "dog"], "train"),
        **dict.fromkeys(["eel", "killer+whale"], "unseen"),
        "fox": "val",
    }
    assert (counts["cat", "train"], counts["cat", "test_seen"]) == (4, 1)
    assert counts["eel", "test_unseen"] == 5
    seen = {image.source for image in data.images if image.part == "test_seen"}
    assert "JPEGImages/cat/cat_0.jpg" in seen


def test_xlsa17_files_without_validation_classes_take_those_of_a_list_or_a_draw(
    tmp_path: Path,
) -> None:
    splits, features = xlsa17_files(awa2_tree(tmp_path / "set"), tmp_path / "mat")
    given = {"splits": splits, "features_file": features}
    (tmp_path / "val.txt").write_text("cat\n")
    source, val = f"awa2:{tmp_path / 'set'}", {"val": str(tmp_path / "val.txt")}
    with pytest.raises(ValueError, match="already names validation classes; drop val"):
        read(source, **given, **val)
    fields = scipy.io.loadmat(splits)
    kept = {key: fields[key] for key in ("allclasses_names", "att", *PARTS)}
    scipy.io.savemat(splits, kept)
    assert roles(read(source, **given, **val))["cat"] == "val"
    drawn = Counter(roles(read(source, **given)).values())
    assert drawn == {"train": 3, "val": 1, "unseen": 2}


def test_xlsa17_files_that_name_an_image_twice_are_refused(tmp_path: Path) -> None:
    root = awa2_tree(tmp_path / "set")
    splits, features = xlsa17_files(root, tmp_path / "mat", test_seen_loc=[[2]])
    with pytest.raises(ValueError, match=r"att_splits\.mat: image 2 is in two splits"):
        read(f"awa2:{root}", splits=splits, features_file=features)


def test_xlsa17_images_that_are_not_here_are_counted(tmp_path: Path) -> None:
    root = awa2_tree(tmp_path / "set")
    splits, features = xlsa17_files(root, tmp_path / "mat")
    (root / "JPEGImages/cat/cat_3.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 30 images of .*res101\.mat are not here, .*cat_3"):
        read(f"awa2:{root}", splits=splits, features_file=features)


def test_xlsa17_paths_cannot_leave_the_data_set(tmp_path: Path) -> None:
    root = awa2_tree(tmp_path / "set")
    splits, features = xlsa17_files(root, tmp_path / "mat", image_files=[["/x/../secret.jpg"]] * 30)
    with pytest.raises(ValueError, match=r"leaves the data set's folder"):
        read(f"awa2:{root}", splits=splits, features_file=features)


def test_a_mat_file_without_its_fields_is_refused(tmp_path: Path) -> None:
    root = awa2_tree(tmp_path / "set")
    splits, _ = xlsa17_files(root, tmp_path / "mat")
    with pytest.raises(ValueError, match=r"holds no image_files, labels, only allclasses_names"):
        read(f"awa2:{root}", splits=splits, features_file=splits)


def test_cub_image_paths_cannot_leave_the_data_set(tmp_path: Path) -> None:
    root = cub_tree(tmp_path)
    lines = (root / "images.txt").read_text().replace("004.Crow/Crow_1", "../../secret")
    (root / "images.txt").write_text(lines)
    with pytest.raises(ValueError, match=r"images\.txt: image 17: '../../secret\.jpg' leaves"):
        read(f"cub:{root}", unseen_fraction=0.3)


def test_awa2_class_names_cannot_leave_the_data_set(tmp_path: Path) -> None:
    root = awa2_tree(tmp_path)
    (root / "classes.txt").write_text("1 cat\n2 ../../etc\n")
    with pytest.raises(ValueError, match=r"'../../etc' leaves the data set's folder"):
        read(f"awa2:{root}")


def test_a_class_that_is_seen_and_unseen_is_refused(tmp_path: Path) -> None:
    root = awa2_tree(tmp_path)
    (root / "trainclasses.txt").write_text("antelope\neel\n")
    with pytest.raises(ValueError, match=r"testclasses\.txt: eel also in trainclasses\.txt"):
        read(f"awa2:{root}")


def test_validation_classes_must_be_seen(tmp_path: Path) -> None:
    root = flat_tree(tmp_path / "set")
    unseen = names_file(tmp_path / "u.txt", "cat", "dog")
    val = names_file(tmp_path / "v.txt", "dog")
    with pytest.raises(ValueError, match="dog both unseen and for validation"):
        read(f"folder:{root}", unseen=unseen, val=val)


def test_unknown_unseen_classes_are_all_named_with_a_guess(tmp_path: Path) -> None:
    unseen = names_file(tmp_path / "u.txt", "cat", "antelop", "zebra")
    with pytest.raises(ValueError, match=r"6 classes: antelop, zebra; did you mean 'antelope'"):
        read(f"folder:{flat_tree(tmp_path / 'set')}", unseen=unseen)


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("u.json", '["cat", "dog"]', ""),
        ("u.yaml", "- cat\n- dog\n", ""),
        ("u.json", '{"unseen": {"main": ["cat", "dog"]}}', "#unseen.main"),
        ("u.txt", "1 cat\n2 dog\n", ""),
        ("u.txt", "\ufeffcat  \r\n\r\n dog\r\n", ""),
    ],
)
def test_unseen_classes_come_from_lists_of_many_kinds(
    tmp_path: Path, name: str, text: str, key: str
) -> None:
    (tmp_path / name).write_text(text)
    data = read(f"folder:{flat_tree(tmp_path / 'set')}", unseen=f"{tmp_path / name}{key}")
    assert [n for n, role in roles(data).items() if role == "unseen"] == ["cat", "dog"]


def test_a_mapping_instead_of_a_list_says_how_to_pick_one(tmp_path: Path) -> None:
    (tmp_path / "u.json").write_text('{"unseen": ["cat"]}')
    with pytest.raises(ValueError, match=r"u\.json: not a list of class names; say which list"):
        read(f"folder:{flat_tree(tmp_path / 'set')}", unseen=str(tmp_path / "u.json"))


def test_class_words_override_those_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("cat: [house, cat]\nblue_whale: whale\n")
    data = read(
        f"folder:{flat_tree(tmp_path / 'set')}",
        unseen_fraction=0.3,
        class_words=str(tmp_path / "w.yaml"),
    )
    words = {entry.name: entry.words for entry in data.classes}
    assert (words["cat"], words["blue_whale"], words["dog"]) == (
        ["house", "cat"],
        ["whale"],
        ["dog"],
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [("w.yaml", "cat: [a]\ndog: [b]\ncat: [c]\n"), ("w.json", '{"cat": "a", "cat": "b"}')],
)
def test_a_class_twice_in_the_words_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    root, words = flat_tree(tmp_path / "set"), str(tmp_path / name)
    with pytest.raises(ValueError, match=r"w\.\w+: cannot be read \(cat twice; keep one\)"):
        read(f"folder:{root}", unseen_fraction=0.3, class_words=words)


def test_words_of_an_unknown_class_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("camel: [camel]\n")
    with pytest.raises(ValueError, match="class_words: not among the 6 classes: camel"):
        read(
            f"folder:{flat_tree(tmp_path / 'set')}",
            unseen_fraction=0.3,
            class_words=str(tmp_path / "w.yaml"),
        )


def test_another_seed_draws_other_unseen_and_validation_classes(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set", classes=[f"c{i:02d}" for i in range(30)], images=2)
    one, two, three = (
        roles(read(f"folder:{tmp_path / 'set'}", unseen_fraction=0.2, seed=seed))
        for seed in (1, 1, 2)
    )
    assert one == two != three
    assert Counter(one.values()) == {"unseen": 6, "val": 5, "train": 19}


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set")
    (tmp_path / "set" / "gnu").mkdir()
    (tmp_path / "set" / "gnu" / "readme.txt").write_text("no picture")
    with pytest.raises(ValueError, match="classes without images: gnu; add images or take"):
        read(f"folder:{tmp_path / 'set'}", unseen=names_file(tmp_path / "u.txt", "cat"))


def test_unseen_classes_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unseen; give --unseen FILE or --unseen_fraction"):
        read(f"folder:{flat_tree(tmp_path)}")


def test_an_unknown_source_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of folder:PATH, awa2:PATH, cub:PATH, sun:PATH"):
        read(f"imagenet:{tmp_path}")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: no such folder; correct --source"):
        read(f"folder:{tmp_path / 'nowhere'}")


def test_hidden_files_and_other_files_are_no_images(tmp_path: Path) -> None:
    flat_tree(tmp_path)
    write(tmp_path / "cat" / "._cat.png", 1)
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    data = read(f"folder:{tmp_path}", unseen_fraction=0.3)
    assert len(data.images) == 30


def test_yaml_lists_hold_names_and_no_truth_values_or_numbers(tmp_path: Path) -> None:
    names = ["no", "007", "1e3", "null", "2024-01-01", "cat", "dog"]
    flat_tree(tmp_path / "set", classes=names, images=2)
    text = "".join(f"- {name}\n" for name in names[:5])
    (tmp_path / "u.yaml").write_text(text)
    (tmp_path / "w.yaml").write_text("no: [yes, no]\n007: bond\n")
    data = read(
        f"folder:{tmp_path / 'set'}",
        unseen=str(tmp_path / "u.yaml"),
        class_words=str(tmp_path / "w.yaml"),
        val_fraction=0.0,
    )
    assert {n for n, role in roles(data).items() if role == "unseen"} == set(names[:5])
    words = {entry.name: entry.words for entry in data.classes}
    assert (words["no"], words["007"]) == (["yes", "no"], ["bond"])
    (tmp_path / "u.json").write_text('["cat", true]')
    with pytest.raises(ValueError, match=r"u\.json: .* True is in it; correct it"):
        read(f"folder:{tmp_path / 'set'}", unseen=str(tmp_path / "u.json"))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("kind", ["folder", "awa2", "cub"])
def test_an_accent_may_be_spelled_in_two_ways(
    tmp_path: Path, kind: str, form: Literal["NFC", "NFD"]
) -> None:
    make = {"folder": flat_tree, "awa2": awa2_tree, "cub": cub_tree}[kind]
    root = make(tmp_path / "set")
    old = {"folder": "cat", "awa2": "JPEGImages/cat", "cub": "images/004.Crow"}[kind]
    name = "caf\u00e9"
    (root / old).rename((root / old).with_name(unicodedata.normalize(form, name)))
    for path in root.glob("*.txt"):
        text = path.read_text().replace(Path(old).name, name)
        path.write_text(text, encoding="utf-8")
    unseen = names_file(tmp_path / "u.txt", "cafe\u0301")
    data = read(f"{kind}:{root}", unseen=unseen)
    assert roles(data)[name] == "unseen"
    assert parts(data)[name, "test_unseen"] == 5


def test_split_folders_in_other_letter_cases_and_by_other_names(tmp_path: Path) -> None:
    root = split_tree(tmp_path / "set")
    expected = parts(read(f"folder:{root}", unseen_fraction=0.34))
    for train, test in (("Train", "TEST"), ("training", "val"), ("train", "Validation")):
        shutil.move(next(root.glob("[tT]rain*")), tmp_path / "a")
        shutil.move(next(root.iterdir()), root / test)
        shutil.move(tmp_path / "a", root / train)
        assert parts(read(f"folder:{root}", unseen_fraction=0.34)) == expected


def test_pictures_of_val_beside_test_are_for_training(tmp_path: Path) -> None:
    root = split_tree(tmp_path / "set")
    write(root / "val" / "dog" / "1.png", 1)
    write(root / "extra" / "dog" / "1.png", 1)
    write(root / "train" / "loose.png", 1)
    data = read(f"folder:{root}", unseen=names_file(tmp_path / "u.txt", "cat"))
    assert parts(data)["dog", "train"] == 5
    assert data.left_out == {
        "folders beside those of the splits": 1,
        "pictures outside class folders": 1,
        "training images of unseen classes": 4,
    }


def test_classes_called_train_and_test_are_classes(tmp_path: Path) -> None:
    flat_tree(tmp_path, classes=["train", "test", "boat"])
    data = read(f"folder:{tmp_path}", unseen=names_file(tmp_path / "u.txt", "boat"))
    assert list(roles(data)) == ["boat", "test", "train"]


def test_two_folders_of_one_class_or_split_are_refused(tmp_path: Path) -> None:
    flat_tree(tmp_path / "a")
    flat_tree(tmp_path / "a", classes=["cat "])
    with pytest.raises(ValueError, match=r"cat' and .*cat ' are folders of the same class"):
        read(f"folder:{tmp_path / 'a'}", unseen_fraction=0.34)
    split_tree(tmp_path / "b")
    shutil.copytree(tmp_path / "b" / "train", tmp_path / "b" / "Train")
    with pytest.raises(ValueError, match="are the same split; keep one"):
        read(f"folder:{tmp_path / 'b'}", unseen_fraction=0.34)


def test_the_folder_of_the_shards_is_no_class(tmp_path: Path) -> None:
    root = flat_tree(tmp_path)
    write(root / "packed" / "check.png", 1)
    config = PackConfig(source=f"folder:{root}", out=str(root / "packed"), unseen_fraction=0.34)
    assert "packed" not in roles(read_source(config))


def test_file_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    root = flat_tree(tmp_path)
    (root / "cat" / "cat_1.png").rename(os.fsdecode(os.fsencode(root / "cat") + b"/caf\xe9.png"))
    data = read(f"folder:{root}", unseen_fraction=0.34)
    assert "cat/caf\\xe9.png" in {image.source for image in data.images}
    (root / "cat").rename(os.fsdecode(os.fsencode(root) + b"/caf\xe9"))
    with pytest.raises(ValueError, match="is no name of a class; rename the folder"):
        read(f"folder:{root}", unseen_fraction=0.34)


def test_a_folder_around_the_data_set_is_named(tmp_path: Path) -> None:
    flat_tree(tmp_path / "set" / "pictures")
    with pytest.raises(ValueError, match=r"one class, pictures; .* --source folder:.*set/pictures"):
        read(f"folder:{tmp_path / 'set'}", unseen_fraction=0.34)


def test_synsets_of_a_file_stand_in_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("cat: cat.n.01\n")
    source = f"folder:{flat_tree(tmp_path / 'set')}"
    data = read(source, unseen_fraction=0.3, synsets=str(tmp_path / "s.yaml"))
    synsets = {entry.name: entry.synset for entry in data.classes}
    assert synsets["cat"] == "cat.n.01" and synsets["dog"] is None
    (tmp_path / "s.yaml").write_text("camel: camel.n.01\n")
    with pytest.raises(ValueError, match="synsets: not among the 6 classes: camel"):
        read(source, unseen_fraction=0.3, synsets=str(tmp_path / "s.yaml"))
