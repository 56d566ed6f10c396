"""The frontier of projections: error of cosines between real token-loss gradients, and time, against D.

Real rows: token losses of a model trained for some seconds on the standard library (`--model FOLDER` for another, the
demonstration's checkpoint for instance; `--width 512` trains a wider one). Errors are root mean squares over all pairs
of rows, means over seeds. Every projection is measured with both ways of sharing D among blocks: equally, and by energy
(attribution/energy.py: no data needed). `dense, whole` sketches the whole gradient at once: the mark that shares by
energy should reach. Time is that of one batch's rows over the floor's (a forward and a backward pass).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from result import Bar, arguments, finish

from quantascope.api.demo.corpus import read_corpus, write_corpus
from quantascope.api.demo.recipe import TrainingConfig
from quantascope.api.demo.training import train_model
from quantascope.attribution.blocks import Block, find_blocks
from quantascope.attribution.energy import energy_shares
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import TokenBatch, token_losses
from quantascope.attribution.projection import (
    Dense,
    Identity,
    Projection,
    SparseJL,
    TensorSketch,
    TwoSided,
    Wide,
)
from quantascope.attribution.projection.split import split_dim
from quantascope.attribution.randomness import random_signs, random_words
from quantascope.jobs.models.model import ModelSource, load_model

KINDS: dict[str, Callable[[tuple[int, ...], int], Projection]] = {
    "two-sided": lambda dims, seed: TwoSided(dim_per_block=dims, seed=seed),
    "two-sided, gaussian": lambda dims, seed: TwoSided(dim_per_block=dims, seed=seed, factors="gaussian"),
    "two-sided, orthonormal": lambda dims, seed: TwoSided(dim_per_block=dims, seed=seed, factors="orthonormal"),
    "wide, then SJLT": lambda dims, seed: Wide(dim_per_block=dims, seed=seed),
    "tensor sketch": lambda dims, seed: TensorSketch(dim_per_block=dims, seed=seed),
    "SJLT of the gradient": lambda dims, seed: SparseJL(dim_per_block=dims, seed=seed),
    "dense": lambda dims, seed: Dense(dim_per_block=dims, seed=seed),
}
SLOW = ("dense",)
"""Measured up to D = 1,024 only."""


def real_batches(folder: Path, corpus: Path, num_units: int, seed: int) -> tuple[torch.nn.Module, list[TokenBatch]]:
    """One low-loss token of each of as many windows, eight windows to a batch."""
    loaded = load_model(ModelSource(model=str(folder)))
    length = min(128, loaded.facts.context_tokens or 128)
    texts = [data.decode() for data in read_corpus(corpus).values()]
    ids = np.concatenate([loaded.tokenizer(text)["input_ids"] for text in texts])
    windows = torch.from_numpy(ids[: len(ids) // length * length].reshape(-1, length).astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(windows)))[:num_units]
    batches = []
    for part in torch.split(windows[order], 8):
        example, position = torch.meshgrid(torch.arange(len(part)), torch.arange(16, length), indexing="ij")
        every = TokenBatch(ids=part, example=example.flatten(), position=position.flatten())
        with torch.no_grad():
            losses = token_losses(loaded.model, every).reshape(len(part), -1)
        low = losses.argsort(dim=1)[:, 3]  # among the lowest, without being the most trivial
        batches.append(TokenBatch(ids=part, example=torch.arange(len(part)), position=low + 16))
    return loaded.model, batches


def cosines(rows: torch.Tensor) -> torch.Tensor:
    unit = rows / rows.norm(dim=1, keepdim=True)
    first, second = torch.triu_indices(len(rows), len(rows), offset=1)
    return (unit @ unit.T).double()[first, second]


def rows_of(engine: GradientEngine[TokenBatch], batches: list[TokenBatch]) -> torch.Tensor:
    return torch.cat([engine.rows(b, token_losses, b.example, num_examples=len(b.ids)).rows for b in batches])


def dense_count_sketch(full: torch.Tensor, dim: int, name: str) -> torch.Tensor:
    signs = torch.from_numpy(random_signs(0, name, "sign", full.shape[1]))
    buckets = torch.from_numpy((random_words(0, name, "bucket", full.shape[1]) % dim).astype(np.int64))
    return full.new_zeros(len(full), dim).index_add_(1, buckets, full * signs)


def floor(model: Any, batch: TokenBatch) -> None:  # noqa: ANN401 - any causal model
    inputs = model.get_input_embeddings()(batch.ids).requires_grad_()
    logits = model(inputs_embeds=inputs, use_cache=False).logits[batch.example, batch.position - 1]
    torch.autograd.grad(torch.nn.functional.cross_entropy(logits, batch.ids[batch.example, batch.position]), inputs)


def over_floor(model: torch.nn.Module, batch: TokenBatch, work: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median ratio of each work's time to the floor's, interleaved over seven rounds."""
    ratios: dict[str, list[float]] = {name: [] for name in work}
    for number in range(8):
        start = time.perf_counter()
        floor(model, batch)
        least = time.perf_counter() - start
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if number:
                ratios[name].append((time.perf_counter() - start) / least)
    return {name: float(np.median(values)) for name, values in ratios.items()}


