"""The .mat files that zero-shot code loads: att_splits.mat and res101.mat of Xian et al.; indices
and labels count from 1 in the files, and from 0 here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import scipy.sparse
from numpy.typing import NDArray

from vgse.errors import UserError
from vgse.files import written_whole
from vgse.formats import Indices
from vgse.zsl.data import ZslData

_VALIDATION = ("validation_att", "validation_fold")  # in our own files
LOCATIONS = ("trainval_loc", "train_loc", "val_loc", "test_seen_loc", "test_unseen_loc")
MAX_BYTES = 2**31 - 1


@dataclass(frozen=True)
class AttSplits:
    """An att_splits.mat, with indices into the images of the res101.mat beside it."""

    class_names: list[str]
    att: NDArray[np.float64]  # [C, D] as models get it, in xlsa17 at unit length
    original_att: NDArray[np.float64]  # [C, D]
    locations: dict[str, Indices]  # the five LOCATIONS
    validation_att: NDArray[np.float64] | None = None  # [C, D] raw, as predicted in validation
    validation_fold: Indices | None = None  # [C] the fold in which a class is unseen, or -1


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
    """An att_splits.mat; train_loc and val_loc may be missing and are empty then."""
    needed = ("att", "allclasses_names", "trainval_loc", "test_seen_loc", "test_unseen_loc")
    mat = read_mat(path, *needed, also=("original_att", *_VALIDATION, *LOCATIONS))
    names = cell_texts(mat["allclasses_names"])
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path}: allclasses_names hold {', '.join(twice[:5])} twice; correct it")
    att = _matrix(mat["att"], f"{path}: att")
    original = _matrix(mat.get("original_att", att), f"{path}: original_att")
    if att.shape[1] != len(names):
        raise UserError(
            f"{path}: att has the shape {att.shape}, not a column for each of {len(names)} "
            "allclasses_names: it is [dimensions x classes]"
        )
    if (bad := np.flatnonzero(~np.isfinite(att).all(0))).size:
        raise UserError(
            f"{path}: att holds NaN or infinity for {', '.join(names[c] for c in bad[:5])}; give "
            "these classes others, or leave them out"
        )
    locations = {name: zero_based(mat.get(name, []), f"{path}: {name}") for name in LOCATIONS}
    att, original = (np.asarray(array, np.float64).T for array in (att, original))
    if any(name not in mat for name in _VALIDATION):
        return AttSplits(names, att, original, locations)
    predicted, fold = np.asarray(mat["validation_att"], np.float64).T, mat["validation_fold"]
    return AttSplits(
        *(names, att, original, locations, predicted), np.ravel(fold).astype(np.int64) - 1
    )


def read_res101(path: Path) -> tuple[NDArray[np.float32], Indices, list[str]]:
    """Features [M, D_f], labels [M] from 0 and image_files ([] where there are none)."""
    mat = read_mat(path, "features", "labels", also=["image_files"])
    features = _matrix(mat["features"], f"{path}: features").T.astype(np.float32, order="C")
    labels = zero_based(mat["labels"], f"{path}: labels")
    return features, labels, cell_texts(mat.get("image_files", []))


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


def _matrix(array: Any, where: str) -> NDArray[Any]:
    """The numbers of a field, dense."""
    is_sparse: bool = scipy.sparse.issparse(array)
    if is_sparse:
        if array.shape[0] * array.shape[1] * array.dtype.itemsize > MAX_BYTES:
            raise UserError(f"{where} is a sparse matrix of {array.shape}, too large when dense")
        array = array.toarray()
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise UserError(f"{where} holds other things than real numbers; save it as a plain matrix")
    return array


def zero_based(array: Any, where: str) -> Indices:
    """Indices [n] from 0, of an array that counts from 1; `where` is for the message."""
    found: Indices = _matrix(array, where).ravel().astype(np.int64) - 1
    if len(found) and found.min() < 0:
        raise UserError(f"{where} holds 0; indices count from 1 in this format")
    return found


def _save(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path) as stream:
        # The stubs know paths only; scipy takes open files, and writes no other name then.
        scipy.io.savemat(stream, content, do_compression=True)  # type: ignore[arg-type]


def read_mat(path: Path, *needed: str, also: Sequence[str] = ()) -> dict[str, Any]:
    """The fields `needed` of a .mat file, and those of `also` that are there."""
    try:
        mat: dict[str, Any] = scipy.io.loadmat(
            str(path), appendmat=False, variable_names=[*needed, *also]
        )
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except NotImplementedError:
        raise UserError(f"{path}: is a MATLAB 7.3 file; save it with -v7") from None
    except Exception as error:  # scipy raises many kinds on damaged files
        raise UserError(f"{path}: is not a readable .mat file ({error})") from None
    missing = [name for name in needed if name not in mat]
    if missing:
        there = ", ".join(name for name, _, _ in scipy.io.whosmat(str(path), appendmat=False))
        raise UserError(f"{path}: holds no {', '.join(missing)}, only {there}")
    return mat
