"""Projected gradients by group of examples, taken from the backward pass that training makes anyway.

A linear map's gradient for a group is G = Σ gₜ xₜᵀ over that group's positions; what is kept is (A P)ᵀ G (B Q), with P
and Q random signs of k columns for the parameter's two axes, and A, B diagonal factors that the caller may set. It
needs the two thin products gₜ A P and xₜ B Q: about k/in + k/out of the multiplications that the weight's own gradient
takes. An embedding's rows of B Q are looked up; biases and norms have one axis, so (A P)ᵀ times their gradient, with k
columns for a bias (its product goes along with its weight's) and k² for a norm.

Parameters of other modules get nothing, and are named. Inner products are unbiased: signs over √k. Knows modules and
groups; nothing of optimisers or ledgers.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Inexact, Int64
from torch import Tensor, nn
from torch.nn.functional import embedding, layer_norm

from ...errors import ConfigurationError
from ..blocks import is_linear
from ..randomness import random_signs


@dataclass(slots=True, kw_only=True, eq=False)
class Sides:
    """The random factors of one parameter, plain and scaled."""

    plain: tuple[Float[Tensor, "_ k"], ...]
    """One for each axis of the parameter as it is stored: ± 1/√k."""
    scaled: tuple[Float[Tensor, "_ k"], ...]
    """The same times the diagonal factors."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a projected gradient."""
        return tuple(side.shape[1] for side in self.plain)

    def project(self, value: Tensor, *, scaled: bool = False) -> Tensor:
        """Pᵀ V Q, or (A P)ᵀ V (B Q), of a tensor in the parameter's shape."""
        sides = self.scaled if scaled else self.plain
        found = sides[0].T @ value.to(sides[0].dtype)
        return found @ sides[1] if len(sides) == 2 else found

    def scale(self, factors: tuple[Tensor, ...]) -> None:
        """Set the diagonal factors, one for each axis."""
        self.scaled = tuple(side * f.to(side.dtype)[:, None] for side, f in zip(self.plain, factors, strict=True))


class GradientTaps:
    """Listens to a model's backward passes and adds projected gradients up by group."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], *, k: int = 16, seed: int = 0) -> None:
        """`k` columns for each axis; ConfigurationError for k below 1."""
        if k < 1:
            raise ConfigurationError(f"k is {k}; each axis needs at least 1 column.")
        names = {id(p): name for name, p in parameters.items()}
        self._hooked: list[tuple[nn.Module, Callable[..., Any]]] = []
        found: set[str] = set()
        biases: set[str] = set()
        for module in model.modules():
            own = {local: names[id(p)] for local, p in module.named_parameters(recurse=False) if id(p) in names}
            hook = _hook_of(module) if own else None
            if hook is not None:
                self._hooked.append((module, partial(_hear, partial(hook, self, own))))
                found |= set(own.values())
                biases |= set(own.values()) if is_linear(module) else set()
        widths = {name: k if p.dim() == 2 or name in biases else k * k for name, p in parameters.items()}
        self.sides = {name: _sides(name, p, widths[name], seed) for name, p in parameters.items() if name in found}
        self.uncovered = sorted(set(parameters) - found)
        """Parameters that are not listened to."""
        self._groups: Int64[Tensor, " example"] | None = None
        self._sums: dict[str, Tensor] = {}
        self.active = False

    def zeros(self, num_groups: int) -> dict[str, Tensor]:
        """Sums to listen into: [group, …] for each parameter."""
        return {name: s.plain[0].new_zeros(num_groups, *s.shape) for name, s in self.sides.items()}

    @contextmanager
    def listening(self, groups: Int64[Tensor, " example"], sums: dict[str, Tensor]) -> Iterator[None]:
        """While this lasts, backward passes over a batch of these examples add to `sums`, [group, …] by parameter."""
        self._groups, self._sums, self.active = groups, sums, True
        handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in self._hooked]
        try:
            yield
        finally:
            self.active = False
            for handle in handles:
                handle.remove()

    def add(self, name: str, rows: Inexact[Tensor, "token k"], columns: Inexact[Tensor, "token k"]) -> None:
        """Σ over each example's tokens of rowsᵀ columns, into its group."""
        each = self.per_example(rows)
        first, second = (side.reshape(self.num_examples, each, -1) for side in (rows, columns))
        self.add_rows(name, torch.bmm(first.transpose(1, 2), second))

    def add_rows(self, name: str, found: Inexact[Tensor, "example ..."]) -> None:
        """Each example's projected gradient, into its group."""
        assert self._groups is not None, "outside of listening"
        self._sums[name].index_add_(0, self._groups, found.to(self._sums[name].dtype))

    @property
    def num_examples(self) -> int:
        """Of the batch that is listened to."""
        assert self._groups is not None, "outside of listening"
        return len(self._groups)

    def per_example(self, rows: Tensor) -> int:
        """Positions of each example; ConfigurationError where they are not the same for all."""
        each, left = divmod(len(rows), self.num_examples)
        if left:
            raise ConfigurationError(
                f"A module saw {len(rows)} positions for {self.num_examples} examples: all examples of a batch must "
                "lie on the first axis of its tensors, with equally many positions."
            )
        return each


