"""What linkage loses at the edges, won back: a mixture of Gaussians around shrunken means, started from any clusterer.

Linkage never takes a merge back, so a noisy pair that joins early stays joined. Here every row is weighed against every
quantum by the density that the quantum's *other* rows predict for it (leaving the row out, or a quantum of one would
always keep it), and quanta are made again from these weights, some ten times (expectation.py). Knows unit rows and
labels.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from ...errors import ConfigurationError
from .average import AverageLinkage
from .base import Clusterer, Clustering
from .expectation import refine as refine
from .flat import checked_rows
from .nested import nested_clustering


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined:
    """Quanta of another clusterer, refined; at most as many as that one finds."""

    inner: Clusterer = field(default_factory=AverageLinkage)
    """Where to start: how many quanta there are is its choice."""
    num_iterations: int = 12
    """Rounds at most; it stops where no row changes its quantum."""
    keep_all: bool = False
    """Whether a quantum that empties keeps the row at its centre, so that their number stays; else it is dropped."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.num_iterations < 1:
            raise ConfigurationError(f"num_iterations is {self.num_iterations}; it must be at least 1")

    @property
    def seed(self) -> int:
        """The inner clusterer's; nothing is drawn here."""
        return self.inner.seed

    def cluster(
        self, rows: Float[np.ndarray, "unit dim"], documents: Int[np.ndarray, " unit"] | None = None
    ) -> Clustering:
        """Quanta of the rows, which are made unit first; same rows and seed, same quanta.

        The tree's leaves are those of the inner clusterer, split where their rows now belong to different quanta.
        Raises what the inner clusterer raises.
        """
        unit = checked_rows(rows)
        start = self.inner.cluster(unit, documents)
        labels = refine(unit, start.assignments, num_iterations=self.num_iterations)
        if self.keep_all:
            labels = _with_all(unit, start.assignments, labels)
        if np.array_equal(labels, start.assignments):
            return start
        return nested_clustering(unit, labels, start.groups)


def _with_all(rows: np.ndarray, start: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same labels, but each quantum of the start that is empty has the row nearest to its mean at the start."""
    labels = labels.copy()
    sizes = np.bincount(labels, minlength=int(start.max()) + 1)
    for quantum in np.flatnonzero(sizes == 0):
        members = np.flatnonzero(start == quantum)
        members = members[sizes[labels[members]] > 1]
        if len(members):
            best = members[(rows[members] @ rows[members].sum(axis=0)).argmax()]
            sizes[labels[best]] -= 1
            sizes[quantum], labels[best] = 1, quantum
    return labels
