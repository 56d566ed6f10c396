"""A loss of your own.

Any function of (model, batch) that gives one number per unit is a loss: the batch is whatever the function
understands. Three rules, which the engine relies on:

1. Whatever reaches the model has the example on its first axis.
2. A unit depends on one example alone: no batch statistics, no mean over the batch.
3. The same model and batch give the same numbers: the engine calls it more than once. Draw noise beforehand
   (`masked.mask_tokens` shows how), by the example's id.

    def margins(model, batch):
        logits = model(batch["pixels"]).logits
        return logits.topk(2).values @ torch.tensor([-1.0, 1.0])

    engine.rows(batch, custom_losses(margins), num_examples=8)
"""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from ...errors import ConfigurationError

Batch = TypeVar("Batch")


def custom_losses(function: Callable[[nn.Module, Batch], Tensor]) -> Callable[[nn.Module, Batch], Tensor]:
    """The function, checked at every call: ConfigurationError unless it gives a floating-point tensor, [unit].

    The second rule is checked by the engine's proof (`GradientEngine.prove`), the third by nobody.
    """

    def checked(model: nn.Module, batch: Batch) -> Tensor:
        values = function(model, batch)
        name = getattr(function, "__name__", type(function).__name__)
        if not isinstance(values, Tensor) or values.dim() != 1 or not values.is_floating_point():
            found = f"{values.dtype} {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ConfigurationError(f"The loss {name} gave {found}; needed is one floating-point number per unit.")
        return values

    return checked
