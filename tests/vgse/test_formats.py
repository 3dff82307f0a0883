"""Files: what is written loads again, the way that the field's scripts load it, or says why not."""

import csv
import json
import os
import re
from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from numpy.testing import assert_allclose
from safetensors.numpy import save_file

from vgse.__main__ import main
from vgse.config import EvaluationConfig, RelationConfig
from vgse.errors import UserError
from vgse.files import write_json, written_whole
from vgse.formats import ClassEmbeddings, read_npz, read_safetensors, write_npz, write_safetensors
from vgse.images.image_features import (
    ImageFeatures,
    read_image_features,
    write_image_features,
)
from vgse.knowledge.sources import Knowledge, Source
from vgse.relations.predict import ChosenKnowledge, predict_unseen, relate
from vgse.relations.select import select_relation
from vgse.run_folder import (
    WHAT,
    evaluate_run,
    export_features,
    export_splits,
    read_config,
    read_knowledge,
    read_seed,
    relate_run,
    write_classes,
    write_knowledge,
    zsl_data_of,
)
from vgse.xlsa17 import read_att_splits, read_res101, write_att_splits, write_res101, zsl_data
from vgse.zsl.external import evaluate_embeddings, evaluate_files
from vgse.zsl.folds import TestGuard, prepare
from vgse.zsl.rows import RowInputs, paper_wavg_row, table_rows
from vgse.zsl.table import evaluate
from zsl_toy import make_toy

TOY = make_toy()
DATA = TOY.data
CHOSEN = ChosenKnowledge(TOY.words, 1e-8)


def make_classes() -> ClassEmbeddings:
    """The toy's classes as a run would leave them."""
    related = relate(CHOSEN, TOY.words, DATA.seen, DATA.unseen, RelationConfig())
    own = TOY.own.astype(np.float32)
    return ClassEmbeddings(
        DATA.class_names,
        predict_unseen(own, related, DATA.seen, DATA.unseen),
        own,
        TOY.words.astype(np.float32),
        DATA.seen,
        DATA.unseen,
        DATA.val,
    )


CLASSES = make_classes()


@pytest.fixture
def run(tmp_path):
    """A run folder with what training leaves in it."""
    split = np.zeros(len(DATA.labels), np.uint8)
    split[DATA.test_seen], split[DATA.test_unseen] = 1, 2
    folder = tmp_path / "run"
    related = relate(CHOSEN, TOY.words, DATA.seen, DATA.unseen, RelationConfig())
    write_classes(folder, CLASSES, related)
    write_image_features(
        folder,
        ImageFeatures(
            DATA.features.astype(np.float16),
            DATA.labels,
            split,
            [f"image{i}" for i in range(len(split))],
            np.zeros((len(split), 10), np.float16),
        ),
    )
    return folder


@pytest.mark.parametrize(
    ("write", "read", "name"),
    [(write_npz, read_npz, "e.npz"), (write_safetensors, read_safetensors, "e.safetensors")],
)
def test_class_embeddings_come_back_as_they_were(tmp_path, write, read, name):
    write(tmp_path / name, CLASSES)
    found = read(tmp_path / name)
    assert found.class_names == CLASSES.class_names
    assert found.roles == CLASSES.roles
    for key, array in CLASSES.arrays().items():
        assert_allclose(found.arrays()[key], array, rtol=1e-6, atol=1e-7)


def test_normalised_embeddings_stand_beside_the_raw_ones(tmp_path):
    write_npz(tmp_path / "e.npz", CLASSES)
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        assert_allclose(np.linalg.norm(file["embeddings_l2"], axis=1), 1, rtol=1e-5)
        assert_allclose(file["embeddings_z"][file["seen"]].mean(0), 0, atol=1e-5)
        assert_allclose(file["embeddings_z"][file["seen"]].std(0), 1, rtol=1e-4)
        assert list(file["roles"][file["unseen"]]) == ["unseen"] * 10


def test_safetensors_carry_class_names_in_their_metadata(tmp_path):
    from safetensors import safe_open

    write_safetensors(tmp_path / "e.safetensors", CLASSES)
    with safe_open(str(tmp_path / "e.safetensors"), "np") as file:
        assert json.loads(file.metadata()["class_names"]) == CLASSES.class_names
        assert file.get_tensor("embeddings").shape == (40, 10)


def test_a_file_that_holds_no_class_embeddings_is_refused_in_one_line(tmp_path):
    save_file({"embeddings": np.eye(3)}, tmp_path / "e.safetensors", {"class_names": '["a"'})
    with pytest.raises(UserError, match=r"not a readable .safetensors file \(Expecting"):
        read_safetensors(tmp_path / "e.safetensors")
    save_file({"embeddings": np.eye(3)}, tmp_path / "e.safetensors")
    with pytest.raises(UserError, match="lacks class_names"):
        read_safetensors(tmp_path / "e.safetensors")


def test_a_failed_write_leaves_the_old_file_and_no_part_of_a_new_one(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half():
        with written_whole(path) as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_json_holds_null_where_there_is_no_number(tmp_path):
    write_json(tmp_path / "a.json", {"a": [float("nan"), 1.0], "b": {"c": float("inf")}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, 1.0], "b": {"c": None}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"PK\x03\x04 damaged", "is not a readable .npz"),
        (b"", "is not a readable .npz"),
        (b"text", "is not a readable .npz"),
    ],
)
def test_a_damaged_npz_is_named(tmp_path, content, message):
    path = tmp_path / "e.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_npz(path)
    assert "e.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_npz_without_an_array_says_which(tmp_path):
    np.savez(tmp_path / "e.npz", class_names=np.array(["a"]))
    with pytest.raises(ValueError, match="holds no embeddings, own_embeddings"):
        read_npz(tmp_path / "e.npz")


