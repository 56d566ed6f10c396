"""The margin of a token: how far its logit stands above the mean logit.

A description of *what* a well-predicted token uses should not depend on which mistake happens to be left. The loss's
gradient does: it is Σ_k p_k ∇(z_k − z_y) over the other tokens k, and where p_y is nearly 1 the p_k that are left over
are accidents of training. The margin takes all k alike: its gradient, of mean_k z_k − z_y, is the direction that the
loss's takes at infinite temperature. On a language of known skills that is what makes clusters of gradients find them
(docs/evidence.md). Knows token ids and positions, like the token losses, and takes their place in the engine.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ._logits import logits_at
from .tokens import TokenBatch


def token_margins(model: nn.Module, batch: TokenBatch) -> Float[Tensor, " token"]:
    """Mean logit less the logit of each token, given what comes before it; lower is better, no lower bound.

    Each token is a unit (`example=batch.example` for the engine), in the order of the batch.
    """
    logits = logits_at(model, batch.example, batch.position - 1, input_ids=batch.ids, use_cache=False)
    own = logits.gather(1, batch.ids[batch.example, batch.position][:, None])
    return logits.mean(dim=1) - own[:, 0]
