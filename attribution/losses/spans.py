"""Next-token cross-entropy of spans: several units of one example, each with tokens of its own."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from .tokens import TokenBatch, tallied, token_losses


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanBatch:
    """Padded windows, and tokens among them that are gathered into units (a chat's answers, a text's sentences)."""

    tokens: TokenBatch
    unit: Int[Tensor, " token"]
    """Which unit each token counts for; all tokens of a unit belong to one example, and one token to one unit."""
    example: Int[Tensor, " unit"]
    """Which example each unit belongs to: what `GradientEngine.rows` takes as `example`."""


def span_sums(model: nn.Module, batch: SpanBatch) -> Float[Tensor, " unit"]:
    """Summed cross-entropy, in nats, of each unit's tokens given all that precedes each; 0 for a unit without any."""
    losses = token_losses(model, batch.tokens)
    return losses.new_zeros(len(batch.example)).index_add(0, batch.unit, losses)


def span_losses(model: nn.Module, batch: SpanBatch) -> Float[Tensor, " unit"]:
    """Mean cross-entropy, in nats per token, of each unit's tokens; 0 for a unit without any."""
    return span_sums(model, batch) / tallied(batch.unit, len(batch.example))
