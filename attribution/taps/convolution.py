"""Convolutions in one to three dimensions, without groups: patches of the input in place of x."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from .recorder import NoExamplesError, Recorder, examples_first

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def convolution_hook(recorder: Recorder, name: str, number: int, *, bias: bool) -> Callable[..., Tensor]:
    """A forward hook (with keyword arguments) of one nn.Conv1d, Conv2d or Conv3d with groups=1."""
    projection = recorder.projections[number]

    def forward(module: Convolution, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if not recorder.is_listening:
            return recorder.watch(output, None)
        x = recorder.own(number, examples_first(args[0] if args else kwargs["input"])[0].detach())
        dimensions = len(module.kernel_size)
        num_examples, shape = len(x), x.shape[-dimensions - 1 :]
        if recorder.read(name, x, vectors=dimensions + 1) != "example":
            raise NoExamplesError(name, f"saw a tensor of shape {tuple(x.shape)} without examples")
        # below vmap there is one more axis, of length 1, behind the examples
        columns = projection.columns(patches(module, x.reshape(num_examples, *shape)), constant=bias)

        def backward(gradient: Tensor) -> None:
            g = recorder.own(number, gradient).reshape(num_examples, gradient.shape[-dimensions - 1], -1)
            recorder.add(number, projection.rows(g.transpose(1, 2)), columns)

        return recorder.watch(output, backward)

    return forward


def patches(module: Convolution, x: Float[Tensor, "example channel ..."]) -> Float[Tensor, "example site entry"]:
    """What each site of the output sees, with entries in the order of the weight's: channel, then kernel."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = pad(x, module._reversed_padding_repeated_twice, mode=mode)
    dimensions = len(module.kernel_size)
    for axis, (size, step, gap) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
    ):
        x = x.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    # [example, channel, sites…, kernel…]
    sites = x.movedim(1, 1 + dimensions)
    return sites.flatten(1 + dimensions).flatten(1, dimensions)
