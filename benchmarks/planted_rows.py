"""A run whose rows have planted clusters, made without a model; benchmarks of scans, indexes and k-means read it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from quantascope.storage import RowBlock, Run

BLOCK_BYTES = 1 << 24
NOISE = 2.0


class Planted:
    """Centres from a normal distribution, rows with `NOISE` times a normal one added; see docs/indexes.md.

    `zipf`: cluster i has a share of rows ∝ 1/i; otherwise all are equal.
    """

    def __init__(self, dim: int, num_clusters: int, *, zipf: bool, seed: int) -> None:
        self._seed, self.dim = seed, dim
        self._centres = np.random.default_rng(seed).standard_normal((num_clusters, dim), dtype=np.float32)
        share = 1 / np.arange(1, num_clusters + 1) if zipf else np.ones(num_clusters)
        self._share = share / share.sum()

    def rows(self, number: int, num_rows: int) -> np.ndarray:
        """Rows of one block, by its number; float32, not of unit norm."""
        generator = np.random.default_rng([self._seed, number])
        noise = generator.standard_normal((num_rows, self.dim), dtype=np.float32)
        noise *= NOISE
        noise += self._centres[generator.choice(len(self._share), num_rows, p=self._share)]
        return noise

    def queries(self, num: int) -> np.ndarray:
        """Unit rows of the same kind that are in no block."""
        rows = self.rows(1 << 40, num)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@contextmanager
def planted_run(planted: Planted, num_rows: int) -> Iterator[Run]:
    """A run with these rows in a temporary folder, which is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="planted-"))
    try:
        with Run.create(folder / "run", config={}) as run:
            _commit(run, planted, num_rows)
        yield Run.open(folder / "run")
    finally:
        shutil.rmtree(folder)


def _commit(run: Run, planted: Planted, num_rows: int) -> None:
    size = min(num_rows, BLOCK_BYTES // (2 * planted.dim))
    plan = {
        "unit_type": "window",
        "dim": planted.dim,
        "rows_per_block": size,
        "blocks": [{"name": "all", "first_column": 0, "last_column": planted.dim - 1}],
    }
    row_set = run.new_row_set("planted")
    row_set.freeze(plan, pa.table({"unit": pa.array(range(num_rows), pa.int64())}))
    for block in range(row_set.num_blocks):
        first, last = row_set.block_range(block)
        rows = planted.rows(block, last - first)
        units = pa.table({"unit": pa.array(range(first, last), pa.int64()), "loss": np.zeros(last - first)})
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        row_set.commit(block, RowBlock(rows=rows, block_norms=norms, units=units))
