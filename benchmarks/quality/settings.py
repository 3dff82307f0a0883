"""What `benchmarks.quality` varies: the settings of training, and the rows of relations."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePath

from vgse.config import RelationConfig, RunConfig
from vgse.zsl.rows import Row, paper_smo_row, paper_wavg_row, table_rows

LOSSES = ("classification", "semantic", "consistency", "entropy")
CLUSTERS = (25, 50, 150, 500)
TEMPERATURES = (0.03, 0.1, 0.3, 1.0)
DEFAULT, KMEANS, UNTRAINED, SHUFFLED = "all", "kmeans", "untrained", "shuffled"
ALPHAS = (-0.01, -0.1)
NEIGHBOURS = (1, 3, 10, 20)
ETAS = (1.0, 20.0)


@dataclass(frozen=True)
class Setting:
    """One way to train; `group` is training, clusters, temperature or words."""

    name: str
    label: str
    group: str
    config: RunConfig
    trained: bool = True  # or else the head as it starts
    shuffled: bool = False  # labels dealt out at random: the control
    every_row: bool = False  # all rows of relations, and not only SMO and the oracle


def settings_of(config: RunConfig, words: list[str], *, quick: bool = False) -> list[Setting]:
    """All settings in the order of the page, the configuration itself as `DEFAULT`.

    Args:
        config: what is varied.
        words: further word-vector files.
        quick: the default and its controls only.

    Raises:
        ValueError: a configuration that cannot be varied so.
    """
    if config.backbone.train != "none":
        raise ValueError(
            f"backbone.train is {config.backbone.train}; the ablation trains on cached features: "
            "set it to none"
        )
    off = [name for name in LOSSES if getattr(config.loss, name) == 0]
    if off:
        raise ValueError(
            f"loss.{off[0]} is 0; the ablation switches losses off by itself: give all four a "
            "weight"
        )
    found = _training(config)
    if quick:
        return [s for s in found if s.name in (UNTRAINED, KMEANS, DEFAULT, SHUFFLED)]
    sizes = sorted({*CLUSTERS, config.model.num_clusters})
    found += [
        Setting(f"clusters-{size}", f"D_v = {size}", "clusters", _model(config, num_clusters=size))
        for size in sizes
    ]
    found += [
        Setting(
            f"tau-{value:g}", f"τ = {value:g}", "temperature", _model(config, temperature=value)
        )
        for value in sorted({*TEMPERATURES, config.model.temperature})
    ]
    for path in [config.data.words, *words]:
        other = replace(config, data=replace(config.data, words=path))
        name = PurePath(path).name
        found.append(Setting(f"words-{name}", name, "words", other))
    # The default has all rows wherever it stands, so that it is trained once only.
    return [
        replace(s, every_row=s.group == "words" or (s.config == config and _plain(s)))
        for s in found
    ]


def _plain(setting: Setting) -> bool:
    return setting.trained and not setting.shuffled


def _training(config: RunConfig) -> list[Setting]:
    def on(name: str, label: str, *losses: str) -> Setting:
        kept = {loss: getattr(config.loss, loss) * (loss in losses) for loss in LOSSES}
        return Setting(name, label, "training", replace(config, loss=replace(config.loss, **kept)))

    both = ("classification", "semantic")
    init = "k-means" if config.model.init == "kmeans" else "random prototypes"
    whole = Setting(DEFAULT, f"all four losses, {init} (the configuration)", "training", config)
    from_random, from_kmeans = _model(config, init="random"), _model(config, init="kmeans")
    return [
        Setting(UNTRAINED, "random prototypes, untrained", "training", from_random, trained=False),
        Setting(KMEANS, "k-means only", "training", from_kmeans, trained=False),
        on("cls", "L_cls", "classification"),
        on("sem", "L_sem", "semantic"),
        on("cls_sem", "L_cls + L_sem", *both),
        on("consistency", "L_cls + L_sem + consistency", *both, "consistency"),
        on("entropy", "L_cls + L_sem + entropy", *both, "entropy"),
        replace(whole, every_row=True),
        Setting("random_start", "all four losses, random prototypes", "training", from_random),
        replace(
            whole, name=SHUFFLED, label="all four losses, shuffled labels (control)", shuffled=True
        ),
    ]


def _model(config: RunConfig, **change: object) -> RunConfig:
    return replace(config, model=replace(config.model, **change))  # type: ignore[arg-type]


def relation_rows(relations: RelationConfig, seed: int, words_alone: bool) -> list[Row]:
    """The rows of the default table, and the paper's relations with other parameters after them."""
    rows = table_rows(relations, seed, words_alone=words_alone)
    rows += [
        Row(
            f"smo_alpha{alpha:g}",
            f"VGSE-SMO, paper, alpha = {alpha:g}",
            "paper",
            partial(paper_smo_row, alpha=alpha),
        )
        for alpha in ALPHAS
    ]
    pairs = [(count, relations.eta) for count in NEIGHBOURS]
    pairs += [(relations.num_neighbours, eta) for eta in ETAS]
    rows += [
        Row(
            f"wavg_{count}_{eta:g}",
            f"VGSE-WAvg, {count} neighbour{'s' * (count > 1)}, eta = {eta:g}",
            "paper",
            partial(paper_wavg_row, num_neighbours=count, eta=eta),
        )
        for count, eta in pairs
    ]
    return rows


def alpha_rows(rows: list[str]) -> list[str]:
    """Among rows of relations those of SMO that differ in alpha alone."""
    paper = ("paper_smo", "paper_smo_negative")
    return [row for row in rows if row in paper or row.startswith("smo_alpha")]


def chosen_rows(rows: list[str]) -> list[str]:
    """Those of SMO and of WAvg: the relations among which validation may choose."""
    return alpha_rows(rows) + [row for row in rows if row.startswith(("paper_wavg", "wavg"))]
