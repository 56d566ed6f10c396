"""The tree of an average linkage: which groups join, at which mean cosine, and how to cut it.

Knows no rows: leaves are numbered groups, each with a count of rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int32, Int64, Shaped

from ...errors import ConfigurationError


@dataclass(frozen=True, kw_only=True, eq=False)
class Tree:
    """A binary tree over `num_leaves` groups, merges from the closest pair to the root.

    `merges` follows scipy's Z: merge i joins nodes a and b (leaves are 0 … leaves − 1, merge i makes node
    leaves + i), column 2 is the mean cosine over all pairs of rows across the two (so it falls from first to last;
    scipy's distance is 1 minus it), column 3 the number of rows under the node.
    """

    merges: Float[np.ndarray, "merge 4"]
    """float64."""
    leaf_counts: Int64[np.ndarray, " leaf"]
    """Rows under each leaf; all 1 where leaves are rows."""

    def __post_init__(self) -> None:
        """Refuse arrays that are no tree."""
        if len(self.merges) != len(self.leaf_counts) - 1:
            raise ConfigurationError(
                f"{len(self.leaf_counts)} leaves need {len(self.leaf_counts) - 1} merges, got {len(self.merges)}"
            )

    @property
    def num_leaves(self) -> int:
        """The number of groups at the bottom, at least 1."""
        return len(self.leaf_counts)

    @cached_property
    def cosines(self) -> Float[np.ndarray, " merge"]:
        """Mean cosine of each merge, made monotone (rounding may leave a rise of 1e-7)."""
        return np.minimum.accumulate(self.merges[:, 2])

    def num_leaves_at(self, cosine: float) -> int:
        """How many groups are left when every merge at this mean cosine or above is made."""
        return self.num_leaves - int(np.count_nonzero(self.cosines >= cosine))

    def cut(self, num_groups: int) -> Int32[np.ndarray, " leaf"]:
        """Group of each leaf (0 … num_groups − 1, in the order of their lowest leaf) after the first merges.

        Raises ConfigurationError where `num_groups` is not between 1 and the number of leaves.
        """
        nodes = self._nodes_at(num_groups)
        return np.unique(self._first_leaf[nodes], return_inverse=True)[1].astype(np.int32)

    def cut_at(self, cosine: float) -> Int32[np.ndarray, " leaf"]:
        """Group of each leaf when every merge at this mean cosine or above is made; numbered as by `cut`."""
        return self.cut(self.num_leaves_at(cosine))

    def above(self, num_groups: int, order: Int32[np.ndarray, " group"] | None = None) -> "Tree":
        """The subtree above a cut, whose leaf `order[i]` is group i of `cut(num_groups)` (itself without `order`)."""
        num_made = self.num_leaves - num_groups
        groups = self.cut(num_groups)
        order = np.arange(num_groups, dtype=np.int32) if order is None else order
        names = np.full(self.num_leaves + len(self.merges), -1, dtype=np.int64)
        names[self._nodes_at(num_groups)] = order[groups]
        names[self.num_leaves + num_made :] = num_groups + np.arange(num_groups - 1)
        merges = self.merges[num_made:].copy()
        merges[:, :2] = names[merges[:, :2].astype(np.int64)]
        counts = np.bincount(order[groups], weights=self.leaf_counts, minlength=num_groups)
        return type(self)(merges=merges, leaf_counts=counts.astype(np.int64))

    @cached_property
    def leaf_order(self) -> Int64[np.ndarray, " leaf"]:
        """Leaves in an order in which every branch is a run of neighbours."""
        if self.num_leaves == 1:
            return np.zeros(1, dtype=np.int64)
        order: list[int] = []
        waiting = [self.num_leaves + len(self.merges) - 1]
        while waiting:
            node = waiting.pop()
            if node < self.num_leaves:
                order.append(node)
            else:
                waiting.extend(reversed(self._sides[node - self.num_leaves]))
        return np.array(order, dtype=np.int64)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The two arrays by name, for storing."""
        return {"merges": self.merges, "leaf_counts": self.leaf_counts}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> "Tree":
        """The inverse of `to_arrays`."""
        return cls(merges=np.asarray(arrays["merges"]), leaf_counts=np.asarray(arrays["leaf_counts"]))

    @cached_property
    def _sides(self) -> list[list[int]]:
        """The two nodes of each merge, as numbers of Python: quick to walk through."""
        return self.merges[:, :2].astype(np.int64).tolist()

    @cached_property
    def _first_leaf(self) -> np.ndarray:
        """The lowest leaf under each node."""
        first = list(range(self.num_leaves))
        for left, right in self._sides:
            first.append(min(first[left], first[right]))
        return np.array(first, dtype=np.int64)

    def _nodes_at(self, num_groups: int) -> np.ndarray:
        """The node that each leaf belongs to when `num_groups` are left."""
        if not 1 <= num_groups <= self.num_leaves:
            raise ConfigurationError(f"cannot cut {self.num_leaves} leaves into {num_groups} groups")
        num_leaves = self.num_leaves
        made = self._sides[: num_leaves - num_groups]
        node = list(range(num_leaves + len(made)))
        # from the last merge made down to the first, a child's node is its parent's
        for merge in range(len(made) - 1, -1, -1):
            left, right = made[merge]
            node[left] = node[right] = node[num_leaves + merge]
        return np.array(node[:num_leaves], dtype=np.int64)
