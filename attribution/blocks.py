"""Which parameters of a model get gradient rows, in which blocks, and which are left out and why.

Knows modules and parameters; nothing of language or of data, and nothing of how a gradient is found. A block is a
matrix of gradient numbers, [row, column], of one weight (a bias counts as one more column) or of what a module owns
besides. A weight that several modules share is one block, the sum of all its uses.
"""

import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ConfigurationError, CoverageError

Kind = Literal["linear", "head", "convolution", "embedding", "norm", "experts", "other"]
KINDS: tuple[Kind, ...] = ("linear", "head", "convolution", "embedding", "norm", "experts", "other")
Tap = Literal["linear", "convolution", "embedding", "experts", "norm"]

PAPER_KINDS: frozenset[Kind] = frozenset(KINDS) - {"head", "embedding", "norm"}
"""Michaud et al. 2023, appendix: "all parameters except embeddings, unembeddings and layer norms"."""
_SETS: dict[str, frozenset[Kind]] = {
    "paper": PAPER_KINDS,
    "linear": frozenset({"linear", "head", "experts"}),
    "all": frozenset(KINDS),
}
CHOICES = f"{', '.join(_SETS)}, a kind ({', '.join(KINDS)}), last:N, or a pattern such as *.mlp.*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One module that uses a block's weight as a tap can follow."""

    module: str
    tap: Tap


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One matrix of gradient numbers, which makes one column range of a row."""

    name: str
    """`gpt_neox.layers.0.mlp.dense_h_to_4h`: the first module that uses the weight; a bare parameter's own name."""
    kind: Kind
    parameters: tuple[str, ...]
    """The parameters that it covers, by their first names; a bias last."""
    rows: int
    """Outputs of a linear map, words of an embedding; 1 where parameters have no two sides."""
    columns: int
    """Inputs of a linear map, with the bias's 1; or all numbers of the parameters."""
    bias: bool = False
    """Whether the last column is a bias."""
    transposed: bool = False
    """The weight is stored as [in, out] (transformers' Conv1D, some experts)."""
    uses: tuple[Use, ...] = ()
    """Modules that taps follow; none for parameters that are found in another way."""

    @property
    def numel(self) -> int:
        """Numbers of the gradient."""
        return self.rows * self.columns

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules that use the weight, or the one that owns the parameters."""
        return tuple(use.module for use in self.uses) or (self.parameters[0].rpartition(".")[0],)

    def matrix(self, gradients: dict[str, Float[Tensor, "unit ..."]]) -> Float[Tensor, "unit row column"]:
        """Gradients of the parameters, each with a unit's axis in front, as the block's matrix."""
        first = gradients[self.parameters[0]]
        if self.rows == 1:
            parts = [gradients[p].reshape(len(first), -1) for p in self.parameters]  # a parameter may be one number
            return torch.cat(parts, dim=1).unsqueeze(1)
        if self.transposed:
            first = first.transpose(-1, -2)
        weight = first.reshape(len(first), self.rows, -1)
        if not self.bias:
            return weight
        return torch.cat([weight, gradients[self.parameters[-1]].reshape(len(first), self.rows, 1)], dim=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What becomes of each parameter of a model."""

    blocks: tuple[Block, ...]
    left_out: dict[str, str]
    """Parameters left out by choice, and their kind."""
    uncovered: dict[str, str] = field(default_factory=dict)
    """Parameters that can have no gradient, and why."""
    covered_share: float
    """Share of the model's numbers that have rows, from 0 to 1."""

    def require(self) -> None:
        """CoverageError, naming the parameters, if any is uncovered."""
        if self.uncovered:
            names = ", ".join(f"{name} ({why})" for name, why in list(self.uncovered.items())[:5])
            raise CoverageError(
                f"{len(self.uncovered)} parameters have no gradient rows: {names}… "
                "Leave --require-coverage out to go on without them."
            )


