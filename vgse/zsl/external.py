"""The table for class embeddings, features and splits that others made."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from vgse.config import EvaluationConfig
from vgse.errors import UserError
from vgse.files import read_arrays
from vgse.formats import read_safetensors
from vgse.knowledge.words import load_word_vectors, normalise_words, words_of
from vgse.xlsa17 import read_att_splits, read_res101, zsl_data
from vgse.zsl.data import ZslData, with_validation
from vgse.zsl.rows import external_rows
from vgse.zsl.table import evaluate


def evaluate_files(
    embeddings: Path,
    features: Path,
    splits: Path | None,
    words: str | None,
    config: EvaluationConfig,
    seed: int,
    *,
    num_seeds: int = 1,
) -> dict[str, Any]:
    """The table of `embeddings` on the images of `features`, beside random vectors and words.

    `embeddings` is a .mat like att_splits.mat, or an .npz or .safetensors file with class_names
    and embeddings; the latter two need `splits`, an att_splits.mat whose class order counts.
    """
    if splits is None and embeddings.suffix != ".mat":
        raise UserError(f"{embeddings} holds no splits; give an att_splits.mat with --splits")
    protocol = read_att_splits(splits or embeddings)
    image_features, labels, _ = read_res101(features)
    try:
        data = zsl_data(image_features, labels, protocol)
    except UserError as error:
        raise UserError(f"{features} and {splits or embeddings}: {error}") from None
    names = protocol.class_names
    own = _embeddings_of(embeddings, names)
    vectors = None
    if words is not None:
        found = load_word_vectors(words, {name: words_of(name) for name in names})
        vectors = normalise_words(found.vectors, data.seen)
    return evaluate_embeddings(data, own, vectors, config, seed, num_seeds=num_seeds)


def evaluate_embeddings(
    data: ZslData,
    embeddings: NDArray[np.floating],
    words: NDArray[np.floating] | None = None,
    config: EvaluationConfig | None = None,
    seed: int = 0,
    *,
    num_seeds: int = 1,
) -> dict[str, Any]:
    """The table of class embeddings [C, D], beside random vectors and, where given, `words`
    [C, D_w]; what evaluation.json holds.

    Every hyper-parameter is chosen on `data.val`, or on a seeded fifth of the seen classes.
    """
    _check_embeddings(np.asarray(embeddings), data)
    rows = partial(external_rows, words is not None)
    data, config = with_validation(data, seed), config or EvaluationConfig()
    return evaluate(data, rows, embeddings, words, config, seed, num_seeds=num_seeds)


def _check_embeddings(embeddings: NDArray[Any], data: ZslData) -> None:
    """See that every class which takes part has an embedding that says something."""
    names = np.array(data.class_names)
    if embeddings.dtype.kind not in "fiub" or embeddings.ndim != 2 or len(embeddings) != len(names):
        raise UserError(
            f"class embeddings are {embeddings.dtype} of shape {embeddings.shape}; give numbers "
            f"[{len(names)}, D], a row a class"
        )
    used = np.union1d(data.seen, data.unseen)
    rows = embeddings[used].astype(np.float64)
    for bad, what in (
        (~np.isfinite(rows).all(1), "NaN or infinity"),
        (~rows.any(1), "nothing but zeros"),
    ):
        if bad.any():
            raise UserError(
                f"class embeddings of {bad.sum()} of {len(used)} classes hold {what}: "
                f"{', '.join(names[used[bad]][:5])}; give them others, or leave the classes out of "
                "the split"
            )
    if (rows == rows[0]).all():
        raise UserError("class embeddings are the same for all classes; give others")


def _embeddings_of(path: Path, class_names: list[str]) -> NDArray[np.floating]:
    """[C, D] rows of the file in the order of `class_names`."""
    if path.suffix == ".mat":
        splits = read_att_splits(path)
        names, rows = splits.class_names, splits.att
    elif path.suffix == ".safetensors":
        classes = read_safetensors(path)
        names, rows = classes.class_names, classes.embeddings.astype(np.float64)
    elif path.suffix == ".npz":
        arrays = read_arrays(path, "class_names", "embeddings")
        names, rows = [str(name) for name in arrays["class_names"]], arrays["embeddings"]
    else:
        raise UserError(f"{path}: give class embeddings as .mat, .npz or .safetensors")
    if len(rows) != len(names):
        raise UserError(f"{path}: {len(rows)} embeddings, but {len(names)} class names")
    names = [normalize("NFC", name) for name in names]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f"{path}: {', '.join(twice[:5])} twice among the class names; take one of the rows out"
        )
    position = {name: index for index, name in enumerate(names)}
    missing = [name for name in class_names if normalize("NFC", name) not in position]
    if missing:
        raise UserError(
            f"{path}: no embedding for {len(missing)} of {len(class_names)} classes: "
            + ", ".join(missing[:20])
        )
    return rows[[position[normalize("NFC", name)] for name in class_names]]
