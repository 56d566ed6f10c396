"""What a clusterer takes and gives. Knows arrays and the tree; not where rows come from, and no algorithm."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Int32, Int64
from scipy.sparse import csr_array

from .tree import Tree

_CHUNK = 8_192


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clustering:
    """Quanta of unit rows, numbered from the largest down; among equals the one with the earliest unit comes first."""

    assignments: Int32[np.ndarray, " unit"]
    """Quantum of each unit, 0 … k − 1; none is empty."""
    centroids: Float[np.ndarray, "quantum dim"]
    """Unit mean direction of each quantum, float32."""
    similarity: Float[np.ndarray, " unit"]
    """Cosine of each row with its own quantum's centroid, float32."""
    quanta_tree: Tree
    """The tree above the quanta: leaf q is quantum q."""
    tree: Tree
    """The whole tree, for other cuts; leaf g is group g of `groups`."""
    groups: Int32[np.ndarray, " unit"]
    """Leaf of `tree` that each unit belongs to: the unit itself, or its micro-cluster."""

    @property
    def num_quanta(self) -> int:
        """The number of quanta, at least 1."""
        return len(self.centroids)

    @property
    def sizes(self) -> Int64[np.ndarray, " quantum"]:
        """Units in each quantum, falling."""
        return np.bincount(self.assignments, minlength=self.num_quanta).astype(np.int64)


@runtime_checkable
class Clusterer(Protocol):
    """Anything that makes quanta of rows."""

    @property
    def seed(self) -> int:
        """Of everything that it draws."""
        ...

    def cluster(
        self, rows: Float[np.ndarray, "unit dim"], documents: Int[np.ndarray, " unit"] | None = None
    ) -> Clustering:
        """Quanta of these unit rows (float32); `documents` names each row's document, where that matters."""
        ...


def group_sums(
    rows: Float[np.ndarray, "unit dim"], labels: Int[np.ndarray, " unit"], num_groups: int
) -> Float[np.ndarray, "group dim"]:
    """Sum of the rows with each label 0 … num_groups − 1, float32; an empty group's sum is zero."""
    sums = np.zeros((num_groups, rows.shape[1]), dtype=np.float32)
    for start in range(0, len(rows), _CHUNK):
        part = labels[start : start + _CHUNK].astype(np.int64)
        ones = np.ones(len(part), dtype=np.float32)
        indicator = csr_array((ones, (part, np.arange(len(part)))), shape=(num_groups, len(part)))
        sums += indicator @ rows[start : start + _CHUNK].astype(np.float32, copy=False)
    return sums


def order_by_size(labels: Int[np.ndarray, " unit"]) -> Int32[np.ndarray, " unit"]:
    """The same partition with labels renumbered: 0 is the largest, ties by their earliest unit."""
    _, first, inverse, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), dtype=np.int32)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes), dtype=np.int32)
    return rank[inverse]


def cut_clustering(
    rows: Float[np.ndarray, "unit dim"], groups: Int[np.ndarray, " unit"], tree: Tree, num_quanta: int
) -> Clustering:
    """The clustering that a tree gives when `num_quanta` groups are left.

    Rows are unit; `groups` names each row's leaf. Raises ConfigurationError where the tree has fewer leaves.
    """
    leaf_labels = tree.cut(num_quanta)
    labels = leaf_labels[groups]
    assignments = order_by_size(labels)
    order = np.empty(num_quanta, dtype=np.int32)
    order[labels] = assignments
    sums = group_sums(rows, assignments, num_quanta)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    centroids = sums / np.maximum(norms, np.finfo(np.float32).tiny)
    return Clustering(
        assignments=assignments,
        centroids=centroids,
        similarity=own_similarity(rows, centroids, assignments),
        quanta_tree=tree.above(num_quanta, order),
        tree=tree,
        groups=groups.astype(np.int32),
    )


def own_similarity(
    rows: Float[np.ndarray, "unit dim"],
    centroids: Float[np.ndarray, "quantum dim"],
    assignments: Int[np.ndarray, " unit"],
) -> Float[np.ndarray, " unit"]:
    """Inner product of each row with its own centroid, float32."""
    similarity = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        similarity[part] = np.einsum("ij,ij->i", rows[part], centroids[assignments[part]], dtype=np.float32)
    return similarity
