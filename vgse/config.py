"""The configuration of one run, as dataclasses that the command line and the YAML files share."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vgse.errors import UserError

_T = TypeVar("_T")
LARGEST_SEED = 2**31 - 2  # FAISS takes one more, as a signed int of 32 bits


def bounded(default: _T, low: float, high: float = inf, **more: str) -> _T:
    """A field whose value `validate` wants in low..high; `more` goes into its metadata as well."""
    found: _T = field(default=default, metadata={"range": (low, high), **more})
    return found


@dataclass
class DataConfig:
    """Where images and words come from."""

    shards: str = "demo/shards"
    """Folder or URL (any fsspec scheme) that holds manifest.json and the tar shards."""
    words: str = "demo/words.txt"
    """Word vectors: word2vec .txt or .bin, fastText .vec, GloVe .txt, .npz or .mat."""
    unseen: list[str] | str | None = None
    """The unseen classes, in place of those of the shards: a file with their names (one a line, or
    a JSON or YAML list; FILE#a.b) or the names. Images of a class that changes sides are divided
    anew; shards and cached features stay."""
    split_seed: int | None = field(default=None, metadata={"range": (0, 2**63 - 1)})
    """Draws as many unseen classes as the shards have, unless `unseen` names them, and the
    validation classes."""
    missing_words: Literal["error", "drop"] = "error"
    """A class without a word vector stops the run ("error") or is left out ("drop")."""
    cache: str | None = None
    """Folder or URL for features of the frozen backbone, shared by runs and safe to delete; by
    default `features` beside local shards, and `cache` in the storage folder for remote ones."""
    shard_cache: str | None = None
    """Folder of each node that keeps shards of a store, and copies of a feature cache at a URL,
    shared by all runs; none streams shards, and copies features into the temporary folder."""
    shard_cache_gb: float = bounded(0, 0)
    """Size above which that folder forgets the shards and the copies of features that were not
    used for longest; 0 sets no limit."""
    max_damaged: float = bounded(0.01, 0, 1)
    """Share of unreadable images, in 0..1, above which a run stops. Where θ learns, each loader
    counts for itself: it may meet its part of them, rounded up, and some more by chance."""


@dataclass
class SourceConfig:
    """One source of knowledge about class names."""

    kind: Literal["words", "wordnet", "glosses", "hierarchy", "table"]
    """words: word vectors. wordnet: the ancestors of a noun. glosses: the words that explain a
    noun and its near ancestors in WordNet, by their vectors. hierarchy: child<TAB>parent lines.
    table: any .npz, .mat or text with a row a class."""
    path: str = ""
    """The file, or WordNet's folder; any fsspec URL. Of words those of data.words by default."""
    vectors: str | None = None
    """Word vectors for glosses; those of data.words by default."""
    missing: Literal["error", "zero", "drop"] = "error"
    """A class that the source lacks stops the run, has zeros there, or is left out."""
    weight: float | Literal["auto"] = bounded("auto", 0)
    """Weight beside the other sources; "auto" chooses it on seen classes."""
    senses: int = bounded(5, 1)
    """Senses of a noun in WordNet that count, the most frequent ones first."""
    sense_decay: float = bounded(0.6, 0, 1)
    """Factor from one sense to the next."""
    sense_agreement: float = bounded(3, 0, 100)
    """Logarithm of the factor of a sense whose relatives among the seen classes are wholly those by
    the word vectors of data.words; 0 leaves senses in the order of WordNet."""
    decay: float = bounded(0.9, 0, 1)
    """Factor from a class to its parent, and so on upwards."""


@dataclass
class BackboneConfig:
    """The network θ that turns a patch into features."""

    name: str = "efficientnet-lite0"
    """efficientnet-lite0, a torchvision classification model by name, or timm/ and the name of a
    model of timm, such as timm/vit_small_patch14_dinov2.lvd142m (patches of a multiple of 14)."""
    weights: str = "default"
    """"default" (the model's own pretrained weights), "none", or a state-dict file
    (.safetensors, or torch.save)."""
    train: Literal["none", "last", "all"] = "none"
    """Which part of θ learns. "none" computes features once and trains on the cache."""
    patch_size: int = bounded(64, 8, 1024)
    """Side P of a patch in pixels."""
    image_size: int = bounded(224, 8, 2048)
    """Side in pixels of the whole image that gives the image features for zero-shot learning; most
    networks learned at 224, and see less in smaller images, also in such as are enlarged for it."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of θ; "auto" takes bfloat16 where the hardware multiplies in it."""
    compile: bool = False
    """Compile the repeated blocks of a θ that learns: a minute at the start, faster steps."""


@dataclass
class ModelConfig:
    """The clustering layer H and what stands before it."""

    num_clusters: int = bounded(150, 2, 1_000_000)
    """D_v, the number of visual clusters and the length of a class embedding."""
    temperature: float = bounded(0.1, 1e-4, 100)
    """τ of a = softmax(cosine / τ); 0.03 to 0.1 work, 1 makes assignments flat."""
    projection: int = bounded(256, 0, 100_000)
    """Output size of the PCA that follows θ; 0 leaves features as they are."""
    train_projection: bool = True
    """Whether the projection learns after its PCA start."""
    init: Literal["kmeans", "random"] = "kmeans"
    """How the cluster prototypes start."""
    max_points_per_centroid: int = bounded(1000, 1)
    """Patches sampled for each centroid of the k-means."""


@dataclass
class LossConfig:
    """Weights of the losses; 0 switches one off. Every float field is the weight of a loss."""

    classification: float = bounded(1.0, 0, symbol="cls")
    """λ_cls of the cross-entropy of Q a."""
    semantic: float = bounded(1.0, 0, symbol="sem")
    """λ_sem of the distance between S a and what is known of the class's name."""
    semantic_target: Literal["words", "knowledge"] = "words"
    """What S a regresses: word vectors, or all sources of `knowledge` side by side."""
    consistency: float = bounded(0.1, 0, symbol="clu")
    """λ_clu of the agreement between a patch and its nearest neighbour in the queue."""
    entropy: float = bounded(0.5, 0, symbol="ent")
    """λ_ent of Σ ā ln ā, which keeps all clusters in use."""
    queue_size: int = bounded(4096, 1)
    """Patches of recent steps, over all workers, among which neighbours are sought."""


def loss_symbols() -> dict[str, str]:
    """Every loss by its field's name, with what it is called where there is little room."""
    return {
        item.name: item.metadata.get("symbol", item.name)
        for item in fields(LossConfig)
        if item.type is float
    }


@dataclass
class TrainingConfig:
    """Optimisation."""

    epochs: int = bounded(10, 1)
    """Passes over the training images."""
    checkpoint_epochs: int = bounded(1, 1)
    """Epochs between two checkpoints; the last epoch always makes one."""
    checkpoint_steps: int = bounded(0, 0)
    """Steps between two checkpoints within an epoch; 0 makes none there."""
    checkpoints_kept: int = bounded(2, 1)
    """Checkpoints that stay; older ones are deleted."""
    batch_size: int = 256
    """Images in a step, over all workers: changing the workers keeps the optimisation."""
    accumulate: int = bounded(1, 1)
    """Micro-batches that a worker's part of a step is done in where θ learns: the same gradient
    with less memory, for one more forward pass of θ when above 1."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum, which wants far larger rates than the ones below: on the demo
    0.3, and 10 for Q and S, learn as much as AdamW's."""
    momentum: float = bounded(0.9, 0, 0.999)
    """SGD's momentum; AdamW takes none."""
    learning_rate: float = bounded(1e-3, 0)
    """Peak learning rate of prototypes and projection: a short warm-up, then cosine to zero."""
    regressor_learning_rate: float = bounded(3e-2, 0)
    """Peak learning rate of Q and S: far above the prototypes', which otherwise flee the losses
    of regressors that have not learned yet (fewer clusters in use, less of the classes in them)."""
    backbone_learning_rate: float = bounded(1e-4, 0)
    """Peak learning rate of the trainable part of θ."""
    weight_decay: float = bounded(1e-4, 0)
    """Weight decay: AdamW's decoupled one, or for SGD an L2 penalty in the gradient."""
    classes: Literal["seen", "train"] = "seen"
    """Train on all seen classes, or leave the validation classes out (for a search)."""


@dataclass
class RelationConfig:
    """How unseen classes follow from seen ones."""

    alpha: float = bounded(0.0, -1, 1)
    """Lower bound of a relation weight: 0 for mixtures, -1 to allow differences."""
    ridge: float | Literal["auto"] = bounded("auto", 1e-15, 1)
    """Ridge of the quadratic program, relative to the largest eigenvalue; "auto" chooses it with
    the sources' weights on seen classes. 1e-8 with word vectors alone is the paper's relation."""
    num_neighbours: int = bounded(5, 1)
    """Seen classes that the weighted average (WAvg) looks at."""
    eta: float = bounded(5.0, 0)
    """Sharpness of the weighted average."""


Normalisation = Literal["auto", "none", "l2", "z"]


@dataclass
class EvaluationConfig:
    """Zero-shot evaluation."""

    models: list[str] = field(default_factory=lambda: ["eszsl", "sje", "prototype"])
    """Zero-shot models of the table."""
    normalise: Normalisation = "auto"
    """What models get: raw embeddings, unit rows, or z-scores over the seen classes as unit rows;
    "auto" chooses for each model and row on validation classes."""
    folds: int = bounded(5, 1, 100)
    """Class-wise folds of the seen classes, at most, on which everything is chosen; in the first
    the validation classes play the unseen ones."""
    holdout: float = bounded(0.2, 0.01, 0.9)
    """Share of each seen class's training images held out when choosing hyper-parameters."""
    max_images: int = bounded(40_000, 1000)
    """Images above which the table is made from a sample: of each class and split those whose
    keys have the smallest hashes, equally many where there are as many."""


@dataclass
class ClusterConfig:
    """The Ray cluster."""

    address: str | None = None
    """Ray address; none starts a cluster on this machine (or joins the job's own)."""
    num_workers: int = bounded(2, 1, 100_000)
    """Training workers."""
    min_workers: int | None = None
    """Elastic: go on with as few as this when workers are lost, and take new ones in."""
    use_gpu: Literal["auto", "yes", "no"] = "auto"
    """Give every worker a GPU; "auto" does so where the cluster has enough."""
    cpus_per_worker: float = bounded(1, 0)
    """CPUs a worker reserves."""
    loader_workers: int = bounded(0, 0, 1000)
    """Loader processes of each training worker."""
    wait_for_gpus: float = bounded(900, 0)
    """Seconds to wait, before training, for GPUs or CPUs that a cluster adds on demand."""
    wait_for_workers: float = bounded(900, 1)
    """Seconds to wait for the room of lost workers to come back; an elastic run does not wait
    for more than its least number."""
    resize_interval: float = bounded(60, 0)
    """Seconds between two looks of an elastic run at whether more workers fit in."""
    max_failures: int = bounded(3, -1)
    """Restarts after dead workers or nodes before the run gives up."""


@dataclass
class TrackingConfig:
    """Where figures go besides metrics.jsonl and the report."""

    tensorboard: bool = True
    """Write event files into `tensorboard` of the run folder."""
    mlflow: str | None = None
    """MLflow tracking URI, such as http://host:5000 or sqlite:////folder/mlflow.db; none logs
    nothing there. A user and password go into MLFLOW_TRACKING_USERNAME and _PASSWORD."""
    mlflow_experiment: str = "vgse"
    """MLflow experiment; the run in it has the name of the run folder."""


@dataclass
class RunConfig:
    """One training run, from shards to class embeddings and their evaluation."""

    data: DataConfig = field(default_factory=DataConfig)
    knowledge: list[SourceConfig] = field(default_factory=list)
    """What is known of class names, beside each other; nothing means data.words alone."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    relations: RelationConfig = field(default_factory=RelationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    storage: str = "runs"
    """Folder or URL (any fsspec scheme) that holds the run folders."""
    seed: int = bounded(0, 0, LARGEST_SEED)
    """Seed of every random choice."""


def validate(config: RunConfig) -> None:
    """Check every number against its range, every choice, and addresses for passwords."""
    refuse_passwords(config)
    check_fields(config)
    workers = config.cluster.num_workers
    _check_range("training.batch_size", config.training.batch_size, workers, inf)
    if config.cluster.min_workers is not None:
        _check_range("cluster.min_workers", config.cluster.min_workers, 1, workers)


def check_fields(config: Any) -> None:
    """Check every number of a dataclass against its range, and every choice."""
    for name, item, kind, value in _walk(config):
        if get_origin(kind) is Literal and value not in get_args(kind):
            choices = ", ".join(get_args(kind))
            raise UserError(f"{name} is {value!r}; it must be one of {choices}")
        if isinstance(value, str) and float in get_args(kind):
            words = [word for part in get_args(kind) for word in get_args(part)]
            if value not in words:
                raise UserError(f"{name} is {value!r}; give a number or {', '.join(words)}")
        elif kind is int and (not isinstance(value, int) or isinstance(value, bool)):
            raise UserError(f"{name} is {value!r}; give a whole number")
        elif value is not None:
            _check_range(name, value, *item.metadata.get("range", (-inf, inf)))


def _walk(config: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any], Any, Any]]:
    """Every field by its full name, with its type and value."""
    types = get_type_hints(type(config))
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _walk(value, f"{prefix}{item.name}.")
        elif isinstance(value, list) and value and is_dataclass(value[0]):
            for index, each in enumerate(value):
                yield from _walk(each, f"{prefix}{item.name}[{index}].")
        else:
            yield prefix + item.name, item, types[item.name], value


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    if (low, high) != (-inf, inf) and not low <= value <= high:
        low, high = (int(end) if end == round(end, 0) != inf else end for end in (low, high))
        limit = f"at least {low}" if high == inf else f"in {low}..{high}"
        raise UserError(f"{name} is {value}; it must be {limit}")


def check_seed(name: str, seed: Any) -> None:
    """See that all libraries take a seed."""
    if not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"{name} is {seed!r}; give a whole number in 0..{LARGEST_SEED}")


def refuse_passwords(config: RunConfig) -> None:
    """See that no address holds a password: config.yaml, logs and the report would show it."""
    for name, _, _, value in _walk(config):
        if isinstance(value, str) and _PASSWORD.search(value):
            raise UserError(
                f"{name} holds a password, which config.yaml, logs and the report would show; "
                "take it out and give it by the environment, such as AWS_SECRET_ACCESS_KEY or "
                "MLFLOW_TRACKING_PASSWORD (submit: --env-file)"
            )


_PASSWORD = re.compile(
    r"://[^/@\s]*:[^/@\s]+@|[?&](sig|token|signature|x-amz-[a-z-]+|x-goog-[a-z-]+|awsaccesskeyid)=",
    re.IGNORECASE,
)


def default_name(config_files: Sequence[str], otherwise: str) -> str:
    """Name of the last configuration file, or `otherwise`, then date and time."""
    stem = Path(config_files[-1]).stem if config_files else ""
    stem = re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip("-.")[:60] or otherwise
    return f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_name(option: str, name: str) -> None:
    """See that the name of a run, given as `option`, is one folder's name."""
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise UserError(f"{option} {name}: letters, digits, '.', '-' and '_' only")
    if len(name) > 100:  # files and folders of longer names hang from it
        raise UserError(f"{option} {name}: has {len(name)} characters; give 100 at most")


def load_config(path: str | Path) -> RunConfig:
    """The configuration in a YAML file, such as a run's config.yaml, with defaults for the rest."""
    from jsonargparse import ArgumentError, ArgumentParser  # slow, and for this alone

    from vgse.files import read_mapping

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; give a YAML file of settings")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RunConfig, as_group=False)
    try:
        found = parser.instantiate(parser.parse_object(read_mapping(Path(path))))
    except ArgumentError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    config = RunConfig(**vars(found))
    validate(config)
    return config


def config_file_action() -> Any:
    """jsonargparse's action for --config, with one line for a file that is no UTF-8 text."""
    from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

    class ConfigFile(ActionConfigFile):
        def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
            try:
                super().__call__(parser, cfg, values, option_string)
            except UnicodeDecodeError as error:
                line = error.object.count(b"\n", 0, error.start) + 1
                parser.error(f"{values}, line {line}: is not UTF-8; save the file as UTF-8")

    return ConfigFile


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain dicts and scalars, ready for YAML or JSON."""
    return asdict(config)


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of `to_dict` by its full name, such as `model.num_clusters`."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