def _sides(name: str, parameter: nn.Parameter, width: int, seed: int) -> Sides:
    plain = tuple(
        torch.from_numpy(random_signs(seed, name, f"side {axis}", size * width).reshape(size, width))
        .to(parameter.device, torch.promote_types(parameter.dtype, torch.float32))
        .div_(width**0.5)
        for axis, size in enumerate(parameter.shape)
    )
    return Sides(plain=plain, scaled=plain)


def _hook_of(module: nn.Module) -> Callable[..., Any] | None:
    if is_linear(module):
        return _linear
    if isinstance(module, nn.Embedding):
        return None if module.scale_grad_by_freq or module.max_norm is not None else _embedding
    if isinstance(module, nn.LayerNorm):
        return _norm if len(module.normalized_shape) == 1 else None
    return _norm if "RMSNorm" in type(module).__name__ and hasattr(module, "weight") else None


def _hear(
    listen: Callable[[nn.Module, Tensor, Tensor], Tensor | None],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Tensor,
) -> Tensor | None:
    """What a module was given and gave, where a gradient will come back; what `listen` gives instead, if anything."""
    given: Tensor = args[0] if args else next(iter(kwargs.values()))
    return listen(module, given, output) if output.requires_grad else None


def _linear(taps: GradientTaps, own: Mapping[str, str], module: nn.Module, given: Tensor, output: Tensor) -> None:
    x = given.detach()
    out_axis, in_axis = (0, 1) if isinstance(module, nn.Linear) else (1, 0)
    columns = None
    if "weight" in own:
        side = taps.sides[own["weight"]].scaled[in_axis]
        columns = x.reshape(-1, x.shape[-1]).to(side.dtype) @ side

    def found(gradient: Tensor) -> None:
        if not taps.active:
            return
        axes = {"weight": out_axis, "bias": 0}
        sides = [taps.sides[own[local]].scaled[axes[local]] for local in own]
        both = sides[0] if len(sides) == 1 else torch.cat(sides, dim=1)  # so that the gradient is read once
        g = gradient.reshape(-1, gradient.shape[-1])
        products = (g.to(both.dtype) @ both).split([side.shape[1] for side in sides], dim=1)
        for name, rows in zip(own.values(), products, strict=True):
            if name == own.get("weight") and columns is not None:
                first, second = (rows, columns) if out_axis == 0 else (columns, rows)
                taps.add(name, first, second)
            else:
                taps.add_rows(name, rows.reshape(taps.num_examples, taps.per_example(rows), -1).sum(1))

    output.register_hook(found)


def _embedding(
    taps: GradientTaps, own: Mapping[str, str], module: nn.Module, given: Tensor, output: Tensor
) -> Tensor | None:
    index = given
    if index.dim() == 2 and len(index) == 1 and taps.num_examples > 1:  # positions, the same for all examples
        index = index.expand(taps.num_examples, -1)
        output = output.expand(taps.num_examples, *output.shape[1:])
    padding = getattr(module, "padding_idx", None)
    name = own["weight"]

    def found(gradient: Tensor) -> None:
        if not taps.active:
            return
        words, inner = taps.sides[name].scaled
        g = gradient.reshape(-1, gradient.shape[-1]).to(inner.dtype)
        if padding is not None:
            g = g.masked_fill((index.reshape(-1) == padding)[:, None], 0)
        taps.add(name, embedding(index.reshape(-1), words), g @ inner)

    output.register_hook(found)
    return output


def _norm(taps: GradientTaps, own: Mapping[str, str], module: nn.Module, given: Tensor, output: Tensor) -> None:
    x = given.detach()

    def found(gradient: Tensor) -> None:
        if not taps.active:
            return
        g = gradient.reshape(-1, gradient.shape[-1])
        if "weight" in own:
            scaled = g * _normalised(module, x).reshape(g.shape)
            _vector(taps, own["weight"], scaled, taps.sides[own["weight"]].scaled[0])
        if "bias" in own:
            _vector(taps, own["bias"], g, taps.sides[own["bias"]].scaled[0])

    output.register_hook(found)


def _vector(taps: GradientTaps, name: str, g: Tensor, side: Tensor) -> None:
    """A gradient of one axis: added over positions first, so that the product is one row for each example."""
    sums = g.reshape(taps.num_examples, taps.per_example(g), g.shape[-1]).sum(1, dtype=side.dtype)
    taps.add_rows(name, sums @ side)


def _normalised(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, nn.LayerNorm):
        return layer_norm(x, module.normalized_shape, eps=module.eps)
    eps = float(getattr(module, "variance_epsilon", getattr(module, "eps", None) or 1e-6))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
