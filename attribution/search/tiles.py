"""Rows that stream by in tiles, worked on by several threads. Knows arrays; not what is done with them."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from ...errors import ConfigurationError


class Chunk(NamedTuple):
    """Consecutive rows; the arrays must not change while they are worked on."""

    first: int
    """Number of the first row."""
    rows: Float[np.ndarray, "row dim"]
    """float16 or float32."""
    keep: Bool[np.ndarray, " row"] | None = None
    """Rows that count; None lets all. Rows with a NaN or infinite entry never do."""
    longest: float | None = None
    """A bound of the norms of the rows that count, all of which are finite; None where that is not known."""


def cut(chunks: Iterable[Chunk], dim: int, tile_rows: int) -> Iterator[Chunk]:
    """The same rows in chunks of at most `tile_rows`; ConfigurationError for rows of another width."""
    for first, rows, keep, longest in chunks:
        if rows.shape[1] != dim:
            raise ConfigurationError(f"rows are {rows.shape[1]} wide, {dim} are expected; use the same projection")
        for start in range(0, len(rows), tile_rows):
            part = slice(start, start + tile_rows)
            yield Chunk(first + start, rows[part], None if keep is None else keep[part], longest)


def each_tile(
    tiles: Iterator[Chunk], make_work: Callable[[], Callable[[Chunk], None]], num_threads: int | None = None
) -> None:
    """Give every tile to one of several threads, each with a function of its own making; the first error is raised.

    Tiles are read one after another, while others are worked on. None takes as many threads as torch has; while it
    lasts, torch's own operations in this process use one thread each.
    """
    reading = Lock()
    failed = False

    def work() -> None:
        nonlocal failed
        try:
            function = make_work()
            while not failed:
                with reading:
                    tile = next(tiles, None)
                if tile is None:
                    return
                function(tile)
        except BaseException:
            failed = True
            raise

    with _one_thread_each() as there:
        wanted = num_threads or there
        with ThreadPoolExecutor(wanted) as pool:
            for done in [pool.submit(work) for _ in range(wanted)]:
                done.result()


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """torch's operations use one thread while several of them run side by side; the number that it had before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
