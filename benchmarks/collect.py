"""Seconds of gradient rows over seconds of the floor: a forward pass and the backward pass through activations.

Everything is measured interleaved, in one process, on the same model and batch; ratios are medians over rounds.
GPT-NeoX of random weights, 512 wide, 6 layers, vocabulary 8,192 (quick: 192 wide, 4 layers, vocabulary 4,096).
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from result import Bar, arguments, finish
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import TokenBatch, mean_losses, token_losses
from quantascope.attribution.projection import TensorSketch, TwoSided
from quantascope.attribution.schedule import schedule_tokens


def make_model(quick: bool, seed: int) -> GPTNeoXForCausalLM:
    torch.manual_seed(seed)
    width, layers, vocabulary = (192, 4, 4096) if quick else (512, 6, 8192)
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        max_position_embeddings=256,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )
    return GPTNeoXForCausalLM(config).eval().requires_grad_(False)


def window_batch(model: GPTNeoXForCausalLM, num_windows: int, length: int) -> TokenBatch:
    ids = torch.randint(0, model.config.vocab_size, (num_windows, length))
    example, position = torch.meshgrid(torch.arange(num_windows), torch.arange(1, length), indexing="ij")
    return TokenBatch(ids=ids, example=example.flatten(), position=position.flatten())


def floor(model: GPTNeoXForCausalLM, batch: TokenBatch) -> None:
    """Forward, and backward through activations down to the first layer's input; no weight has a gradient."""
    inputs = model.get_input_embeddings()(batch.ids).requires_grad_()
    logits = model(inputs_embeds=inputs, use_cache=False).logits[batch.example, batch.position - 1]
    loss = torch.nn.functional.cross_entropy(logits, batch.ids[batch.example, batch.position])
    torch.autograd.grad(loss, inputs)


def token_rows(engine: GradientEngine[TokenBatch], ids: torch.Tensor, position: np.ndarray, per_window: int) -> None:
    window = np.repeat(np.arange(len(ids)), per_window)
    for batch in schedule_tokens(window, position, batch_tokens=512):
        tokens = TokenBatch(
            ids=ids[torch.from_numpy(batch.window)][:, : batch.length],
            example=torch.from_numpy(batch.example),
            position=torch.from_numpy(position[batch.unit]),
        )
        engine.rows(tokens, token_losses, tokens.example)


def token_loop(model: GPTNeoXForCausalLM, ids: torch.Tensor, position: np.ndarray, per_window: int) -> None:
    """The floor of token rows without sharing: one forward and one backward over the positions up to each token."""
    for window, place in zip(np.repeat(np.arange(len(ids)), per_window), position, strict=True):
        batch = TokenBatch(
            ids=ids[window : window + 1, : place + 1],
            example=torch.zeros(1, dtype=torch.long),
            position=torch.tensor([place]),
        )
        floor(model, batch)


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(options.threads)
    model = make_model(options.quick, options.seed)
    engines = {
        "two-sided, side 16": GradientEngine[TokenBatch](model, TwoSided(side=16)),
        "tensor sketch, m 256": GradientEngine[TokenBatch](model, TensorSketch(dim_per_block=256)),
    }
    batch = window_batch(model, 4, 256)
    per_window = 8
    position = np.sort(np.random.default_rng(options.seed).integers(16, 256, (4, per_window)), axis=1).flatten()
    work: dict[str, Callable[[], object]] = {
        "floor, windows": lambda: floor(model, batch),
        "forward alone": lambda: model(input_ids=batch.ids, use_cache=False),
    }
    for name, engine in engines.items():
        work[f"windows, {name}"] = lambda e=engine: e.rows(batch, mean_losses)
        work[f"tokens, {name}"] = lambda e=engine: token_rows(e, batch.ids, position, per_window)
    work["floor, tokens"] = lambda: token_loop(model, batch.ids, position, per_window)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(1 + (7 if options.quick else 15)):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    rows, bars = [], []
    for name, values in seconds.items():
        over = "floor, tokens" if "tokens" in name else "floor, windows"
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
        if name.startswith("windows"):
            bars.append(Bar(name=f"{name} over the floor", value=float(middle), limit=1.15, holds=bool(middle <= 1.15)))
        if name.startswith("tokens"):
            bars.append(Bar(name=f"{name} over the floor", value=float(middle), limit=1.15, holds=bool(middle <= 1.15)))
    finish("collect", ["what", "seconds", "over its floor", "quartiles"], rows, bars, options)


if __name__ == "__main__":
    main()
