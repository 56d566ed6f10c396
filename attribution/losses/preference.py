"""Direct preference optimisation (Rafailov et al. 2023): a preferred completion against another. One unit per pair."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from ...errors import ConfigurationError
from .contrast import CompletionPairs, completion_contrast_losses


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceBatch:
    """Pairs of completions, and what the reference model makes of them."""

    pairs: CompletionPairs
    reference_chosen: Float[Tensor, " example"]
    """log π_ref(chosen | prompt), summed over the completion, in nats: `-sum_losses(reference, pairs.chosen)`."""
    reference_rejected: Float[Tensor, " example"]
    beta: float = 0.1
    """How strongly the policy is held to the reference; above 0."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigurationError(f"beta is {self.beta}; give a number above 0.")


def preference_losses(model: nn.Module, batch: PreferenceBatch) -> Float[Tensor, " example"]:
    """−log σ(β [log π(y_w|x)/π_ref(y_w|x) − log π(y_l|x)/π_ref(y_l|x)]), in nats: equation 7, for each pair.

    y_w is the chosen, y_l the rejected completion. The reference's numbers are constants, so that only the model at
    hand has a gradient. How two completions make one unit: see `contrast`.
    """
    reference = batch.reference_chosen - batch.reference_rejected
    worse = completion_contrast_losses(model, batch.pairs)
    return softplus(batch.beta * (worse + reference.to(worse.dtype)))
