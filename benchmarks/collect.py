"""Seconds of gradient rows over seconds of the floor: a forward pass and the backward pass through activations.

All that is compared runs interleaved, in one process, on the same model and batch; ratios are medians over rounds of
one round's pair. Models have random weights. GPT-NeoX 512 wide with 6 layers is the one that bars hold for (quick: 192
wide, 4 layers); Mixtral and Mamba stand for experts and state spaces; `--widths` measures other
shapes of GPT-NeoX instead, without bars.
"""

import argparse
import copy
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import mamba, mixtral, neox
from peers import bergson_rows, opacus_gradients
from result import Bar, arguments, finish
from torch.func import functional_call, grad, vmap
from transformers import PreTrainedModel

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import TokenBatch, mean_losses, token_losses
from quantascope.attribution.projection import Projection, TensorSketch, TwoSided
from quantascope.attribution.schedule import schedule_tokens
from quantascope.jobs.collecting.unit_rows import fill_batches

PROJECTIONS: dict[str, Projection] = {
    "two-sided": TwoSided(dim_per_block=256),
    "tensor sketch": TensorSketch(dim_per_block=256),
}
Work = dict[str, Callable[[], object]]


def window_batch(model: PreTrainedModel, num_windows: int, length: int, seed: int = 0) -> TokenBatch:
    ids = torch.randint(
        0, model.config.vocab_size, (num_windows, length), generator=torch.Generator().manual_seed(seed)
    )
    example, position = torch.meshgrid(torch.arange(num_windows), torch.arange(1, length), indexing="ij")
    return TokenBatch(ids=ids, example=example.flatten(), position=position.flatten())


def engine_for(model: PreTrainedModel, projection: Projection, choice: str) -> GradientEngine[TokenBatch]:
    engine = GradientEngine[TokenBatch](model, projection, find_blocks(model, choice).blocks)
    engine.prove(window_batch(model, 3, 5), mean_losses, num_examples=3)
    return engine


def floor(model: PreTrainedModel, batch: TokenBatch) -> None:
    """Forward, and backward through activations down to the first layer's input; no weight has a gradient."""
    inputs = model.get_input_embeddings()(batch.ids).requires_grad_()
    logits = model(inputs_embeds=inputs, use_cache=False).logits[batch.example, batch.position - 1]
    loss = torch.nn.functional.cross_entropy(logits, batch.ids[batch.example, batch.position])
    torch.autograd.grad(loss, inputs)


def training_step(model: PreTrainedModel, batch: TokenBatch) -> None:
    """Forward and full backward, every weight with a gradient."""
    model.requires_grad_(True)
    torch.autograd.grad(mean_losses(model, batch).mean(), list(model.parameters()))
    model.requires_grad_(False)


