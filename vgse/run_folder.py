"""The late stages of a run, from its folder alone: relate, evaluate, export."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from vgse.config import (
    EvaluationConfig,
    RelationConfig,
    RunConfig,
    check_fields,
    check_seed,
    load_config,
)
from vgse.errors import UserError
from vgse.files import read_arrays, read_mapping, write_arrays, write_json, written_whole
from vgse.formats import ClassEmbeddings, Indices, read_npz, write_npz, write_safetensors
from vgse.images.image_features import (
    SPLITS,
    ImageFeatures,
    image_labels,
    image_parts,
    joined,
    read_image_features,
    read_index,
    sample_images,
)
from vgse.knowledge.sources import Knowledge, Source
from vgse.knowledge.sparse_rows import table_arrays, table_from
from vgse.relations import CachedSolver
from vgse.relations.predict import (
    FOLD_CLASSES,
    ChosenKnowledge,
    Related,
    choose_knowledge,
    paper_wavg,
    predict_in_turns,
    predict_unseen,
    relate,
    relation_arrays,
    relation_summary,
    selection_line,
    selection_summary,
)
from vgse.relations.select import MAX_CLASSES
from vgse.xlsa17 import (
    AttSplits,
    check_res101_size,
    read_att_splits,
    read_labels,
    refuse_leaks,
    split_locations,
    write_att_splits,
    write_res101,
)
from vgse.zsl.data import ZslData, validation_classes, with_validation
from vgse.zsl.folds import class_turns
from vgse.zsl.rows import assembled, table_rows
from vgse.zsl.summary import summary_sentence
from vgse.zsl.table import evaluate

WHAT = {  # what an exported file can hold -> its name
    "smo": "VGSE_SMO_splits.mat",
    "wavg": "VGSE_WAVG_splits.mat",
    "words+smo": "VGSE_WORDS_SMO_splits.mat",
    "knowledge+smo": "VGSE_KNOWLEDGE_SMO_splits.mat",
}

_log = logging.getLogger(__name__)
_Config = TypeVar("_Config", RelationConfig, EvaluationConfig)


def write_classes(run: Path, classes: ClassEmbeddings, related: Related) -> None:
    """Writes class_embeddings.npz, class_embeddings.safetensors and relations.npz."""
    write_npz(run / "class_embeddings.npz", classes)
    write_safetensors(run / "class_embeddings.safetensors", classes)
    write_arrays(run / "relations.npz", relation_arrays(classes, related))


@dataclass(frozen=True)
class Run:
    """What a finished run left in its folder."""

    folder: Path
    config: RunConfig
    classes: ClassEmbeddings
    knowledge: Knowledge
    relations: dict[str, NDArray[np.float64]]  # smo, paper_smo, smo_negative, wavg: r [U, S]
    evaluation: dict[str, Any]  # evaluation.json
    health: dict[str, Any]  # health.json

    def images(self) -> ImageFeatures:
        """Features and assignments of all images, from image_features.npz."""
        return read_image_features(self.folder)

    def zsl_data(self) -> ZslData:
        """Features, labels and splits as the evaluation takes them."""
        images = self.images()
        wide = images.features.astype(np.float32)
        return with_validation(replace(zsl_data_of(self.classes, images), features=wide))


def load_run(folder: str | Path) -> Run:
    """A run from its folder. Rows of r stand in the order of `classes.unseen`, columns in that of
    `classes.seen`."""
    folder = Path(folder)
    classes = read_npz(folder / "class_embeddings.npz")
    names = ("smo", "paper_smo", "smo_negative", "wavg")
    return Run(
        folder,
        load_config(folder / "config.yaml"),
        classes,
        read_knowledge(folder, classes),
        read_arrays(folder / "relations.npz", *names),
        read_mapping(folder / "evaluation.json"),
        read_mapping(folder / "health.json"),
    )


def _images_of_splits(
    classes: ClassEmbeddings, labels: Indices, split: NDArray[np.uint8]
) -> tuple[Indices, Indices, Indices]:
    """Images of the SPLITS; those of classes without a role are left out."""
    known = np.isin(labels, np.concatenate([classes.seen, classes.unseen]))
    train, test_seen, test_unseen = (np.flatnonzero(known & (split == n)) for n in range(3))
    return train, test_seen, test_unseen


def zsl_data_of(classes: ClassEmbeddings, images: ImageFeatures) -> ZslData:
    """The evaluation's data; images of classes without a role are left out."""
    return ZslData(
        images.features,
        images.labels,
        *_images_of_splits(classes, images.labels, images.split),
        classes.class_names,
        classes.seen,
        classes.unseen,
        classes.val,
    )


