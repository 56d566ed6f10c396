"""What torch.compile does for gradient rows, and what it costs: each way in a process of its own, under a time limit.

Two ways: the floor (a forward pass and the backward pass through activations) of a compiled model, and the engine's
rows of it. One that is not done within `--limit` seconds is stopped, and the table says so. Times are medians over
rounds in that process, interleaved with the same work uncompiled. GPT-NeoX of random weights. What torch has in its
cache on disk makes compiling quicker.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from collect import PROJECTIONS, engine_for, floor, window_batch
from models import neox
from result import arguments, finish
from transformers import PreTrainedModel

from quantascope.attribution.losses import TokenBatch, mean_losses

WAYS = ("floor", "rows")
"""What is compiled: the model without taps, and the model under the engine's."""
SHAPES = {"64 wide": (64, 512, 64), "512 wide": (512, 8192, 256)}
"""Width, vocabulary and tokens of a window; each model has two layers, and a batch four windows."""


def work(way: str, model: PreTrainedModel, batch: TokenBatch) -> Callable[[], object]:
    if way == "floor":
        return partial(floor, model, batch)
    engine = engine_for(model, PROJECTIONS["tensor sketch"], "paper")
    return partial(engine.rows, batch, mean_losses, num_examples=len(batch.ids))


def measure(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the first calls, which compile, and of later ones; and what torch.compile counted."""
    width, vocabulary, length = SHAPES[options.shape]
    model = neox(width, 2, vocabulary)
    batch = window_batch(model, 4, length, options.seed)
    plain = work(way, model, batch)
    compiled = deepcopy(model)
    compiled.compile()
    start = time.perf_counter()
    quick = work(way, compiled, batch)
    for _ in range(3):
        quick()
    compiling = time.perf_counter() - start
    seconds: list[tuple[float, float]] = []
    for _ in range(options.rounds):
        both = []
        for run in (plain, quick):
            start = time.perf_counter()
            run()
            both.append(time.perf_counter() - start)
        seconds.append((both[0], both[1]))
    times = np.array(seconds)
    from torch._dynamo.utils import counters

    return {
        "compiling, s": compiling,
        "plain, s": float(np.median(times[:, 0])),
        "compiled, s": float(np.median(times[:, 1])),
        "compiled over plain": float(np.median(times[:, 1] / times[:, 0])),
        "graphs": counters["stats"]["unique_graphs"],
        "graph breaks": sum(counters["graph_break"].values()),
        "first break": next(iter(counters["graph_break"]), "").split("\n")[0][:100],
    }


def measured(shape: str, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process of its own; a process that is not done in time is stopped."""
    command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--only", way, "--shape", shape]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return {
            "model": shape,
            "what": way,
            "compiling, s": time.perf_counter() - start,
            "first break": "stopped at the limit",
        }
    return {"model": shape, "what": way} | json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, help="7, or 3 with --quick")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds after which a way is stopped")
    parser.add_argument("--only", choices=WAYS, help="print one way's figures as JSON, and nothing else")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="the model of --only")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 7)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    if options.only:
        sys.stdout.write(json.dumps(measure(options.only, options)) + "\n")
        return
    rows = [measured(shape, way, options) for shape in list(SHAPES)[: 1 if options.quick else None] for way in WAYS]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    finish("compile", columns, rows, [], options)


if __name__ == "__main__":
    main()
