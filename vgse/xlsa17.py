"""The files that zero-shot code loads: att_splits.mat and res101.mat of Xian et al.


Indices and labels count from 1 in .mat files, where classes and images stand in columns. The same
fields are read from .npz, .h5 and .safetensors, where they count from 0 and stand in rows.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray
from scipy.sparse import csc_array

from vgse.errors import UserError
from vgse.files import read_arrays, written_whole
from vgse.formats import Indices, safetensors_arrays
from vgse.zsl.data import ZslData

_VALIDATION = ("validation_att", "validation_fold")  # in our own files
LOCATIONS = ("trainval_loc", "train_loc", "val_loc", "test_seen_loc", "test_unseen_loc")
MAX_BYTES = 2**31 - 1
_OTHER_NAMES = {"allclasses_names": "class_names", "att": "embeddings"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttSplits:
    """An att_splits.mat, with indices into the images of the res101.mat beside it."""

    class_names: list[str]
    att: NDArray[np.float64]  # [C, D] as models get it, in xlsa17 at unit length
    original_att: NDArray[np.float64]  # [C, D]
    locations: dict[str, Indices]  # the five LOCATIONS
    validation_att: NDArray[np.float64] | None = None  # [C, D] raw, as predicted in validation
    validation_fold: Indices | None = None  # [C] the fold in which a class is unseen, or -1
    seen: Indices | None = None  # [S] classes whose rows come from their own images, where known


def split_locations(
    labels: Indices, train: Indices, test_seen: Indices, test_unseen: Indices, val: Indices
) -> dict[str, Indices]:
    """The five LOCATIONS of images by split: train_loc and val_loc hold different classes."""
    is_val = np.isin(labels[train], val)
    return {
        "trainval_loc": train,
        "train_loc": train[~is_val],
        "val_loc": train[is_val],
        "test_seen_loc": test_seen,
        "test_unseen_loc": test_unseen,
    }


def write_att_splits(path: Path, splits: AttSplits) -> None:
    """Writes att and original_att [D, C] as float64, allclasses_names [C, 1] and the splits."""
    content: dict[str, Any] = {
        "att": np.ascontiguousarray(splits.att.T, np.float64),
        "original_att": np.ascontiguousarray(splits.original_att.T, np.float64),
        "allclasses_names": _cells(splits.class_names),
    }
    if splits.validation_att is not None and splits.validation_fold is not None:
        content["validation_att"] = np.ascontiguousarray(splits.validation_att.T, np.float64)
        content["validation_fold"] = (splits.validation_fold + 1).astype(np.int32)[:, None]
    # int32 indexes arrays and becomes a tensor in every version of numpy and torch.
    for name in LOCATIONS:
        content[name] = (splits.locations[name] + 1).astype(np.int32)[:, None]
    if splits.seen is not None:  # a field of ours, which other code leaves alone
        content["seen_classes"] = (splits.seen + 1).astype(np.int32)[:, None]
    _save(path, content)


def check_res101_size(path: Path, rows: int, columns: int) -> None:
    """UserError where features [rows, columns] do not fit."""
    if rows * columns * 4 > MAX_BYTES:
        raise UserError(
            f"{path}: {rows} x {columns} features exceed the 2 GB of a .mat array; use "
            "image_features.npz, or its parts in image_features/"
        )


def write_res101(
    path: Path, features: NDArray[np.floating], labels: Indices, image_files: Sequence[str]
) -> None:
    """Writes `features` [M, D_f] as float32 [D_f, M], labels [M, 1] and image_files [M, 1]."""
    check_res101_size(path, *features.shape)
    _save(
        path,
        {
            "features": np.asarray(features, np.float32).T,
            "labels": (labels + 1).astype(np.int32)[:, None],
            "image_files": _cells(image_files),
        },
    )


def read_att_splits(path: Path) -> AttSplits:
    """An att_splits.mat, or its fields in .npz, .h5 or .safetensors with a row a class.

    train_loc and val_loc may be missing and are empty then; without allclasses_names classes are
    called by their numbers.
    """
    needed = ("att", "trainval_loc", "test_seen_loc", "test_unseen_loc")
    also = ("original_att", "allclasses_names", "seen_classes", *_VALIDATION, *LOCATIONS)
    fields, from_matlab = read_fields(path, *needed, also=also)
    att, original = (
        _matrix(fields.get(name, fields["att"]), f"{path}: {name}", from_matlab)
        for name in ("att", "original_att")
    )
    if "allclasses_names" in fields:
        names = cell_texts(fields["allclasses_names"])
    else:
        names = [f"class_{i + 1}" for i in range(len(att))]
        _log.warning("%s: holds no allclasses_names; classes are called class_1, …", path)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path}: allclasses_names hold {', '.join(twice[:5])} twice; correct it")
    if len(att) != len(names) or len(original) != len(names):
        where = "column" if from_matlab else "row"
        raise UserError(
            f"{path}: att has the shape {fields['att'].shape}, not a {where} for each of "
            f"{len(names)} allclasses_names"
        )
    bad = np.flatnonzero(~np.isfinite(att).all(axis=1))
    if bad.size:
        lost = ", ".join(names[i] for i in bad[:5]) + (" …" if len(bad) > 5 else "")
        raise UserError(
            f"{path}: att holds NaN or infinity for {lost}; mend these classes or leave them out"
        )
    count = zero_based if from_matlab else _whole
    locations = {name: count(fields.get(name, []), f"{path}: {name}") for name in LOCATIONS}
    seen = fields.get("seen_classes")
    if seen is not None:
        seen = count(seen, f"{path}: seen_classes")
    splits = AttSplits(
        names, att.astype(np.float64), original.astype(np.float64), locations, seen=seen
    )
    if any(name not in fields for name in _VALIDATION):
        return splits
    predicted = np.asarray(fields["validation_att"], np.float64)
    fold = _whole(fields["validation_fold"], f"{path}: validation_fold") - 1
    return replace(
        splits, validation_att=predicted.T if from_matlab else predicted, validation_fold=fold
    )


def read_res101(path: Path) -> tuple[NDArray[np.float32], Indices, list[str]]:
    """Features [M, D_f], labels [M] from 0 and image_files ([] where there are none).

    From .npz, .h5 and .safetensors, too: there features are [M, D_f] and labels count from 0.
    """
    fields, from_matlab = read_fields(path, "features", "labels", also=["image_files"])
    features = _matrix(fields["features"], f"{path}: features", from_matlab)
    labels = (zero_based if from_matlab else _whole)(fields["labels"], f"{path}: labels")
    if len(features) != len(labels):
        raise UserError(
            f"{path}: features are {' x '.join(map(str, fields['features'].shape))}, but there are "
            f"{len(labels)} labels; give a {'column' if from_matlab else 'row'} an image"
        )
    if not from_matlab and len(labels) and labels.min() > 0:
        raise UserError(
            f"{path}: labels start at {labels.min()}; they count from 0 in {path.suffix} files"
        )
    features = np.ascontiguousarray(features, np.float32)
    return features, labels, cell_texts(fields.get("image_files", []))


def read_labels(path: Path) -> Indices:
    """The labels [M] of a res101.mat, from 0, without its features."""
    fields, from_matlab = read_fields(path, "labels")
    return (zero_based if from_matlab else _whole)(fields["labels"], f"{path}: labels")


def _matrix(array: Any, where: str, from_matlab: bool) -> NDArray[Any]:
    """[rows, D] with a row a class or an image."""
    if array.ndim != 2 or array.dtype.kind not in "fiub":
        raise UserError(f"{where} is no matrix of numbers: {array.dtype} of shape {array.shape}")
    return np.asarray(array.T if from_matlab else array)


def zsl_data(features: NDArray[np.float32], labels: Indices, splits: AttSplits) -> ZslData:
    """The protocol's data: seen are the classes of trainval_loc, val those only in val_loc."""
    at = splits.locations
    for name, images in at.items():
        if len(images) and not 0 <= images.min() <= images.max() < len(labels):
            raise UserError(
                f"{name} reaches image {images.max() + 1}, but there are features of "
                f"{len(labels)}: the two files belong to different data"
            )
    return ZslData(
        features,
        labels,
        at["trainval_loc"],
        at["test_seen_loc"],
        at["test_unseen_loc"],
        splits.class_names,
        np.unique(labels[at["trainval_loc"]]),
        np.unique(labels[at["test_unseen_loc"]]),
        np.setdiff1d(labels[at["val_loc"]], labels[at["train_loc"]]),
    )


