"""Seconds per token of gradient rows over batch sizes, beside the batch size that a plan finds by itself.

GPT-NeoX of random weights, tensor sketch, windows of 64 to 512 tokens, on a CPU, with one thread and with `--threads`;
batch sizes are interleaved in rounds.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from collect import engine_for, window_batch
from models import neox
from result import Bar, arguments, finish

from quantascope.attribution.losses import mean_losses
from quantascope.attribution.projection import TensorSketch
from quantascope.jobs.collecting.batch_size import find_batch_tokens

SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
SHAPES = ((192, 4, 64), (192, 4, 512), (512, 6, 256))
"""Width, layers, tokens of a window."""


def measure(shape: tuple[int, int, int], threads: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds per token of each batch size, and the size found, for one model and number of threads."""
    width, layers, length = shape
    torch.set_num_threads(threads)
    model = neox(width, layers, 4096, context=length)
    engine = engine_for(model, TensorSketch(dim_per_block=256), "paper")
    label = f"{width} wide, {layers} layers, windows of {length}, threads: {threads}"

    def work(num_windows: int, num_tokens: int) -> object:
        batch = window_batch(model, num_windows, num_tokens, options.seed)
        return engine.rows(batch, mean_losses, num_examples=num_windows)

    start = time.perf_counter()
    found = find_batch_tokens(work, model, window_tokens=length, row_bytes=0, num_threads=threads)
    spent = time.perf_counter() - start
    runs: dict[int, Callable[[], object]] = {}
    sizes = [s for s in SIZES if s >= length and s <= (1024 if options.quick else 4096)]
    for size in sizes:
        batch = window_batch(model, size // length, length, options.seed)
        runs[size] = partial(engine.rows, batch, mean_losses, num_examples=size // length)
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(options.rounds + 1):
        for size, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[size].append((time.perf_counter() - start) / size)
    per_token = {size: float(np.median(s)) for size, s in seconds.items()}
    best = min(per_token.values())
    rows: list[dict[str, Any]] = [
        {"model": label, "batch tokens": size, "µs per token": 1e6 * s, "over the best": s / best}
        for size, s in per_token.items()
    ]
    chosen = max(found, length)  # a batch holds one window at least
    return [*rows, {"model": label, "found": found, "in s": spent, "over the best": per_token[chosen] / best}]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, help="5, or 3 with --quick")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 5)
    torch.manual_seed(options.seed)
    rows = []
    for shape in SHAPES[: 1 if options.quick else None]:
        for threads in sorted({1, options.threads}):
            rows += measure(shape, threads, options)
    bars = []
    for row in rows:
        if "found" in row:
            slower = row["over the best"]
            bars.append(
                Bar(name=f"{row['model']}: time of the batch found", value=slower, limit=1.15, holds=slower <= 1.15)
            )
            bars.append(
                Bar(name=f"{row['model']}: seconds to find it", value=row["in s"], limit=3, holds=row["in s"] <= 3)
            )
    finish("batch", ["model", "batch tokens", "found", "in s", "µs per token", "over the best"], rows, bars, options)


if __name__ == "__main__":
    main()