def test_an_npz_of_objects_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "e.npz", class_names=np.array([{}], object), **CLASSES.arrays())
    with pytest.raises(ValueError, match="of plain arrays"):
        read_npz(tmp_path / "e.npz")


def test_the_fields_scripts_load_our_mat_files_as_they_are(run, tmp_path):
    export_splits(run, tmp_path)
    export_features(run, tmp_path)
    # From here on as zero-shot repositories do it.
    matcontent = scipy.io.loadmat(str(tmp_path / "res101.mat"))
    feature = matcontent["features"].T
    label = matcontent["labels"].astype(int).squeeze() - 1
    splits = scipy.io.loadmat(str(tmp_path / "VGSE_SMO_splits.mat"))
    trainval_loc = splits["trainval_loc"].squeeze() - 1
    train_loc = np.squeeze(splits["train_loc"]) - 1
    val_unseen_loc = np.squeeze(splits["val_loc"]) - 1
    test_seen_loc = splits["test_seen_loc"].squeeze() - 1
    test_unseen_loc = splits["test_unseen_loc"].squeeze() - 1
    allclasses_name = splits["allclasses_names"]
    attribute = splits["att"].T

    assert feature.shape == (480, 20)
    assert_allclose(feature, DATA.features, rtol=1e-3)
    assert np.array_equal(label, DATA.labels)
    assert np.array_equal(trainval_loc, DATA.train)
    assert np.array_equal(test_seen_loc, DATA.test_seen)
    assert np.array_equal(test_unseen_loc, DATA.test_unseen)
    assert np.array_equal(np.unique(label[val_unseen_loc]), DATA.val)
    assert not np.intersect1d(label[train_loc], label[val_unseen_loc]).size
    assert np.array_equal(np.sort(np.r_[train_loc, val_unseen_loc]), np.sort(trainval_loc))
    assert [name[0][0] for name in allclasses_name] == DATA.class_names
    assert attribute.dtype == np.float64
    assert_allclose(np.linalg.norm(attribute, axis=1), 1)
    assert_allclose(splits["original_att"].T, CLASSES.embeddings, rtol=1e-5)
    assert splits["trainval_loc"].shape == (len(DATA.train), 1)
    assert matcontent["image_files"][3][0][0] == "image3"
    assert feature[trainval_loc].shape[0] == len(DATA.train)  # usable as an index


def test_mat_files_come_back_as_zsl_data(run, tmp_path):
    splits = read_att_splits(export_splits(run, tmp_path, normalise="none"))
    features, labels, files = read_res101(export_features(run, tmp_path))
    found = zsl_data(features, labels, splits)
    assert files[:2] == ["image0", "image1"]
    assert_allclose(splits.att, CLASSES.embeddings, rtol=1e-5)
    for name in ("labels", "train", "test_seen", "test_unseen", "seen", "unseen", "val"):
        assert np.array_equal(getattr(found, name), getattr(DATA, name)), name
    assert found.class_names == DATA.class_names


def test_an_export_can_follow_the_classes_and_splits_of_another_file(run, tmp_path):
    own = read_att_splits(export_splits(run, tmp_path / "own"))
    order = np.random.default_rng(0).permutation(40)
    names = [own.class_names[i] for i in order]
    given = replace(own, class_names=names, att=own.att[order], seen=None)
    write_att_splits(tmp_path / "given.mat", given)
    path = export_splits(run, tmp_path / "out", like=tmp_path / "given.mat", normalise="none")
    found = read_att_splits(path)
    assert found.class_names == given.class_names
    assert_allclose(found.att, CLASSES.embeddings[order], rtol=1e-5)
    assert np.array_equal(found.locations["val_loc"], given.locations["val_loc"])


def test_an_export_for_other_classes_is_refused(run, tmp_path):
    own = read_att_splits(export_splits(run, tmp_path))
    names = ["zebra", *own.class_names[1:]]
    write_att_splits(tmp_path / "other.mat", replace(own, class_names=names))
    with pytest.raises(ValueError, match=r"1 of its classes are not in .*, such as zebra"):
        export_splits(run, tmp_path, like=tmp_path / "other.mat")


def other_split(splits):
    """The split with a seen and an unseen class in each other's place."""
    labels, at = DATA.labels, splits.locations
    swapped = {name: [i for i in at[name] if labels[i] != DATA.seen[0]] for name in at}
    swapped["test_unseen_loc"] += np.flatnonzero(labels == DATA.seen[0]).tolist()
    locations = {name: np.array(rows, np.int64) for name, rows in swapped.items()}
    return replace(splits, locations=locations, seen=None)


def test_a_split_in_which_a_seen_class_is_unseen_is_refused_by_name(run, tmp_path):
    own = read_att_splits(export_splits(run, tmp_path))
    name = DATA.class_names[DATA.seen[0]]
    features, other = export_features(run, tmp_path), tmp_path / "att_splits.mat"
    write_att_splits(other, other_split(own))
    files = [run / "class_embeddings.npz", run / "class_embeddings.safetensors"]
    for given in (*files, tmp_path / "VGSE_SMO_splits.mat"):
        with pytest.raises(UserError, match=f"{name}.* unseen there, but seen by the run"):
            evaluate_files(given, features, other, None, EvaluationConfig(models=["eszsl"]), 0)
    with pytest.raises(UserError, match=name):
        export_splits(run, tmp_path, like=other)
    write_att_splits(other, replace(own, seen=None))
    evaluate_files(files[0], features, other, None, EvaluationConfig(models=["eszsl"]), 0)
    export_splits(run, tmp_path, like=other)