def find_blocks(model: nn.Module, choice: str = "paper") -> Coverage:
    """Sort every parameter into blocks, left out by choice, or uncovered.

    `choice` is a comma-separated list of sets (paper, linear, all), kinds, and patterns over block names, of which a
    block must meet one; `last:N` restricts to the last N layers. Raises ConfigurationError for a choice that nothing
    can meet, and CoverageError if no block is left; warns of uncovered parameters.
    """
    uncovered = {n: f"stored as {p.dtype}" for n, p in model.named_parameters() if not p.is_floating_point()}
    every = tuple(_all_blocks(model, uncovered))
    chosen = choose_blocks(every, choice)
    if not chosen:
        raise CoverageError(
            f"{type(model).__name__} has no parameter that --blocks {choice} chooses; it has "
            f"{', '.join(sorted({b.kind for b in every})) or 'none at all'}. Accepted are {CHOICES}."
        )
    if uncovered:
        names = ", ".join(list(uncovered)[:3])
        warnings.warn(
            f"{len(uncovered)} parameters can have no gradient, and have no rows: {names}…; "
            "Coverage.require() makes this an error.",
            stacklevel=2,
        )
    covered = {p for b in chosen for p in b.parameters}
    left_out = {p: b.kind for b in every for p in b.parameters if p not in covered}
    total = sum(p.numel() for p in model.parameters())
    return Coverage(
        blocks=chosen,
        left_out=dict(left_out),
        uncovered=uncovered,
        covered_share=sum(b.numel for b in chosen) / total,
    )


def choose_blocks(blocks: tuple[Block, ...], choice: str) -> tuple[Block, ...]:
    """The blocks that a choice names, in their order; see `find_blocks`."""
    terms = [term.strip() for term in choice.split(",") if term.strip()]
    last = [t.removeprefix("last:") for t in terms if t.startswith("last:")]
    if not terms or len(last) > 1 or any(not n.isdigit() or int(n) < 1 for n in last):
        raise ConfigurationError(f"--blocks is {choice!r}; accepted are {CHOICES}, joined by commas.")
    wanted = [t for t in terms if not t.startswith("last:")] or ["paper"]
    for term in wanted:
        if term not in _SETS and term not in KINDS and not any(_meets(b, term) for b in blocks):
            raise ConfigurationError(f"--blocks {term!r} names no block; accepted are {CHOICES}.")
    layers = sorted({n for b in blocks if (n := _layer(b.name)) is not None})
    kept = set(layers[-int(last[0]) :]) if last else None
    return tuple(b for b in blocks if any(_meets(b, t) for t in wanted) and (kept is None or _layer(b.name) in kept))


def _meets(block: Block, term: str) -> bool:
    if term in _SETS:
        return block.kind in _SETS[term]
    return block.kind == term or fnmatchcase(block.name, term)


def _layer(name: str) -> int | None:
    """The number of the layer that a name lies in: its first numeric part."""
    found = re.search(r"\.(\d+)(?:\.|$)", f".{name}")
    return int(found[1]) if found else None


def _all_blocks(model: nn.Module, uncovered: dict[str, str]) -> Iterator[Block]:
    """Every parameter once, in the order of its first module."""
    names = {id(p): n for n, p in model.named_parameters()}
    modules = dict(model.named_modules())
    uses: dict[int, list[Use]] = {}
    for name, module in modules.items():
        for weight, tap in _tapped(module):
            uses.setdefault(id(weight), []).append(Use(module=name, tap=tap))
    head = _output_head(model)
    done: set[int] = {id(p) for n, p in model.named_parameters() if n in uncovered}
    for module in modules.values():
        for weight, tap in _tapped(module):
            if id(weight) not in done:
                block = _tapped_block(module, weight, tap, tuple(uses[id(weight)]), names, is_head=module is head)
                done |= {id(p) for p in module.parameters(recurse=False) if names[id(p)] in block.parameters}
                yield block
        left = [p for p in module.parameters(recurse=False) if id(p) not in done and id(p) not in uses]
        done |= {id(p) for p in left}
        if left:
            yield _other_block(module, left, names)


