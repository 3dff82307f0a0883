"""Class embeddings as .npz and .safetensors files, and how any file is written."""

import json
import math
import os
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from vgse.disk import room_for

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

_INDICES = ("seen", "unseen", "val")
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

    @property
    def roles(self) -> list[str]:
        """train, val, unseen or dropped for each class."""
        roles = np.full(len(self.class_names), "dropped")
        roles[self.seen], roles[self.val], roles[self.unseen] = "train", "val", "unseen"
        return [str(role) for role in roles]

    def normalised(self, how: str) -> Floats:
        """Embeddings [C, D_v]: "none" as they are, "l2" unit rows, "z" z-scores over `seen`."""
        if how == "none":
            return self.embeddings
        rows = self.embeddings.astype(np.float64)
        if how == "l2":
            lengths = np.linalg.norm(rows, axis=1, keepdims=True)
            return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
        if how == "z":
            spread = rows[self.seen].std(0)
            centred = rows - rows[self.seen].mean(0)
            return (centred / np.where(spread > 0, spread, 1)).astype(np.float32)
        raise ValueError(f"normalise is {how!r}: choose none, l2 or z")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The numeric arrays of both file formats, normalised embeddings included."""
        return {
            "embeddings": np.asarray(self.embeddings, np.float32),
            "embeddings_l2": self.normalised("l2"),
            "embeddings_z": self.normalised("z"),
            "own_embeddings": np.asarray(self.own_embeddings, np.float32),
            "word_vectors": np.asarray(self.word_vectors, np.float32),
            **{name: np.asarray(getattr(self, name), np.int64) for name in _INDICES},
        }


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears as `path` once it is complete, and not at all after an error.

    Raises ValueError in one line for a full disk.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as stream:
                yield stream
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` as indented JSON; NaN and infinity, which JSON lacks, become null."""
    text = json.dumps(_finite(content), indent=1, allow_nan=False)
    with written_whole(path) as stream:
        stream.write(f"{text}\n".encode())


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes `arrays` as compressed .npz; strings become fixed-width arrays, never objects."""
    ready = {name: np.asarray(array) for name, array in arrays.items()}
    assert all(array.dtype != object for array in ready.values()), "objects would need pickle"
    with written_whole(path) as stream:
        # numpy's stubs take the names of arrays for its own keywords.
        np.savez_compressed(stream, **ready)  # type: ignore[arg-type]


def read_arrays(path: Path, *names: str) -> dict[str, NDArray[Any]]:
    """The arrays `names` of an .npz file; ValueError for a file or an array that is not there."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            there = list(archive.files)
            arrays = {name: archive[name] for name in names if name in there}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give a folder that holds it") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, AttributeError, TypeError):
        # ValueError: objects, or no numpy file at all; the last two: .npy in place of .npz.
        raise ValueError(f"{path}: is not a readable .npz of plain arrays; make it again") from None
    missing = [name for name in names if name not in there]
    if missing:
        raise ValueError(
            f"{path}: holds no {', '.join(missing)}, only {', '.join(there)}; write the file again"
        )
    return arrays


def write_npz(path: Path, classes: ClassEmbeddings) -> None:
    """Writes `classes` as .npz: `arrays()` with class_names and roles as strings."""
    names = {"class_names": np.array(classes.class_names), "roles": np.array(classes.roles)}
    write_arrays(path, names | classes.arrays())


def read_npz(path: Path) -> ClassEmbeddings:
    """What `write_npz` wrote."""
    arrays = read_arrays(path, "class_names", *_EMBEDDINGS, *_INDICES)
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
    """What `write_safetensors` wrote; ValueError names what is wrong with another file."""
    try:
        with safetensors.safe_open(str(path), "np") as file:
            names = json.loads((file.metadata() or {})["class_names"])
            arrays = {name: file.get_tensor(name) for name in (*_EMBEDDINGS, *_INDICES)}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (KeyError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: is not a file of class embeddings ({error})") from None
    return ClassEmbeddings([str(name) for name in names], **arrays)
