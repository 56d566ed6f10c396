"""Peak memory of gradient rows with and without activation checkpointing, over the floor's.

What counts is torch's own account of what is allocated beyond the model, at its greatest: the same in every run, which
a process's resident size is not. GPT-NeoX of random weights, with a small vocabulary: logits are no layer's
activations. The median time of three rounds, taken without that account, stands beside it.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from collect import floor, window_batch
from models import neox
from result import Bar, arguments, finish
from torch.profiler import ProfilerActivity, profile

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import TokenBatch, mean_losses
from quantascope.attribution.projection import Projection, TensorSketch, TwoSided

PROJECTIONS: dict[str, Projection] = {
    "two-sided": TwoSided(dim_per_block=64),
    "tensor sketch": TensorSketch(dim_per_block=64),
}
BATCH, LENGTH, ROUNDS = 4, 512, 3


def peak_bytes(run: Callable[[], object]) -> int:
    """The greatest sum of what is allocated and not yet freed, from the start of a run on."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    return int(np.cumsum([change for _, change in changes]).max())


def make_work(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    width, layers = (128, 8) if options.quick else (512, 12)
    model = neox(width, layers, 512, context=LENGTH)
    batch = window_batch(model, BATCH, LENGTH, options.seed)
    work: dict[str, Callable[[], object]] = {"floor": partial(floor, model, batch)}
    for choice in ("paper", "all"):
        blocks = find_blocks(model, choice).blocks
        for name, projection in PROJECTIONS.items():
            for checkpointed in (False, True):
                engine = GradientEngine[TokenBatch](model, projection, blocks, checkpoint_activations=checkpointed)
                engine.prove(window_batch(model, 3, 5), mean_losses, num_examples=3)
                label = f"{choice} blocks, {name}{', checkpointed' if checkpointed else ''}"
                work[label] = partial(engine.rows, batch, mean_losses, num_examples=BATCH)
    return work


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    work = make_work(options)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    peaks = {name: peak_bytes(run) for name, run in work.items()}
    rows: list[dict[str, Any]] = [
        {
            "what": name,
            "MB": peaks[name] / 1e6,
            "memory over the floor's": peaks[name] / peaks["floor"],
            "time over the floor's": float(np.median(np.array(seconds[name]) / np.array(seconds["floor"]))),
        }
        for name in work
    ]
    bars = []
    for name, peak in peaks.items():
        if name.endswith(", checkpointed"):
            ratio = peak / peaks[name.removesuffix(", checkpointed")]
            bars.append(Bar(name=f"{name}: memory over memory without", value=ratio, limit=0.5, holds=ratio <= 0.5))
    finish("memory", ["what", "MB", "memory over the floor's", "time over the floor's"], rows, bars, options)


if __name__ == "__main__":
    main()
