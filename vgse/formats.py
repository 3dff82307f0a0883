"""Class embeddings as .npz and .safetensors files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from vgse.errors import UserError
from vgse.files import read_arrays, write_arrays, written_whole

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

_INDICES = ("seen", "unseen", "val")
VALIDATION = ("validation_embeddings", "validation_fold")  # files made before have none
_EMBEDDINGS = ("embeddings", "own_embeddings", "word_vectors")


@dataclass(frozen=True)
class ClassEmbeddings:
    """All classes of a run: what zero-shot models get, and what it was made from.

    NaN rows mark classes of which nothing is known (a class that was left out because it has no
    word vector, an unseen class without images in `own_embeddings`).
    """

    class_names: list[str]
    embeddings: Floats  # [C, D_v] seen classes from their images, unseen ones predicted
    own_embeddings: Floats  # [C, D_v] every class from its own images
    word_vectors: Floats  # [C, D_w] centred, unit length
    seen: Indices  # [S] into class_names
    unseen: Indices  # [U]
    val: Indices  # part of seen
    validation_embeddings: Floats | None = None
    """[C, D_v] seen classes as predicted in the validation fold in which they are unseen; NaN
    elsewhere."""
    validation_fold: Indices | None = None  # [C] the number of that fold, -1 for other classes

    @property
    def roles(self) -> list[str]:
        """train, val, unseen or dropped for each class."""
        roles = np.full(len(self.class_names), "dropped")
        roles[self.seen], roles[self.val], roles[self.unseen] = "train", "val", "unseen"
        return [str(role) for role in roles]

    @property
    def turns(self) -> list[Indices]:
        """The classes that are unseen in each validation fold; none in files made before."""
        if self.validation_fold is None:
            return []
        count = int(self.validation_fold.max(initial=-1)) + 1
        return [np.flatnonzero(self.validation_fold == fold) for fold in range(count)]

    def normalised(self, how: str) -> Floats:
        """Embeddings [C, D_v]: "none" as they are, "l2" unit rows, "z" z-scores over `seen`."""
        if how == "none":
            return self.embeddings
        rows = self.embeddings.astype(np.float64)
        if how == "l2":
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
        assert how == "z", how
        spread = rows[self.seen].std(0)
        centred = rows - rows[self.seen].mean(0)
        return (centred / np.where(spread > 0, spread, 1)).astype(np.float32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The numeric arrays of both file formats, normalised embeddings included."""
        validation: dict[str, NDArray[Any]] = {}
        if self.validation_embeddings is not None and self.validation_fold is not None:
            rows = np.asarray(self.validation_embeddings, np.float32)
            folds = np.asarray(self.validation_fold, np.int64)
            validation = {"validation_embeddings": rows, "validation_fold": folds}
        return validation | {
            "embeddings": np.asarray(self.embeddings, np.float32),
            "embeddings_l2": self.normalised("l2"),
            "embeddings_z": self.normalised("z"),
            "own_embeddings": np.asarray(self.own_embeddings, np.float32),
            "word_vectors": np.asarray(self.word_vectors, np.float32),
            **{name: np.asarray(getattr(self, name), np.int64) for name in _INDICES},
        }


def write_npz(path: Path, classes: ClassEmbeddings) -> None:
    """Writes `classes` as .npz: `arrays()` with class_names and roles as strings."""
    names = {"class_names": np.array(classes.class_names), "roles": np.array(classes.roles)}
    write_arrays(path, names | classes.arrays())


def read_npz(path: Path) -> ClassEmbeddings:
    """What `write_npz` wrote."""
    arrays = read_arrays(path, "class_names", *_EMBEDDINGS, *_INDICES, also=VALIDATION)
    return ClassEmbeddings([str(name) for name in arrays.pop("class_names")], **arrays)


def write_safetensors(path: Path, classes: ClassEmbeddings) -> None:
    """Writes `arrays()` as safetensors; metadata holds class_names and roles as JSON lists."""
    metadata = {
        "class_names": json.dumps(classes.class_names, ensure_ascii=False),
        "roles": json.dumps(classes.roles),
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in classes.arrays().items()}
    with written_whole(path) as stream:
        stream.write(safetensors.numpy.save(arrays, metadata))


def read_safetensors(path: Path) -> ClassEmbeddings:
    """What `write_safetensors` wrote."""
    arrays = safetensors_arrays(path)
    lacking = [name for name in ("class_names", *_EMBEDDINGS, *_INDICES) if name not in arrays]
    if lacking:
        raise UserError(f"{path}: is no file of class embeddings, it lacks {', '.join(lacking)}")
    names = [str(name) for name in arrays["class_names"]]
    wanted = (*_EMBEDDINGS, *_INDICES, *VALIDATION)
    return ClassEmbeddings(names, **{name: arrays[name] for name in wanted if name in arrays})


def safetensors_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a .safetensors file, and the class_names of its metadata where they are."""
    try:
        with safetensors.safe_open(str(path), "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if names := (file.metadata() or {}).get("class_names"):
                arrays["class_names"] = np.array(json.loads(names))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is not a readable .safetensors file ({error})") from None
    return arrays
