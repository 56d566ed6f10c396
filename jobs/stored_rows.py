"""A row set's rows as chunks, block by block, for scans, indexes and k-means: mapped where they lie, not copied.

A refused row is NaN and a zero row holds zeros, so the rows themselves say which of them count.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Int64
from torch.utils.dlpack import from_dlpack

from ..attribution.search.tiles import Chunk
from ..storage.rowset import RowSet

Transform = Callable[[Float32[np.ndarray, "row stored"]], Float32[np.ndarray, "row dim"]]
"""Unit rows made ready for comparing, for instance whitened; of unit norm again, perhaps of another width."""

_LEAST_ROWS = 2_048
_NORM_ROWS = 1_024
_OPEN_BLOCKS = 4_096


class StoredRows:
    """The rows of one row set that are fine; their numbers are units."""

    def __init__(self, row_set: RowSet, transform: Transform | None = None) -> None:
        self.row_set, self._transform = row_set, transform
        self._stored_dim = int(row_set.plan["dim"])
        self.dim = self._stored_dim if transform is None else transform(_unit(np.ones((1, self._stored_dim)))).shape[1]
        self._block_rows = int(row_set.plan["rows_per_block"])
        self._chunk = lru_cache(maxsize=_OPEN_BLOCKS)(self._open)
        self.scale = float(np.sqrt(self._stored_dim)) if transform is None else 1.0
        """Norm of a chunk's rows: stored rows carry √dim, D their stored width."""

    def _open(self, block: int) -> Chunk:
        rows = self.row_set.stored_block(block)
        norms = _norms(rows)
        fine = np.isfinite(norms) & (norms > 0)
        longest = float(norms[fine].max(initial=0))
        return Chunk(self.row_set.block_range(block)[0], rows, None if fine.all() else fine, longest)

    def chunks(self, blocks: Iterable[int] | None = None) -> Iterator[Chunk]:
        """Some committed blocks (all, without), in order; small ones that follow each other are joined."""
        waiting: list[Chunk] = []
        for block in self.row_set.committed_blocks() if blocks is None else blocks:
            chunk = self._ready(self._chunk(block))
            if waiting and (
                chunk.first != waiting[-1].first + len(waiting[-1].rows)
                or sum(len(c.rows) for c in waiting) >= _LEAST_ROWS
            ):
                yield _joined(waiting)
                waiting = []
            waiting.append(chunk)
        if waiting:
            yield _joined(waiting)

    def _ready(self, chunk: Chunk) -> Chunk:
        """Transformed, if there is a transform; rows that are not fine are left zero."""
        if self._transform is None:
            return chunk
        fine = np.isfinite(chunk.rows).all(axis=1) & (chunk.rows.any(axis=1) if chunk.keep is None else chunk.keep)
        rows = np.zeros((len(fine), self.dim), np.float32)
        if fine.any():
            rows[fine] = self._prepared(_unit(chunk.rows[fine]))
        return Chunk(chunk.first, rows, fine)

    def block_rows(self, block: int) -> tuple[Float32[np.ndarray, "row dim"], Int64[np.ndarray, " row"]]:
        """A block's fine rows, of unit norm, and their units."""
        first, rows, keep, _ = self._chunk(block)
        fine = np.isfinite(rows).all(axis=1) & (rows.any(axis=1) if keep is None else keep)
        return self._prepared(_unit(rows[fine])), first + np.flatnonzero(fine)

    def _prepared(self, unit: Float32[np.ndarray, "row stored"]) -> Float32[np.ndarray, "row dim"]:
        if self._transform is None:
            return unit
        return self._transform(unit) if len(unit) else np.empty((0, self.dim), np.float32)

    def take(self, units: Int64[np.ndarray, " row"]) -> Float[np.ndarray, "row dim"]:
        """Rows of some units in their order, as `chunks` has them; only of blocks that are committed."""
        blocks, places = np.divmod(units, self._block_rows)
        rows = np.empty((len(units), self._stored_dim), np.float16)
        for block in np.unique(blocks):
            here = blocks == block
            rows[here] = self._chunk(int(block)).rows[places[here]]
        return rows if self._transform is None else self._prepared(_unit(rows))

    def sampled(
        self, blocks: Sequence[int], num_rows: int, generator: np.random.Generator
    ) -> tuple[Float32[np.ndarray, "row dim"], Int64[np.ndarray, " row"]]:
        """Unit rows and units of about `num_rows` fine rows, drawn evenly from some blocks without replacement."""
        starts = np.cumsum([0, *(np.diff(self.row_set.block_range(b))[0] for b in blocks)])
        wanted = min(num_rows, int(starts[-1]))
        drawn = np.sort(generator.choice(int(starts[-1]), wanted, replace=False))
        rows, units = [np.empty((0, self.dim), np.float32)], [np.empty(0, np.int64)]
        for i, block in enumerate(blocks):
            places = drawn[(drawn >= starts[i]) & (drawn < starts[i + 1])] - starts[i]
            if len(places):
                found, numbers = self.block_rows(block) if len(places) > 64 else self._few(block, places)
                inside = np.isin(numbers, self.row_set.block_range(block)[0] + places)
                rows.append(found[inside])
                units.append(numbers[inside])
        return np.concatenate(rows), np.concatenate(units)

    def _few(self, block: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, rows, _, _ = self._chunk(block)
        some = rows[places]
        fine = np.isfinite(some).all(axis=1) & some.any(axis=1)
        return self._prepared(_unit(some[fine])), first + places[fine]


def _norms(rows: Float16[np.ndarray, "row dim"]) -> Float32[np.ndarray, " row"]:
    """Norms, a little above the exact ones; NaN and infinity where a row is not finite."""
    norms = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _NORM_ROWS):
        part = slice(start, start + _NORM_ROWS)
        wide = from_dlpack(rows[part]).float()
        norms[part] = torch.linalg.vector_norm(wide, dim=1).numpy()
    return norms * np.float32(1 + (rows.shape[1] + 8) * 2.0**-23)


def _unit(rows: Float[np.ndarray, "row dim"]) -> Float32[np.ndarray, "row dim"]:
    wide = rows.astype(np.float32)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)
    return wide


def _joined(chunks: list[Chunk]) -> Chunk:
    if len(chunks) == 1:
        return chunks[0]
    keep = None
    if any(c.keep is not None for c in chunks):
        keep = np.concatenate([np.ones(len(c.rows), bool) if c.keep is None else c.keep for c in chunks])
    longest = [c.longest for c in chunks if c.longest is not None]
    known = max(longest) if len(longest) == len(chunks) else None
    return Chunk(chunks[0].first, np.concatenate([c.rows for c in chunks]), keep, known)
