"""The table for class embeddings, features and splits that others made."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from vgse.config import EvaluationConfig, Normalisation
from vgse.errors import UserError
from vgse.formats import VALIDATION
from vgse.knowledge.words import load_word_vectors, normalise_words, words_of
from vgse.xlsa17 import (
    cell_texts,
    read_att_splits,
    read_fields,
    read_res101,
    refuse_leaks,
    zsl_data,
)
from vgse.zsl.data import ZslData, with_validation
from vgse.zsl.rows import external_rows
from vgse.zsl.table import Predicted, evaluate


def evaluate_files(
    embeddings: Path,
    features: Path,
    splits: Path | None,
    words: str | None,
    config: EvaluationConfig,
    seed: int,
    *,
    num_seeds: int = 1,
    normalise: Normalisation | None = None,
    csv: Path | None = None,
) -> dict[str, Any]:
    """The table of `embeddings` on the images of `features`, beside random vectors and words.

    `embeddings` is a .mat like att_splits.mat, or an .npz or .safetensors file with class_names
    and embeddings; the latter two need `splits`, an att_splits.mat whose class order counts. A file
    that a run exported also holds its seen classes as they are predicted in validation, and choices
    are made on them, as the run did. Without `normalise` that of `config` holds, but a .mat of
    others is taken raw.
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
    given = _embeddings_of(embeddings, names)
    refuse_leaks(embeddings, given.seen, [names[c] for c in data.unseen], splits or embeddings)
    if normalise is None and embeddings.suffix == ".mat" and given.validation is None:
        normalise = "none"
    config = replace(config, normalise=normalise or config.normalise)
    vectors = None
    if words is not None:
        found = load_word_vectors(words, {name: words_of(name) for name in names})
        vectors = normalise_words(found.vectors, data.seen)
    return evaluate_embeddings(
        *(data, given.rows, vectors, config, seed),
        num_seeds=num_seeds,
        predicted=given.in_turns(),
        csv=csv,
    )


def evaluate_embeddings(
    data: ZslData,
    embeddings: NDArray[np.floating],
    words: NDArray[np.floating] | None = None,
    config: EvaluationConfig | None = None,
    seed: int = 0,
    *,
    num_seeds: int = 1,
    predicted: Predicted | None = None,
    csv: Path | None = None,
) -> dict[str, Any]:
    """The table of class embeddings [C, D], beside random vectors and, where given, `words`
    [C, D_w]; what evaluation.json holds.

    Every hyper-parameter is chosen on folds of the seen classes, of which the first is `data.val`
    or a seeded fifth of them, or on those in which they are `predicted`.
    """
    _check_embeddings(np.asarray(embeddings), data)
    rows = partial(external_rows, words is not None)
    drawn = not len(data.val)
    data, config = with_validation(data, seed), config or EvaluationConfig()
    if predicted is not None and not np.array_equal(
        np.sort(np.concatenate(predicted.turns)), np.sort(data.seen)
    ):
        predicted = None  # another split than the file was made for
    evaluation = evaluate(
        *(data, rows, embeddings, words, config, seed),
        num_seeds=num_seeds,
        predicted=predicted,
        csv=csv,
    )
    evaluation["protocol"]["validation_drawn"] = drawn
    return evaluation


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


@dataclass(frozen=True)
class _Given:
    """Class embeddings of a file, with what it holds of seen classes as predicted."""

    rows: NDArray[np.floating]  # [C, D]
    validation: NDArray[np.floating] | None = None  # [C, D]
    fold: NDArray[np.integer] | None = None  # [C], -1 for classes of none
    seen: frozenset[str] = frozenset()  # whose rows come from their own images, where it knows

    def in_turns(self) -> Predicted | None:
        if self.validation is None or self.fold is None:
            return None
        turns = [np.flatnonzero(self.fold == i) for i in range(int(self.fold.max(initial=-1)) + 1)]
        return Predicted(self.validation, turns) if turns else None


def _embeddings_of(path: Path, class_names: list[str]) -> _Given:
    """What the file holds in the order of `class_names`; of our own .mat the raw rows."""
    if path.suffix == ".mat":
        splits = read_att_splits(path)
        names, fold, seen = splits.class_names, splits.validation_fold, splits.seen
        validation: NDArray[np.floating] | None = splits.validation_att
        rows = splits.att if validation is None else splits.original_att
    elif path.suffix in (".npz", ".safetensors", ".h5", ".hdf5"):
        arrays, _ = read_fields(path, "class_names", "embeddings", also=("seen", *VALIDATION))
        names, rows = cell_texts(arrays["class_names"]), arrays["embeddings"]
        validation, fold = (arrays.get(name) for name in VALIDATION)
        seen = arrays.get("seen")
    else:
        raise UserError(f"{path}: give class embeddings as .mat, .npz, .h5 or .safetensors")
    if rows.ndim != 2 or len(rows) != len(names):
        raise UserError(
            f"{path}: embeddings of shape {rows.shape}, but {len(names)} class names; give one "
            "row a class"
        )
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
    order = [position[normalize("NFC", name)] for name in class_names]
    known = frozenset() if seen is None else frozenset(names[i] for i in seen)
    if validation is None or fold is None:
        return _Given(rows[order], seen=known)
    return _Given(rows[order], validation[order], fold[order], known)