def refuse_leaks(
    embeddings: Path, seen: Collection[str], unseen: Iterable[str], splits: Path
) -> None:
    """See that no class which `splits` calls unseen has its row from its own images."""
    leaked = [name for name in unseen if name in seen]
    if leaked:
        raise UserError(
            f"{splits}: {', '.join(leaked[:10])}{' …' if len(leaked) > 10 else ''} "
            f"({len(leaked)}) unseen there, but seen by the run of {embeddings}: their rows come "
            "from their own images; train with this split"
        )


def _cells(texts: Sequence[str]) -> NDArray[np.object_]:
    cells = np.empty((len(texts), 1), object)
    # Names of others' files may hold what has no UTF-8.
    cells[:, 0] = [text.encode("utf-8", "backslashreplace").decode() for text in texts]
    return cells


def cell_texts(cells: NDArray[Any]) -> list[str]:
    """The strings of an array of cells, row by row, without space around them."""
    found = []
    for cell in np.ravel(cells):
        text = cell
        while isinstance(text, np.ndarray):  # a cell holds an array that holds a string
            text = text.ravel()[0] if text.size else ""
        found.append(str(text).strip())
    return found


def zero_based(array: Any, where: str) -> Indices:
    """Indices [n] from 0, of an array that counts from 1; `where` is for the message."""
    found = _whole(array, where) - 1
    if len(found) and found.min() < 0:
        raise UserError(f"{where} holds 0; indices count from 1 in this format")
    return found


