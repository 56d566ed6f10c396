"""Gradients divided elementwise by the root of an optimiser's second moment, before the projection.

As LESS (arXiv 2402.04333) and TrackStar (arXiv 2410.17413) do. A factored projection never forms the gradient, so
there the second moment is replaced by the rank-one matrix with the same row and column sums (Adafactor: Shazeer &
Stern 2018, arXiv 1804.04235, algorithm 1), whose root scales both sides. We add ε before factorising and not after,
since only a product can be taken apart.

Knows projections and blocks; where the second moment comes from is optimizer.py's affair.

Legend: v the second moment, ε the optimiser's, D = √v + ε the divisor, D̂² = r cᵀ / Σr with r and c the row and
column sums of D².
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ...errors import ConfigurationError
from ..blocks import Block
from ..projection.base import BlockProjection, Projection
from ..projection.identity import IdentityBlock
from .factors import digest
from .scaled import scaled

_DEFAULT_EPSILON = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankOne:
    """What the factorisation keeps of a second moment: the row and column sums of D², ε included."""

    rows: Float[Tensor, " row"]
    columns: Float[Tensor, " column"]

    @classmethod
    def of(cls, moment: Float[Tensor, "row column"], epsilon: float = _DEFAULT_EPSILON) -> "RankOne":
        """The sums, in float64."""
        _require_moment(moment, "The second moment")
        square = (moment.double().sqrt() + epsilon).square()
        return cls(rows=square.sum(1), columns=square.sum(0))

    @property
    def shape(self) -> tuple[int, int]:
        """Of the second moment."""
        return len(self.rows), len(self.columns)

    def sides(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Diagonal scales of both sides, whose product is 1 / D̂; exact for a single row."""
        rows, columns = self.rows.to(device, torch.float64), self.columns.to(device, torch.float64)
        return (rows / rows.sum()).rsqrt(), columns.rsqrt()


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondMoment:
    """A projection of gradients divided by √v + ε.

    Exact for blocks kept whole, for blocks of one row (norms, vectors) and for those of at most `max_exact` numbers;
    elsewhere by the rank-one factorisation, which costs nothing more per row: `factorisation_error` says how far off.
    """

    base: Projection
    moments: Mapping[str, Tensor | RankOne]
    """v by block, [row, column], as `block_moments` gives it; or what its factorisation kept, by the same ε."""
    epsilon: float = _DEFAULT_EPSILON
    """Added to √v; above 0. The optimiser's own as a rule; a larger one holds back entries it has hardly seen."""
    max_exact: int = 0
    """Blocks with at most as many numbers have their gradients formed in full: time and memory of a weight gradient
    per unit."""

    def __post_init__(self) -> None:
        _require_epsilon(self.epsilon)
        for name, moment in self.moments.items():
            for part in _parts(moment).values():
                _require_moment(part, f"The second moment of {name}")

    def block(
        self, name: str, *, number: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> BlockProjection:
        """The block of divided gradients; ConfigurationError where the second moment lacks it."""
        if name not in self.moments:
            raise ConfigurationError(
                f"No second moment for block {name}; give one for each chosen block (block_moments makes them)."
            )
        moment = self.moments[name]
        if tuple(moment.shape) != shape:
            raise ConfigurationError(
                f"Block {name} is {shape[0]} × {shape[1]}, its second moment {tuple(moment.shape)}; "
                "take it from an optimiser of the same model."
            )
        inner = self.base.block(name, number=number, shape=shape, dtype=dtype, device=device)
        if isinstance(moment, RankOne):
            rows, columns = moment.sides(device)
            return scaled(inner, rows=rows.to(dtype), columns=columns.to(dtype))
        moment = moment.to(device, torch.float64)
        if shape[0] > 1 and (isinstance(inner, IdentityBlock) or shape[0] * shape[1] <= self.max_exact):
            scale = (moment.sqrt() + self.epsilon).reciprocal().to(dtype)
            return _ElementwiseBlock(inner=inner, whole=IdentityBlock(shape=shape, dtype=dtype), scale=scale)
        rows, columns = RankOne.of(moment, self.epsilon).sides(device)
        return scaled(inner, rows=rows.to(dtype), columns=columns.to(dtype))

    def describe(self) -> dict[str, Any]:
        """The map as JSON, with a digest of the second moment."""
        return {
            "kind": "second-moment",
            "epsilon": self.epsilon,
            "max_exact": self.max_exact,
            "moments": digest({f"{n}{p}": t for n, moment in self.moments.items() for p, t in _parts(moment).items()}),
            "base": self.base.describe(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _ElementwiseBlock:
    """Forms the gradient, scales it, and only then projects it."""

    inner: BlockProjection
    whole: IdentityBlock
    scale: Float[Tensor, "row column"]

    @property
    def dim(self) -> int:
        """Numbers of the inner projection."""
        return self.inner.dim

    def rows(self, values: Float[Tensor, "example position row"], start: int = 0) -> Tensor:
        """The values, in full."""
        return self.whole.rows(values, start)

    def columns(self, values: Float[Tensor, "example position column"], *, constant: bool = False) -> Tensor:
        """The values, in full."""
        return self.whole.columns(values, constant=constant)

    def one_hot(self, index: Int[Tensor, "example position"]) -> Tensor:
        """Ones and zeros."""
        return self.whole.one_hot(index)

    def combine(self, rows: Tensor, columns: Tensor) -> Float[Tensor, "example dim"]:
        """The projection of the scaled gradient."""
        return self.project(rows.mT @ columns)

    def project(self, gradient: Float[Tensor, "example row column"]) -> Float[Tensor, "example dim"]:
        """The projection of the scaled gradient."""
        return self.inner.project(gradient * self.scale)


def block_moments(
    blocks: tuple[Block, ...], moments: Mapping[str, Shaped[Tensor, "..."]]
) -> dict[str, Float[Tensor, "row column"]]:
    """Each block's second moment from those of its parameters, by name and in the parameters' shapes.

    Raises ConfigurationError where a parameter has none.
    """
    missing = [p for b in blocks for p in b.parameters if p not in moments]
    if missing:
        raise ConfigurationError(
            f"{len(missing)} parameters have no second moment (the first is {missing[0]}); "
            "choose only blocks that the optimiser trained."
        )
    return {b.name: b.matrix({p: moments[p].detach()[None] for p in b.parameters})[0] for b in blocks}


def factorisation_error(moment: Float[Tensor, "row column"], epsilon: float = _DEFAULT_EPSILON) -> float:
    """What the rank-one factorisation does to a preconditioned gradient: its relative root-mean-square error.

    √(E|G/D̂ − G/D|² / E|G/D|²) for gradients G whose entries have second moment v; 0 where v has rank one.
    """
    _require_epsilon(epsilon)
    _require_moment(moment, "The second moment")
    exact = (moment.double().sqrt() + epsilon).reciprocal()
    rows, columns = RankOne.of(moment, epsilon).sides(moment.device)
    difference = rows[:, None] * columns[None, :] - exact
    total = (moment * exact.square()).sum()
    return float(((moment * difference.square()).sum() / total).sqrt()) if total > 0 else 0.0


def _parts(moment: Tensor | RankOne) -> dict[str, Tensor]:
    """The numbers of a second moment, by what comes after its block's name."""
    return {"": moment} if isinstance(moment, Tensor) else {"/rows": moment.rows, "/columns": moment.columns}


def _require_epsilon(epsilon: float) -> None:
    if not 0 < epsilon < float("inf"):
        raise ConfigurationError(f"epsilon is {epsilon}; it must be above 0 and finite.")


def _require_moment(moment: Tensor, what: str) -> None:
    if not (moment.isfinite().all() and (moment >= 0).all()):
        raise ConfigurationError(
            f"{what} has negative, NaN or infinite entries; take it from a sound optimiser state (Adam's exp_avg_sq)."
        )
