"""Next-token cross-entropy, token by token. Knows token ids and positions; not where they come from."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ._logits import logits_at


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Padded windows, and the tokens among them whose losses are asked for."""

    ids: Int[Tensor, "example position"]
    """Token ids, padded on the right with any id: later positions don't reach earlier ones in a causal model."""
    example: Int[Tensor, " token"]
    position: Int[Tensor, " token"]
    """Where each predicted token stands in its window: at least 1, since it is predicted from what comes before."""


def token_losses(model: nn.Module, batch: TokenBatch) -> Float[Tensor, " token"]:
    """Cross-entropy in nats of each token given what comes before it in its window: −log p(xₜ | x₍<ₜ₎).

    Each token is a unit (`example=batch.example` for the engine). Logits are computed only where a loss is asked for.
    """
    logits = logits_at(model, batch.example, batch.position - 1, input_ids=batch.ids, use_cache=False)
    return cross_entropy(logits, batch.ids[batch.example, batch.position], reduction="none")


def tallied(unit: Int[Tensor, " token"], num_units: int) -> Int[Tensor, " unit"]:
    """How many tokens count for each unit, at least 1. torch.bincount would make a GPU wait."""
    count = torch.zeros(num_units, dtype=torch.long, device=unit.device)
    return count.index_add(0, unit, torch.ones_like(unit)).clamp(min=1)