def test_a_split_without_labels_is_not_taken_in_silence(run, tmp_path, caplog):
    own = read_att_splits(export_splits(run, tmp_path / "a"))
    write_att_splits(tmp_path / "given.mat", other_split(own))
    export_splits(run, tmp_path, like=tmp_path / "given.mat")
    assert "could not be checked" in caplog.text
    labels = export_features(run, tmp_path / "a")
    with pytest.raises(UserError, match="unseen there"):
        export_splits(run, tmp_path, like=tmp_path / "given.mat", labels=labels)


def test_exports_hold_what_is_asked_for(run, tmp_path):
    assert main(["export", str(run), "--out", str(tmp_path), "--what", "all"]) == 0
    found = {what: read_att_splits(tmp_path / name) for what, name in WHAT.items()}
    sizes = {what: splits.att.shape[1] for what, splits in found.items()}
    assert sizes["words+smo"] == TOY.words.shape[1] + sizes["smo"] == sizes["knowledge+smo"]
    assert_allclose(found["smo"].original_att, CLASSES.embeddings, rtol=1e-5)
    wavg = found["wavg"].original_att
    assert_allclose(wavg[DATA.seen], CLASSES.embeddings[DATA.seen], rtol=1e-5)
    assert np.abs(wavg - CLASSES.embeddings)[DATA.unseen].max() > 0.01
    inputs = RowInputs(DATA.seen, DATA.unseen, TOY.own, TOY.words)
    (row,) = paper_wavg_row(inputs, 5, 5.0)
    assert_allclose(wavg[DATA.unseen], row[len(DATA.seen) :], rtol=1e-4, atol=1e-6)
    beside = found["words+smo"].original_att
    assert_allclose(beside[:, : TOY.words.shape[1]], CLASSES.word_vectors, atol=1e-6)
    assert_allclose(beside[:, TOY.words.shape[1] :], CLASSES.embeddings, atol=1e-6)
    halves = np.split(found["words+smo"].att, [TOY.words.shape[1]], axis=1)
    lengths = [np.linalg.norm(half[DATA.seen], axis=1) for half in halves]
    assert_allclose(lengths, 1, atol=1e-6)


