"""The ablation on tiny data: its control fails as it has to, and the page says what was found."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality.__main__ import main
from benchmarks.quality.compare import difference, usual_deviation
from benchmarks.quality.findings import findings
from benchmarks.quality.knowledge import (
    RunResult,
    grid_variants,
    knowledge_section,
    source_variants,
)
from benchmarks.quality.settings import DEFAULT, SHUFFLED, UNTRAINED, settings_of
from benchmarks.quality.values import Ablation, Outcome
from tiny import make_tiny
from vgse.config import LossConfig, RunConfig

CONFIG = """
model: {num_clusters: 20, projection: 64}
training: {epochs: 40, batch_size: 40, learning_rate: 0.01}
evaluation: {models: [prototype]}
"""
GAINS = "Training gains from labels"
FAILS = "The control fails"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quality")
    make_tiny(root, train=16, test=8)
    (root / "tiny.yaml").write_text(CONFIG)
    return root


def ask(root: Path) -> int:
    given = ["--data.shards", str(root / "packed"), "--config", str(root / "tiny.yaml"), "--quick"]
    given += ["--data.words", str(root / "words.txt"), "--work", str(root / "work")]
    return main([*given, "--out", str(root / "page.md")])


@pytest.fixture(scope="module")
def ablation(root: Path) -> Ablation:
    assert ask(root) == 0
    content = json.loads((root / "page.json").read_text())
    return Ablation(**{**content, "outcomes": [Outcome(**o) for o in content["outcomes"]]})


def outcome(ablation: Ablation, name: str) -> Outcome:
    found = ablation.find(name)
    assert found is not None
    return found


def swapped(ablation: Ablation, first: str, second: str) -> Ablation:
    """The same with the cluster measures of two settings exchanged."""
    names = {first: second, second: first}

    def clusters_of(other: Outcome, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
        pairs = zip(own, other.results, strict=True)
        return [{**mine, "clusters": theirs["clusters"]} for mine, theirs in pairs]

    changed = [
        replace(o, results=clusters_of(outcome(ablation, names.get(o.name, o.name)), o.results))
        for o in ablation.outcomes
    ]
    return replace(ablation, outcomes=changed)


def repeated(ablation: Ablation, *changes: float) -> Ablation:
    """Splits that differ from the one measured by `changes` of NMI, for every setting."""

    def moved(result: dict[str, Any], change: float) -> dict[str, Any]:
        clusters = {**result["clusters"], "nmi": result["clusters"]["nmi"] + change}
        return {**result, "clusters": clusters}

    return replace(
        ablation,
        outcomes=[
            replace(o, results=[moved(o.results[0], change) for change in changes])
            for o in ablation.outcomes
        ],
        splits=[ablation.splits[0] for _ in changes],
    )


def test_shuffled_labels_score_below_true_ones(ablation: Ablation) -> None:
    trained, lied_to = outcome(ablation, DEFAULT), outcome(ablation, SHUFFLED)
    assert trained.measure("nmi") > lied_to.measure("nmi") + 2
    assert trained.measure("nmi") > outcome(ablation, UNTRAINED).measure("nmi") + 2


def test_the_page_states_whether_training_gains_from_labels(ablation: Ablation, root: Path) -> None:
    page = (root / "page.md").read_text()
    nmi = outcome(ablation, DEFAULT).measure("nmi")[0]
    assert GAINS in page and f"NMI {nmi:.1f} against" in page
    assert FAILS not in page


def test_the_page_states_that_the_control_fails_where_shuffled_labels_score_higher(
    ablation: Ablation,
) -> None:
    text = "\n".join(findings(swapped(ablation, DEFAULT, SHUFFLED)))
    assert FAILS in text and GAINS not in text


def test_rows_of_the_permuted_control_are_near_chance_and_the_oracle_is_not(
    ablation: Ablation,
) -> None:
    default = outcome(ablation, DEFAULT)
    assert default.accuracy("oracle") > default.accuracy("permuted") + 10  # of 4 classes


def test_a_second_call_computes_nothing_anew(
    ablation: Ablation, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (root / "work" / "results").iterdir()}
    assert ask(root) == 0
    assert before == {p: p.stat().st_mtime_ns for p in (root / "work" / "results").iterdir()}
    assert "4 of 4 results are stored" in capsys.readouterr().out


def test_a_difference_is_clear_only_beyond_two_deviations_over_the_splits() -> None:
    base = np.zeros(4)
    assert difference(np.array([3.0, 3.1, 2.9, 3.0]), base).clear
    assert not difference(np.array([3.0, 0.1, -2.9, 3.0]), base).clear
    assert not difference(np.array([3.0]), base[:1]).clear
    # A deviation that is small by luck is not trusted where others are larger.
    usual = usual_deviation([np.array([0.0, 4.0]), np.array([1.0, 3.0])])
    assert usual == pytest.approx(np.sqrt((8 + 2) / 2))
    assert not difference(np.array([3.0, 3.0]), base[:2], usual).clear
    assert difference(np.array([3.0, 3.0]), base[:2], 0.1).clear
    # Paired by split: what all rows of a split share does not count.
    shared = np.array([10.0, 20.0, 30.0, 40.0])
    assert difference(shared + 1, shared).clear


def test_what_is_chosen_follows_validation_and_not_test() -> None:
    figures = {
        "smo": {"zsl": 0.3, "val_zsl": 0.5},
        "smo_negative": {"zsl": 0.9, "val_zsl": 0.4},
    }
    rows = {name: {"results": {"eszsl": values}} for name, values in figures.items()}
    outcome = Outcome("all", "all", "training", [{"rows": rows}])
    assert outcome.chosen(["smo_negative", "smo"]) == pytest.approx([30.0])


def test_rows_are_said_to_differ_only_with_several_splits(ablation: Ablation) -> None:
    assert "no row can be said to differ" in "\n".join(findings(ablation))
    text = "\n".join(findings(repeated(ablation, 0.0, 0.01, -0.02)))
    assert "no row can be said to differ" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("- Random prototypes")]
    assert "worse in NMI" in line


def test_the_settings_hold_every_part_of_the_ablation() -> None:
    settings = settings_of(RunConfig(), ["other.npz"])
    names = [setting.name for setting in settings]
    assert len(set(names)) == len(names)
    for name in ("cls", "sem", "cls_sem", "consistency", "entropy", "random_start"):
        assert name in names
    assert {"clusters-25", "clusters-500", "tau-0.03", "tau-1", "words-other.npz"} <= set(names)
    losses = {s.name: s.config.loss for s in settings}
    assert losses["sem"] == LossConfig(classification=0, consistency=0, entropy=0)
    # The default stands in several tables, and is one and the same.
    same = [s.name for s in settings if s.config == RunConfig() and s.trained and not s.shuffled]
    assert same == ["all", "clusters-150", "tau-0.1", "words-words.txt"]
    assert all(s.every_row for s in settings if s.name in same)


def test_a_configuration_without_one_of_the_losses_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data.shards", str(root / "packed"), "--data.words", str(root / "words.txt")]
    assert main([*given, "--loss.entropy", "0"]) == 2
    assert "loss.entropy is 0" in capsys.readouterr().err


def test_the_choice_is_compared_with_the_best_and_the_mean_of_the_grid() -> None:
    names = ["words", "WordNet"]
    variants, grid = source_variants(names), grid_variants(names)
    assert [v.label for v in variants[:3]] == ["words", "WordNet", "words + WordNet"]
    assert len({v.name for v in grid}) == len(grid)
    assert {v.weights for v in grid} >= {(1.0, 0.0), (0.0, 1.0), (1.0, 2.0)}

    def made(shift: float) -> RunResult:
        sources = {v.name: {"zsl": 0.2 + shift, "harmonic_mean": 0.1} for v in variants}
        sources["sources-0"]["zsl"] -= 0.05
        on_test = {
            v.name: {"zsl": 0.1 + shift + i / 1000, "score": i / 10} for i, v in enumerate(grid)
        }
        best = {"zsl": 0.1 + shift + (len(grid) - 2) / 1000, "weights": [1.0, 2.0], "ridge": 0.1}
        return RunResult(sources, on_test, best)

    text = "\n".join(knowledge_section(names, {"split-0": made(0.0), "split-1": made(0.1)}))
    assert "| words | 20.0 ± 7.1 | 10.0 ± 0.0 | -5.0 ± 0.0 |" in text
    assert "| words + WordNet | 25.0 ± 7.1 | 10.0 ± 0.0 |  |" in text
    assert "| split-1 | 1 : 2, 0.1 |" in text and "| 1.00 |" in text
    assert "which knows the test: -0.1 ± 0.0 points" in text
