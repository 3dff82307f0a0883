"""Tables of what is known of classes, sparse where they are large and mostly zeros: a class has
some dozens of a hierarchy's tens of thousands of nodes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

F64 = NDArray[np.float64]
Indices = NDArray[np.integer]
Table = NDArray[np.floating] | csr_array
"""[C, D]."""

MOST_DENSE = 2**26  # numbers of a table that is held dense: 512 MB as float64
MOST_BASIS = 4000  # seen classes in whose span rows are written: a QR takes 2 D S² operations
_EQUAL = 1e-14  # squared length, beside what it is the difference of, that is rounding


@dataclass(frozen=True)
class SparseRows:
    """The rows `sparse` - `left` `right`: sparse ones from which a few common rows were taken."""

    sparse: csr_array  # [C, D]
    left: F64  # [C, K]
    right: F64  # [K, D]

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, rows: Indices) -> "SparseRows":
        return SparseRows(self.sparse[rows], self.left[rows], self.right)

    @property
    def present(self) -> NDArray[np.bool_]:
        """[C], False for rows of zeros."""
        return (np.diff(self.sparse.indptr) > 0) | self.left.any(1)

    def mean(self) -> F64:
        """[D], over the rows."""
        return np.asarray(self.sparse.mean(0)) - self.left.mean(0) @ self.right

    def minus(self, row: F64, where: NDArray[np.bool_]) -> "SparseRows":
        """`row` [D] taken from the rows of the mask `where` [C]."""
        left = np.concatenate([self.left, where.astype(np.float64)[:, None]], 1)
        return SparseRows(self.sparse, left, np.concatenate([self.right, row[None]]))

    def times(self, factors: F64) -> "SparseRows":
        """The rows times `factors` [C]."""
        sparse = self.sparse.copy()
        sparse.data *= np.repeat(factors, np.diff(sparse.indptr))
        sparse.eliminate_zeros()
        return SparseRows(sparse, self.left * factors[:, None], self.right)

    def gram(self) -> F64:
        """[C, C] inner products of the rows."""
        across = (self.sparse @ self.right.T) @ self.left.T
        common = self.left @ (self.right @ self.right.T) @ self.left.T
        return np.asarray((self.sparse @ self.sparse.T).toarray() - across - across.T + common)

    def squared_lengths(self) -> F64:
        """[C], 0 where nothing but rounding is left."""
        own = np.asarray(self.sparse.multiply(self.sparse).sum(1))
        across = ((self.sparse @ self.right.T) * self.left).sum(1)
        common = ((self.left @ (self.right @ self.right.T)) * self.left).sum(1)
        found = own - 2 * across + common
        return np.where(found > _EQUAL * (own + common), found, 0.0)

    def narrow(self, seen: Indices) -> F64:
        """[C, K]: rows with the same lengths, and the same inner products with those of `seen`.

        Those of two other classes may differ: relations do not ask for them. Columns of no seen
        class become one, and where more are left than there are seen classes, the rest is written
        in an orthonormal basis of their rows with one more column for what lies outside of it.
        """
        inside = np.zeros(self.sparse.shape[1], np.bool_)
        inside[self.sparse[seen].indices] = True
        inside |= self.right.any(0)
        lengths = self.squared_lengths()
        sparse, right = self.sparse[:, np.flatnonzero(inside)], self.right[:, inside]
        if MOST_BASIS >= len(seen) < sparse.shape[1]:
            rows = sparse[seen].toarray() - self.left[seen] @ right
            basis = np.linalg.qr(rows.T)[0]
            found = sparse @ basis - self.left @ (right @ basis)
        else:
            found = sparse.toarray()
            found -= self.left @ right
        outside = lengths - np.einsum("cd,cd->c", found, found)
        outside[outside < _EQUAL * np.maximum(lengths, 1e-300)] = 0.0
        outside[seen] = 0.0
        return np.concatenate([found, np.sqrt(outside)[:, None]], 1)


Block = F64 | SparseRows
"""[C, D] of a source: centred over the seen classes, unit rows."""


def table_of(entries: Sequence[Mapping[int, float]], num_columns: int) -> csr_array:
    """float32 [C, num_columns] of the columns and values of each row."""
    indptr = np.cumsum([0, *(len(row) for row in entries)])
    indices = np.fromiter((column for row in entries for column in row), np.int32, indptr[-1])
    data = np.fromiter((value for row in entries for value in row.values()), np.float32, indptr[-1])
    table = csr_array((data, indices, indptr), (len(entries), num_columns))
    table.eliminate_zeros()
    table.sort_indices()
    return table


def spread(table: Table, rows: Sequence[int] | Indices, num_rows: int) -> Table:
    """[num_rows, D] with row i of `table` as row rows[i], zeros elsewhere; dense where small."""
    if isinstance(table, csr_array):
        ones = np.ones(len(rows), table.dtype)
        placed = csr_array((ones, (rows, np.arange(len(rows)))), (num_rows, len(rows))) @ table
        return placed if num_rows * table.shape[1] > MOST_DENSE else placed.toarray()
    found = np.zeros((num_rows, table.shape[1]), table.dtype)
    found[rows] = table
    return found


def table_arrays(table: Table, name: str) -> dict[str, NDArray[Any]]:
    """The arrays that hold a table in a file, under names that begin with `name`."""
    if not isinstance(table, csr_array):
        return {name: table.astype(np.float32)}
    parts = {"data": table.data.astype(np.float32), "indices": table.indices}
    parts |= {"indptr": table.indptr, "shape": np.array(table.shape)}
    return {f"{name}_{part}": array for part, array in parts.items()}


def table_from(arrays: Mapping[str, NDArray[Any]], name: str) -> Table:
    """What `table_arrays` made; KeyError where a file lacks it."""
    if name in arrays or f"{name}_data" not in arrays:
        return arrays[name]
    data, indices, indptr, shape = (
        arrays[f"{name}_{part}"] for part in ("data", "indices", "indptr", "shape")
    )
    return csr_array((data, indices, indptr), (int(shape[0]), int(shape[1])))


def row_parts(table: Table) -> Iterable[NDArray[np.floating]]:
    """The rows of a table, one after the other."""
    if not isinstance(table, csr_array):
        return table
    return (table[[row]].toarray()[0] for row in range(table.shape[0]))


def gram_matrix(block: Block) -> F64:
    """[C, C] inner products of a block's rows."""
    if isinstance(block, SparseRows):
        return block.gram()
    rows = np.asarray(block, np.float64)
    return rows @ rows.T


