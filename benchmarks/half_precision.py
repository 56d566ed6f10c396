"""Ways to make bfloat16 of a run's float16 rows, beside the product that they are made for.

The exact scan multiplies in bfloat16 where the processor has instructions for it, but rows are float16. What a way
costs is processor time for a row, on one thread, the rows read from memory in tiles as the scan reads them.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from result import arguments, finish

from quantascope.attribution.search.coarse import Coarse

DIM, TILE, NUM_QUERIES = 1_024, 2_048, 256
ROUNDS = 5


def microseconds(work: Callable[[int], object], num_rows: int) -> float:
    """Of processor time for a row: the least of several rounds over all tiles."""
    found = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        for first in range(0, num_rows, TILE):
            work(first)
        found.append(time.process_time() - start)
    return min(found[1:]) / num_rows * 1e6


def ways(rows: torch.Tensor, seed: int) -> dict[str, Callable[[int], object]]:
    """Each takes one tile, by its first row."""
    narrow = torch.empty(TILE, DIM, dtype=torch.bfloat16)
    wide, half = torch.empty(TILE, DIM), torch.empty(TILE, DIM, dtype=torch.float16)
    bits = narrow.view(torch.int16)
    queries = np.random.default_rng(seed).standard_normal((NUM_QUERIES, DIM), dtype=np.float32)
    space = Coarse(queries, "bfloat16").workspace(TILE)
    weights = {kind: torch.from_numpy(queries).to(kind) for kind in (torch.bfloat16, torch.float16, torch.float32)}

    def by_float32(step: int) -> Callable[[int], object]:
        def work(first: int) -> None:
            for start in range(0, TILE, step):
                wide[:step].copy_(rows[first + start : first + start + step])
                torch.linalg.vector_norm(wide[:step], dim=1)
                narrow[start : start + step].copy_(wide[:step])

        return work

    def on_bits(first: int) -> None:
        torch.bitwise_right_shift(rows[first : first + TILE].view(torch.int16), 3, out=bits)
        bits.bitwise_and_(-0x7001)

    return {
        "torch's own conversion": lambda first: narrow.copy_(rows[first : first + TILE]),
        "by way of float32, 2,048 rows at a time, with norms": by_float32(TILE),
        "by way of float32, 256 rows at a time, with norms": by_float32(256),
        "on the bits, torch": on_bits,
        "on the bits, numpy, 256 rows at a time (the scan's)": lambda first: space.shift(
            rows[first : first + TILE].numpy()
        ),
        "product: bfloat16": lambda first: narrow @ weights[torch.bfloat16].T,
        "product: float16": lambda first: half.copy_(rows[first : first + TILE]) @ weights[torch.float16].T,
        "product: float32": lambda first: wide @ weights[torch.float32].T,
    }


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    num_rows = (20 if options.quick else 100) * TILE
    numbers = np.random.default_rng(options.seed).standard_normal((num_rows, DIM), dtype=np.float32)
    rows = torch.from_numpy(numbers.astype(np.float16))
    table = [
        {"what": name, "microseconds": microseconds(way, num_rows)} for name, way in ways(rows, options.seed).items()
    ]
    finish("half_precision", ["what", "microseconds"], table, [], options)


if __name__ == "__main__":
    main()