def evaluated_images(
    run: Path, most: int, parts: Iterable[ImageFeatures] | None = None
) -> tuple[ImageFeatures, int | None]:
    """The images that an evaluation takes, and of how many they are a sample, if they are."""
    index = read_index(run)
    if index is None:
        images = read_image_features(run)
        counts = np.zeros((len(SPLITS), int(images.labels.max(initial=0)) + 1), np.int64)
        np.add.at(counts, (images.split, images.labels), 1)
        total, parts = len(images.labels), [images]
    else:
        total, counts = index.num_images, index.counts
    if total <= most:
        return joined(parts or image_parts(run)), None
    return sample_images(parts or image_parts(run), counts, most), total


def read_config(run: Path | None, section: str, kind: type[_Config], **overrides: Any) -> _Config:
    """A section of the run's config.yaml as `kind`, its defaults where there is none, with those
    `overrides` that are not None."""
    path = (run or Path()) / "config.yaml"
    given = read_mapping(path).get(section, {}) if run else {}
    if not isinstance(given, dict):
        raise UserError(f"{path}: {section} is not a mapping of fields; correct it")
    unknown = sorted(set(given) - {field.name for field in fields(kind)})
    if unknown:
        raise UserError(f"{path}: {section} has no field {', '.join(unknown)}; remove it")
    for name, value in given.items():
        if isinstance(value, str):
            with suppress(ValueError):  # YAML takes 1e-8 for a word
                given[name] = float(value)
    config = kind(**given | {name: v for name, v in overrides.items() if v is not None})
    check_fields(config)
    return config


def read_seed(run: Path) -> int:
    """The seed of the run's config.yaml; 0 where there is no file."""
    seed = read_mapping(run / "config.yaml").get("seed", 0)
    check_seed(f"{run / 'config.yaml'}: seed", seed)
    return int(seed)


def write_knowledge(run: Path, knowledge: Knowledge) -> None:
    """Writes knowledge.npz: what each source says of each class."""
    arrays: dict[str, Any] = {
        "class_names": np.array(knowledge.class_names),
        "sources": np.array([source.name for source in knowledge.sources]),
        "weights": np.array([np.nan if s.weight is None else s.weight for s in knowledge.sources]),
        "is_hierarchy": np.array([source.is_hierarchy for source in knowledge.sources]),
    }
    for i, source in enumerate(knowledge.sources):
        arrays |= table_arrays(source.rows, f"rows_{i}")
        arrays[f"columns_{i}"] = np.array(source.columns, np.str_)
        arrays[f"found_{i}"] = np.array([source.found.get(n, "") for n in knowledge.class_names])
    write_arrays(run / "knowledge.npz", arrays)


def read_knowledge(run: Path, classes: ClassEmbeddings) -> Knowledge:
    """What `write_knowledge` wrote; the word vectors alone in run folders made before."""
    path = run / "knowledge.npz"
    if not path.is_file():
        if read_mapping(run / "config.yaml").get("knowledge"):
            raise UserError(f"{path}: no such file; copy the run folder whole")
        words = np.nan_to_num(classes.word_vectors.astype(np.float64))
        return Knowledge(classes.class_names, [Source("words", words, None)])
    arrays = read_arrays(path)
    sources = []
    try:
        names = [str(name) for name in arrays["class_names"]]
        if names != classes.class_names:
            raise UserError(f"{path}: belongs to other classes; train again")
        for i, name in enumerate(arrays["sources"]):
            weight, entries = float(arrays["weights"][i]), arrays[f"found_{i}"]
            pairs = zip(names, map(str, entries), strict=True)
            source = Source(
                str(name),
                table_from(arrays, f"rows_{i}"),
                None if np.isnan(weight) else weight,
                bool(arrays["is_hierarchy"][i]),
                [str(column) for column in arrays[f"columns_{i}"]],
                {name: entry for name, entry in pairs if entry},
            )
            sources.append(source)
    except KeyError as error:
        raise UserError(f"{path}: holds no {error.args[0]}; train again") from None
    return Knowledge(names, sources)


