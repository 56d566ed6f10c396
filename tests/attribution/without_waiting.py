"""The engine's hot loop asks a device for nothing: every number that it needs is on the host already.

A program of its own (`python -m tests.attribution.without_waiting`): the device is a pretended one, which stays
registered with torch. After the proof, what would make a GPU wait raises: a number that is read, a tensor that goes to
the CPU, a result whose size depends on numbers.
"""

import sys
import warnings
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import SpanBatch, TokenBatch, mean_losses, span_losses, token_losses
from quantascope.attribution.projection import TensorSketch, TwoSided
from quantascope.jobs.models.unpacked import one_text_per_row
from tests.architectures import ARCHITECTURES
from tests.plain_loop import assert_equal_rows
from tests.pretend_device import PRETEND, PretendTensor, pretend_device

ATEN = torch.ops.aten
SIZED_BY_NUMBERS = (ATEN.nonzero, ATEN.masked_select, ATEN.bincount, ATEN._unique2, ATEN.repeat_interleave)
READ = (ATEN._local_scalar_dense, ATEN.is_nonzero, ATEN.equal)


class Refusing(TorchDispatchMode):
    """Raises where a device would have to be waited for."""

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, PretendTensor)]
        packet = func.overloadpacket
        masks = packet in (ATEN.index, ATEN.index_put, ATEN.index_put_) and any(
            x.dtype == torch.bool for x in args[1] if x is not None
        )
        leaves = packet is ATEN._to_copy and str((kwargs or {}).get("device", PRETEND)) == "cpu"
        leaves |= packet is ATEN.copy_ and args[0].device.type == "cpu"
        if given and (packet in SIZED_BY_NUMBERS or packet in READ or masks or leaves):
            raise AssertionError(f"{func} makes a device wait")
        return func(*args, **(kwargs or {}))


def refuse_numbers(_: PretendTensor) -> None:
    """In place of `tolist`, which no dispatch sees."""
    raise AssertionError("tolist makes a device wait")


def moved(batch: TokenBatch) -> TokenBatch:
    """The batch on the pretended device."""
    return TokenBatch(**{f.name: getattr(batch, f.name).to(PRETEND) for f in fields(batch)})


def check(architecture: str, projection: TensorSketch | TwoSided) -> None:
    """Rows by token, by span and by window, and contributions, are those of the CPU, and nothing waits for them."""
    here, there = ARCHITECTURES[architecture](), ARCHITECTURES[architecture]()
    there.model.to(PRETEND)
    there.model.tie_weights()  # which the move to a subclass of tensors undid
    number, batch = here.num_examples, moved(here.batch)
    engines = [GradientEngine(s.model, projection, find_blocks(s.model, "all").blocks) for s in (here, there)]
    sizes = {"num_examples": number, "num_positions": here.num_positions}
    spans = [SpanBatch(tokens=b, unit=b.example, example=torch.arange(number)) for b in (here.batch, batch)]
    engines[1].prove(batch, token_losses, here.example, num_examples=number)
    engines[1].rows(batch, token_losses, here.example, num_examples=number)  # what is found out once
    assert not engines[1].proof.open
    made = []
    with pytest.MonkeyPatch.context() as patch, Refusing():
        patch.setattr(PretendTensor, "tolist", refuse_numbers)
        engine = engines[1]
        made += [engine.rows(batch, token_losses, here.example, num_examples=number).rows]
        made += [engine.rows(spans[1], span_losses, spans[1].example, num_examples=number).rows]
        made += [engine.rows(batch, mean_losses, num_examples=number).rows]
        shares = engine.contributions(batch, mean_losses, **sizes)
        made += [shares.rows.flatten(1), shares.unplaced]
        for function in (torch.Tensor.item, torch.Tensor.cpu, torch.nonzero, PretendTensor.tolist):
            with pytest.raises(AssertionError, match="makes a device wait"):
                function(made[0][0, 0])
        with pytest.raises(AssertionError, match="makes a device wait"):
            made[0][made[0] > 0]
    engine, given = engines[0], here.batch
    shares = engine.contributions(given, mean_losses, **sizes)
    wanted = [
        engine.rows(given, token_losses, here.example, num_examples=number).rows,
        engine.rows(spans[0], span_losses, spans[0].example, num_examples=number).rows,
        engine.rows(given, mean_losses, num_examples=number).rows,
        shares.rows.flatten(1),
    ]
    for one, two in zip(wanted, made[:-1], strict=True):
        assert_equal_rows(two.to("cpu"), one)
    torch.testing.assert_close(made[-1].to("cpu"), shares.unplaced, rtol=1e-9, atol=1e-12)


def main() -> None:
    warnings.simplefilter("ignore")
    with pretend_device(), one_text_per_row():
        for architecture in sys.argv[1:]:
            for projection in (TensorSketch(dim_per_block=16), TwoSided(dim_per_block=9)):
                check(architecture, projection)
                sys.stdout.write(f"{architecture} {type(projection).__name__} waits for nothing\n")


if __name__ == "__main__":
    main()
