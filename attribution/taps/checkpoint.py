"""Activation checkpointing: a layer keeps its input alone, and is run again in the backward pass (Chen et al. 2016,
arXiv 1604.06174).

Works in evaluation mode, which models' own switches for it do not, and is the kind of torch's checkpointing without
re-entry: the graph is the forward pass's, so that gradients arrive at the taps of that pass, once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint as torch_checkpoint
from torch.utils.checkpoint import checkpoint


def layers_of(model: nn.Module) -> tuple[str, ...]:
    """The layers of a model: items of its outermost lists and sequences of modules that have modules of their own.

    A single map has nothing inside to compute again.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and not any(name.startswith(f"{f}.") for f in found):
            items = ((f"{name}.{n}".removeprefix("."), item) for n, item in module.named_children())
            found += [n for n, item in items if not isinstance(item, nn.ModuleList) and any(item.children())]
    return tuple(found)


def checkpointed_forward(module: nn.Module) -> Callable[..., Any]:
    """A replacement for the module's forward that keeps no activations of it."""
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any module's signature
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        return checkpoint(partial(original, **kwargs), *args, use_reentrant=False)

    return forward


@contextmanager
def without_reentry() -> Iterator[None]:
    """Within, a model that asks torch for checkpointing with re-entry gets the other kind, of the same numbers.

    With it, layers run without a graph, and nothing that a tap could hear comes back: their rows would be zero.
    """
    before = torch_checkpoint.CheckpointFunction
    torch_checkpoint.CheckpointFunction = _WithoutReentry  # type: ignore[assignment,misc]  # has the one method used
    try:
        yield
    finally:
        torch_checkpoint.CheckpointFunction = before  # type: ignore[misc]  # as it was


class _WithoutReentry:
    """Stands where torch.utils.checkpoint looks for its re-entrant function."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:  # noqa: ANN401 - torch's protocol
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)
