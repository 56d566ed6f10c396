"""The demonstration's model and its training step: one batch, one update, one measurement at a time.

Knows the recipe and windows of tokens. Knows no clock, no files and no progress.
"""

import math
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from quantascope.errors import BadWeightsError

from .optimiser import optimisers
from .recipe import TrainingConfig
from .windows import Windows

_MAX_REFUSED_STEPS = 20


def build_model(config: TrainingConfig) -> Any:  # noqa: ANN401 - transformers is untyped
    """A GPT-NeoX whose layers and head put out zero at first: the first steps don't unlearn noise."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=config.vocabulary_size,
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=4 * config.width,
            max_position_embeddings=config.window_tokens,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
            initializer_range=0.1,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            use_parallel_residual=True,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
    )
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        for name, parameter in model.named_parameters():
            if name.endswith(("attention.dense.weight", "mlp.dense_4h_to_h.weight")):
                parameter.zero_()
    return model


class Trainer:
    """One training loop: the model, its optimisers, and what was measured on the way."""

    def __init__(self, config: TrainingConfig, windows: Windows) -> None:
        self.config = config
        self.windows = windows
        self.model = build_model(config)
        self.num_tokens = 0
        self.num_refused = 0
        self.mean_loss = math.log(config.vocabulary_size)
        self._optimisers = optimisers(
            self.model,
            num_heads=config.num_heads,
            matrix_learning_rate=config.matrix_learning_rate,
            table_learning_rate=config.table_learning_rate,
            weight_decay=config.weight_decay,
        )
        self._peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in self._optimisers]
        self._bfloat16 = _use_bfloat16(config)
        self._refused_in_a_row = 0

    def step(self, step: int, fraction: float) -> None:
        """Train on the next batch; refuses the update where the loss or a gradient is not finite."""
        config = self.config
        indices = torch.arange(step * config.batch_windows, (step + 1) * config.batch_windows)
        batch = self.windows.train[indices % len(self.windows.train)]
        loss = self._loss(batch).mean()
        self.model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not bool(torch.isfinite(norm)) or not bool(torch.isfinite(loss)):
            return self._refuse(step)
        self._refused_in_a_row = 0
        self._set_rate(fraction)
        for optimiser in self._optimisers:
            optimiser.step()
        self.num_tokens += config.batch_windows * config.window_tokens
        smoothing = min(0.98, (step + 1) / (step + 11))
        self.mean_loss = smoothing * self.mean_loss + (1 - smoothing) * float(loss.detach())
        return None

    def held_out(self, num_windows: int) -> tuple[float, float]:
        """Nats per token and bits per byte, in full precision, on windows spread over the held-out files."""
        spread = np.linspace(0, len(self.windows.held_out) - 1, min(num_windows, len(self.windows.held_out)))
        chosen = self.windows.held_out[torch.from_numpy(spread.round().astype(np.int64))]
        with torch.no_grad():
            nats = sum(float(self._loss(batch, full=True).double().sum()) for batch in torch.split(chosen, 8))
        targets = chosen[:, 1:]
        num_bytes = int(self.windows.token_bytes[targets].sum())
        return nats / targets.numel(), nats / math.log(2) / num_bytes

    def _loss(self, batch: torch.Tensor, *, full: bool = False) -> torch.Tensor:
        """Nats of each predicted token, shape [token]."""
        with _lower_precision(self._bfloat16 and not full):
            logits = self.model(input_ids=batch[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction="none")

    def _set_rate(self, fraction: float) -> None:
        warmup = self.config.warmup_share
        scale = min(1.0 - fraction, max(fraction, 1e-3) / warmup if warmup else 1.0)
        for optimiser, peaks in zip(self._optimisers, self._peaks, strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = scale * peak

    def _refuse(self, step: int) -> None:
        self.num_refused += 1
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= _MAX_REFUSED_STEPS:
            raise BadWeightsError(
                f"Training diverged: {_MAX_REFUSED_STEPS} steps up to step {step} had no finite loss or gradient. "
                "Lower matrix_learning_rate and table_learning_rate."
            )


def _lower_precision(wanted: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=wanted)


def _use_bfloat16(config: TrainingConfig) -> bool:
    if config.precision != "auto":
        return config.precision == "bfloat16"
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(has_tiles())
