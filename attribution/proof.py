"""Is each block's gradient what autograd says? Compared for two losses of a batch, before any row is believed.

Which way is right cannot be told from a module's class: a model may use a weight past its module, put positions first,
or flatten examples and positions into one axis. A block that differs takes the next slower way (taps/route.py).

A block whose gradient is zero in both losses (an expert that no token reached, an adapter behind a zero) is not proved
by that. It stays open, and rows of later batches are held against autograd's gradient of their signed sum, which costs
one backward pass more: at once where the block's own rows are no longer zero, and besides in batches 1, 2, 4, 8 and so
on, for a zero can be wrong too.

Knows passes (taps/passes.py); not what the losses are.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import CoverageError
from .taps.passes import Passes
from .taps.recorder import NoExamplesError
from .taps.route import Route

_TOLERANCE = {
    torch.float64: (1e-4, 1e-6),  # some models compute in float32 inside (Gemma's norms)
    torch.float32: (1e-3, 1e-5),
    torch.bfloat16: (0.2, 0.02),
    torch.float16: (0.1, 0.01),
}
"""By the model's dtype: a block's error over its own norm, and over the whole row's, that is still rounding."""


Made = TypeVar("Made")


class Proof:
    """What is known of the ways in which blocks are found."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self.num_examples = 0
        """Of the batch that was proved; examples are told from positions by two or more."""
        self.open: frozenset[int] = frozenset()
        """Blocks whose gradient has been zero, to rounding, in all that was compared."""
        self._num_batches = 0

    def take_for_granted(self) -> None:
        """Believe taps without a proof."""
        self.num_examples = 2**31

    def prove(self, losses: Callable[[], Tensor], example: Int[Tensor, " unit"], num_examples: int) -> None:
        """Compare every block for two of the losses, and settle how each is found.

        Raises CoverageError for losses that mix examples.
        """
        passes = self._passes
        chosen = torch.unique(torch.stack([example.argmin(), example.argmax()])).tolist()
        wanted = self._wanted(losses, chosen, len(example))
        passes.forget()
        mixed: set[int] = set()
        for _ in range(3 * len(passes.blocks) + 3):
            try:
                failing, mixing = self._failing(losses, example, num_examples, wanted)
            except NoExamplesError as error:
                failing, mixing = set(passes.route.blocks_of(error.module)), set()
                if not failing:
                    raise
            if not failing:
                break
            mixed |= mixing
            passes.forget()
            for number in sorted(failing):
                passes.route.demote(number)
        self._require_apart(mixed)
        self.num_examples = num_examples
        self.open = self._zero(wanted)
        self._num_batches = 0

    def settled(self, attempt: Callable[[], Made | None]) -> Made:
        """What an attempt at a batch makes, once it stands; attempts that do not have changed how blocks are found."""
        while True:
            try:
                made = attempt()
            except NoExamplesError as error:  # of a block that was proved, it is the batch that does not fit
                failing = self.open.intersection(self._passes.route.blocks_of(error.module))
                if not failing:
                    raise
                for number in failing:
                    self._demote(number)
            else:
                if made is not None:
                    return made

    def stands(self, rows: Float[Tensor, "unit dim"], losses: Callable[[], Tensor], num_examples: int) -> bool:
        """Whether a batch's rows can be kept; open blocks are compared where it is time, or they have a first gradient.

        If not, compute them again (`settled`): a block that differed takes another way.
        """
        if not self.open:
            return True
        columns = self._passes.columns
        _, tiny = _TOLERANCE[self._passes.weight_dtype]
        least = tiny * torch.linalg.vector_norm(rows).nan_to_num(posinf=0)
        self._num_batches += 1
        is_due = self._num_batches & (self._num_batches - 1) == 0
        if not is_due and not any(bool(rows[:, columns[n]].norm() > least) for n in self.open):
            return True
        signs = torch.randint(0, 2, (len(rows),), generator=torch.Generator().manual_seed(self._num_batches)) * 2 - 1
        signs = signs.to(rows.device, rows.dtype)
        differing = []
        for number, gradient in self._passes.untapped(losses, sorted(self.open), signs[None])[0].items():
            own = rows[:, columns[number]]
            found = signs @ own
            if not (found.isfinite().all() and gradient.isfinite().all()):
                continue  # of no use as a proof
            if self._differ(found, gradient, least, own.norm()):
                differing.append(number)
            elif max(gradient.norm(), own.norm()) > least:
                self.open -= {number}
        for number in differing:
            self._demote(number)
            if num_examples == 1 and number in self.open:  # one does not tell how a module holds several
                self._demote(number)
        return not differing

    def _differ(self, found: Tensor, wanted: Tensor, least: Tensor, scale: Tensor) -> bool:
        loose, _ = _TOLERANCE[self._passes.weight_dtype]
        if wanted.any() and not found.any():
            return True  # never reached: wrong however small the block is
        return bool((found - wanted).norm() > least + loose * max(wanted.norm(), scale))

    def _demote(self, number: int) -> None:
        """The next way, to be compared at once; the last one is right by itself."""
        self._passes.route.demote(number)
        self._num_batches = 0
        self.open -= set(self._passes.route.looped)

    def _wanted(self, losses: Callable[[], Tensor], chosen: list[int], num_units: int) -> dict[int, list[Tensor]]:
        """Autograd's gradients of some losses, projected: for each unit one row per block."""
        weights = torch.zeros(len(chosen), num_units)
        weights[range(len(chosen)), chosen] = 1
        found = self._passes.untapped(losses, range(len(self._passes.blocks)), weights)
        return {unit: list(rows.values()) for unit, rows in zip(chosen, found, strict=True)}

    def _failing(
        self,
        losses: Callable[[], Tensor],
        example: Tensor,
        num_examples: int,
        wanted: dict[int, list[Tensor]],
    ) -> tuple[set[int], set[int]]:
        """Blocks whose rows are not what autograd says, and those where one example's loss reaches another one."""
        passes = self._passes
        loose, tiny = _TOLERANCE[passes.weight_dtype]
        failing: set[int] = set()
        mixing: set[int] = set()
        with passes.forward(num_examples) as recorder:
            values = passes.losses(recorder, losses)
            for unit, rows in wanted.items():
                scale = torch.stack([r.norm() for r in rows]).norm() * tiny
                passes.backward(recorder, values, torch.tensor([unit]).to(values.device), retain_graph=True)
                for number, row in enumerate(rows):
                    if number in passes.route.looped:
                        continue
                    if number in recorder.sums:
                        part = recorder.sums[number].to(row.device)
                    else:
                        part = row.new_zeros(num_examples, len(row))
                        if row.any():
                            failing.add(number)  # never reached: wrong however small the block is
                    own = int(example[unit])
                    others = part.clone()
                    others[own] = 0
                    if others.norm() > scale + loose * row.norm():
                        failing.add(number)
                        if all(passes.readings.get(m) == "example" for m in passes.blocks[number].modules):
                            mixing.add(number)
                    if not (part[own] - row).norm() <= scale + loose * row.norm() and row.isfinite().all():
                        failing.add(number)
        return failing, mixing

    def _zero(self, wanted: dict[int, list[Tensor]]) -> frozenset[int]:
        """Blocks that all the losses together say nothing of, besides looped ones, which are right by themselves."""
        _, tiny = _TOLERANCE[self._passes.weight_dtype]
        found = set(range(len(self._passes.blocks))).difference(self._passes.route.looped)
        for rows in wanted.values():
            scale = torch.stack([r.norm() for r in rows]).norm() * tiny
            found -= {number for number, row in enumerate(rows) if row.norm() > scale}
        return frozenset(found)

    def _require_apart(self, mixed: set[int]) -> None:
        """CoverageError if taps and copies both found an example's loss to reach another example.

        One of them alone proves nothing: an axis of positions as long as the batch can be taken for the examples'.
        """
        passes = self._passes
        together = mixed.intersection(passes.route.looped)
        if together:
            passes.route = Route(passes.blocks)
            raise CoverageError(
                f"The loss of one example depends on another one, at {passes.blocks[min(together)].name}: rows per "
                "example do not exist. Give losses that keep examples apart (no batch statistics, no mean over the "
                "batch)."
            )
