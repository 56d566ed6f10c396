"""Fused mixture-of-experts weights, as transformers 5 stores them: [expert, out, in], or [expert, in, out].

A token that is routed to expert e uses that expert's rows of the block; the block is the sum over experts. The
module's forward is replaced by one that sorts tokens by expert and keeps, for every pair of token and expert, what
goes into and comes out of both maps. Contract of these modules: transformers' `use_experts_implementation`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from jaxtyping import Inexact, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from .recorder import NoExamplesError, Recorder


class FusedExperts(Protocol):
    """What a module of fused experts has, besides its weights."""

    num_experts: int
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
        top_k = top_k_index.shape[-1]
        expert, order = torch.sort(top_k_index.reshape(-1), stable=True)
        counts = torch.bincount(expert, minlength=experts.num_experts)[: experts.num_experts].tolist()
        routed = _Routed(order=order, counts=counts, top_k=top_k)
        inner = _map(recorder, module, first, hidden_states[order // top_k], routed)
        inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
        outer = _map(recorder, module, second, inner, routed)
        if experts.has_post_expert_norm:
            outer = experts.post_expert_norm(outer)
        weighted = outer * top_k_weights.reshape(-1)[order].unsqueeze(-1)
        pairs = torch.empty_like(weighted).index_copy(0, order, weighted)
        return pairs.reshape(len(hidden_states), top_k, -1).sum(1).to(hidden_states.dtype)

    return forward


@dataclass(frozen=True, slots=True, kw_only=True)
class _Routed:
    order: Int[Tensor, " pair"]
    """Pairs (token · k + choice) sorted by expert."""
    counts: list[int]
    top_k: int

    def as_positions(self, sorted_pairs: Tensor, num_examples: int) -> Inexact[Tensor, "example pair width"]:
        """From the order of experts back to the order of tokens, with an example's pairs together."""
        pairs = torch.empty_like(sorted_pairs).index_copy(0, self.order, sorted_pairs)
        return pairs.reshape(num_examples, -1, pairs.shape[-1])


def _map(recorder: Recorder, module: nn.Module, which: ExpertMap, x: Tensor, routed: _Routed) -> Tensor:
    """x Wₑᵀ + bₑ for each expert's tokens, tapped."""
    weight = getattr(module, which.weight)
    bias = getattr(module, which.bias) if which.bias else None
    parts = [
        linear(part, weight[e].T if module.is_transposed else weight[e], None if bias is None else bias[e])
        for e, part in enumerate(torch.split(x, routed.counts))
    ]
    output = torch.cat(parts)
    if which.number is None:
        return output
    number, projection = which.number, recorder.projections[which.number]
    kept = projection.columns(x.detach().to(recorder.dtype)[None], constant=bias is not None)[0]
    columns = routed.as_positions(kept, recorder.num_examples)
    width = output.shape[-1]

    def backward(gradient: Tensor) -> None:
        split = torch.split(gradient.to(recorder.dtype), routed.counts)
        rows = torch.cat([projection.rows(g[None], start=e * width)[0] for e, g in enumerate(split) if len(g)])
        recorder.add(number, routed.as_positions(rows, recorder.num_examples), columns)

    return recorder.watch(output, backward)
