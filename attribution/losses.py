"""Losses of language models, one per unit. Knows token ids and positions; not where they come from."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Padded windows, and the tokens among them whose losses are asked for."""

    ids: Int[Tensor, "example position"]
    """Token ids, padded on the right with any id: later positions don't reach earlier ones in a causal model."""
    example: Int[Tensor, " token"]
    position: Int[Tensor, " token"]
    """Where each predicted token stands in its window: at least 1, since it is predicted from what comes before."""


def token_losses(model: nn.Module, batch: TokenBatch) -> Float[Tensor, " token"]:
    """Cross-entropy in nats of each token given what comes before it in its window.

    Logits are computed only where a loss is asked for.
    """
    with _only_positions(model, batch.example, batch.position - 1) as gathered:
        logits = model(input_ids=batch.ids, use_cache=False).logits
    logits = logits[:, 0] if gathered else logits[batch.example, batch.position - 1]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return cross_entropy(wide, batch.ids[batch.example, batch.position], reduction="none")


def mean_losses(model: nn.Module, batch: TokenBatch) -> Float[Tensor, " example"]:
    """Mean cross-entropy, in nats per token, of each window's asked-for tokens."""
    losses = token_losses(model, batch)
    num_examples = len(batch.ids)
    count = torch.bincount(batch.example, minlength=num_examples).clamp(min=1)
    return losses.new_zeros(num_examples).index_add(0, batch.example, losses) / count


@contextmanager
def _only_positions(model: nn.Module, example: Tensor, position: Tensor) -> Iterator[bool]:
    """Hand the output head [token, 1, width] instead of every position.

    False if the model names no head, or somebody listens to it: the engine's taps need every position of every example.
    """
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    if head is None or head._forward_hooks:
        yield False
        return

    def gather(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][example, position].unsqueeze(1), *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield True
    finally:
        handle.remove()