def _whole(array: Any, where: str) -> Indices:
    numbers = np.asarray(array).ravel()
    if numbers.dtype.kind not in "iufb" or not np.array_equal(numbers, np.floor(numbers)):
        raise UserError(f"{where} holds what is no whole number")
    return numbers.astype(np.int64)


def _save(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path) as stream:
        # The stubs know paths only; scipy takes open files, and writes no other name then.
        scipy.io.savemat(stream, content, do_compression=True)  # type: ignore[arg-type]


def read_fields(path: Path, *needed: str, also: Sequence[str] = ()) -> tuple[dict[str, Any], bool]:
    """The fields `needed`, and those of `also` that are there, of a .mat, .npz, .h5 or
    .safetensors file; whether they are as MATLAB has them."""
    names = (*needed, *also)
    if path.suffix in (".h5", ".hdf5"):
        fields, from_matlab = _read_hdf5(path, names)
    elif path.suffix == ".npz":
        fields, from_matlab = read_arrays(path), False
    elif path.suffix == ".safetensors":
        fields, from_matlab = safetensors_arrays(path), False
    else:
        return read_mat(path, *needed, also=also), True
    for name, other in _OTHER_NAMES.items():
        if name not in fields and other in fields:
            fields[name] = fields[other]
    _require(path, needed, fields)
    return {name: fields[name] for name in names if name in fields}, from_matlab


def read_mat(path: Path, *needed: str, also: Sequence[str] = ()) -> dict[str, Any]:
    """The fields `needed` of a .mat file, also of MATLAB 7.3, and those of `also` that are there;
    sparse matrices as dense ones."""
    names = (*needed, *also)
    mat: dict[str, Any]
    if h5py.is_hdf5(path):
        mat = _read_hdf5(path, names)[0]
    else:
        try:
            mat = scipy.io.loadmat(str(path), appendmat=False, variable_names=names)
            if not all(name in mat for name in needed):
                found = scipy.io.whosmat(str(path), appendmat=False)
                mat |= {name: None for name, _, _ in found if name not in mat}
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except Exception as error:  # scipy raises many kinds on damaged files
            raise UserError(f"{path}: is not a readable .mat file ({error})") from None
    _require(path, needed, mat)
    fields: dict[str, Any] = {n: mat[n] for n in names if mat.get(n) is not None}
    return {name: _dense(array, f"{path}: {name}") for name, array in fields.items()}


def _dense(array: Any, where: str) -> Any:
    if not hasattr(array, "toarray"):
        return array
    if array.shape[0] * array.shape[1] * array.dtype.itemsize > MAX_BYTES:
        raise UserError(f"{where} is a sparse matrix of {array.shape}, too large when dense")
    return array.toarray()


def _require(path: Path, needed: Sequence[str], fields: dict[str, Any]) -> None:
    missing = [name for name in needed if fields.get(name) is None]
    if missing:
        there = ", ".join(name for name in fields if not name.startswith("__"))
        raise UserError(f"{path}: holds no {', '.join(missing)}, only {there}")


def _read_hdf5(path: Path, names: Sequence[str]) -> tuple[dict[str, Any], bool]:
    """Fields by name, all others as None; whether MATLAB wrote them, and its axes in its order."""
    try:
        with h5py.File(path, "r") as file:
            from_matlab = path.suffix == ".mat" or file.userblock_size >= 512
            names = [*names, *_OTHER_NAMES.values()]
            return {
                name: _hdf5_field(file, name, f"{path}: {name}", from_matlab)
                if name in names
                else None
                for name in file
            }, from_matlab
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: is not a readable HDF5 file ({error})") from None


def _hdf5_field(file: h5py.File, name: str, where: str, from_matlab: bool) -> Any:
    # A link or a layout may name another file.
    item = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if isinstance(item, h5py.Group) and "MATLAB_sparse" in item.attrs:
        num_rows, starts = int(item.attrs["MATLAB_sparse"]), item["jc"][()]
        # MATLAB leaves out data and ir of a matrix of zeros.
        parts = [item[part][()] if part in item else np.zeros(0) for part in ("data", "ir")]
        shape = num_rows, len(starts) - 1
        return _dense(csc_array((parts[0], parts[1].astype(np.int64), starts), shape), where)
    if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
        raise UserError(f"{where} is no array of this file; save it as a plain one")
    if h5py.check_ref_dtype(item.dtype) is not None:  # cells of text
        cells = [file[reference][()] for reference in item[()].T.ravel()]
        return np.array(["".join(map(chr, cell.T.ravel())) for cell in cells])
    if h5py.check_string_dtype(item.dtype) is not None:
        return np.atleast_1d(item.asstr()[()]).astype(np.str_)
    return item[()].T if from_matlab else item[()]
