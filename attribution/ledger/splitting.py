"""Gradients by group of examples from one backward pass: the training's own gradients stay untouched, bit for bit.

Hooks keep each module's input in the forward pass and see the gradient at its output in the backward pass. A linear
map's gradient for a group is then Σ gₜ xₜᵀ over that group's examples, an embedding's a sum of gₜ into its words'
rows; any other module that owns parameters is computed once more on the group's examples. What a module cannot give
in this way is differentiated once per group, which is always right and slower.

At the first batch of two groups or more, one group's gradients are compared with autograd's own, parameter by
parameter; whatever differs is differentiated from then on. Knows modules and groups; nothing of optimisers.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from ...errors import CoverageError
from ..blocks import is_linear

Sums = Mapping[str, Tensor]
"""By parameter name: [group, …] in the parameter's shape, added to in place."""

_TOLERANCE = {torch.float64: (1e-5, 1e-8), torch.float32: (1e-3, 1e-5)}
_LOOSE = (0.2, 0.02)
"""By dtype: a parameter's error over its own gradient's norm, and over all of them, that is still rounding."""


class GradientSplitter:
    """A model whose backward passes give the gradient of each group of examples."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self.model, self.parameters = model, dict(parameters)
        names = {id(p): name for name, p in self.parameters.items()}
        self._owned: dict[nn.Module, dict[str, str]] = {}
        for module in model.modules():
            own = {local: names[id(p)] for local, p in module.named_parameters(recurse=False) if id(p) in names}
            if own:
                self._owned[module] = own
        self.looped: set[str] = {n for m, own in self._owned.items() if _hook_of(m) is None for n in own.values()}
        """Parameters that are differentiated once per group."""
        self._proved = False
        self._missed: set[str] = set()
        self._batch: _Batch | None = None

    @contextmanager
    def listening(self, group: Int64[Tensor, " example"], sums: Sums) -> Iterator[None]:
        """While this lasts, forward passes see these examples, and `backward` adds to `sums`."""
        self._batch = _Batch(group, sums)
        self._missed.clear()
        with ExitStack() as stack:
            for module, all_own in self._owned.items():
                own = {local: name for local, name in all_own.items() if name not in self.looped}
                hook = _hook_of(module)
                if hook is not None and own:
                    handle = module.register_forward_hook(hook(self, module, own), with_kwargs=True)
                    stack.callback(handle.remove)
            try:
                yield
            finally:
                self._batch = None

    def backward(self, total: Tensor, part: Callable[[Tensor], Tensor], *, into_grad: bool) -> None:
        """The backward pass of `total`, whose share of the examples with these numbers is `part(numbers)`.

        `into_grad` adds the gradients of `total` to the parameters' .grad; else they are thrown away. Raises
        CoverageError where a module holds its examples in another way than at first.
        """
        batch = self.batch
        proving = not self._proved and len(batch.present) > 1
        before = {name: batch.sums[name].clone() for name in self.parameters} if not self._proved else {}
        keep = bool(self.looped) or not self._proved
        batch.active = True
        if into_grad:
            total.backward(retain_graph=keep)
        else:
            torch.autograd.grad(total, list(self.parameters.values()), retain_graph=keep, allow_unused=True)
        batch.active = False
        if self._missed and self._proved:
            raise CoverageError(
                f"{min(self._missed)} saw a tensor whose first axis does not hold the {batch.num_examples} examples as "
                "in earlier batches; give every batch in the same form."
            )
        wrong = set(self._missed)
        unlike = self._unlike(before, batch.present[0], part) if proving else None
        if unlike is not None:
            wrong |= unlike
            self._proved = True
        for name in wrong - self.looped:
            batch.sums[name].copy_(before[name])
            self.looped.add(name)
        self._loop(part)

    @property
    def batch(self) -> "_Batch":
        """The batch that is listened to."""
        assert self._batch is not None, "backward outside of listening"
        return self._batch

    def miss(self, own: Mapping[str, str]) -> None:
        """A module's tensor does not hold the examples apart."""
        self._missed |= set(own.values())

    def _unlike(self, before: Sums, group: int, part: Callable[[Tensor], Tensor]) -> set[str] | None:
        """Parameters whose gradient for one group is not what autograd says; None where an overflow proves nothing."""
        batch = self.batch
        found = self._autograd(part(batch.members(group)), list(self.parameters))
        total = torch.stack([g.norm() for g in found.values()]).norm()
        if not total.isfinite():
            return None
        own, whole = _TOLERANCE.get(batch.coarsest, _LOOSE)
        return {
            name
            for name, g in found.items()
            if not (batch.sums[name][group] - before[name][group] - g).norm() <= own * g.norm() + whole * total
        }

    def _loop(self, part: Callable[[Tensor], Tensor]) -> None:
        names = sorted(self.looped)
        if not names:
            return
        for group in self.batch.present:
            for name, gradient in self._autograd(part(self.batch.members(group)), names).items():
                self.batch.sums[name][group] += gradient

    def _autograd(self, value: Tensor, names: list[str]) -> dict[str, Tensor]:
        parameters = [self.parameters[n] for n in names]
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