def unit_rows(rows: SparseRows, seen: Indices) -> SparseRows:
    """`rows` minus the mean of the seen ones, at length 1; rows of zeros stay out of both."""
    (found,) = _at_length_1(_centred([rows], seen))
    assert isinstance(found, SparseRows)
    return found


def side_by_side(blocks: Sequence[Block], seen: Indices) -> F64:
    """[C, K]: the blocks' rows beside each other, centred over the seen classes and at length 1,
    sparse ones `narrow`."""
    parts = _at_length_1(_centred(blocks, seen))
    return np.concatenate([p.narrow(seen) if isinstance(p, SparseRows) else p for p in parts], 1)


def _centred(blocks: Sequence[Block], seen: Indices) -> list[Block]:
    present = np.any([_present(block) for block in blocks], 0)
    inside = np.asarray(seen)[present[seen]]
    if not len(inside):
        return list(blocks)
    return [
        block.minus(block[inside].mean(), present)
        if isinstance(block, SparseRows)
        else block - present[:, None] * block[inside].mean(0)
        for block in blocks
    ]


def _at_length_1(blocks: Sequence[Block]) -> list[Block]:
    squares = [
        block.squared_lengths()
        if isinstance(block, SparseRows)
        else np.einsum("cd,cd->c", block, block)
        for block in blocks
    ]
    lengths = np.sqrt(np.sum(squares, 0))
    factors = np.where(lengths > 1e-12, 1 / np.maximum(lengths, 1e-12), 0.0)
    return [
        block.times(factors) if isinstance(block, SparseRows) else block * factors[:, None]
        for block in blocks
    ]


def _present(block: Block) -> NDArray[np.bool_]:
    return block.present if isinstance(block, SparseRows) else (block != 0).any(1)
