"""A damaged model: a part of it is left out while a context lasts, without touching a weight.

    layers.3            the whole layer: its output is its input (the residual stream passes by)
    layers.3.heads.1    one attention head: what it would give to the output projection is zero
    layers.3.attention  the attention's, or (layers.3.mlp) the feed-forward part's, output is zero

Counted from 0. Layers are the longest list of equal modules in the model, attention and feed-forward parts are told
by their names. Knows torch modules; nothing of losses or quanta.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigurationError
from ..blocks import is_linear

_FORM = re.compile(r"layers\.(\d+)(?:\.(heads)\.(\d+)|\.(attention|mlp))?")
_ATTENTION = ("attention", "attn", "self_attn", "self_attention", "mixer")
_FEED_FORWARD = ("mlp", "feed_forward", "ffn", "ff", "block_sparse_moe")
_OUTPUT = ("dense", "o_proj", "c_proj", "out_proj", "wo", "out_lin")


def num_layers(model: nn.Module) -> int:
    """How many layers `layers.N` counts."""
    return len(_layers(model))


@contextmanager
def lesioned(model: nn.Module, part: str) -> Iterator[nn.Module]:
    """The model without `part` while this lasts; ConfigurationError for a part that it does not have."""
    found = _FORM.fullmatch(part)
    if found is None:
        raise ConfigurationError(
            f"--lesion is {part!r}; accepted are layers.N, layers.N.heads.M, layers.N.attention and layers.N.mlp."
        )
    layers = _layers(model)
    number = int(found[1])
    if number >= len(layers):
        raise ConfigurationError(f"--lesion is {part!r}; the model has {len(layers)} layers, counted from 0.")
    layer = layers[number]
    with ExitStack() as stack:
        if found[2]:
            handle = _silence_head(model, layer, int(found[3]), part)
        elif found[4]:
            names = _ATTENTION if found[4] == "attention" else _FEED_FORWARD
            handle = _child(layer, names, part).register_forward_hook(_give(torch.zeros_like))
        else:
            handle = layer.register_forward_hook(_pass_by, with_kwargs=True)
        stack.callback(handle.remove)
        yield model


def _layers(model: nn.Module) -> nn.ModuleList:
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len({type(c) for c in m}) == 1]
    lists = [m for m in lists if any(True for _ in m[0].children())]
    if not lists:
        raise ConfigurationError(f"{type(model).__name__} has no list of layers to leave one out of.")
    return max(lists, key=len)


def _child(layer: nn.Module, names: tuple[str, ...], part: str) -> nn.Module:
    own = dict(layer.named_children())
    for name in names:
        if name in own:
            return own[name]
    raise ConfigurationError(f"--lesion is {part!r}; the layer's parts are {', '.join(own)}, none of which is that.")


def _silence_head(model: nn.Module, layer: nn.Module, head: int, part: str) -> Any:  # noqa: ANN401 - torch's handle
    attention = _child(layer, _ATTENTION, part)
    inner = [(n, m) for n, m in attention.named_modules() if is_linear(m) and n.rpartition(".")[2] in _OUTPUT]
    heads = int(getattr(getattr(model, "config", None), "num_attention_heads", 0) or 0)
    if not inner or not heads:
        raise ConfigurationError(
            f"--lesion is {part!r}, but the attention's output projection or the number of heads is not known for "
            f"{type(model).__name__}; leave out the whole attention (layers.N.attention)."
        )
    if head >= heads:
        raise ConfigurationError(f"--lesion is {part!r}; a layer has {heads} heads, counted from 0.")

    def silence(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        width = args[0].shape[-1] // heads
        values = args[0].clone()
        values[..., head * width : (head + 1) * width] = 0
        return (values, *args[1:])

    return inner[-1][1].register_forward_pre_hook(silence)


def _give(value: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:  # noqa: ANN401 - torch's signature
        return (value(output[0]), *output[1:]) if isinstance(output, tuple) else value(output)

    return hook


def _pass_by(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ANN401
    stream = args[0] if args else kwargs["hidden_states"]
    return (stream, *output[1:]) if isinstance(output, tuple) else stream
