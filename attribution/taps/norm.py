"""Norms: x̂ ⊙ g, with x̂ what the weight multiplies, whatever the norm divides by."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from .copies import Bare
from .recorder import Recorder, examples_first


def norm_hook(
    recorder: Recorder, name: str, number: int, module: nn.Module, parameters: tuple[str, ...]
) -> Callable[..., Tensor]:
    """A forward hook (with keyword arguments) of a norm whose output is linear in its weight, and in its bias if any.

    x̂ is the module's own output for a weight of ones and a bias of zeros; or, where the module adds 1 to its weight,
    for zeros. `parameters`: the model's names of weight and bias.
    """
    bare = Bare(module)
    own = {p: p.rpartition(".")[2] for p in parameters}

    def normalised(value: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        weights = {
            f"module.{inner}": torch.full_like(module.get_parameter(inner), value if i == 0 else 0.0)
            for i, inner in enumerate(own.values())
        }
        result: Tensor = functional_call(bare, weights, args, kwargs)
        return result.detach()

    def forward(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if not recorder.is_listening:
            return recorder.watch(output, None)
        with torch.no_grad():
            if name not in recorder.adds_one:  # once: asking makes a GPU wait
                at_zero = normalised(0.0, *tree_map(_known_vector, (args, kwargs)))
                recorder.adds_one[name] = bool(at_zero.any())
            normal = examples_first(normalised(0.0 if recorder.adds_one[name] else 1.0, args, kwargs))[0]
        normal = recorder.positions(name, number, normal)
        reading = recorder.readings[name]

        def backward(gradient: Tensor) -> None:
            g = recorder.shape_as(reading, recorder.own(number, gradient))
            found = (g * normal, g)
            for parameter, part in zip(own, found, strict=False):
                recorder.add_vector(parameter, recorder.summed(part))

        return recorder.watch(output, backward)

    return forward


def _known_vector(argument: object) -> object:
    """In place of a tensor of vectors a single one, finite and not constant, whatever the batch holds."""
    if not isinstance(argument, Tensor) or argument.dim() < 2:
        return argument
    width = argument.shape[-1]
    known = torch.linspace(1, 2, width, device=argument.device, dtype=argument.dtype)
    return known.reshape(*(1,) * (argument.dim() - 1), width)
