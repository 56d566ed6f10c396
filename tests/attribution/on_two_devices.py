"""Rows of models that lie on two devices, by accelerate's hooks, are those of the same models on one.

A program of its own (`python -m tests.attribution.on_two_devices`): the second device is a pretended one, which stays
registered with torch. Prints what it compared, and raises where something differs or meets on different devices.
"""

import sys
import warnings

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_execution_device_hook

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.projection import Projection, SparseJL, TensorSketch, TwoSided
from quantascope.attribution.taps.checkpoint import layers_of
from tests.architectures import ARCHITECTURES, Subject
from tests.plain_loop import assert_equal_rows
from tests.pretend_device import PRETEND, pretend_device

SECOND = {
    "gpt2": ("transformer.h.1", "transformer.ln_f"),
    "llama": ("model.layers", "model.norm", "lm_head"),
    "mixtral": ("model.layers.0", "lm_head"),
    "mamba": ("backbone.layers.1", "backbone.norm_f"),
    "t5": ("decoder.block.1", "encoder.block"),
}
"""By architecture, the modules on the second device; embeddings stay on the first, and so does what is tied to them."""


def spread(subject: Subject, modules: tuple[str, ...]) -> None:
    """Put the modules on the second device, as accelerate's dispatch_model does with GPUs."""
    singles = {n for n, m in subject.model.named_modules() if not any(m.children())}
    for name in sorted(singles.union(layers_of(subject.model)).difference(modules)):
        if not any(name.startswith(f"{m}.") for m in modules):
            add_hook_to_module(subject.model.get_submodule(name), AlignDevicesHook("cpu"), append=True)
    for name in modules:
        module = subject.model.get_submodule(name).to(PRETEND)
        add_hook_to_module(module, AlignDevicesHook(PRETEND), append=True)
        attach_execution_device_hook(module, PRETEND)
    add_hook_to_module(subject.model, AlignDevicesHook("cpu", io_same_device=True), append=True)


def rows_of(subject: Subject, projection: Projection) -> list[torch.Tensor]:
    """Rows of losses by token (or label), and of contributions."""
    engine = GradientEngine(subject.model, projection, find_blocks(subject.model, "all").blocks)
    made = [engine.rows(subject.batch, subject.losses, subject.example, num_examples=subject.num_examples).rows]
    if subject.num_positions is not None:
        sizes = {"num_examples": subject.num_examples, "num_positions": subject.num_positions}
        shares = engine.contributions(subject.batch, subject.mean, **sizes)
        made.append(shares.rows.sum(1) + shares.unplaced)
    devices = {str(d) for d in engine.passes.devices}
    return [*made, torch.tensor(len(devices))]


def main() -> None:
    warnings.simplefilter("ignore")
    projections = (TensorSketch(dim_per_block=16), TwoSided(dim_per_block=9), SparseJL(dim_per_block=8))
    with pretend_device():
        with pytest.raises(RuntimeError, match="different devices"):
            torch.ones(2, device=PRETEND) + torch.ones(2)
        for architecture in sys.argv[1:] or SECOND:
            on_one, on_two = ARCHITECTURES[architecture](), ARCHITECTURES[architecture]()
            spread(on_two, SECOND[architecture])
            for projection in projections:
                wanted, found = rows_of(on_one, projection), rows_of(on_two, projection)
                assert (wanted[-1], found[-1]) == (1, 2)
                for one, two in zip(wanted[:-1], found[:-1], strict=True):
                    assert two.device.type == "cpu"
                    assert_equal_rows(two, one)
                sys.stdout.write(f"{architecture} {type(projection).__name__} equal\n")


if __name__ == "__main__":
    main()