def write_relations(
    run: Path,
    classes: ClassEmbeddings,
    words: NDArray[np.floating],
    knowledge: Knowledge,
    config: RelationConfig,
    seed: int,
    own: NDArray[np.floating],
    folds: int,
) -> tuple[ClassEmbeddings, Related, dict[str, Any]]:
    """Chooses knowledge and ridge on seen classes, solves the relations and writes class
    embeddings, relations.npz and relations.json. `own` is [C, D_v], `words` [C, D_w].

    Seen classes are also predicted from each other, in `folds` validation folds.
    """
    seen, unseen = np.sort(classes.seen), classes.unseen
    chosen = choose_knowledge(knowledge, words, seen, own[seen], config, seed)
    related = relate(chosen, words, classes.seen, unseen, config)
    embeddings = predict_unseen(own, related, classes.seen, unseen)
    turns = class_turns(seen, validation_classes(seen, classes.val), seed, folds)
    given = knowledge, words, seen, turns, own, config, seed
    predicted, choices = predict_in_turns(*given)
    fold_of = np.full(len(embeddings), -1)
    for number, unseen_then in enumerate(turns):
        fold_of[unseen_then] = number
    classes = replace(
        classes,
        embeddings=embeddings,
        validation_embeddings=predicted.astype(np.float32),
        validation_fold=fold_of,
    )
    write_classes(run, classes, related)
    summary = selection_summary(knowledge, chosen, config, seed)
    entries = [
        {
            **selection_summary(knowledge, choice, config, seed),
            "curve": [],
            "unseen": [classes.class_names[c] for c in unseen_then],
        }
        for unseen_then, choice in zip(turns, choices, strict=True)
    ]
    content = summary | {"line": selection_line(summary), "folds": entries}
    write_json(run / "relations.json", content)
    return classes, related, summary


def relate_run(run: Path, config: RelationConfig) -> tuple[ClassEmbeddings, Related, str]:
    """Chooses and solves the relations anew; returns the choice in one line as well.

    What they were made with goes into config.yaml, for the evaluation to follow. Exported .mat
    files are written again, with their classes and splits and with unit rows as `att`.
    """
    classes = read_npz(run / "class_embeddings.npz")
    knowledge, words = read_knowledge(run, classes), classes.word_vectors
    folds = read_config(run, "evaluation", EvaluationConfig).folds
    classes, related, summary = write_relations(
        run, classes, words, knowledge, config, read_seed(run), classes.own_embeddings, folds
    )
    content = {**read_mapping(run / "config.yaml"), "relations": asdict(config)}
    with written_whole(run / "config.yaml") as stream:
        stream.write(yaml.safe_dump(content, sort_keys=False).encode())
    for what, name in WHAT.items():
        if (run / name).is_file():
            export_splits(run, run, what=what, like=run / name)
    return classes, related, selection_line(summary)