def vmapped_gradients(model: PreTrainedModel, batch: TokenBatch) -> object:
    """torch.func's per-example gradients, unprojected: all weights of all examples at once."""
    weights = dict(model.named_parameters())

    def loss(weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
        logits = functional_call(model, weights, (ids[None],), {"use_cache": False}).logits[0]
        return torch.nn.functional.cross_entropy(logits[:-1], ids[1:])

    return vmap(grad(loss), in_dims=(None, 0))(weights, batch.ids)


def window_work(model: PreTrainedModel, batch: TokenBatch, *, peers: bool) -> Work:
    num, length = batch.ids.shape
    work: Work = {
        "floor": partial(floor, model, batch),
        "forward alone": lambda: model(input_ids=batch.ids, use_cache=False),
    }
    for name, projection in PROJECTIONS.items():
        for choice in ("paper", "all"):
            engine = engine_for(model, projection, choice)
            work[f"windows, {choice} blocks, {name}"] = partial(engine.rows, batch, mean_losses, num_examples=num)
            if choice == "paper" and peers:
                work[f"contributions, {name}"] = partial(
                    engine.contributions, batch, mean_losses, num_examples=num, num_positions=length
                )
    if peers:
        work["training step"] = partial(training_step, model, batch)
        work["torch.func vmap(grad)"] = partial(vmapped_gradients, model, batch)
        if peer := bergson_rows(model, batch, side=16):
            work["bergson, 16 × 16"] = peer
        if peer := opacus_gradients(model, batch):
            work["opacus, unprojected"] = peer
    return work


def token_rows(engine: GradientEngine[TokenBatch], ids: torch.Tensor, position: np.ndarray, batch_tokens: int) -> None:
    per_window = len(position) // len(ids)
    window = np.repeat(np.arange(len(ids)), per_window)
    for batch in schedule_tokens(window, position, batch_tokens=batch_tokens):
        tokens = TokenBatch(
            ids=ids[torch.from_numpy(batch.window)][:, : batch.length],
            example=torch.from_numpy(batch.example),
            position=torch.from_numpy(position[batch.unit]),
        )
        engine.rows(tokens, token_losses, tokens.example, num_examples=len(batch.window))


def one_by_one(
    ids: torch.Tensor, position: np.ndarray, run: Callable[[TokenBatch], object], *, whole: bool = False
) -> None:
    """Each token by itself: one forward and one backward, over the positions up to it or over the whole window."""
    windows = np.repeat(np.arange(len(ids)), len(position) // len(ids))
    for window, place in zip(windows, position, strict=True):
        run(
            TokenBatch(
                ids=ids[window : window + 1, : None if whole else place + 1],
                example=torch.zeros(1, dtype=torch.long),
                position=torch.tensor([place]),
            )
        )


def looped_rows(model: PreTrainedModel, projection: Projection, batch: TokenBatch) -> torch.Tensor:
    """What one would write without an engine: the gradient of one token's loss, formed in full, then projected."""
    blocks = find_blocks(model, "paper").blocks
    names = [p for b in blocks for p in b.parameters]
    parameters = [model.get_parameter(n).requires_grad_() for n in names]
    gradients = torch.autograd.grad(token_losses(model, batch).sum(), parameters)
    model.requires_grad_(False)
    full = {n: g[None] for n, g in zip(names, gradients, strict=True)}
    rows = []
    for number, block in enumerate(blocks):
        shape = (block.rows, block.columns)
        made = projection.block(block.name, number=number, shape=shape, dtype=torch.float32, device=batch.ids.device)
        rows.append(made.project(block.matrix(full)))
    return torch.cat(rows, dim=1)


def token_work(model: PreTrainedModel, batch: TokenBatch, seed: int, per_window: int = 8) -> Work:
    length = batch.ids.shape[1]
    shape = (len(batch.ids), per_window)
    position = np.sort(np.random.default_rng(seed).integers(16, length, shape), axis=1).flatten()
    work: Work = {"token floor": lambda: one_by_one(batch.ids, position, partial(floor, model))}
    for name, projection in PROJECTIONS.items():
        engine = engine_for(model, projection, "paper")
        work[f"tokens, {name}"] = partial(token_rows, engine, batch.ids, position, 1024)
    work["one by one, gradients of weights"] = lambda: one_by_one(batch.ids, position, partial(training_step, model))
    loop = partial(looped_rows, model, PROJECTIONS["tensor sketch"])
    work["one by one, whole windows, sketched"] = lambda: one_by_one(batch.ids, position, loop, whole=True)
    return work


def mixed_work(model: PreTrainedModel, seed: int, num_documents: int = 24) -> Work:
    """Documents of 16 to 256 tokens, batched as a collection batches them; the floor has the same batches."""
    lengths = np.random.default_rng(seed).integers(16, 257, num_documents)
    batches = []
    for chosen, longest in fill_batches(lengths, 1024):
        whole = window_batch(model, len(chosen), longest, seed)
        counts = whole.position < torch.from_numpy(lengths[chosen])[whole.example]
        batches.append(TokenBatch(ids=whole.ids, example=whole.example[counts], position=whole.position[counts]))

    def each(run: Callable[[TokenBatch], object]) -> None:
        for batch in batches:
            run(batch)

    def rows(engine: GradientEngine[TokenBatch], batch: TokenBatch) -> None:
        engine.rows(batch, mean_losses, num_examples=len(batch.ids))

    work: Work = {"mixed floor": lambda: each(partial(floor, model))}
    for name, projection in PROJECTIONS.items():
        work[f"documents of mixed length, {name}"] = partial(
            each, partial(rows, engine_for(model, projection, "paper"))
        )
    return work


def bfloat16_rows(model: PreTrainedModel, batch: TokenBatch, rounds: int) -> list[dict[str, Any]]:
    """Rows and floor of the same weights in bfloat16; and how rows point where float32's do."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    exact = copy.deepcopy(half).to(torch.float32)  # the same weights, so that only the arithmetic differs
    num = len(batch.ids)
    engines = [engine_for(m, PROJECTIONS["tensor sketch"], "paper") for m in (half, exact)]
    made = [e.rows(batch, mean_losses, num_examples=num).rows for e in engines]
    work: Work = {
        "floor, bfloat16": partial(floor, half, batch),
        "windows, bfloat16, tensor sketch": partial(engines[0].rows, batch, mean_losses, num_examples=num),
    }
    rows = timed(work, "floor, bfloat16", rounds)
    cosine = float(torch.cosine_similarity(*made).mean())
    return [*rows, {"what": "mean cosine of bfloat16 rows with float32 rows", "over its floor": cosine}]


def timed(work: Work, over: str, rounds: int) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, values in seconds.items():
        ratios = np.array(values) / np.array(seconds[over])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        rows.append(
            {
                "what": name,
                "seconds": float(np.median(values)),
                "over its floor": float(middle),
                "quartiles": f"{low:.2f} to {high:.2f}",
            }
        )
    return rows


def peak_bytes(kind: str, options: argparse.Namespace) -> int:
    """What a process of its own needs at most, beyond what it has once the model stands."""
    command = [sys.executable, __file__, "--memory-of", kind, "--threads", str(options.threads)]
    command += ["--quick"] if options.quick else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def measure_memory(kind: str, quick: bool) -> None:
    model = neox(192, 4, 4096) if quick else neox(512, 6, 8192)
    batch = window_batch(model, 4, 256)
    run: Callable[[], object] = partial(floor, model, batch)
    if kind != "floor":
        engine = engine_for(model, PROJECTIONS[kind], "paper")
        run = partial(engine.rows, batch, mean_losses, num_examples=4)
    floor(model, window_batch(model, 1, 8))  # libraries' own buffers
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from what there is
    before = resident_kilobytes("VmRSS")
    for _ in range(3):
        run()
    print((resident_kilobytes("VmHWM") - before) * 1024)


def resident_kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=None, help="15, or 5 with --quick")
    parser.add_argument("--widths", action="store_true", help="other widths and lengths, and nothing else")
    parser.add_argument("--memory-of", help="print the peak memory of one kind of work, and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    if options.memory_of:
        measure_memory(options.memory_of, options.quick)
        return
    columns = ["model", "what", "seconds", "over its floor", "quartiles"]
    if options.widths:
        finish("collect_widths", columns, widths_and_lengths(options), [], options)
    memory = {kind: peak_bytes(kind, options) for kind in ("floor", *PROJECTIONS)}
    rounds = options.rounds or (5 if options.quick else 15)
    model = neox(192, 4, 4096) if options.quick else neox(512, 6, 8192)
    batch = window_batch(model, 4, 256, options.seed)
    rows = [r | {"model": "GPT-NeoX"} for r in timed(window_work(model, batch, peers=True), "floor", rounds)]
    rows += [r | {"model": "GPT-NeoX"} for r in timed(token_work(model, batch, options.seed), "token floor", rounds)]
    rows += [r | {"model": "GPT-NeoX"} for r in timed(mixed_work(model, options.seed), "mixed floor", rounds)]
    rows += [r | {"model": "GPT-NeoX"} for r in bfloat16_rows(model, batch, rounds)]
    for name, other in (("Mixtral", mixtral(options.quick)), ("Mamba", mamba(options.quick))):
        small = window_batch(other, 4, 256 if name == "Mixtral" else 128, options.seed)
        rows += [r | {"model": name} for r in timed(window_work(other, small, peers=False), "floor", rounds)]
    for kind, value in memory.items():
        rows.append(
            {
                "model": "GPT-NeoX",
                "what": f"peak MB, {kind}",
                "over its floor": value / memory["floor"],
                "MB": value / 1e6,
            }
        )
    finish("collect", columns, rows, bars(rows), options)


def widths_and_lengths(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows over the floor for GPT-NeoX of other shapes; batches of 1,024 tokens, or one window where that is longer."""
    rows = []
    for width, length in ((128, 256), (1024, 256), (512, 64), (512, 1024), (512, 2048)):
        model = neox(width, 6 if width < 1024 else 3, 8192, context=max(length, 256))
        batch = window_batch(model, max(1, 1024 // length), length, options.seed)
        work = window_work(model, batch, peers=False)
        label = f"GPT-NeoX {width} wide, {length} long"
        rows += [r | {"model": label} for r in timed(work, "floor", options.rounds or 7)]
    return rows


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    """Each figure that was asked for, by model and name."""
    found = []

    def bar(model: str, what: str, limit: float, about: str = "") -> None:
        value = next(r["over its floor"] for r in rows if r["model"] == model and r["what"] == what)
        found.append(Bar(name=f"{about}{model}: {what}", value=value, limit=limit, holds=value <= limit))

    for name in PROJECTIONS:
        bar("GPT-NeoX", f"windows, paper blocks, {name}", 1.05)
        bar("GPT-NeoX", f"contributions, {name}", 1.05)
        bar("GPT-NeoX", f"windows, all blocks, {name}", 1.15)
        bar("GPT-NeoX", f"tokens, {name}", 1.15)
        bar("GPT-NeoX", f"peak MB, {name}", 1.15)
        bar("Mixtral", f"windows, all blocks, {name}", 1.15)
        bar("Mamba", f"windows, all blocks, {name}", 1.3)
    cosine = next(r["over its floor"] for r in rows if r["what"].startswith("mean cosine"))
    name = "minus mean cosine of bfloat16 rows with float32 rows"
    found.append(Bar(name=name, value=-cosine, limit=-0.999, holds=cosine >= 0.999))
    peer = next((r["over its floor"] for r in rows if r["what"].startswith("bergson")), None)
    for name in PROJECTIONS if peer is not None else ():
        bar("GPT-NeoX", f"windows, paper blocks, {name}", peer, "below bergson's: ")
    seconds = {r["what"]: r["seconds"] for r in rows if r["model"] == "GPT-NeoX" and "seconds" in r}
    for name in PROJECTIONS:
        speed = seconds["one by one, whole windows, sketched"] / seconds[f"tokens, {name}"]
        found.append(
            Bar(
                name=f"tokens, {name}: minus times the per-token loop's speed", value=-speed, limit=-3, holds=speed >= 3
            )
        )
    return found


if __name__ == "__main__":
    main()
