"""Cross-entropy of a class, for any model that gives one logit per class. One unit per example."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...errors import ConfigurationError
from ._logits import predictions


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationBatch:
    """What the model gets, and the right answers."""

    inputs: Mapping[str, Tensor] | tuple[Tensor, ...]
    """The model's arguments, by name or in order, each with the example on its first axis."""
    labels: Int[Tensor, " example"]
    """The right class of each example, from 0."""


def classification_losses(model: nn.Module, batch: ClassificationBatch) -> Float[Tensor, " example"]:
    """−log softmax(logits)[label], in nats. The model returns [example, class], or an output with `.logits`.

    Raises ConfigurationError for predictions of another shape.
    """
    logits = predictions(model, batch.inputs)
    if logits.dim() != 2 or len(logits) != len(batch.labels):
        raise ConfigurationError(
            f"{type(model).__name__} gave logits of shape {list(logits.shape)} for {len(batch.labels)} labels; "
            "needed is [example, class]."
        )
    return cross_entropy(logits, batch.labels, reduction="none")
