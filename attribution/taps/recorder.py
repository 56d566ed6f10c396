"""What the taps of one forward pass share with its backward passes, and how a tensor's axes are read.

Knows tensors and block projections; not which modules are tapped.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._C import _functorch

from ...errors import CoverageError
from ..blocks import Block
from ..projection.base import BlockProjection

Reading = Literal["example", "flat", "shared"]
"""How a tensor holds the examples: on its first axis; on its first axis together with the positions, example after
example; or not at all, since it is the same for all."""


class NoExamplesError(CoverageError):
    """A module that the taps cannot follow: its name, and why."""

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(f"{module or 'The model'} {reason}. Choose --blocks without it.")
        self.module = module


class Recorder:
    """One forward pass: what the taps keep, where backward passes may stop, and what they found."""

    def __init__(
        self,
        projections: list[BlockProjection],
        dtype: torch.dtype,
        devices: list[torch.device],
        *,
        num_examples: int,
        readings: dict[str, Reading],
        adds_one: dict[str, bool],
        num_positions: int | None = None,
    ) -> None:
        self.projections, self.dtype, self.devices = projections, dtype, devices
        self.num_examples = num_examples
        self.num_positions = num_positions
        """Where positions are kept apart: how many each example has. None sums over positions."""
        self.readings = readings
        """How each module's input holds the examples; filled at first, held to afterwards."""
        self.adds_one = adds_one
        """Whether a norm adds 1 to its weight; filled at first."""
        self.is_over = False
        """Whether the forward pass is. Modules that run afterwards are computed again for a backward pass: their
        taps build the same graph once more and keep nothing."""
        self.fired: set[str] = set()
        """Modules whose taps saw a forward pass."""
        self.leaves: list[Tensor] = []
        """Where a backward pass may stop: outputs of the earliest tapped modules."""
        self._zero = torch.zeros((), dtype=dtype, requires_grad=True)
        self.leaves.append(self._zero)
        self.parameter_leaves: list[tuple[str, Tensor]] = []
        """Parameters as each example sees them, [example, …], with their names."""
        self.sums: dict[int, Tensor] = {}
        """Of the last backward pass: each block's projected sum, [example, dim] or [example, position, dim]."""
        self.unplaced: dict[int, Tensor] = {}
        """The same for what has no position, [example, dim]; used only where positions are kept apart."""
        self.vectors: dict[str, Tensor] = {}
        """Of the last backward pass: gradients formed in full, [example, …], by parameter name."""

    @property
    def is_listening(self) -> bool:
        """Whether what runs now is the forward pass: not a recomputation, and not without a graph."""
        return not self.is_over and torch.is_grad_enabled()

    def read(self, module: str, tensor: Tensor, *, vectors: int) -> Reading:
        """How this module's tensor holds the examples; its last `vectors` axes are the vectors themselves.

        Raises NoExamplesError where it cannot, or no longer as in earlier batches.
        """
        self.fired.add(module)
        found = self.readings.get(module) or self._guess(tensor, vectors)
        fits = {
            "example": len(tensor) == self.num_examples,
            "flat": len(tensor) % self.num_examples == 0,
            "shared": True,
        }
        if not fits[found]:
            raise NoExamplesError(module, f"saw {len(tensor)} rows for {self.num_examples} examples")
        self.readings[module] = found
        return found

    def _guess(self, tensor: Tensor, vectors: int) -> Reading:
        if tensor.dim() > vectors and len(tensor) == self.num_examples:
            return "example"
        if tensor.dim() == vectors + 1 and len(tensor) > 1 and len(tensor) % self.num_examples == 0:
            return "flat"
        return "shared"

    def own(self, number: int, tensor: Tensor) -> Tensor:
        """A tensor in compute precision on the device of a block's weight."""
        return tensor.to(self.devices[number], self.dtype)

    def positions(self, module: str, number: int, tensor: Tensor) -> Float[Tensor, "example position width"]:
        """A tensor of vectors on its last axis as [example, position, width], `own` of the block."""
        reading = self.read(module, tensor, vectors=1)
        if reading == "shared":
            raise NoExamplesError(module, f"saw {len(tensor)} rows for {self.num_examples} examples")
        return self.shape_as(reading, self.own(number, tensor))

    def shape_as(self, reading: Reading, tensor: Tensor) -> Float[Tensor, "example position width"]:
        """[example, position, width] of a tensor that holds the examples as read."""
        if reading == "flat":
            return tensor.reshape(self.num_examples, -1, tensor.shape[-1])
        return tensor.unsqueeze(1) if tensor.dim() == 2 else tensor.flatten(1, -2)

    def watch(self, output: Tensor, found: Callable[[Tensor], None] | None) -> Tensor:
        """The output to go on with; `found` gets the gradient that arrives at it, in every backward pass."""
        if not torch.is_grad_enabled():
            return output
        if not unwrap(output).requires_grad:
            if _functorch.is_batchedtensor(output):  # no tensor may become a leaf below vmap
                output = output + self._zero.to(output.device, output.dtype)
            else:
                output.requires_grad_()
                if not self.is_over:
                    self.leaves.append(output)
                output = output.clone()
        if found is None:
            return output
        _, axis = examples_first(output)
        unwrap(output).register_hook(lambda gradient: found(gradient.movedim(axis, 0) if axis else gradient))
        return output

    def add(self, number: int, rows: Tensor, columns: Tensor) -> None:
        """Add what a backward pass found of one block: compressed factors, [example, position, …]."""
        combine = self.projections[number].combine
        if self.num_positions is None:
            part, sums = combine(rows, columns), self.sums
        elif rows.shape[1] % self.num_positions == 0 and rows.shape[1]:
            shape = (self.num_examples * self.num_positions, rows.shape[1] // self.num_positions, -1)
            part = combine(rows.reshape(shape), columns.reshape(shape))
            part, sums = part.reshape(self.num_examples, self.num_positions, -1), self.sums
        else:
            part, sums = combine(rows, columns), self.unplaced
        sums[number] = sums[number] + part if number in sums else part

    def summed(self, values: Float[Tensor, "example position width"]) -> Float[Tensor, "copy width"]:
        """Summed over positions, or over what belongs to one position where these are kept apart."""
        if self.num_positions is None or values.shape[1] % self.num_positions or not values.shape[1]:
            return values.sum(1)
        return values.reshape(self.num_examples * self.num_positions, -1, values.shape[-1]).sum(1)

    def add_vector(self, name: str, gradient: Float[Tensor, "copy ..."]) -> None:
        """Add what a backward pass found of one parameter's copies."""
        gradient = gradient.to(self.dtype)
        self.vectors[name] = self.vectors[name] + gradient if name in self.vectors else gradient

    def finish(self, number: int, block: Block, model: nn.Module) -> None:
        """Project a block whose gradient was formed in full."""
        lengths = [len(self.vectors[p]) for p in block.parameters if p in self.vectors]
        if not lengths:
            return
        full = {
            p: self.vectors[p]
            if p in self.vectors
            else model.get_parameter(p).new_zeros(lengths[0], *model.get_parameter(p).shape, dtype=self.dtype)
            for p in block.parameters
        }
        part = self.projections[number].project(
            block.matrix({p: gradient.to(self.devices[number]) for p, gradient in full.items()})
        )
        if self.num_positions is None:
            self.sums[number] = part
        elif len(part) == self.num_examples * self.num_positions:
            self.sums[number] = part.reshape(self.num_examples, self.num_positions, -1)
        else:
            self.unplaced[number] = part

    def start(self) -> None:
        """Before a backward pass."""
        self.sums.clear()
        self.unplaced.clear()
        self.vectors.clear()


def unwrap(tensor: Tensor) -> Tensor:
    """The tensor below one level of torch.vmap, with all examples; any other tensor as it is."""
    return _functorch.get_unwrapped(tensor) if _functorch.is_batchedtensor(tensor) else tensor


def examples_first(tensor: Tensor) -> tuple[Tensor, int]:
    """`unwrap` with vmap's axis in front, and where that axis was."""
    if not _functorch.is_batchedtensor(tensor):
        return tensor, 0
    axis = _functorch.maybe_get_bdim(tensor)
    return unwrap(tensor).movedim(axis, 0), axis
