"""Next-token cross-entropy of a whole example, or of the part of it that counts. One unit per example."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from .tokens import TokenBatch, tallied, token_losses

TokenValues = Callable[[nn.Module, TokenBatch], Float[Tensor, " token"]]


def sum_losses(model: nn.Module, batch: TokenBatch, of: TokenValues = token_losses) -> Float[Tensor, " example"]:
    """Summed cross-entropy, in nats, of each example's asked-for tokens: −log p(completion | what comes before).

    Tokens that the batch does not name (a prompt's) are read and not counted. 0 for an example without any. `of` adds
    up something else of each token.
    """
    losses = of(model, batch)
    return losses.new_zeros(len(batch.ids)).index_add(0, batch.example, losses)


def mean_losses(model: nn.Module, batch: TokenBatch, of: TokenValues = token_losses) -> Float[Tensor, " example"]:
    """Mean cross-entropy, in nats per token, of each example's asked-for tokens; 0 for an example without any."""
    return sum_losses(model, batch, of) / tallied(batch.example, len(batch.ids))
