"""Gradient rows on a GPU: tokens (or token-loss rows) per second beside the floor's, for models of Pythia's shapes.

The floor is the same forward pass and loss, and a backward pass through activations down to the embeddings' output.
Rows count once they are in host memory. Everything is timed interleaved, in rounds, with the device waited for at both
ends of a measurement; speeds over the floor's are medians over rounds of one round's pair. Weights are random. The
peak is what a large matrix product reaches in the same run, in the models' number format.

On a machine without a GPU, `--device cpu --quick` shows that it runs, and no more.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from result import Bar, arguments, finish
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import TokenBatch, mean_losses, token_losses
from quantascope.attribution.projection import Projection, TensorSketch, TwoSided
from quantascope.attribution.schedule import schedule_tokens

PROJECTIONS: dict[str, Projection] = {
    "tensor sketch": TensorSketch(dim_per_block=256),
    "two-sided": TwoSided(dim_per_block=256),
}
GOALS = {"160m": 400_000, "1b": 110_000}
"""Tokens per second of document rows that were set as a goal for one H200."""
DATASHEET = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bfloat16 operations per second, as the maker gives them."""
Work = dict[str, Callable[[], object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A GPT-NeoX of one of Pythia's sizes."""

    width: int
    layers: int
    heads: int
    vocabulary: int = 50_304
    length: int = 1024
    """Tokens of a document."""

    def operations(self, backward_passes: int = 1) -> float:
        """Of the floor, per token: products of weights and of attention, forward, and backward by activations alone."""
        products = 2 * (12 * self.width**2 * self.layers + self.width * self.vocabulary)
        attention = 4 * self.length * self.width * self.layers
        return (1 + backward_passes) * products + (1 + 2 * backward_passes) * attention


SHAPES = {
    "70m": Shape(width=512, layers=6, heads=8),
    "160m": Shape(width=768, layers=12, heads=12),
    "1b": Shape(width=2048, layers=16, heads=8),
    "6.9b": Shape(width=4096, layers=32, heads=32),
    "tiny": Shape(width=64, layers=2, heads=2, vocabulary=512, length=64),
}


def random_model(shape: Shape, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Made on the device, in its format: the largest would not fit the host as float32."""
    config = GPTNeoXConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=2048,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = GPTNeoXForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval().requires_grad_(False)


def documents(shape: Shape, num: int, device: torch.device, seed: int) -> TokenBatch:
    ids = torch.randint(0, shape.vocabulary, (num, shape.length), generator=torch.Generator().manual_seed(seed))
    example, position = torch.meshgrid(torch.arange(num), torch.arange(1, shape.length), indexing="ij")
    return TokenBatch(ids=ids.to(device), example=example.flatten().to(device), position=position.flatten().to(device))


def token_batches(batch: TokenBatch, per_document: int, batch_tokens: int, seed: int) -> list[TokenBatch]:
    """A few tokens of each document, as a collection would schedule them."""
    num, length = batch.ids.shape
    drawn = np.random.default_rng(seed).integers(length // 16, length, (num, per_document))
    position = np.sort(drawn, axis=1).flatten()
    window = np.repeat(np.arange(num), per_document)
    device = batch.ids.device
    return [
        TokenBatch(
            ids=batch.ids[torch.from_numpy(made.window).to(device)][:, : made.length],
            example=torch.from_numpy(made.example).to(device),
            position=torch.from_numpy(position[made.unit]).to(device),
        )
        for made in schedule_tokens(window, position, batch_tokens=batch_tokens)
    ]


def engine_for(model: PreTrainedModel, shape: Shape, projection: Projection, choice: str) -> GradientEngine[TokenBatch]:
    engine = GradientEngine[TokenBatch](model, projection, find_blocks(model, choice).blocks)
    small = Shape(width=0, layers=0, heads=0, vocabulary=shape.vocabulary, length=5)
    engine.prove(documents(small, 3, engine.device, 0), mean_losses, num_examples=3)
    return engine


@contextmanager
def graph_from_embeddings(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    found: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda *given: found.append(given[2].requires_grad_()))
    try:
        yield found
    finally:
        hook.remove()


def document_floor(model: PreTrainedModel, batch: TokenBatch) -> None:
    with graph_from_embeddings(model) as inputs:
        torch.autograd.grad(mean_losses(model, batch).sum(), inputs)


def token_floor(model: PreTrainedModel, batches: list[TokenBatch]) -> None:
    """Each batch: one forward pass, and one backward pass per token of the document that has most."""
    for batch in batches:
        with graph_from_embeddings(model) as inputs:
            values = token_losses(model, batch)
            for _ in range(int(torch.bincount(batch.example.cpu()).max())):
                torch.autograd.grad(values.sum(), inputs, retain_graph=True)


class Host:
    """Where rows go: page-locked memory on a GPU's host, filled without waiting for each copy."""

    def __init__(self, num_rows: int, dim: int, device: torch.device) -> None:
        self._memory = torch.empty(num_rows, dim, pin_memory=device.type == "cuda")

    def take(self, first: int, rows: torch.Tensor) -> int:
        self._memory[first : first + len(rows)].copy_(rows, non_blocking=True)
        return first + len(rows)


def document_rows(engine: GradientEngine[TokenBatch], batch: TokenBatch, host: Host) -> None:
    host.take(0, engine.rows(batch, mean_losses, num_examples=len(batch.ids)).rows)


def token_rows(engine: GradientEngine[TokenBatch], batches: list[TokenBatch], host: Host) -> None:
    first = 0
    for batch in batches:
        made = engine.rows(batch, token_losses, batch.example, num_examples=len(batch.ids))
        first = host.take(first, made.rows)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Work, floor: str, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Median seconds, peak memory, and speed over the floor's."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    peak = dict.fromkeys(work, 0.0)
    for number in range(rounds + 2):
        for name, run in work.items():
            wait(device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            start = time.perf_counter()
            run()
            wait(device)
            if number > 1:
                seconds[name].append(time.perf_counter() - start)
            if device.type == "cuda":
                peak[name] = torch.cuda.max_memory_allocated(device) / 1e9
    rows = []
    for name, values in seconds.items():
        ratios = np.array(seconds[floor]) / np.array(values)
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        rows.append(
            {
                "what": name,
                "seconds": float(np.median(values)),
                "of the floor's speed": float(middle),
                "quartiles": f"{low:.3f} to {high:.3f}",
                "peak GB": peak[name],
            }
        )
    return rows


def product_peak(device: torch.device, dtype: torch.dtype, *, quick: bool) -> float:
    """Operations per second of a large matrix product."""
    size = 256 if quick else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        wait(device)
        start = time.perf_counter()
        torch.mm(a, b)
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def measure(name: str, options: argparse.Namespace, device: torch.device, peak: float) -> list[dict[str, Any]]:
    """One shape; with half the documents where they do not fit."""
    shape, dtype = SHAPES[name], getattr(torch, options.dtype)
    model = random_model(shape, device, dtype)
    num = max(3, options.batch_tokens // shape.length)
    while True:
        try:
            rows = measure_with(model, shape, num, options, device)
            break
        except torch.OutOfMemoryError:
            if num == 3:
                raise
        num = max(3, num // 2)
        torch.cuda.empty_cache()
    datasheet = next((p for k, p in DATASHEET.items() if options.gpu and k in options.gpu), None)
    for row in rows:
        per_second = row.pop("operations") / row["seconds"]
        row |= {"shape": name, "documents": num, "TFLOP/s": per_second / 1e12, "of a product's": per_second / peak}
        if datasheet and dtype == torch.bfloat16:
            row["of the datasheet's"] = per_second / datasheet
        if row["what"].startswith("documents") and name in GOALS:
            row["goal, per second"] = GOALS[name]
    return rows


def measure_with(
    model: PreTrainedModel, shape: Shape, num: int, options: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    batch = documents(shape, num, device, options.seed)
    batches = token_batches(batch, options.tokens_per_document, options.batch_tokens, options.seed)
    num_units = sum(len(b.position) for b in batches)
    for_documents: Work = {"floor of documents": partial(document_floor, model, batch)}
    for_tokens: Work = {"floor of token losses": partial(token_floor, model, batches)}
    for kind, projection in PROJECTIONS.items():
        for choice in ("paper", "all"):
            engine = engine_for(model, shape, projection, choice)
            host = Host(num, engine.dim, device)
            for_documents[f"documents, {choice} blocks, {kind}"] = partial(document_rows, engine, batch, host)
            if choice == "paper":
                host = Host(num_units, engine.dim, device)
                for_tokens[f"token losses, {kind}"] = partial(token_rows, engine, batches, host)
    rounds = options.rounds or (3 if options.quick else 15)
    found = timed(for_documents, "floor of documents", device, rounds)
    num_tokens = num * shape.length
    found = [
        r | {"per second": num_tokens / r["seconds"], "unit": "tokens", "operations": num_tokens * shape.operations()}
        for r in found
    ]
    operations = sum(_token_operations(shape, b) for b in batches)
    found += [
        r | {"per second": num_units / r["seconds"], "unit": "rows", "operations": operations}
        for r in timed(for_tokens, "floor of token losses", device, max(3, rounds // 3))
    ]
    return found


def _token_operations(shape: Shape, batch: TokenBatch) -> float:
    """Of the floor for token losses; the output head's are left out, since it sees few positions."""
    num, length = batch.ids.shape
    passes = int(torch.bincount(batch.example.cpu()).max())
    cut = Shape(width=shape.width, layers=shape.layers, heads=shape.heads, vocabulary=0, length=length)
    return num * length * cut.operations(passes)


def cosine_of_formats(name: str, device: torch.device, dtype: torch.dtype, seed: int) -> float:
    """Mean cosine of rows in this format with those of the same weights in float32."""
    shape = SHAPES[name]
    model = random_model(shape, device, dtype)
    batch = documents(shape, 3, device, seed)
    made = []
    for other in (model, copy.deepcopy(model).to(torch.float32)):
        engine = engine_for(other, shape, PROJECTIONS["tensor sketch"], "paper")
        made.append(engine.rows(batch, mean_losses, num_examples=3).rows)
    return float(torch.cosine_similarity(*made).mean())


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """What was asked for: 0.95 of the floor's speed with rows in host memory, and a cosine of 0.999."""
    found = []
    for row in rows:
        if row["what"].startswith("mean cosine"):
            value = row["of the floor's speed"]
            name = f"{row['shape']}: minus {row['what']}"
            found.append(Bar(name=name, value=-value, limit=-0.999, holds=value >= 0.999))
        elif not row["what"].startswith("floor") and "all blocks" not in row["what"]:
            value = row["of the floor's speed"]
            name = f"{row['shape']}: minus the floor's speed share of {row['what']}"
            found.append(Bar(name=name, value=-value, limit=-0.95, holds=value >= 0.95))
    return found


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), help="70m 160m 1b 6.9b, or tiny with --quick")
    parser.add_argument("--batch-tokens", type=int, help="tokens that go through the model together; halved if need be")
    parser.add_argument("--tokens-per-document", type=int, default=16, help="token-loss rows of each document")
    parser.add_argument("--rounds", type=int, help="15, or 3 with --quick")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu --quick shows that the benchmark runs")
    options.gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    options.batch_tokens = options.batch_tokens or (512 if options.quick else 16_384)
    shapes = options.shapes or (["tiny"] if options.quick else ["70m", "160m", "1b", "6.9b"])
    dtype = getattr(torch, options.dtype)
    peak = product_peak(device, dtype, quick=options.quick)
    rows: list[dict[str, Any]] = []
    for name in shapes:
        rows += measure(name, options, device, peak)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if dtype != torch.float32:
        what = f"mean cosine of {options.dtype} rows with float32 rows"
        value = cosine_of_formats(shapes[0], device, dtype, options.seed)
        rows.append({"shape": shapes[0], "what": what, "of the floor's speed": value})
    columns = ["shape", "what", "per second", "of the floor's speed", "quartiles", "of a product's", "peak GB"]
    finish("gpu", columns, rows, bars(rows) if device.type == "cuda" else [], options)


if __name__ == "__main__":
    main()
