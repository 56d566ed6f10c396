"""Parameters that no tap follows: the module that owns them sees one copy of each per example.

Under torch.vmap (torch.func) each example meets its own copy, whose gradient is then that example's, whatever the
module computes: norms of any form, gates, class tokens, state-space and time-mix vectors. The other parameters of
the module stay shared, and taps inside it go on working.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from .recorder import NoExamplesError, Recorder


def copies_forward(
    recorder: Recorder, name: str, module: nn.Module, parameters: dict[str, str], *, by_position: bool
) -> Callable[..., Any]:
    """A replacement for the module's forward. `parameters` maps names within the module to the model's.

    Tensors with at least two axes whose first has the examples' length, or (where the first tensor holds examples
    and positions on one axis) that tensor's length, are split by example; everything else is shared. `by_position`
    makes a copy for every position: right for modules that treat each vector by itself.
    """
    bare = Bare(module)

    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any module's signature
        if not torch.is_grad_enabled():  # no part of any loss
            return bare(*args, **kwargs)
        given, spec = tree_flatten((args, kwargs))
        main = next((x for x in given if isinstance(x, Tensor) and x.dim() > 1), None)
        if main is None or recorder.read(name, main, vectors=1) == "shared":
            raise NoExamplesError(name, "gets no tensor that holds the examples")
        is_flat = recorder.readings[name] == "flat"
        apart = recorder.num_positions if by_position and not is_flat else None
        if apart is not None and (main.dim() < 3 or main.shape[1] != apart):
            apart = None
        copies = recorder.num_examples * (apart or 1)
        places = [i for i, x in enumerate(given) if isinstance(x, Tensor) and x.dim() > 1 and len(x) == len(main)]
        leaves = {}
        for inner, outer in parameters.items():
            parameter = module.get_parameter(inner).detach()
            leaves[f"module.{inner}"] = parameter.expand(copies, *parameter.shape).detach().requires_grad_()
            if not recorder.is_over:
                recorder.parameter_leaves.append((outer, leaves[f"module.{inner}"]))
        found: list[Any] = []

        def one(own: dict[str, Tensor], *mapped: Tensor) -> tuple[Tensor, ...]:
            values = list(given)
            for place, value in zip(places, mapped, strict=True):
                values[place] = value
            inner_args, inner_kwargs = tree_unflatten(values, spec)
            results, found[:] = _tensors(functional_call(bare, own, inner_args, inner_kwargs))
            return results

        shaped = [_split(given[i], copies, apart is not None, is_flat=is_flat) for i in places]
        try:
            with sdpa_kernel(SDPBackend.MATH):  # the only kernel with a derivative for every argument under vmap
                results = torch.vmap(one)(leaves, *shaped)
        except NoExamplesError:
            raise
        except Exception as error:  # whatever a model raises under vmap, the loop can still do it
            if recorder.is_over:  # torch ends a recomputation by an exception, once it has what it needs
                raise
            raise NoExamplesError(name, f"cannot run under torch.vmap: {error}") from error
        merged = [_merge(r, recorder.num_examples, apart, is_flat=is_flat) for r in results]
        return _rebuilt(merged, found)

    return forward


class Bare(nn.Module):
    """A module's own forward, without the hooks that its call runs: these run once, on all examples."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._original = module.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any module's signature
        """What the module computes."""
        return self._original(*args, **kwargs)


def _split(x: Tensor, copies: int, apart: bool, *, is_flat: bool) -> Tensor:
    if is_flat:
        return x.reshape(copies, -1, *x.shape[1:])
    return x.flatten(0, 1)[:, None, None] if apart else x.unsqueeze(1)


def _merge(x: Tensor, num_examples: int, apart: int | None, *, is_flat: bool) -> Tensor:
    if apart is not None:
        return x.reshape(num_examples, apart, *x.shape[3:])
    return x.flatten(0, 1) if is_flat or (x.dim() > 1 and x.shape[1] == 1) else x


def _tensors(output: Any) -> tuple[tuple[Tensor, ...], list[Any]]:  # noqa: ANN401 - any module's result
    """The tensors of a result, and all that is needed to build it again."""
    values, spec = tree_flatten(output)
    places = [i for i, x in enumerate(values) if isinstance(x, Tensor)]
    return tuple(values[i] for i in places), [values, places, spec]


def _rebuilt(tensors: list[Tensor], found: list[Any]) -> Any:  # noqa: ANN401 - any module's result
    values, places, spec = found
    values = list(values)
    for place, tensor in zip(places, tensors, strict=True):
        values[place] = tensor
    return tree_unflatten(values, spec)