def _tapped(module: nn.Module) -> Iterable[tuple[Tensor, Tap]]:
    """The weights of a module that a tap can follow."""
    if is_linear(module):
        return [(_tensor(module.weight), "linear")]
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1:
        return [(module.weight, "convolution")]
    if isinstance(module, nn.Embedding) and not module.scale_grad_by_freq and module.max_norm is None:
        return [(module.weight, "embedding")]
    if is_fused_experts(module):
        first = "gate_up_proj" if module.has_gate else "up_proj"
        return [(_tensor(getattr(module, n)), "experts") for n in (first, "down_proj")]
    if is_norm(module):
        return [(next(module.parameters(recurse=False)), "norm")]
    return []


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes x Wᵀ + b, whichever way round it stores W."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def is_norm(module: nn.Module) -> bool:
    """Whether a module may compute x̂ ⊙ w + b over its last axis: by its name, and by what it owns."""
    own = dict(module.named_parameters(recurse=False))
    return (
        bool(re.search(r"layer_?norm|rms_?norm", type(module).__name__.lower()))
        and not any(True for _ in module.children())
        and 1 <= len(own) <= 2
        and all(p.dim() == 1 and p.shape == next(iter(own.values())).shape for p in own.values())
        and list(own)[1:] in ([], ["bias"])
    )


def is_fused_experts(module: nn.Module) -> bool:
    """Whether a module holds all experts' weights as [expert, …, …], as transformers 5 does."""
    needed = ("down_proj", "num_experts", "_apply_gate", "is_transposed", "has_gate", "has_bias")
    return all(hasattr(module, name) for name in needed) and getattr(module.down_proj, "ndim", 0) == 3


def _tapped_block(
    module: nn.Module, weight: Tensor, tap: Tap, uses: tuple[Use, ...], names: dict[int, str], *, is_head: bool
) -> Block:
    own = names[id(weight)]
    if tap == "norm":
        both = tuple(names[id(p)] for p in module.parameters(recurse=False))
        return Block(
            name=own.rpartition(".")[0] or own,
            kind="norm",
            parameters=both,
            rows=1,
            columns=len(both) * weight.numel(),
            uses=uses,
        )
    bias = _bias(module, weight, tap)
    folded = bias is not None and len(uses) == 1 and bias.is_floating_point()
    transposed = type(module).__name__ == "Conv1D" or (tap == "experts" and bool(module.is_transposed))
    if tap == "experts":
        experts, rows, columns = weight.shape
        rows, columns = (columns, rows) if transposed else (rows, columns)
        rows *= experts
    else:
        rows, columns = weight.shape[0], weight[0].numel()
        rows, columns = (columns, rows) if transposed else (rows, columns)
    kind: Kind = "embedding" if any(u.tap == "embedding" for u in uses) else "head" if is_head else tap
    return Block(
        name=own if tap == "experts" else own.removesuffix(".weight"),
        kind=kind,
        parameters=(own, names[id(bias)]) if folded else (own,),
        rows=rows,
        columns=columns + folded,
        bias=folded,
        transposed=transposed,
        uses=uses,
    )


def _bias(module: nn.Module, weight: Tensor, tap: Tap) -> Tensor | None:
    if tap != "experts":
        return getattr(module, "bias", None)
    name = next(n for n, p in module.named_parameters(recurse=False) if p is weight)
    return getattr(module, f"{name}_bias", None) if module.has_bias else None


def _other_block(module: nn.Module, parameters: list[nn.Parameter], names: dict[int, str]) -> Block:
    """What a module owns besides tapped weights: one long row."""
    own = tuple(names[id(p)] for p in parameters)
    is_norm = "norm" in type(module).__name__.lower()
    is_embedding = isinstance(module, nn.Embedding)
    is_convolution = isinstance(module, nn.modules.conv._ConvNd)
    kind: Kind = "norm" if is_norm else "embedding" if is_embedding else "convolution" if is_convolution else "other"
    if any(re.search(r"(cls|class|mask|dist\w*)_token|pos\w*_embed|_embeddings?$", n) for n in own):
        kind = "embedding"
    name = own[0] if len(own) == 1 and not own[0].endswith(".weight") else own[0].rpartition(".")[0] or own[0]
    return Block(name=name, kind=kind, parameters=own, rows=1, columns=sum(p.numel() for p in parameters))


def _output_head(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    try:
        return get() if callable(get) else None
    except NotImplementedError:  # transformers' way of saying that a model has none
        return None


def _tensor(value: object) -> Tensor:
    assert isinstance(value, Tensor)
    return value