def hdf5_as_matlab_writes_it(path, fields):
    """MATLAB 7.3: its axes turned round, cells as references to characters, sparse by columns."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in fields.items():
            if isinstance(value, list):
                cells = np.empty((1, len(value)), h5py.ref_dtype)
                for i, text in enumerate(value):
                    cell = np.array([[ord(letter)] for letter in text], np.uint16)
                    cells[0, i] = file.create_dataset(f"#refs#/{name}{i}", data=cell).ref
                file[name] = cells
            elif scipy.sparse.issparse(value):
                group = file.create_group(name)
                group.attrs["MATLAB_sparse"] = value.shape[0]
                parts = {"data": value.data, "ir": value.indices, "jc": value.indptr}
                for part, array in parts.items():
                    group[part] = array
            else:
                file[name] = np.asarray(value).T


@pytest.mark.parametrize("kind", ["7.3", "7.3 sparse", "sparse", "h5", "npz", "safetensors"])
def test_features_and_splits_of_other_formats_are_the_same_data(run, tmp_path, kind):
    splits = read_att_splits(export_splits(run, tmp_path, normalise="none"))
    features, labels, _ = read_res101(export_features(run, tmp_path))
    columns = {"att": splits.att.T, "allclasses_names": splits.class_names}
    images = {"features": features.T, "labels": labels[:, None] + 1}
    columns |= {name: at[:, None] + 1 for name, at in splits.locations.items()}
    if "sparse" in kind:
        columns["att"] = scipy.sparse.csc_matrix(columns["att"])
        images["features"] = scipy.sparse.csc_matrix(images["features"])
    rows = {"att": splits.att, "allclasses_names": np.array(splits.class_names)}
    rows |= splits.locations
    of_images = {"features": features, "labels": labels}
    names = tmp_path / f"a.{kind}", tmp_path / f"f.{kind}"
    if kind.startswith("7.3"):
        names = tmp_path / "a.mat", tmp_path / "f.mat"
        hdf5_as_matlab_writes_it(names[0], columns)
        hdf5_as_matlab_writes_it(names[1], images)
    elif kind == "sparse":
        names = tmp_path / "a.mat", tmp_path / "f.mat"
        columns["allclasses_names"] = np.array(splits.class_names, object)[:, None]
        scipy.io.savemat(names[0], columns)
        scipy.io.savemat(names[1], images)
    elif kind == "h5":
        for name, fields in zip(names, (rows, of_images), strict=True):
            with h5py.File(name, "w") as file:
                for key, value in fields.items():
                    file[key] = value.astype("S") if value.dtype.kind == "U" else value
    elif kind == "npz":
        np.savez(names[0], **rows)
        np.savez(names[1], **of_images)
    else:
        class_names = json.dumps(rows.pop("allclasses_names").tolist())
        save_file(rows, names[0], {"class_names": class_names})
        save_file(of_images, names[1])
    again = read_att_splits(names[0])
    found = zsl_data(*read_res101(names[1])[:2], again)
    assert_allclose(again.att, splits.att, rtol=1e-6)
    assert found.class_names == DATA.class_names
    assert_allclose(found.features, features, rtol=1e-6)
    for name in ("labels", "train", "test_seen", "test_unseen", "seen", "unseen", "val"):
        assert np.array_equal(getattr(found, name), getattr(DATA, name)), name


def test_a_link_out_of_an_hdf5_file_is_not_followed(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["labels"] = np.arange(3)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["features"] = np.ones((3, 2))
        file["labels"] = h5py.ExternalLink("other.h5", "labels")
    with pytest.raises(UserError, match=r"f\.h5: labels is no array of this file"):
        read_res101(tmp_path / "f.h5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([1, 2, 2, 1])}, "labels start at 1; they count from 0 in .npz"),
        ({"labels": np.array([0, 1, 0])}, "features are 4 x 2, but there are 3 labels"),
        ({"labels": np.array([0, 0.5, 1, 1])}, "labels holds what is no whole number"),
        ({"features": np.array(["a", "b", "c", "d"])}, "features is no matrix of numbers"),
        ({"features": np.ones(4)}, "features is no matrix of numbers"),
    ],
)
def test_features_of_the_wrong_kind_are_named_with_file_and_field(tmp_path, change, message):
    fields = {"features": np.ones((4, 2)), "labels": np.array([0, 1, 0, 1])}
    np.savez(tmp_path / "f.npz", **fields)
    assert len(read_res101(tmp_path / "f.npz")[1]) == 4
    np.savez(tmp_path / "f.npz", **fields | change)
    with pytest.raises(UserError, match=message) as caught:
        read_res101(tmp_path / "f.npz")
    assert str(tmp_path / "f.npz") in str(caught.value)


def test_splits_without_class_names_are_numbered_aloud(run, tmp_path, caplog):
    path = export_splits(run, tmp_path)
    fields = scipy.io.loadmat(path)
    del fields["allclasses_names"]
    scipy.io.savemat(path, {k: v for k, v in fields.items() if not k.startswith("__")})
    assert read_att_splits(path).class_names[:2] == ["class_1", "class_2"]
    assert "holds no allclasses_names" in caplog.text


def test_a_class_with_nan_is_named(run, tmp_path):
    splits = read_att_splits(export_splits(run, tmp_path))
    splits.att[3, 1] = np.nan
    write_att_splits(tmp_path / "a.mat", splits)
    with pytest.raises(UserError, match=f"att holds NaN or infinity for {DATA.class_names[3]};"):
        read_att_splits(tmp_path / "a.mat")


def test_a_drawn_validation_split_is_said_aloud(run, tmp_path, capsys):
    path, features = export_splits(run, tmp_path), export_features(run, tmp_path)
    given = ["evaluate", "--embeddings", str(path), "--features", str(features)]
    assert main([*given, "--models", "[eszsl]"]) == 0
    assert "No validation classes" not in capsys.readouterr().out
    splits = read_att_splits(path)
    empty = {name: np.zeros(0, np.int64) for name in ("train_loc", "val_loc")}
    write_att_splits(path, replace(splits, locations=splits.locations | empty))
    assert main([*given, "--models", "[eszsl]"]) == 0
    assert "of the seen classes were drawn by the" in capsys.readouterr().out


def test_a_mat_file_without_splits_says_what_is_missing(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"att": np.ones((2, 3))})
    with pytest.raises(ValueError, match=r"holds no trainval_loc, .* only att"):
        read_att_splits(tmp_path / "a.mat")


def test_a_damaged_mat_file_is_named(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"no matlab" * 30)
    with pytest.raises(ValueError, match=r"a\.mat: is not a readable \.mat file"):
        read_res101(tmp_path / "a.mat")


def test_labels_that_count_from_0_are_refused(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"features": np.ones((2, 3)), "labels": [[0], [1], [1]]})
    with pytest.raises(ValueError, match="labels holds 0; indices count from 1"):
        read_res101(tmp_path / "a.mat")


def test_splits_of_other_features_are_refused(run, tmp_path):
    splits = read_att_splits(export_splits(run, tmp_path))
    with pytest.raises(ValueError, match="the two files belong to different data"):
        zsl_data(DATA.features[:100], DATA.labels[:100], splits)


def test_features_too_large_for_the_format_are_refused(tmp_path):
    features = np.broadcast_to(np.float32(0), (600_000, 1000))
    with pytest.raises(ValueError, match="exceed the 2 GB"):
        write_res101(tmp_path / "a.mat", features, np.zeros(600_000, np.int64), [])


def test_a_run_folder_gives_the_data_of_the_protocol(run):
    found = zsl_data_of(read_npz(run / "class_embeddings.npz"), read_image_features(run))
    for name in ("labels", "train", "test_seen", "test_unseen", "seen", "unseen", "val"):
        assert np.array_equal(getattr(found, name), getattr(DATA, name)), name


def test_images_of_dropped_classes_are_left_out(run):
    classes = replace(CLASSES, seen=np.setdiff1d(DATA.seen, DATA.val), val=DATA.val[:0])
    found = zsl_data_of(classes, read_image_features(run))
    assert not np.isin(found.labels[found.train], DATA.val).any()
    assert classes.roles[DATA.val[0]] == "dropped"


def test_evaluating_a_run_writes_its_evaluation_and_keeps_the_cluster_measures(run):
    clusters = {"nmi": 0.3, "nmi_kmeans": 0.2}
    write_json(run / "evaluation.json", {"clusters": clusters})
    config = EvaluationConfig(models=["eszsl"])
    evaluate_run(run, config, RelationConfig(), 0)
    found = json.loads((run / "evaluation.json").read_text())
    assert found["clusters"] == clusters
    assert found["relations"]["max_gap"] < 1e-6
    assert found["relations"]["fallbacks"] == 0
    assert len(found["rows"]) == 12
    assert "NMI 0.300 against 0.200" in found["summary"]


def test_the_evaluation_says_which_test_images_were_opened_for_what_and_after_what(run):
    evaluate_run(run, EvaluationConfig(models=["eszsl"]), RelationConfig(), 0)
    opened = json.loads((run / "evaluation.json").read_text())["test_opened"]
    assert [(entry["split"], entry["images"]) for entry in opened] == [
        ("test_seen", len(DATA.test_seen)),
        ("test_unseen", len(DATA.test_unseen)),
    ]
    for entry in opened:
        assert entry["purpose"] == "final table"
        assert entry["after"] == ["12 choices of hyper-parameters on 5 folds of the seen classes"]


def test_a_table_that_opens_the_test_images_twice_is_no_table(run, monkeypatch):
    from vgse.zsl import table

    def peeking(data, fold):
        if guards[0].log:
            guards[0].open("a look before the end")
        return prepare(data, fold)

    guards = []
    monkeypatch.setattr(table, "prepare", peeking)
    monkeypatch.setattr(
        table, "TestGuard", lambda data: guards.append(TestGuard(data)) or guards[0]
    )
    with pytest.raises(ValueError, match="opened for final table: make every choice on"):
        evaluate_run(run, EvaluationConfig(models=["eszsl"]), RelationConfig(), 0)
    assert not (run / "evaluation.json").exists()


def test_relating_anew_moves_the_unseen_rows_only(run):
    before = read_npz(run / "class_embeddings.npz")
    relate_run(run, RelationConfig(alpha=-1.0))
    after = read_npz(run / "class_embeddings.npz")
    assert np.array_equal(before.embeddings[DATA.seen], after.embeddings[DATA.seen])
    assert not np.allclose(before.embeddings[DATA.unseen], after.embeddings[DATA.unseen])
    with np.load(run / "relations.npz", allow_pickle=False) as file:
        expected = file["smo"] @ before.own_embeddings[DATA.seen]
        assert_allclose(after.embeddings[DATA.unseen], expected, rtol=1e-4, atol=1e-5)
        assert not np.allclose(file["smo"], file["smo_negative"])  # another ridge
        assert_allclose(file["wavg"].sum(1), 1)
        assert list(file["unseen"]) == [DATA.class_names[c] for c in DATA.unseen]


def test_relating_anew_is_kept_for_the_evaluation_and_in_the_exported_file(run):
    (run / "config.yaml").write_text("seed: 3\nrelations: {alpha: 0.0, eta: 4.0}\n")
    export_splits(run, run)
    before = read_att_splits(run / "VGSE_SMO_splits.mat")
    assert main(["relate", str(run), "--alpha", "-1"]) == 0
    assert read_config(run, "relations", RelationConfig) == RelationConfig(alpha=-1, eta=4)
    assert read_seed(run) == 3
    after = read_att_splits(run / "VGSE_SMO_splits.mat")
    embeddings = read_npz(run / "class_embeddings.npz").embeddings
    assert np.array_equal(after.original_att.astype(np.float32), embeddings)
    assert not np.array_equal(after.original_att, before.original_att)
    assert all(np.array_equal(after.locations[k], v) for k, v in before.locations.items())
    assert main(["evaluate", str(run), "--models", "[eszsl]"]) == 0
    assert json.loads((run / "evaluation.json").read_text())["relations"]["alpha"] == -1


def test_relating_anew_exports_nothing_that_was_not_exported(run):
    relate_run(run, RelationConfig(alpha=-1.0))
    assert not (run / "VGSE_SMO_splits.mat").exists()


def test_the_runs_configuration_counts_where_nothing_else_is_said(run):
    (run / "config.yaml").write_text("relations: {alpha: -1.0}\nseed: 3\n")
    assert read_config(run, "relations", RelationConfig).alpha == -1.0
    assert read_config(run, "evaluation", EvaluationConfig) == EvaluationConfig()
    (run / "config.yaml").write_text("relations: {ridge: 1e-8}\n")  # a word to YAML
    assert read_config(run, "relations", RelationConfig).ridge == 1e-8
    (run / "config.yaml").write_text("relations: {ridge: some}\n")
    with pytest.raises(ValueError, match="ridge is 'some'; give a number or auto"):
        read_config(run, "relations", RelationConfig)


def test_a_misspelt_field_of_the_runs_configuration_is_named(run):
    (run / "config.yaml").write_text("relations: {alhpa: 0}\n")
    with pytest.raises(ValueError, match=r"config\.yaml: relations has no field alhpa"):
        read_config(run, "relations", RelationConfig)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: many", r"seed is 'many'; give a whole number"),
        ("- seed", "is not a mapping of fields"),
        ("seed: [", "cannot be read"),
    ],
)
def test_a_damaged_configuration_of_a_run_is_named(run, content, message):
    (run / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_seed(run)
    assert "config.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_is_evaluated_with_its_own_seed_unless_told_otherwise(run):
    def random_row(*arguments):
        assert main(["evaluate", str(run), "--models", "[eszsl]", "--folds", "1", *arguments]) == 0
        return json.loads((run / "evaluation.json").read_text())["rows"][0]["results"]

    assert random_row() == random_row("--seed", "0")  # no config.yaml
    (run / "config.yaml").write_text("seed: 3\n")
    assert random_row() == random_row("--seed", "3")
    assert random_row() != random_row("--seed", "0")


def test_res101_names_the_images_by_their_paths_where_the_run_knows_them(run, tmp_path):
    images = read_image_features(run)
    assert images.sources == []
    paths = [f"photographs/{i}.jpg" for i in range(len(images.keys))]
    write_image_features(run, replace(images, sources=paths))
    assert read_image_features(run).sources == paths
    assert read_res101(export_features(run, tmp_path))[2] == paths


def test_image_features_of_earlier_versions_hold_no_paths(run):
    with np.load(run / "image_features.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name != "sources"}
    np.savez(run / "image_features.npz", **arrays)
    assert read_image_features(run).sources == []


def test_the_commands_redo_the_late_stages_of_a_run(run, capsys):
    assert main(["relate", str(run), "--alpha", "0"]) == 0
    assert main(["evaluate", str(run), "--models", "[eszsl]"]) == 0
    assert main(["export", str(run), "--features"]) == 0
    printed = capsys.readouterr().out
    assert "10 unseen classes from 30 seen ones" in printed
    assert "VGSE-SMO" in printed
    assert (run / "VGSE_SMO_splits.mat").is_file()
    assert (run / "res101.mat").is_file()


def test_the_command_evaluates_files_from_elsewhere(run, tmp_path, capsys):
    splits = export_splits(run, tmp_path)
    features = export_features(run, tmp_path)
    arguments = ["--features", str(features), "--models", "[eszsl]"]
    out = tmp_path / "table.json"
    assert main(["evaluate", "--embeddings", str(splits), *arguments, "--out", str(out)]) == 0
    assert "the given embeddings" in capsys.readouterr().out
    given = {row["name"]: row["results"]["eszsl"] for row in json.loads(out.read_text())["rows"]}
    assert given["given"]["zsl"] > 0.6 > given["random"]["zsl"]


def test_files_of_other_authors_give_the_table_of_the_same_arrays(tmp_path):
    # As MATLAB code writes them: doubles, columns of 1-based indices, cells of strings.
    def column(indices):
        return (np.asarray(indices) + 1.0)[:, None]

    def cells(texts):
        return np.array([[np.array([text])] for text in texts], object)[..., None][:, :, 0]

    of_val = np.isin(DATA.labels[DATA.train], DATA.val)
    splits = {
        "att": TOY.own.T,
        "original_att": TOY.own.T,
        "allclasses_names": cells(DATA.class_names),
        "trainval_loc": column(DATA.train),
        "train_loc": column(DATA.train[~of_val]),
        "val_loc": column(DATA.train[of_val]),
        "test_seen_loc": column(DATA.test_seen),
        "test_unseen_loc": column(DATA.test_unseen),
    }
    features = {
        "features": DATA.features.T.astype(np.float64),
        "labels": column(DATA.labels),
        "image_files": cells([f"{i}.jpg" for i in range(len(DATA.labels))]),
    }
    scipy.io.savemat(tmp_path / "att_splits.mat", splits)
    scipy.io.savemat(tmp_path / "res101.mat", features)
    command = ["evaluate", "--embeddings", str(tmp_path / "att_splits.mat")]
    command += ["--features", str(tmp_path / "res101.mat"), "--models", "[eszsl, prototype]"]
    assert main([*command, "--out", str(tmp_path / "table.json")]) == 0
    found = {
        row["name"]: row["results"]
        for row in json.loads((tmp_path / "table.json").read_text())["rows"]
    }
    config = EvaluationConfig(models=["eszsl", "prototype"], normalise="none")  # a .mat is raw
    default = partial(table_rows, RelationConfig())
    ours = evaluate(
        DATA, default, TOY.own, TOY.words, config, 0, choose_knowledge=lambda *_: CHOSEN
    )
    rows = {row["name"]: row["results"] for row in ours["rows"]}
    assert found["given"] == rows["oracle"]
    assert found["random"] == rows["random"]


@pytest.mark.parametrize("kind", ["mat", "npz"])
def test_an_exported_file_scores_as_the_run_did(run, tmp_path, kind):
    relate_run(run, RelationConfig())
    config = EvaluationConfig(models=["eszsl"])
    rows = evaluate_run(run, config, RelationConfig(), 0)["rows"]
    ours = next(row for row in rows if row["name"] == "smo")["results"]["eszsl"]
    exported = export_splits(run, tmp_path)
    given = exported if kind == "mat" else run / "class_embeddings.npz"
    splits = None if kind == "mat" else exported
    found = evaluate_files(given, export_features(run, tmp_path), splits, None, config, 0)
    theirs = found["rows"][-1]["results"]["eszsl"]
    assert theirs["params"] == ours["params"] and theirs["normalise"] == ours["normalise"]
    for key in ("val_zsl", "val_harmonic_mean", "zsl", "harmonic_mean", "uncalibrated_seen"):
        assert theirs[key] == pytest.approx(ours[key], abs=1e-4)
    # The control: without what was predicted, validation is easier than it was in the run.
    bare = replace(read_npz(run / "class_embeddings.npz"), validation_embeddings=None)
    write_npz(tmp_path / "bare.npz", bare)
    arguments = tmp_path / "bare.npz", tmp_path / "res101.mat", exported, None, config, 0
    easier = evaluate_files(*arguments)["rows"][-1]["results"]["eszsl"]
    assert easier["val_zsl"] > ours["val_zsl"]


def test_the_command_takes_embeddings_by_class_name_from_other_formats(run, tmp_path):
    splits, features = export_splits(run, tmp_path), export_features(run, tmp_path)
    shuffled = np.random.default_rng(0).permutation(40)
    names = np.array(DATA.class_names)[shuffled]
    np.savez(tmp_path / "other.npz", class_names=names, embeddings=CLASSES.embeddings[shuffled])
    words = tmp_path / "words.txt"
    lines = [
        " ".join([name.replace(" ", "_"), *map(str, vector)])
        for name, vector in zip(DATA.class_names, TOY.words, strict=True)
    ]
    words.write_text("\n".join(lines))
    tables = []
    for embeddings in (tmp_path / "other.npz", run / "class_embeddings.safetensors"):
        out = tmp_path / "table.json"
        command = ["evaluate", "--embeddings", str(embeddings), "--splits", str(splits)]
        command += ["--features", str(features), "--words", str(words), "--out", str(out)]
        assert main([*command, "--models", "[eszsl]"]) == 0
        tables.append({row["name"]: row["results"] for row in json.loads(out.read_text())["rows"]})
    assert tables[0] == tables[1]
    assert tables[0]["given"]["eszsl"]["zsl"] > 0.6
    assert tables[0]["words"]["eszsl"]["zsl"] > 0.6


def test_sparse_matrices_of_other_authors_are_read(run, tmp_path):
    splits, features = export_splits(run, tmp_path), export_features(run, tmp_path)
    dense = read_att_splits(splits), read_res101(features)
    for path, name in ((splits, "att"), (features, "features")):
        content = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}
        content[name] = scipy.sparse.csc_matrix(content[name].astype(np.float64))
        scipy.io.savemat(path, content)
    sparse = read_att_splits(splits), read_res101(features)
    np.testing.assert_array_equal(sparse[0].att, dense[0].att)
    np.testing.assert_array_equal(sparse[1][0], dense[1][0])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("att", np.array([["a", "b"]], object), "att is no matrix of numbers"),
        ("att", np.full((3, 40), 1j), "att is no matrix of numbers"),
        ("att", np.full((3, 40), np.nan), "att holds NaN or infinity for class 00"),
        ("att", scipy.sparse.csc_matrix((1 << 20, 40 * 1000)), "too large when dense"),
        ("val_loc", np.array([["a"]], object), "val_loc holds what is no whole number"),
        ("allclasses_names", np.array([["x"]] * 40, object), "allclasses_names hold x twice"),
    ],
)
def test_fields_of_other_authors_that_cannot_be_used_are_named(
    run, tmp_path, field, value, message
):
    path = export_splits(run, tmp_path)
    content = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}
    scipy.io.savemat(path, content | {field: value})
    with pytest.raises(UserError, match=rf"\.mat: .*{message}"):
        read_att_splits(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros_like(TOY.own), "of 40 of 40 classes hold nothing but zeros"),
        (np.ones_like(TOY.own), "the same for all classes"),
        (np.where(np.arange(40)[:, None] == 3, 0, TOY.own), "1 of 40 classes hold nothing but"),
        (np.where(np.arange(40)[:, None] == 3, np.inf, TOY.own), "1 of 40 classes hold NaN or"),
        (TOY.own[:, 0], "give numbers"),
        (TOY.own[:5], "give numbers"),
        (TOY.own.astype(str), "give numbers"),
    ],
)
def test_embeddings_that_say_nothing_are_refused(rows, message):
    with pytest.raises(UserError, match=message):
        evaluate_embeddings(DATA, rows)


def test_a_class_name_that_stands_twice_is_refused_in_any_spelling_of_its_letters(run, tmp_path):
    splits, features = export_splits(run, tmp_path), export_features(run, tmp_path)
    path, config = tmp_path / "other.npz", EvaluationConfig(models=["prototype"])
    names = [*DATA.class_names, "caf\u00e9"]

    def table(*more):
        rows = np.vstack([TOY.own, TOY.own])[: len(names) + len(more)]
        np.savez(path, class_names=np.array([*names, *more]), embeddings=rows)
        return evaluate_files(path, features, splits, None, config, 0)

    assert table()["rows"]
    for again in (names[3], "cafe\u0301"):
        with pytest.raises(UserError, match=r"other\.npz: .* twice among the class names"):
            table(again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate"], "needs either a run folder or --embeddings"),
        (["evaluate", "--embeddings", "a.mat"], "--embeddings needs --features"),
        (["evaluate", "--embeddings", "a.npz", "--features", "b.mat"], "give an att_splits.mat"),
        (["evaluate", "nowhere", "--words", "w.txt"], "go with --embeddings"),
        (["relate", "nowhere"], "no such file"),
        (["relate", "nowhere", "--alpha", "2"], "alpha is 2.0; it must be in -1..1"),
        (["evaluate", "nowhere", "--holdout", "1"], "holdout is 1.0; it must be in 0.01..0.9"),
        (["export", "nowhere", "--like", "a.mat", "--features"], "does not belong"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_a_users_mistake_is_one_line_and_leaves_nothing(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert not list(tmp_path.iterdir())
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [[], ["relate"], ["evaluate"], ["export"], ["report"]])
def test_help_is_there_for_every_command(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "usage: python -m vgse" in capsys.readouterr().out


def test_a_run_at_a_url_is_told_to_be_copied_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "s3://bucket/runs/mine"]) == 2
    assert "copy the run folder to this machine first" in capsys.readouterr().err


def beside_words(rng_seed: int, permuted: bool = False) -> Knowledge:
    """The toy's words, and a noisy copy of them that lacks a class."""
    rng = np.random.default_rng(rng_seed)
    order = rng.permutation(len(TOY.words)) if permuted else np.arange(len(TOY.words))
    other = (TOY.words + 0.1 * rng.normal(size=TOY.words.shape))[order].astype(np.float32)
    other[3] = 0
    first = TOY.words[order].astype(np.float32).astype(np.float64)
    sources = [
        Source("words", first, None),
        Source("tree", other.astype(np.float64), 0.5, True, ["a"] * other.shape[1], {"x": "y"}),
    ]
    return Knowledge(DATA.class_names, sources)