class Frontier:
    """Errors and times of projections of one model's rows."""

    def __init__(self, model: torch.nn.Module, batches: list[TokenBatch], choice: str, seeds: range) -> None:
        self.model, self.batches, self.seeds = model, batches, seeds
        self.blocks: tuple[Block, ...] = find_blocks(model, choice).blocks
        engine = GradientEngine[TokenBatch](model, Identity(), self.blocks)
        self.full = rows_of(engine, batches)
        self.columns, self.true = engine.columns, cosines(self.full)
        self.energy = energy_shares(model, self.blocks, vocab_size=model.config.vocab_size)
        self.work: dict[str, Callable[[], object]] = {}
        self.rows: list[dict[str, Any]] = []

    def measure(self, dim: int) -> None:
        sizes = [b.numel for b in self.blocks]
        for shares, weights in (("equal", np.ones(len(sizes))), ("energy", self.energy)):
            dims = split_dim(dim, weights, sizes)
            for name, make in KINDS.items():
                if name in SLOW and dim > 1024:
                    continue
                engines = [GradientEngine[TokenBatch](self.model, make(dims, s), self.blocks) for s in self.seeds]
                self._add(name, shares, dim, [rows_of(e, self.batches) for e in engines])
                batch = self.batches[0]
                self.work[f"{name}, {shares}, {dim}"] = partial(
                    engines[0].rows, batch, token_losses, batch.example, num_examples=len(batch.ids)
                )
            sketched = [
                [
                    dense_count_sketch(self.full[:, c], n, f"{seed} {i}")
                    for i, (c, n) in enumerate(zip(self.columns, dims, strict=True))
                ]
                for seed in self.seeds
            ]
            self._add("dense count sketch", shares, dim, [torch.cat(s, dim=1) for s in sketched])
        self._add("dense, whole", "", dim, [dense_count_sketch(self.full, dim, str(s)) for s in self.seeds])

    def _add(self, name: str, shares: str, dim: int, made: list[torch.Tensor]) -> None:
        found = [cosines(rows) for rows in made]
        self.rows.append(
            {
                "projection": name,
                "shares": shares,
                "D": dim,
                "RMS error of cosines": float(np.mean([(f - self.true).square().mean().sqrt() for f in found])),
                "correlation": float(np.mean([torch.corrcoef(torch.stack([f, self.true]))[0, 1] for f in found])),
            }
        )

    def time(self) -> None:
        for name, value in over_floor(self.model, self.batches[0], self.work).items():
            for row in self.rows:
                if name == f"{row['projection']}, {row['shares']}, {row['D']}":
                    row["over the floor"] = value

    def error(self, name: str, shares: str, dim: int) -> float:
        return next(
            float(r["RMS error of cosines"])
            for r in self.rows
            if (r["projection"], r["shares"], r["D"]) == (name, shares, dim)
        )


