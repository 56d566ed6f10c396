"""Logits of a model, only where they are asked for. Knows modules and how they hand out logits; no losses."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...errors import ConfigurationError


def logits_at(
    model: nn.Module,
    example: Int[Tensor, " token"],
    position: Int[Tensor, " token"],
    **inputs: Any,  # noqa: ANN401 - any model's keywords
) -> Float[Tensor, "token vocab"]:
    """A language model's logits at some positions, in float32 or, for a float64 model, float64.

    The output head computes no others where nobody listens to it.
    """
    with _only_positions(model, example, position) as gathered:
        logits = model(**inputs).logits
    return wide(logits[:, 0] if gathered else logits[example, position])


def predictions(model: nn.Module, inputs: Mapping[str, Tensor] | tuple[Tensor, ...]) -> Float[Tensor, "example ..."]:
    """What a model predicts: the tensor that it returns, or its output's `.logits`, in float32 or float64."""
    output = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    found = getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise ConfigurationError(
            f"{type(model).__name__} returned {type(output).__name__}; this loss needs a tensor, or an output with "
            ".logits. Write a loss of your own (attribution.losses.custom)."
        )
    return wide(found)


def wide(values: Tensor) -> Tensor:
    """In float32 at least: half precision is too coarse for losses."""
    return values if values.dtype == torch.float64 else values.float()


@contextmanager
def _only_positions(model: nn.Module, example: Tensor, position: Tensor) -> Iterator[bool]:
    """Hand the output head [token, 1, width] instead of every position.

    False if the model names no head, or somebody listens to it: the engine's taps need every position of every example.
    """
    get = getattr(model, "get_output_embeddings", None)
    try:
        head = get() if callable(get) else None
    except NotImplementedError:  # transformers' way of saying that a model names none
        head = None
    if head is None or head._forward_hooks:
        yield False
        return

    def gather(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        device = args[0].device  # of a model on several devices, the head's need not be the batch's
        return (args[0][example.to(device), position.to(device)].unsqueeze(1), *args[1:])

    handle = head.register_forward_pre_hook(gather)
    try:
        yield True
    finally:
        handle.remove()
