"""Large hierarchies are held sparse: what follows from them is what follows from dense tables."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array

from vgse.config import SourceConfig
from vgse.knowledge import sparse_rows
from vgse.knowledge.sources import (
    Knowledge,
    Source,
    combine_blocks,
    load_knowledge,
    semantic_targets,
    source_blocks,
)
from vgse.knowledge.sparse_rows import SparseRows, gram_matrix, row_parts, table_arrays, table_from
from vgse.relations import solve_relations
from vgse.relations.select import select_relation

NUM, NODES = 60, 90
SEEN = np.random.default_rng(3).permutation(NUM)[:40]
UNSEEN = np.setdiff1d(np.arange(NUM), SEEN)
NAMES = [f"class{i}" for i in range(NUM)]


@pytest.fixture
def dense() -> Knowledge:
    rng = np.random.default_rng(0)
    tree = np.where(rng.random((NUM, NODES)) < 0.1, 0.9 ** rng.integers(0, 6, (NUM, NODES)), 0)
    tree[:, 0] = 0.5  # the root
    tree[7] = 0  # a class that the hierarchy lacks
    tree[UNSEEN[3], -5:], tree[SEEN, -5:] = 1, 0  # nodes of unseen classes alone
    words = rng.normal(size=(NUM, 8)).astype(np.float32)
    return Knowledge(
        NAMES,
        [Source("words", words, None), Source("tree", tree.astype(np.float32), None, True)],
    )


@pytest.fixture
def sparse(dense: Knowledge) -> Knowledge:
    words, tree = dense.sources
    return replace(dense, sources=[words, replace(tree, rows=csr_array(tree.rows))])


def test_blocks_have_the_same_inner_products(dense: Knowledge, sparse: Knowledge) -> None:
    (_, block), (_, of_sparse) = source_blocks(dense, SEEN), source_blocks(sparse, SEEN)
    assert isinstance(block, np.ndarray) and isinstance(of_sparse, SparseRows)
    np.testing.assert_allclose(gram_matrix(of_sparse), gram_matrix(block), atol=1e-13)
    np.testing.assert_allclose(gram_matrix(of_sparse[SEEN]), gram_matrix(block[SEEN]), atol=1e-13)
    assert not np.allclose(gram_matrix(of_sparse), gram_matrix(source_blocks(dense, UNSEEN)[1]))


@pytest.mark.parametrize("most_basis", [0, 1000])
@pytest.mark.parametrize("weights", [(1.0, 1.4), (0.0, 1.0), (0.35, 1.0)])
def test_relations_and_residuals_are_the_same(
    dense: Knowledge,
    sparse: Knowledge,
    weights: tuple[float, ...],
    most_basis: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sparse_rows, "MOST_BASIS", most_basis)

    def combined(knowledge: Knowledge) -> NDArray[np.float64]:
        return combine_blocks(source_blocks(knowledge, SEEN), weights, SEEN)

    rows, narrow = combined(dense), combined(sparse)
    assert narrow.shape[1] <= (len(SEEN) if most_basis else NODES) + 9
    np.testing.assert_allclose(narrow @ narrow[SEEN].T, rows @ rows[SEEN].T, atol=1e-13)
    lengths = np.linalg.norm(narrow, axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(rows, axis=1), atol=1e-13)
    one, other = (solve_relations(v[UNSEEN], v[SEEN], ridge=0.03) for v in (rows, narrow))
    np.testing.assert_allclose(other.weights, one.weights, atol=1e-10)
    np.testing.assert_allclose(other.residual, one.residual, atol=1e-10)


def test_the_same_weights_and_ridge_are_chosen(dense: Knowledge, sparse: Knowledge) -> None:
    embeddings = np.random.default_rng(1).normal(size=(len(SEEN), 6))
    one, other = (
        select_relation(embeddings, [block[SEEN] for block in source_blocks(knowledge, SEEN)])
        for knowledge in (dense, sparse)
    )
    assert (other.weights, other.ridge) == (one.weights, one.ridge)
    assert other.criterion == pytest.approx(one.criterion, abs=1e-9)


def test_what_the_semantic_loss_regresses_is_as_far_apart(
    dense: Knowledge, sparse: Knowledge
) -> None:
    words = np.asarray(dense.sources[0].rows)
    one, other = (semantic_targets(k, words, SEEN, "knowledge") for k in (dense, sparse))
    np.testing.assert_allclose(other @ other.T, one @ one.T, atol=1e-12)


def test_other_classes_and_files_hold_the_same_table(dense: Knowledge, sparse: Knowledge) -> None:
    names = [*NAMES[40:50], "dropped", *NAMES[:3]]
    one, other = (knowledge.of_classes(names).sources[1].rows for knowledge in (dense, sparse))
    np.testing.assert_array_equal(other, one)  # small, and so no longer sparse
    table = sparse.sources[1].rows
    again = table_from(table_arrays(table, "rows_1"), "rows_1")
    assert isinstance(again, csr_array)
    np.testing.assert_array_equal(again.toarray(), dense.sources[1].rows)
    np.testing.assert_array_equal(list(row_parts(table)), dense.sources[1].rows)
    with pytest.raises(KeyError, match="rows_0"):
        table_from(table_arrays(table, "rows_1"), "rows_0")


def test_a_large_hierarchy_is_read_sparse_and_a_small_one_dense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree.tsv").write_text("cat\tmammal\ndog\tmammal\nmammal\tthing\noak\tthing\n")
    config = SourceConfig("hierarchy", str(tmp_path / "tree.tsv"), missing="zero")
    words = {"dog": ["dog"], "oak": ["oak"], "cat": ["cat"]}
    small = load_knowledge([config], words).sources[0]
    monkeypatch.setattr(sparse_rows, "MOST_DENSE", 3)
    large = load_knowledge([config], words).sources[0]
    assert isinstance(small.rows, np.ndarray) and isinstance(large.rows, csr_array)
    np.testing.assert_array_equal(large.rows.toarray(), small.rows)
    assert small.rows.dtype == large.rows.dtype == np.float32
    np.testing.assert_allclose(
        small.rows[:, small.columns.index("mammal")], [0.9, 0, 0.9], rtol=1e-6
    )