def test_knowledge_is_read_as_it_was_written(run):
    before = beside_words(0)
    write_knowledge(run, before)
    after = read_knowledge(run, CLASSES)
    assert after.class_names == before.class_names
    for one, other in zip(before.sources, after.sources, strict=True):
        assert np.array_equal(one.rows, other.rows)
        assert (one.name, one.weight, one.columns) == (other.name, other.weight, other.columns)


def test_a_run_folder_of_before_knows_the_words_alone_and_keeps_its_ridge(run):
    (run / "config.yaml").write_text("relations: {alpha: 0.0, ridge: 1.0e-08}\n")
    assert main(["relate", str(run)]) == 0
    after = read_npz(run / "class_embeddings.npz")
    assert_allclose(after.embeddings, CLASSES.embeddings, rtol=1e-4, atol=1e-5)
    assert json.loads((run / "relations.json").read_text())["ridge"] == 1e-8
    assert main(["evaluate", str(run), "--models", "[prototype]"]) == 0
    names = [r["name"] for r in json.loads((run / "evaluation.json").read_text())["rows"]]
    assert "knowledge" not in names and "smo" in names


def test_knowledge_that_the_configuration_names_must_be_there(run):
    (run / "config.yaml").write_text("knowledge: [{kind: words}]\n")
    with pytest.raises(UserError, match=r"knowledge\.npz: no such file; copy the run folder whole"):
        relate_run(run, RelationConfig())


