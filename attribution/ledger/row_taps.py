"""The engine's taps on a model that is being trained: a row for every example, from training's own backward pass.

The engine (engine.py) freezes a model and makes a backward pass of its own; here the weights stay as training has
them, and the gradient that passes by anyway is compressed on its way. Outputs are handed on as they are, so that the
training is the plain one, bit for bit. Only blocks that taps can follow have rows; at the first batch they are compared
with autograd's own gradient of two examples.

Knows modules, blocks and projections; nothing of optimisers, documents or runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import ConfigurationError, CoverageError
from ..blocks import Block
from ..projection.base import Projection
from ..taps.passes import Passes
from ..taps.recorder import Recorder
from .evaluation import require_losses

_TOLERANCE = {torch.float64: (1e-5, 1e-8), torch.float32: (1e-3, 1e-5)}
_LOOSE = (0.2, 0.02)
"""By the weights' dtype: a block's error over its own gradient's norm, and over the row's, that is still rounding.
Autocast computes in half precision whatever the weights are, and is held to the loose one."""


class RowTaps:
    """Listens to the batches of a training. CoverageError for blocks that taps cannot follow, naming them."""

    def __init__(self, model: nn.Module, projection: Projection, blocks: tuple[Block, ...]) -> None:
        with _left_as_it_is(model):
            self._passes = Passes(model, projection, blocks)
        untapped = [b.name for n, b in enumerate(blocks) if n not in self._passes.route.tapped]
        if untapped:
            raise CoverageError(f"Rows in training need taps, which cannot follow {_shown(untapped)}; choose others.")
        self._blocks = blocks
        self._recorder: Recorder | None = None
        self._is_proved = False
        self.dim, self.columns = self._passes.dim, self._passes.columns

    @contextmanager
    def listening(self, num_examples: int) -> Iterator[None]:
        """For one batch: its forward pass, and `backward`."""
        if num_examples < 1:
            raise ConfigurationError("The batch has no examples; say of which documents they are.")
        with self._passes.forward(num_examples) as self._recorder:
            try:
                yield
            finally:
                self._recorder = None

    def backward(
        self, losses: Float[Tensor, " example"], divisor: int | float | Tensor
    ) -> Float[Tensor, "example dim"]:
        """The backward pass of Σ losses / divisor into .grad as training has it; each loss's own row, not divided.

        Raises CoverageError where the rows of the first batch are not what autograd says, ConfigurationError for
        losses in another form.
        """
        recorder, passes = self._recorder, self._passes
        assert recorder is not None, "backward outside of listening"
        require_losses(losses, recorder.num_examples)
        recorder.is_over = True
        chosen = [] if self._is_proved else sorted({0, len(losses) - 1})
        wanted = [passes.projected(losses[i] / divisor, range(len(self._blocks))) for i in chosen]
        recorder.start()
        total = losses.mean() if divisor == len(losses) else losses.sum() / divisor
        total.backward()
        for number in passes.route.in_full:
            recorder.finish(number, self._blocks[number], passes.model)
        rows = torch.zeros(len(losses), self.dim, dtype=passes.dtype, device=passes.device)
        for block, part in recorder.sums.items():
            rows[:, self.columns[block]] = part.to(rows.device)
        if chosen:
            self._prove(rows[chosen], wanted)
        return rows * divisor

    def _prove(self, rows: Float[Tensor, "some dim"], wanted: list[dict[int, Tensor]]) -> None:
        own, whole = _LOOSE if torch.is_autocast_enabled() else _TOLERANCE.get(self._passes.weight_dtype, _LOOSE)
        wrong = set()
        for row, blocks in zip(rows, wanted, strict=True):
            total = torch.cat(list(blocks.values())).norm()
            if not total.isfinite():
                return  # an overflow proves nothing; the next batch will
            for number, gradient in blocks.items():
                error = (row[self.columns[number]] - gradient).norm()
                if not error <= own * gradient.norm() + whole * total:
                    wrong.add(self._blocks[number].name)
        if wrong:
            raise CoverageError(
                f"The taps' gradient is not autograd's in {_shown(sorted(wrong))}: activations that are computed again "
                "(gradient checkpointing), or a weight that is used past its module. Choose other blocks, or collect "
                "rows after the training."
            )
        self._is_proved = True


@contextmanager
def _left_as_it_is(model: nn.Module) -> Iterator[None]:
    """Whoever freezes the model within leaves it in training afterwards, if it was."""
    modes = {module: module.training for module in model.modules()}
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_()


def _shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
