"""Linear maps: x kept from the forward pass, g from the backward pass, both compressed."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .recorder import Recorder, examples_first


def linear_hook(recorder: Recorder, name: str, number: int, *, bias: bool) -> Callable[..., Tensor]:
    """A forward hook (with keyword arguments) of one linear map; `bias` adds the constant column."""
    projection = recorder.projections[number]

    def forward(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if not recorder.is_listening:
            return recorder.watch(output, None)
        given = args[0] if args else kwargs["input"]
        x = recorder.positions(name, number, examples_first(given.detach())[0])
        columns = projection.columns(x, constant=bias)
        reading = recorder.readings[name]

        def backward(gradient: Tensor) -> None:
            g = recorder.shape_as(reading, recorder.own(number, gradient))
            recorder.add(number, projection.rows(g), columns)

        return recorder.watch(output, backward)

    return forward