def test_the_choice_stands_in_the_folder_and_the_evaluation_takes_it(run, monkeypatch, caplog):
    write_knowledge(run, beside_words(0))
    _, _, line = relate_run(run, RelationConfig())
    content = json.loads((run / "relations.json").read_text())
    assert content["line"] == line and re.match(r"words [\d.]+ : tree 0\.5, ridge ", line)
    assert len(content["curve"]) > 2 and content["warning"] is None
    asked = []
    monkeypatch.setattr(
        "vgse.relations.predict.select_relation",
        lambda own, *given, **more: asked.append(len(own)) or select_relation(own, *given, **more),
    )
    evaluation = evaluate_run(run, EvaluationConfig(models=["prototype"]), RelationConfig(), 0)
    assert asked == []  # those of the validation folds stand there too
    assert not caplog.records
    assert [row["name"] for row in evaluation["rows"]][2:8] == [
        *("knowledge", "paper_wavg", "paper_smo", "paper_smo_negative", "smo", "knowledge_smo")
    ]
    assert evaluation["relations"]["weights"] == content["weights"]


def test_an_evaluation_says_that_the_choice_in_the_folder_is_of_an_earlier_version(run, caplog):
    write_knowledge(run, beside_words(0))
    relate_run(run, RelationConfig())
    content = json.loads((run / "relations.json").read_text())
    del content["question"]["version"]
    (run / "relations.json").write_text(json.dumps(content))
    evaluate_run(run, EvaluationConfig(models=["prototype"]), RelationConfig(), 0)
    assert [r.getMessage() for r in caplog.records] == [
        f"{run / 'evaluation.json'}: the relation was chosen anew, as relations.json is of other "
        f"settings or of an earlier version; python -m vgse relate {run} makes the run's "
        "embeddings follow"
    ]


