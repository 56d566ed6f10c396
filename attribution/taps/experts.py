"""Fused mixture-of-experts weights, as transformers 5 stores them: [expert, out, in], or [expert, in, out].

A token that is routed to expert e uses that expert's rows of the block; the block is the sum over experts. The
module's forward is replaced by one that sorts tokens by expert and keeps, for every pair of token and expert, what
goes into and comes out of both maps. Contract of these modules: transformers' `use_experts_implementation`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float, Inexact, Int
from torch import Tensor, nn

from ..projection.base import GroupedBlockProjection
from .recorder import NoExamplesError, Recorder


class FusedExperts(Protocol):
    """What a module of fused experts has, besides its weights."""

    num_experts: int
    down_proj: Tensor
    is_transposed: bool
    has_gate: bool
    has_bias: bool
    has_post_expert_norm: bool

    def _apply_gate(self, gate_up_out: Tensor) -> Tensor: ...

    def act_fn(self, up_out: Tensor) -> Tensor:
        """The activation of experts without a gate."""
        ...

    def post_expert_norm(self, out: Tensor) -> Tensor:
        """The norm of each expert's output, if there is one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertMap:
    """One of an experts module's two maps, and its block where it has one."""

    number: int | None
    weight: str
    bias: str | None


def experts_forward(
    recorder: Recorder, name: str, module: nn.Module, first: ExpertMap, second: ExpertMap
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A replacement for the module's `forward(hidden_states, top_k_index, top_k_weights)`."""
    experts = cast(FusedExperts, module)

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        if hidden_states.dim() != 2 or recorder.read(name, hidden_states, vectors=1) == "shared":
            raise NoExamplesError(name, f"saw tokens of shape {tuple(hidden_states.shape)}")
        device = experts.down_proj.device
        hidden_states, top_k_index, top_k_weights = (x.to(device) for x in (hidden_states, top_k_index, top_k_weights))
        num_tokens, top_k = top_k_index.shape
        expert, order = torch.sort(top_k_index.reshape(-1), stable=True)
        counts = torch.bincount(expert, minlength=experts.num_experts)[: experts.num_experts].tolist()
        routed = _Routed(order=order, inverse=torch.argsort(order), counts=counts)
        pairs = hidden_states.unsqueeze(1).expand(-1, top_k, -1).reshape(num_tokens * top_k, -1)
        inner = _map(recorder, module, first, routed.by_expert(pairs), routed)
        inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
        outer = _map(recorder, module, second, inner, routed)
        if experts.has_post_expert_norm:
            outer = experts.post_expert_norm(outer)
        weighted = routed.by_token(outer).reshape(num_tokens, top_k, -1) * top_k_weights.unsqueeze(-1)
        return weighted.sum(1).to(hidden_states.dtype)

    return forward


@dataclass(frozen=True, slots=True, kw_only=True)
class _Routed:
    """Pairs of token and expert: token · k + choice, and the same sorted by expert."""

    order: Int[Tensor, " pair"]
    inverse: Int[Tensor, " pair"]
    counts: list[int]
    """Pairs of each expert."""

    def by_expert(self, pairs: Inexact[Tensor, "pair width"]) -> Inexact[Tensor, "pair width"]:
        """From the order of tokens to that of experts."""
        return _permute(pairs, self.order, self.inverse)

    def by_token(self, pairs: Inexact[Tensor, "pair width"]) -> Inexact[Tensor, "pair width"]:
        """From the order of experts back to that of tokens."""
        return _permute(pairs, self.inverse, self.order)

    def by_example(self, pairs: Tensor, num_examples: int) -> Inexact[Tensor, "example pair width"]:
        """`by_token`, with an example's pairs together."""
        return self.by_token(pairs).reshape(num_examples, -1, pairs.shape[-1])


class _Permute(torch.autograd.Function):
    """Rows in another order. Its derivative is a permutation too, where indexing's is a slow sum."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        del inverse
        return rows.index_select(0, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ANN401 - torch's protocol
        del output
        _, order, inverse = inputs
        ctx.save_for_backward(order, inverse)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401 - torch's protocol
        order, inverse = ctx.saved_tensors
        return _permute(gradient, inverse, order), None, None


def _permute(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    result: Tensor = _Permute.apply(rows, order, inverse)  # type: ignore[no-untyped-call]  # torch gives it no types
    return result


def _map(recorder: Recorder, module: nn.Module, which: ExpertMap, x: Tensor, routed: _Routed) -> Tensor:
    """x Wₑᵀ + bₑ for each expert's tokens, tapped."""
    weight = getattr(module, which.weight)
    weight = weight if module.is_transposed else weight.transpose(-2, -1)
    output = _grouped_product(x, weight, routed.counts)
    if which.bias:
        output = output + getattr(module, which.bias).repeat_interleave(
            torch.tensor(routed.counts, device=x.device), dim=0, output_size=len(x)
        )
    if which.number is None:
        return output
    if not recorder.is_listening:
        return recorder.watch(output, None)
    number, projection = which.number, recorder.projections[which.number]
    given = routed.by_example(recorder.own(number, x.detach()), recorder.num_examples)
    columns = projection.columns(given, constant=which.bias is not None)
    width = output.shape[-1]

    def backward(gradient: Tensor) -> None:
        g = recorder.own(number, gradient)
        if isinstance(projection, GroupedBlockProjection):
            rows = projection.grouped_rows(g, routed.counts)
        else:
            parts = enumerate(torch.split(g, routed.counts))
            rows = torch.cat([projection.rows(part[None], start=e * width)[0] for e, part in parts if len(part)])
        recorder.add(number, routed.by_example(rows, recorder.num_examples), columns)

    return recorder.watch(output, backward)


def _grouped_product(
    x: Float[Tensor, "pair column"], weight: Float[Tensor, "expert column row"], counts: list[int]
) -> Float[Tensor, "pair row"]:
    """x Wₑ, for vectors sorted by expert."""
    return torch.cat([part @ weight[e] for e, part in enumerate(torch.split(x, counts))])
