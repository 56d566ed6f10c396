"""One completion over another ("John" over "Mary"): what pulls the two apart, as a loss.

A unit has to depend on one example only, and the example is the first axis of what the model sees. So the two
completions of a unit are two calls of the model, in both of which unit u is example u: the gradients of both calls
add up in example u, whatever the architecture, each side is padded by itself, and no mask is needed. (Two rows of one
call would belong to two examples; two branches on one sequence need masks that recurrent models don't have.)
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from ...errors import ConfigurationError
from ._logits import logits_at
from .completions import sum_losses
from .tokens import TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenContrasts:
    """Places where one token is wanted over another; an example may have several."""

    ids: Int[Tensor, "example position"]
    """Token ids, padded on the right."""
    example: Int[Tensor, " unit"]
    position: Int[Tensor, " unit"]
    """Where the token would stand, at least 1: the logits are those of the position before. What the ids hold there
    does not matter; it may be the prompt's length where the ids end with the prompt."""
    chosen: Int[Tensor, " unit"]
    """The token that is wanted."""
    rejected: Int[Tensor, " unit"]
    """The token that it is compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionPairs:
    """Two completions of each prompt. Example u of both sides belongs to unit u; the padded lengths may differ."""

    chosen: TokenBatch
    """Prompts with the wanted completions, whose tokens are the ones asked for."""
    rejected: TokenBatch
    """The same prompts with the other completions."""

    def __post_init__(self) -> None:
        if len(self.chosen.ids) != len(self.rejected.ids):
            raise ConfigurationError(
                f"{len(self.chosen.ids)} chosen and {len(self.rejected.ids)} rejected completions: give pairs."
            )


def token_contrast_losses(model: nn.Module, batch: TokenContrasts) -> Float[Tensor, " unit"]:
    """Logit of the rejected token minus logit of the chosen one, in nats: the logit difference, as a loss.

    It falls as the chosen token gets likelier, so that data which taught it has rows that point the same way. Equal
    to the difference of the two tokens' cross-entropies, since the normaliser cancels.
    """
    logits = logits_at(model, batch.example, batch.position - 1, input_ids=batch.ids, use_cache=False)
    pair = logits.gather(1, batch.rejected[:, None]) - logits.gather(1, batch.chosen[:, None])
    return pair[:, 0]


def completion_contrast_losses(model: nn.Module, batch: CompletionPairs) -> Float[Tensor, " example"]:
    """log p(rejected | prompt) − log p(chosen | prompt), each summed over its completion's tokens, in nats.

    For completions of one token each it is `token_contrast_losses`. For `GradientEngine.contributions`, pad both sides
    to one length: a position's share is then its share in both calls together.
    """
    return sum_losses(model, batch.chosen) - sum_losses(model, batch.rejected)