def test_permuted_knowledge_is_warned_of(run):
    write_knowledge(run, beside_words(1, permuted=True))
    relate_run(run, RelationConfig())
    content = json.loads((run / "relations.json").read_text())
    assert "say nothing about the pictures" in content["warning"]
    assert content["criterion"] <= content["permuted_best"]


def test_predictions_as_csv_give_the_accuracies_of_the_table(run, tmp_path):
    given = ["evaluate", str(run), "--models", "[eszsl]", "--csv", str(tmp_path / "csv")]
    assert main(given) == 0
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    with open(tmp_path / "csv" / "predictions.csv") as stream:
        lines = list(csv.DictReader(stream))
    with open(tmp_path / "csv" / "per_class.csv") as stream:
        classes = list(csv.DictReader(stream))
    assert len(lines) == len(rows) * (len(DATA.test_seen) + len(DATA.test_unseen))
    images = [int(line["image"]) for line in lines if line["row"] == "smo"]
    assert images == [*DATA.test_seen, *DATA.test_unseen]
    for row in rows:
        result = row["results"]["eszsl"]
        own = [line for line in classes if line["row"] == row["name"]]
        for key, role, name in (
            ("zsl", "unseen", "zsl"),
            ("gzsl", "unseen", "unseen"),
            ("gzsl", "seen", "seen"),
        ):
            shares = [float(line[key]) for line in own if line["role"] == role]
            assert np.mean(shares) == pytest.approx(result[name]), (row["name"], name)
            of_role = [li for li in lines if li["row"] == row["name"] and li["role"] == role]
            right = {li["class"]: [] for li in of_role}
            for line in of_role:
                right[line["class"]].append(line[key] == line["class"])
            assert np.mean([np.mean(r) for r in right.values()]) == pytest.approx(result[name])
