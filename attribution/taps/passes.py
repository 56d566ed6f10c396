"""One forward pass of a model under its taps, and the backward passes of it.

Knows modules, blocks, their projections and how each is found (route.py); not which losses are asked for, and not
whether what comes out is right (proof.py).

Blocks may lie on different devices: each one's factors are where its weight is, and rows are gathered on the device
of the model's first parameter.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import ConfigurationError, CoverageError
from ..blocks import Block
from ..projection.base import BlockProjection, Projection
from .attach import attached
from .checkpoint import without_reentry
from .recorder import Reading, Recorder
from .route import Route


class Passes:
    """A model with frozen weights in evaluation mode, its blocks, and how each block's gradient is found.

    `layers` are modules whose activations are computed again in the backward pass. Raises ConfigurationError for
    weights that are on no device, as offloaded ones are.
    """

    def __init__(
        self, model: nn.Module, projection: Projection, blocks: tuple[Block, ...], *, layers: tuple[str, ...] = ()
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.blocks, self.layers = blocks, layers
        _require_present(model)
        weight = next(model.parameters())
        self.device = weight.device
        """Where batches come from and rows go to."""
        self.weight_dtype = weight.dtype
        self.dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        """In which gradients are compressed and added up."""
        self.devices = [model.get_parameter(b.parameters[0]).device for b in blocks]
        self.projections: list[BlockProjection] = [
            projection.block(b.name, number=i, shape=(b.rows, b.columns), dtype=self.dtype, device=self.devices[i])
            for i, b in enumerate(blocks)
        ]
        ends = np.cumsum([0, *(p.dim for p in self.projections)])
        self.columns = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        self.dim = int(ends[-1])
        self.route = Route(blocks)
        self.readings: dict[str, Reading] = {}
        self.adds_one: dict[str, bool] = {}
        """Norms that add 1 to their weight, and those that do not."""

    def forget(self) -> None:
        """What was learnt of a batch's axes, so that the next one is read afresh."""
        self.readings.clear()

    @contextmanager
    def forward(self, num_examples: int, num_positions: int | None = None) -> Iterator[Recorder]:
        """Taps on the model, for a forward pass inside and backward passes of it."""
        recorder = Recorder(
            self.projections,
            self.dtype,
            self.devices,
            num_examples=num_examples,
            num_positions=num_positions,
            readings=self.readings,
            adds_one=self.adds_one,
        )
        taps = attached(self.model, self.blocks, self.route.tapped, self.route.owners, recorder, layers=self.layers)
        with self.taking_part(self.route.looped), taps, torch.enable_grad():
            yield recorder

    def losses(self, recorder: Recorder, compute: Callable[[], Tensor]) -> Float[Tensor, " unit"]:
        """The losses; whatever runs through a tap afterwards is computed again, and not listened to."""
        with without_reentry():
            values = compute()
        recorder.is_over = True
        return values

    def backward(self, recorder: Recorder, values: Tensor, units: Tensor, *, retain_graph: bool) -> None:
        """One backward pass for at most one unit of each example; leaves every block's sums in the recorder."""
        copies = [leaf for _, leaf in recorder.parameter_leaves]
        inputs = [*recorder.leaves, *copies, *self.parameters(self.route.looped)]
        if not values.requires_grad or not (recorder.fired or self.route.looped):
            raise CoverageError("The losses do not use any of the chosen parameters: nothing to take gradients of.")
        recorder.start()
        chosen = torch.zeros_like(values).index_fill_(0, units, 1)
        found = torch.autograd.grad(values, inputs, chosen, retain_graph=retain_graph, allow_unused=True)
        start = len(recorder.leaves)
        for (name, _), gradient in zip(recorder.parameter_leaves, found[start : start + len(copies)], strict=True):
            if gradient is not None:
                recorder.add_vector(name, gradient)
        for number in self.route.in_full:
            recorder.finish(number, self.blocks[number], self.model)

    def loop(self, values: Float[Tensor, " unit"], rows: Float[Tensor, "unit dim"]) -> None:
        """The last way: one differentiation per unit, for the blocks that nothing else covers; fills in `rows`."""
        looped = self.route.looped
        for unit in range(len(values) if looped else 0):
            for number, row in self.projected(values[unit], looped).items():
                rows[unit, self.columns[number]] = row

    def projected(self, value: Float[Tensor, ""], numbers: Sequence[int]) -> dict[int, Float[Tensor, " dim"]]:
        """Autograd's own gradient of one loss by the parameters of some blocks, projected; the graph stays."""
        names = [p for n in numbers for p in self.blocks[n].parameters]
        gradients = _gradients(value, self.parameters(numbers))
        full = dict(zip(names, gradients, strict=True))
        found = {}
        for number in numbers:
            device, block = self.devices[number], self.blocks[number]
            own = {p: full[p].to(device, self.dtype)[None] for p in block.parameters}
            found[number] = self.projections[number].project(block.matrix(own))[0].to(self.device)
        return found

    @contextmanager
    def taking_part(self, numbers: Sequence[int]) -> Iterator[None]:
        """Within, the parameters of some blocks are part of the graph."""
        parameters = self.parameters(numbers)
        for parameter in parameters:
            parameter.requires_grad_()
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)

    def untapped(
        self, losses: Callable[[], Tensor], numbers: Sequence[int], weights: Float[Tensor, "sum unit"]
    ) -> list[dict[int, Tensor]]:
        """Autograd's own gradients of weighted sums of the losses: for each sum, some blocks' projected gradients.

        No tap is on the model meanwhile.
        """
        with self.taking_part(numbers), torch.enable_grad(), without_reentry():
            values = losses()
            return [self.projected((values * w.to(values.device, values.dtype)).sum(), numbers) for w in weights]

    def parameters(self, numbers: Sequence[int]) -> list[nn.Parameter]:
        """The parameters of some blocks."""
        return [self.model.get_parameter(p) for n in numbers for p in self.blocks[n].parameters]


def _require_present(model: nn.Module) -> None:
    absent = [n for n, p in model.named_parameters() if p.is_meta]
    if absent:
        raise ConfigurationError(
            f"{len(absent)} parameters are on no device (the first is {absent[0]}), as weights that are offloaded to "
            "the CPU or a disk are between their uses. Gradients need every weight in place: give more devices, "
            "bfloat16 weights, or the CPU alone."
        )


def _gradients(value: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Of one loss; zeros for a parameter that it does not use."""
    if not value.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    try:
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise CoverageError(
            f"The model changes a tensor in place that its gradient needs ({str(error).split(': [')[0]}). It could "
            "not be trained either: write that operation out of place."
        ) from error
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
