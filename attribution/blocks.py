"""Which parameters of a model get gradient rows, in which blocks, and which are left out and why.

Knows modules and parameters; nothing of language or of data. One block per linear map: its weight, with its bias as
one more input that is always 1. A weight that several modules share is one block, the sum of all its uses.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ..errors import CoverageError

BlockChoice = Literal["paper", "linear"]
"""`paper`: all linear maps but embeddings and the output head (Michaud et al. 2023, appendix: "all parameters except
embeddings, unembeddings and layer norms"); `linear`: the output head too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One linear map whose gradient makes one column range of a row."""

    name: str
    """The first module that uses the weight: `gpt_neox.layers.0.mlp.dense_h_to_4h`."""
    modules: tuple[str, ...]
    """All modules that use it."""
    parameters: tuple[str, ...]
    in_width: int
    """Width of the input, without the bias's 1."""
    out_width: int
    bias: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What becomes of each parameter of a model."""

    blocks: tuple[Block, ...]
    left_out: dict[str, str]
    """Parameters left out by choice, and why."""
    uncovered: dict[str, str]
    """Parameters that the engine has no rows for, and their module's class."""
    covered_share: float
    """Share of the model's numbers that have rows, from 0 to 1."""

    def require(self) -> None:
        """CoverageError, naming the parameters, if any is uncovered."""
        if self.uncovered:
            names = ", ".join(f"{name} ({kind})" for name, kind in list(self.uncovered.items())[:5])
            raise CoverageError(
                f"{len(self.uncovered)} parameters have no gradient rows: {names}… "
                "Leave --require-coverage out to go on without them."
            )


def find_blocks(model: nn.Module, choice: BlockChoice = "paper") -> Coverage:
    """Sort every parameter into blocks, left out by choice, or uncovered; CoverageError if no block is found."""
    modules = dict(model.named_modules(remove_duplicate=True))
    embeddings = {id(m.weight) for m in modules.values() if isinstance(m, nn.Embedding)}
    head = _output_head(model)
    shared: dict[int, list[str]] = {}
    left_out: dict[str, str] = {}
    uncovered: dict[str, str] = {}
    for name, module in modules.items():
        for parameter_name, parameter in module.named_parameters(prefix=name, recurse=False):
            reason = _reason(module, is_head=module is head, tied=id(parameter) in embeddings, choice=choice)
            if reason:
                left_out.setdefault(parameter_name, reason)
            elif is_linear(module):
                pass
            else:
                uncovered[parameter_name] = type(module).__name__
        if is_linear(module) and not _reason(
            module, is_head=module is head, tied=id(module.weight) in embeddings, choice=choice
        ):
            shared.setdefault(id(module.weight), []).append(name)
    blocks = tuple(_block(modules, tuple(names)) for names in shared.values())
    if not blocks:
        raise CoverageError(
            f"{type(model).__name__} has no linear map to take gradients of under blocks={choice!r}; "
            "bring a model with nn.Linear (or transformers' Conv1D) layers."
        )
    total = sum(p.numel() for p in model.parameters())
    covered = sum(b.out_width * (b.in_width + b.bias) for b in blocks)
    return Coverage(blocks=blocks, left_out=left_out, uncovered=uncovered, covered_share=covered / total)


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes x Wᵀ + b, whichever way round it stores W."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def widths(module: nn.Module) -> tuple[int, int]:
    """Input and output width of a linear map; transformers' Conv1D stores its weight as [in, out]."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    rows, columns = weight.shape
    return (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)


def _block(modules: dict[str, nn.Module], names: tuple[str, ...]) -> Block:
    module = modules[names[0]]
    in_width, out_width = widths(module)
    biases = {getattr(modules[name], "bias", None) is not None for name in names}
    if len(biases) > 1:
        raise CoverageError(f"{', '.join(names)} share a weight, and only some have a bias: not supported yet.")
    parameters = tuple(f"{names[0]}.{p}" for p, _ in module.named_parameters(recurse=False))
    return Block(
        name=names[0],
        modules=names,
        parameters=parameters,
        in_width=in_width,
        out_width=out_width,
        bias=biases.pop(),
    )


def _reason(module: nn.Module, *, is_head: bool, tied: bool, choice: BlockChoice) -> str | None:
    """Why a module's parameters are left out by choice; None if they are not."""
    if isinstance(module, nn.Embedding):
        return "embedding"
    if tied:
        return "tied to an embedding"
    if is_head and choice == "paper":
        return "output head"
    if "norm" in type(module).__name__.lower():
        return "norm"
    return None


def _output_head(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    return get() if callable(get) else None


def iter_modules(model: nn.Module, blocks: tuple[Block, ...]) -> Iterator[tuple[nn.Module, int]]:
    """Each module that a block names, with the block's number."""
    for number, block in enumerate(blocks):
        for name in block.modules:
            yield model.get_submodule(name), number
