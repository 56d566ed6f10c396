"""Which tap goes on which module, for one forward pass; all of them come off again afterwards.

A route says for each block how its gradient is found: by the taps of its uses, by copies in an owning module, or not
here (the engine then differentiates once per unit). Knows modules and blocks; not losses.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from ..blocks import Block, Use
from .checkpoint import checkpointed_forward
from .convolution import convolution_hook
from .copies import copies_forward
from .embedding import embedding_forward
from .experts import ExpertMap, experts_forward
from .linear import linear_hook
from .norm import norm_hook
from .recorder import Recorder


@contextmanager
def attached(
    model: nn.Module,
    blocks: tuple[Block, ...],
    tapped: frozenset[int],
    owners: Mapping[str, str],
    recorder: Recorder,
    *,
    layers: tuple[str, ...] = (),
) -> Iterator[None]:
    """Taps on the uses of the `tapped` blocks, and copies of parameters (`owners`: name → owning module).

    The activations of `layers` are computed again in the backward pass, except below torch.vmap.
    """
    with ExitStack() as stack:
        for name, uses in _uses(blocks, tapped).items():
            _attach(stack, model, blocks, name, uses, recorder)
        for owner, parameters in _outermost(model, owners).items():
            module = model.get_submodule(owner)
            is_local = "norm" in type(module).__name__.lower() and "group" not in type(module).__name__.lower()
            by_position = is_local and not any(True for _ in module.children())
            _replace_forward(
                stack, module, copies_forward(recorder, owner, module, parameters, by_position=by_position)
            )
        for name in layers:
            if not any(name != owner and _within(name, owner) for owner in owners.values()):
                module = model.get_submodule(name)
                _replace_forward(stack, module, checkpointed_forward(module))
        yield


def _uses(blocks: tuple[Block, ...], tapped: frozenset[int]) -> dict[str, list[tuple[int, Use]]]:
    found: dict[str, list[tuple[int, Use]]] = {}
    for number in sorted(tapped):
        for use in blocks[number].uses:
            found.setdefault(use.module, []).append((number, use))
    return found


def _attach(
    stack: ExitStack,
    model: nn.Module,
    blocks: tuple[Block, ...],
    name: str,
    uses: list[tuple[int, Use]],
    recorder: Recorder,
) -> None:
    module = model.get_submodule(name)
    number, use = uses[0]
    block = blocks[number]
    if use.tap == "experts":
        numbers = {blocks[n].parameters[0].rpartition(".")[2]: n for n, _ in uses}
        maps = [
            _expert_map(module, w, numbers) for w in ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")
        ]
        _replace_forward(stack, module, experts_forward(recorder, name, module, maps[0], maps[1]))
        return
    if use.tap == "embedding":
        assert isinstance(module, nn.Embedding)
        _replace_forward(stack, module, embedding_forward(recorder, name, number, module))
        return
    if use.tap == "norm":
        hook = norm_hook(recorder, name, number, module, block.parameters)
    elif use.tap == "linear":
        hook = linear_hook(recorder, name, number, bias=block.bias)
    else:
        hook = convolution_hook(recorder, name, number, bias=block.bias)
    handle = module.register_forward_hook(hook, with_kwargs=True)
    stack.callback(handle.remove)


def _expert_map(module: nn.Module, weight: str, numbers: dict[str, int]) -> ExpertMap:
    return ExpertMap(number=numbers.get(weight), weight=weight, bias=f"{weight}_bias" if module.has_bias else None)


def _outermost(model: nn.Module, owners: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """For each owning module that lies in no other one: its parameters, by name within it and in the model."""
    wanted = {id(model.get_parameter(p)): p for p in owners}
    roots = sorted(set(owners.values()), key=len)
    tops = [o for i, o in enumerate(roots) if not any(_within(o, other) for other in roots[:i])]
    found: dict[str, dict[str, str]] = {top: {} for top in tops}
    for full, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in wanted:
            for top in tops:
                # one name is enough: functional_call replaces tied parameters together
                if _within(full, top) and wanted[id(parameter)] not in found[top].values():
                    found[top][full.removeprefix(f"{top}." if top else "")] = wanted[id(parameter)]
    return found


def _within(name: str, owner: str) -> bool:
    return owner == "" or name == owner or name.startswith(f"{owner}.")


def _replace_forward(stack: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward

    def restore() -> None:
        if before is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = before

    stack.callback(restore)