def evaluate_run(
    run: Path,
    config: EvaluationConfig,
    relations: RelationConfig,
    seed: int,
    *,
    num_seeds: int = 1,
    clusters: dict[str, Any] | None = None,
    parts: Iterable[ImageFeatures] | None = None,
    csv: Path | None = None,
) -> dict[str, Any]:
    """Evaluates a run folder and writes its evaluation.json.

    `clusters` are the measures of the clusters; without them those of the file that is there stay.
    `parts` are the run's images where they are not in the folder. Of more than
    `config.max_images` images it takes a sample, see `sample_images`.
    """
    path = run / "evaluation.json"
    classes = read_npz(run / "class_embeddings.npz")
    images, sampled = evaluated_images(run, config.max_images, parts)
    data = with_validation(zsl_data_of(classes, images))
    words = classes.word_vectors.astype(np.float64)
    own, solve = classes.own_embeddings, CachedSolver()
    knowledge, chosen_by = read_knowledge(run, classes), read_seed(run)
    stored = read_mapping(run / "relations.json", remedy="python -m vgse relate RUN")

    earlier = {frozenset(fold["unseen"]): fold for fold in stored.get("folds", [])}
    earlier[frozenset()] = stored
    chosen_of: dict[bytes, ChosenKnowledge] = {}  # by fold: the summary asks for one again

    def choose(embeddings: NDArray[np.floating], seen: Indices) -> ChosenKnowledge:
        fold = seen.tobytes()
        if fold not in chosen_of:
            names = {classes.class_names[c] for c in np.setdiff1d(classes.seen, seen)}
            chosen_of[fold] = choose_knowledge(
                *(knowledge, words, seen, embeddings, relations, chosen_by),
                earlier=earlier.get(frozenset(names)),
                max_classes=FOLD_CLASSES if names else MAX_CLASSES,
            )
        return chosen_of[fold]

    rows = partial(table_rows, relations, words_alone=knowledge.words_alone)
    evaluation = evaluate(
        *(data, rows, own, words, config, seed),
        num_seeds=num_seeds,
        solve=solve,
        choose_knowledge=choose,
        csv=csv,
    )
    if clusters is None:
        clusters = read_mapping(path, remedy="remove it").get("clusters")
    if clusters:
        evaluation["clusters"] = clusters
    seen, unseen = np.sort(data.seen), data.unseen
    chosen = choose(own[seen], seen)
    vectors = chosen.vectors
    smo = solve(vectors[unseen], vectors[seen], alpha=relations.alpha, ridge=chosen.ridge)
    summary = selection_summary(knowledge, chosen, relations, chosen_by)
    if chosen.selection is not None and stored and stored.get("question") != summary["question"]:
        _log.warning(
            "%s: the relation was chosen anew, as relations.json is of other settings or of an "
            "earlier version; python -m vgse relate %s makes the run's embeddings follow",
            *(path, run),
        )
    evaluation["relations"] = relation_summary(smo, relations.alpha) | {
        name: summary.get(name) for name in ("sources", "weights", "ridge", "criterion", "warning")
    }
    evaluation["summary"] = summary_sentence(evaluation)
    if sampled is not None:
        evaluation["sample"] = {"images": len(images.labels), "of": sampled}
        evaluation["summary"] += f" Measured on {len(images.labels):,} of {sampled:,} images."
    write_json(path, evaluation)
    return evaluation


def export_splits(
    run: Path,
    out: Path,
    *,
    what: str = "smo",
    normalise: str = "l2",
    like: Path | None = None,
    labels: Path | None = None,
) -> Path:
    """Writes the file of `what` (see WHAT) into the folder `out` and returns its path.

    Two blocks stand beside each other as in the table, word vectors or knowledge first, each
    normalised and brought to one mean length; in original_att as they are. `normalise` is what
    `att` gets. validation_att of VGSE-SMO holds the seen classes as they are predicted, raw, where
    it is their turn to be unseen: in the fold of validation_fold, 0 for other classes; whoever
    chooses hyper-parameters takes these columns then. With `like`, an att_splits.mat, the classes
    stand in its order and its split fields are copied, so that the file goes with the features it
    was made for; without, the splits index the rows of image_features.npz. `labels`, or the
    res101.mat beside `like`, tells which of its classes are unseen: none may be a class that the
    run saw.
    """
    classes = read_npz(run / "class_embeddings.npz")
    if like is None:
        of_images, split = image_labels(run)
        images = _images_of_splits(classes, of_images, split)
        locations = split_locations(of_images, *images, classes.val)
        names, order = classes.class_names, np.arange(len(classes.class_names))
    else:
        given = read_att_splits(like)
        names, locations = given.class_names, given.locations
        missing = sorted(set(names) - set(classes.class_names))
        if missing:
            raise UserError(
                f"{like}: {len(missing)} of its classes are not in {run}, such as {missing[0]}; "
                "give the split file of the data that the run was trained on"
            )
        order = np.array([classes.class_names.index(name) for name in names])
        _refuse_leaks_of(run, classes, like, given, labels)
    att, raw = (rows[order] for rows in _exported_rows(run, classes, what, normalise))
    path = out / WHAT[what]
    seen = np.flatnonzero(np.isin(order, classes.seen))
    splits = AttSplits(names, att, raw, locations, seen=seen)
    fold = classes.validation_fold
    if what == "smo" and classes.validation_embeddings is not None and fold is not None:
        rows = np.nan_to_num(classes.validation_embeddings[order].astype(np.float64))
        splits = replace(splits, validation_att=rows, validation_fold=fold[order])
    write_att_splits(path, splits)
    return path