class _Batch:
    """Examples sorted by group."""

    def __init__(self, group: Int64[Tensor, " example"], sums: Sums) -> None:
        self.group, self.sums = group, sums
        self.num_examples = len(group)
        self.active = False
        """Whether gradients are being added: during the one backward pass that counts."""
        self.within = False
        """Whether a module is being computed once more, which no hook is to see."""
        self.coarsest: torch.dtype = torch.float64
        """Of the gradients that were seen: what rounding to expect."""
        self.order = torch.argsort(group, stable=True)
        self._is_sorted = bool((self.order == torch.arange(len(group), device=group.device)).all())
        present, counts = torch.unique_consecutive(group[self.order], return_counts=True)
        self.present: list[int] = present.tolist()
        self.counts: list[int] = counts.tolist()

    def members(self, group: int) -> Int64[Tensor, " member"]:
        """The numbers of a group's examples."""
        return torch.nonzero(self.group == group).flatten()

    def holds(self, tensor: Tensor, vectors: int) -> bool:
        """Whether the first axis is the examples', or theirs with the positions' behind each other."""
        if tensor.dim() == 0 or len(tensor) % self.num_examples:
            return False
        return len(tensor) == self.num_examples or tensor.dim() == vectors + 1

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """One stretch of the first axis for each group that is present."""
        each = len(tensor) // self.num_examples
        if not self._is_sorted:
            shaped = tensor.reshape(self.num_examples, each, *tensor.shape[1:])
            tensor = shaped[self.order].reshape(tensor.shape)
        return torch.split(tensor, [count * each for count in self.counts])

    def watch(self, output: Tensor, found: Callable[[Tensor], None]) -> None:
        """Call `found` with the gradient at this output, in the backward pass that is listened to."""

        def seen(gradient: Tensor) -> None:
            if self.active and not self.within:
                if torch.finfo(gradient.dtype).eps > torch.finfo(self.coarsest).eps:
                    self.coarsest = gradient.dtype
                self.within = True
                found(gradient)
                self.within = False

        output.register_hook(seen)


def _hook_of(module: nn.Module) -> Callable[..., Any] | None:
    """What makes the forward hook of a module's kind; None where there is no way but differentiating."""
    if is_linear(module):
        return _linear_hook
    if isinstance(module, nn.Embedding):
        return None if module.scale_grad_by_freq or module.max_norm is not None or module.sparse else _embedding_hook
    return None if any(True for _ in module.children()) else _again_hook


def _linear_hook(splitter: GradientSplitter, module: nn.Module, own: dict[str, str]) -> Callable[..., None]:
    batch = splitter.batch
    is_transposed = not isinstance(module, nn.Linear)

    def forward(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if batch.within or not output.requires_grad:
            return
        x = (args[0] if args else kwargs["input"]).detach()
        if not batch.holds(x, 1):
            splitter.miss(own)
            return

        def found(gradient: Tensor) -> None:
            for group, given, g in zip(batch.present, batch.split(x), batch.split(gradient), strict=True):
                rows = g.reshape(-1, g.shape[-1])
                if "weight" in own:
                    into = batch.sums[own["weight"]][group]
                    columns = given.reshape(-1, given.shape[-1]).to(into.dtype)
                    first, second = (columns, rows) if is_transposed else (rows, columns)
                    into.addmm_(first.T.to(into.dtype), second.to(into.dtype))
                if "bias" in own:
                    into = batch.sums[own["bias"]][group]
                    into += rows.sum(0, dtype=into.dtype)

        batch.watch(output, found)

    return forward


def _embedding_hook(splitter: GradientSplitter, module: nn.Embedding, own: dict[str, str]) -> Callable[..., Any]:
    batch, padding = splitter.batch, module.padding_idx

    def forward(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        if batch.within or not output.requires_grad:
            return None
        index = args[0] if args else kwargs["input"]
        if index.dim() == 2 and len(index) == 1 and batch.num_examples > 1:  # positions, the same for all examples
            index = index.expand(batch.num_examples, -1)
            output = output.expand(batch.num_examples, *output.shape[1:])
        if not batch.holds(index, 0):
            splitter.miss(own)
            return None

        def found(gradient: Tensor) -> None:
            into = batch.sums[own["weight"]]
            num_words, width = into.shape[1:]
            each = batch.group.repeat_interleave(index.numel() // batch.num_examples)
            values = gradient.reshape(-1, width).to(into.dtype)
            words = index.reshape(-1)
            if padding is not None:
                values = values.masked_fill((words == padding).unsqueeze(1), 0)
            into.view(-1, width).index_add_(0, each * num_words + words, values)

        batch.watch(output, found)
        return output

    return forward


def _again_hook(splitter: GradientSplitter, module: nn.Module, own: dict[str, str]) -> Callable[..., None]:
    """Any module without children: computed once more for each group, with its parameters as leaves."""
    batch = splitter.batch

    def forward(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:  # noqa: ANN401
        if batch.within or (isinstance(output, Tensor) and not output.requires_grad):
            return
        main = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if main is None or not isinstance(output, Tensor) or not batch.holds(main, 1) or len(output) != len(main):
            splitter.miss(own)
            return
        length = len(main)
        given = tree_map(lambda a: a.detach() if isinstance(a, Tensor) else a, (args, kwargs))

        def found(gradient: Tensor) -> None:
            leaves = {local: module.get_parameter(local).detach().requires_grad_() for local in own}
            for place, (group, g) in enumerate(zip(batch.present, batch.split(gradient), strict=True)):
                part = tree_map(lambda a, at=place: _part(batch, a, length, at), given)
                with torch.enable_grad():
                    result = functional_call(module, leaves, *part)
                gradients = torch.autograd.grad(result, list(leaves.values()), g.to(result.dtype), allow_unused=True)
                for name, value in zip(own.values(), gradients, strict=True):
                    if value is not None:
                        batch.sums[name][group] += value

        batch.watch(output, found)

    return forward


def _part(batch: _Batch, value: Any, length: int, place: int) -> Any:  # noqa: ANN401 - any argument of a module
    return batch.split(value)[place] if isinstance(value, Tensor) and value.dim() and len(value) == length else value
