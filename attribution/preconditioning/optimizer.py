"""The second moment that an optimiser of Adam's family holds, by parameter name.

Knows torch's optimisers and the form of their state; reads no files.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigurationError


def second_moments(
    optimizer: torch.optim.Optimizer | Mapping[str, Any], model: nn.Module, *, names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """v̂ = v / (1 − β₂ᵗ) of each parameter that has been stepped (Kingma & Ba 2015, algorithm 1), in its shape.

    An optimiser of this very model is read by identity. A state dict is read by names where it has them (torch's
    `param_names`, or names as keys); else in the order of `names`, or, where it has only one group, of the model's
    parameters. Raises ConfigurationError where that leaves doubt, for other families, and where a shape differs.
    """
    state, groups = _state_and_groups(optimizer, model, names)
    shapes = {name: p.shape for name, p in model.named_parameters(remove_duplicate=False)}
    found = {}
    for (key, name), group in groups:
        values = state.get(key)
        if not values:
            continue  # frozen, or never used
        if "exp_avg_sq" not in values or "step" not in values or "betas" not in group:
            raise ConfigurationError(
                f"The optimiser holds no second moment for {name}; it has {', '.join(map(str, values))}. "
                "Accepted are Adam, AdamW and others with exp_avg_sq, step and betas."
            )
        moment = values["exp_avg_sq"]
        if moment.shape != shapes.get(name):
            raise ConfigurationError(
                f"The optimiser's second moment for {name} is {tuple(moment.shape)}, the model's parameter "
                f"{tuple(shapes[name]) if name in shapes else 'does not exist'}; give names= in the optimiser's order."
            )
        steps = float(values["step"])
        if steps < 1:
            raise ConfigurationError(f"The optimiser has made {steps:g} steps on {name}; it needs at least one.")
        found[name] = moment.detach() / (1 - float(group["betas"][1]) ** steps)
    if not found:
        raise ConfigurationError("The optimiser has no state; take it after at least one step.")
    return found


_Keyed = list[tuple[tuple[Any, str], Mapping[str, Any]]]
"""For each parameter its key in the state, its name, and its group."""


def _state_and_groups(
    optimizer: torch.optim.Optimizer | Mapping[str, Any], model: nn.Module, names: Sequence[str] | None
) -> tuple[Mapping[Any, Any], _Keyed]:
    if isinstance(optimizer, torch.optim.Optimizer):
        by_identity = {id(p): name for name, p in model.named_parameters()}
        parameters = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        if not all(id(p) in by_identity for p, _ in parameters):
            raise ConfigurationError(
                "The optimiser holds parameters that the model does not; give the optimiser of this very model, "
                "or its state_dict()."
            )
        return optimizer.state, [((p, by_identity[id(p)]), group) for p, group in parameters]
    if "state" not in optimizer or "param_groups" not in optimizer:
        raise ConfigurationError(
            f"An optimiser's state dict has state and param_groups; this one has {', '.join(map(str, optimizer))}."
        )
    groups = optimizer["param_groups"]
    keys = [(key, group) for group in groups for key in group["params"]]
    own = list(names) if names is not None else _own_names(groups, keys, model)
    if len(own) != len(keys):
        raise ConfigurationError(
            f"The optimiser holds {len(keys)} parameters, there are {len(own)} names; give names= in its order."
        )
    return optimizer["state"], [((key, name), group) for (key, group), name in zip(keys, own, strict=True)]


def _own_names(groups: Sequence[Mapping[str, Any]], keys: list[tuple[Any, Any]], model: nn.Module) -> list[str]:
    if all("param_names" in group for group in groups):
        return [name for group in groups for name in group["param_names"]]
    if all(isinstance(key, str) for key, _ in keys):
        return [key for key, _ in keys]
    if len(groups) > 1:
        raise ConfigurationError(
            f"The optimiser's state has {len(groups)} groups of parameters and no names, so that their order is "
            "unknown; give names= in the optimiser's order."
        )
    return [name for name, _ in model.named_parameters()]