def _exported_rows(
    run: Path, classes: ClassEmbeddings, what: str, normalise: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """att and original_att [C, D]; zeros, as MATLAB code fails on NaN, for classes left out."""
    config, words = read_config(run, "relations", RelationConfig), classes.word_vectors
    seen, unseen, own = classes.seen, classes.unseen, classes.own_embeddings
    if what == "wavg":
        rows = paper_wavg(words[unseen], words[seen], config) @ own[seen].astype(np.float64)
        embeddings = classes.embeddings.copy()
        embeddings[unseen] = rows
        classes = replace(classes, embeddings=embeddings)
    raw = [classes.embeddings.astype(np.float64)]
    if what == "words+smo":
        raw.insert(0, words.astype(np.float64))
    if what == "knowledge+smo":
        stored = read_mapping(run / "relations.json", remedy="python -m vgse relate RUN")
        knowledge, order = read_knowledge(run, classes), np.sort(seen)
        chosen = choose_knowledge(
            *(knowledge, words, order, own[order], config, read_seed(run)), earlier=stored
        )
        raw.insert(0, chosen.vectors)
    if len(raw) == 1:
        att = classes.normalised(normalise).astype(np.float64)
    else:
        rows_of = np.concatenate([seen, unseen])
        blocks = assembled([block[rows_of] for block in raw], len(seen), normalise)
        att = np.zeros((len(words), blocks.shape[1]))
        att[rows_of] = blocks
    return np.nan_to_num(att), np.nan_to_num(np.concatenate(raw, axis=1))


def _refuse_leaks_of(
    run: Path, classes: ClassEmbeddings, like: Path, given: AttSplits, labels: Path | None
) -> None:
    beside = like.with_name("res101.mat")
    if labels is None and beside.is_file():
        labels = beside
    if labels is not None:
        of_images, images = read_labels(labels), given.locations["test_unseen_loc"]
        if len(images) and images.max() >= len(of_images):
            raise UserError(
                f"{like}: test_unseen_loc reaches image {images.max() + 1}, but {labels} has "
                f"{len(of_images)} labels; give those of the features that it was made for"
            )
        unseen = np.unique(of_images[images])
        if len(unseen) and unseen.max() >= len(given.class_names):
            raise UserError(f"{labels}: labels reach beyond the classes of {like}")
    elif given.seen is not None:  # an earlier export
        unseen = np.setdiff1d(np.arange(len(given.class_names)), given.seen)
    else:
        _log.warning(
            "%s: whether the run saw classes that are unseen there could not be checked: no "
            "res101.mat beside it; give the labels with --labels",
            like,
        )
        return
    seen = {classes.class_names[c] for c in classes.seen}
    refuse_leaks(run, seen, [given.class_names[c] for c in unseen], like)


def export_features(run: Path, out: Path) -> Path:
    """Writes the image features as res101.mat into the folder `out` and returns its path.

    image_files are paths in the data set, or keys of images whose path is not known.
    """
    first = next(image_parts(run))
    if (index := read_index(run)) is not None:
        check_res101_size(out / "res101.mat", index.num_images, first.features.shape[1])
    images = read_image_features(run)
    pairs = zip(images.sources or images.keys, images.keys, strict=True)
    path = out / "res101.mat"
    write_res101(path, images.features, images.labels, [source or key for source, key in pairs])
    return path
