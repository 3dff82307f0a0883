"""Hierarchies as child<TAB>parent lines, and the weights of ancestors."""

from pathlib import Path

import pytest

from vgse.errors import UserError
from vgse.knowledge.hierarchy import ancestor_weights, read_hierarchy

LINES = """\
# birds
Black-footed Albatross\tAlbatross
albatross\tbird
penguin\tbird
bird\tanimal
bird\tflying_thing
flying thing\tanimal
stone
"""


def parents_of(tmp_path: Path, text: str) -> dict[str, list[str]]:
    path = tmp_path / "taxonomy.tsv"
    path.write_text(text, "utf-8")
    return read_hierarchy(str(path))


def test_names_are_compared_as_class_names_are(tmp_path: Path) -> None:
    parents = parents_of(tmp_path, LINES)
    assert parents["black_footed_albatross"] == ["albatross"]
    assert parents["bird"] == ["animal", "flying_thing"]
    assert parents["stone"] == [] and parents["animal"] == []


def test_an_ancestor_counts_by_the_shortest_way_to_it(tmp_path: Path) -> None:
    parents = parents_of(tmp_path, LINES)
    weights = ancestor_weights({"penguin": 1.0}, lambda node: parents[node], 0.5)
    assert weights == {"penguin": 1.0, "bird": 0.5, "animal": 0.25, "flying_thing": 0.25}


@pytest.mark.parametrize("cycle", ["a\tb\nb\tc\nc\tb\n", "a\ta\n"])
def test_a_cycle_is_refused_by_its_names(tmp_path: Path, cycle: str) -> None:
    with pytest.raises(UserError, match=r"a cycle, (b -> c -> b|a -> a)"):
        parents_of(tmp_path, "x\ta\n" + cycle)
    assert parents_of(tmp_path, "x\ta\na\tb\nx\tb\n")  # two ways to one ancestor are no cycle


@pytest.mark.parametrize("line", ["a\tb\tc", "\tb", "a\t"])
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(UserError, match="line 2: expected child<TAB>parent"):
        parents_of(tmp_path, f"x\ty\n{line}\n")


def test_missing_binary_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_hierarchy(str(tmp_path / "none.tsv"))
    (tmp_path / "binary").write_bytes(b"\x80a")
    with pytest.raises(UserError, match="line 1: is not UTF-8"):
        read_hierarchy(str(tmp_path / "binary"))
    with pytest.raises(UserError, match="holds no child"):
        parents_of(tmp_path, "# nothing\n\n")


def test_a_deep_chain_needs_no_recursion(tmp_path: Path) -> None:
    parents = parents_of(tmp_path, "".join(f"n{i}\tn{i + 1}\n" for i in range(5000)))
    assert len(ancestor_weights({"n0": 1.0}, lambda node: parents[node], 1.0)) == 5001