def draw(panels: dict[str, list[dict[str, Any]]], path: str) -> None:
    """Error against D, one line per projection and way of sharing, one panel per model."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, every = plt.subplots(ncols=len(panels), sharey=True, squeeze=False, figsize=(1 + 4.5 * len(panels), 4.5))
    shown = {"two-sided": "C0", "wide, then SJLT": "C1", "tensor sketch": "C3", "dense, whole": "black"}
    for axes, (title, rows) in zip(every[0], panels.items(), strict=True):
        for name, colour in shown.items():
            for shares, style in (("equal", ":"), ("energy", "-"), ("", "--")):
                points = [
                    (r["D"], r["RMS error of cosines"])
                    for r in rows
                    if (r["projection"], r["shares"]) == (name, shares)
                ]
                if points:
                    label = f"{name}, {shares} shares" if shares else name
                    axes.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=3, label=label)
        axes.set(title=title, xscale="log", yscale="log", xlabel="D, numbers per row")
        axes.spines[["top", "right"]].set_visible(False)
    every[0, 0].set(ylabel="RMS error of cosines")
    every[0, -1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def drawn(results: list[str], path: str) -> None:
    """The figure of result files, each given as TITLE=FILE."""
    panels = {}
    for result in results:
        title, _, file = result.rpartition("=")
        panels[title] = json.loads(Path(file).read_text(encoding="utf-8"))["results"]
    draw(panels, path)


def trained(options: argparse.Namespace, corpus: Path, scratch: Path) -> Path:
    config = TrainingConfig.quick()
    if options.width:
        config = replace(config, width=options.width, num_heads=options.width // 64, seconds=120.0)
    return train_model(config, corpus, scratch / "model").checkpoints[-1]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", help="a model folder; without it one is trained for 18 s")
    parser.add_argument("--width", type=int, help="train a model of this width for two minutes")
    parser.add_argument("--blocks", default="paper")
    parser.add_argument("--figure", metavar="FILE", help="draw error against D as SVG")
    parser.add_argument("--of", nargs="+", metavar="TITLE=FILE", help="draw these results, and measure nothing")
    options = parser.parse_args()
    if options.of:
        drawn(options.of, options.figure)
        return
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus"
        write_corpus(corpus, max_bytes=1_500_000)
        folder = Path(options.model) if options.model else trained(options, corpus, Path(scratch))
        model, batches = real_batches(folder, corpus, 96 if options.quick else 160, options.seed)
    seeds = range(options.seed, options.seed + 2)
    frontier = Frontier(model, batches, options.blocks, seeds)
    dims = (1024,) if options.quick else (256, 1024, 4096, 16384)
    for dim in dims:
        frontier.measure(dim)
    frontier.time()
    if options.figure:
        draw({f"{model.config.hidden_size} wide": frontier.rows}, options.figure)
    ratio = max(
        frontier.error("tensor sketch", s, d) / frontier.error("dense count sketch", s, d)
        for s in ("equal", "energy")
        for d in dims
    )
    whole = max(frontier.error("tensor sketch", "energy", d) / frontier.error("dense, whole", "", d) for d in dims)
    found = [
        Bar(
            name="tensor sketch's error over a dense sketch's of the same blocks",
            value=ratio,
            limit=1.05,
            holds=ratio <= 1.05,
        ),
        Bar(
            name="tensor sketch's error, shares by energy, over a dense one's of the whole",
            value=whole,
            limit=1.15,
            holds=whole <= 1.15,
        ),
    ]
    columns = ["projection", "shares", "D", "RMS error of cosines", "correlation", "over the floor"]
    finish("projection", columns, frontier.rows, found, options)


if __name__ == "__main__":
    main()
