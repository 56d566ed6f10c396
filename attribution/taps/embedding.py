"""Embeddings: the token's random row in place of x, so that nothing as long as the vocabulary is ever formed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.overrides import TorchFunctionMode

from .recorder import NoExamplesError, Recorder, examples_first


def embedding_forward(recorder: Recorder, name: str, number: int, module: nn.Embedding) -> Callable[..., Any]:
    """A replacement for the module's forward, whatever a subclass does around the lookup (offsets, scales)."""
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any subclass's signature
        with _Lookup(recorder, name, number, module):
            return original(*args, **kwargs)

    return forward


class _Lookup(TorchFunctionMode):
    """Taps the one lookup in the module's weight.

    Indices that are the same for all examples (positions, [1, position]) are given an example axis, so that the
    gradients of the examples stay apart where the model would add them up.
    """

    def __init__(self, recorder: Recorder, name: str, number: int, module: nn.Embedding) -> None:
        super().__init__()
        self._recorder, self._name, self._number, self._module = recorder, name, number, module

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401 - torch's protocol
        del types
        result = func(*args, **(kwargs or {}))
        if func is embedding and args[1] is self._module.weight:
            return self._tap(args[0], result)
        return result

    def _tap(self, index: Tensor, output: Tensor) -> Tensor:
        recorder, number = self._recorder, self._number
        if not torch.is_grad_enabled():
            return output
        projection = recorder.projections[number]
        index = examples_first(index)[0].to(recorder.devices[number])
        if recorder.read(self._name, index, vectors=0) == "shared":
            if index.dim() != 2 or len(index) != 1:
                raise NoExamplesError(self._name, f"saw indices {tuple(index.shape)}, the same for all examples")
            output = output.expand(recorder.num_examples, *output.shape[1:])
            index = index.expand(recorder.num_examples, -1)
        if not recorder.is_listening:
            return recorder.watch(output, None)
        index = index.reshape(recorder.num_examples, -1)
        if self._module.padding_idx is not None:
            index = torch.where(index == self._module.padding_idx, -1, index)
        rows = projection.one_hot(index)

        def backward(gradient: Tensor) -> None:
            g = recorder.own(number, gradient).reshape(*index.shape, gradient.shape[-1])
            recorder.add(number, rows, projection.columns(g))

        return recorder.watch(output, backward)
