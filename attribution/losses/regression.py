"""Half the squared error, for any model that predicts numbers. One unit per example."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from ...errors import ConfigurationError
from ._logits import predictions


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionBatch:
    """What the model gets, and what it should say."""

    inputs: Mapping[str, Tensor] | tuple[Tensor, ...]
    """The model's arguments, by name or in order, each with the example on its first axis."""
    targets: Float[Tensor, "example ..."]
    """In the shape of the model's output, up to axes of length 1."""


def regression_losses(model: nn.Module, batch: RegressionBatch) -> Float[Tensor, " example"]:
    """½ ‖prediction − target‖², summed over all outputs of an example, in the target's unit squared.

    Minus the log-likelihood under a normal distribution of variance 1, up to a constant. Raises ConfigurationError
    where prediction and target differ in more than axes of length 1: nothing is broadcast.
    """
    predicted = predictions(model, batch.inputs)
    shapes = [[len(x), *(n for n in x.shape[1:] if n != 1)] for x in (predicted, batch.targets)]
    if shapes[0] != shapes[1]:
        raise ConfigurationError(
            f"{type(model).__name__} predicts {list(predicted.shape)}, the targets are {list(batch.targets.shape)}: "
            "give targets of the prediction's shape."
        )
    difference = predicted.reshape(len(predicted), -1) - batch.targets.to(predicted.dtype).reshape(len(predicted), -1)
    return difference.square().sum(1) / 2
