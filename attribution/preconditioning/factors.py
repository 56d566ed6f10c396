"""Kronecker factors of the second moment of unit gradients, block by block.

K-FAC (Martens & Grosse 2015, arXiv 1503.05671, section 3; with weights shared over positions: Grosse & Martens 2016,
arXiv 1602.01407, section 3): the second moment of Σₜ gₜ xₜᵀ is taken for A ⊗ B with A = mean of x xᵀ over positions
that a gradient reaches, and B = Σₜ gₜ gₜᵀ per unit. An embedding's words take the place of g as one-hot vectors.
Gradients that were formed in full give Σ GᵀG and Σ GGᵀ. Where a weight has several roles (tied embeddings), the
Kronecker product with the same marginals as the sum of the roles' products takes their place.

Knows sums and their inverse roots; not how they were measured.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from ...errors import ConfigurationError

_ROUNDING = 1e-5
"""An eigenvalue as negative as this, over the largest, is still rounding: sums may be over float32 products."""

Role = Literal["map", "word", "full"]
"""How a sample saw a weight: by positions of a linear map, by words of an embedding, or as gradients in full."""
_ROLES = get_args(Role)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factors:
    """One role's sums over units and positions; each side [width], a diagonal, or [slice, width, width] along it."""

    rows: Tensor
    """Σ g gᵀ, or Σ G Gᵀ."""
    columns: Tensor
    """Σ x xᵀ, or Σ Gᵀ G."""
    weight: float
    """Positions that a gradient reached; for gradients in full Σ |G|²: rows ⊗ columns / weight is the second moment
    times the number of units."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KroneckerFactors:
    """The factors of each block in each of its roles, as sums over `num_units` units.

    Raises ConfigurationError for numbers that no second moment can have.
    """

    blocks: Mapping[str, Mapping[Role, Factors]]
    num_units: int

    def __post_init__(self) -> None:
        if self.num_units < 1:
            raise ConfigurationError("Kronecker factors of no units; measure them on at least one batch.")
        for name, roles in self.blocks.items():
            for factors in roles.values():
                _require_moment(factors.rows, f"The row factor of {name}")
                _require_moment(factors.columns, f"The column factor of {name}")

    @property
    def unseen(self) -> tuple[str, ...]:
        """Blocks whose gradient was zero in all of the sample; these are left as they are."""
        return tuple(name for name, roles in self.blocks.items() if not _seen(roles))

    def scales(self, name: str, shape: tuple[int, int], *, damping: float) -> tuple[Tensor, Tensor]:
        """B^−½ and A^−½ of one block, float64, with A of trace 1; ones where the block is unseen.

        `damping` times the mean eigenvalue of a side is added to each of its eigenvalues. Raises ConfigurationError
        where the block is missing, was measured on another shape, or has no second moment's eigenvalues.
        """
        if name not in self.blocks:
            raise ConfigurationError(
                f"The Kronecker factors lack block {name}; they have {_some(self.blocks)}. "
                "Measure them with the same choice of blocks."
            )
        roles = self.blocks[name]
        found = next((_width(f.rows), _width(f.columns)) for f in roles.values())
        if found != shape:
            raise ConfigurationError(
                f"Block {name} is {shape[0]} × {shape[1]}, its Kronecker factors are for {found[0]} × {found[1]}. "
                "Measure them with the same model."
            )
        seen = _seen(roles)
        if not seen:
            return torch.ones(shape[0], dtype=torch.float64), torch.ones(shape[1], dtype=torch.float64)
        rows = _total([f.rows.double() * (_trace(f.columns) / f.weight) for f in seen])
        columns = _total([f.columns.double() * (_trace(f.rows) / f.weight) for f in seen])
        return (
            inverse_root(rows / self.num_units, damping, name),
            inverse_root(columns / _trace(columns), damping, name),
        )

    @classmethod
    def merged(cls, *parts: "KroneckerFactors") -> "KroneckerFactors":
        """The factors of all parts' units together; ConfigurationError where their blocks differ."""
        names = list(parts[0].blocks)
        if any(list(part.blocks) != names for part in parts):
            raise ConfigurationError("Kronecker factors of different blocks cannot be merged; measure them alike.")
        merged: dict[str, dict[Role, Factors]] = {name: {} for name in names}
        for part in parts:
            for name, roles in part.blocks.items():
                for role, factors in roles.items():
                    known = merged[name].get(role)
                    merged[name][role] = factors if known is None else _sum(known, factors)
        return cls(blocks=merged, num_units=sum(part.num_units for part in parts))

    @cached_property
    def digest(self) -> str:
        """Hexadecimal; equal exactly where all numbers are."""
        return digest({name: torch.from_numpy(array) for name, array in self.to_arrays().items()})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The sums by name, for storing; `from_arrays` is the inverse."""
        arrays = {"num_units": np.asarray(self.num_units)}
        for name, roles in self.blocks.items():
            for role, factors in roles.items():
                arrays[f"{name}/{role}/rows"] = factors.rows.cpu().numpy()
                arrays[f"{name}/{role}/columns"] = factors.columns.cpu().numpy()
                arrays[f"{name}/{role}/weight"] = np.asarray(factors.weight)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> "KroneckerFactors":
        """The factors whose `to_arrays` gave these arrays; ConfigurationError where one is missing."""
        keys = list(dict.fromkeys(key.rpartition("/")[0] for key in arrays if "/" in key))
        wanted = ["num_units", *(f"{key}/{part}" for key in keys for part in ("rows", "columns", "weight"))]
        missing = [key for key in wanted if key not in arrays]
        if missing:
            raise ConfigurationError(
                f"Stored Kronecker factors lack {', '.join(missing)}; measure and store them again."
            )
        blocks: dict[str, dict[Role, Factors]] = {}
        for key in keys:
            name, _, role = key.rpartition("/")
            if role not in _ROLES:
                raise ConfigurationError(f"Stored Kronecker factors have {key}; its last part is none of {_ROLES}.")
            blocks.setdefault(name, {})[cast(Role, role)] = Factors(
                rows=torch.from_numpy(np.array(arrays[f"{key}/rows"])),
                columns=torch.from_numpy(np.array(arrays[f"{key}/columns"])),
                weight=float(arrays[f"{key}/weight"]),
            )
        return cls(blocks=blocks, num_units=int(arrays["num_units"]))


def inverse_root(moment: Tensor, damping: float, name: str) -> Tensor:
    """(M + damping · mean eigenvalue · 1)^−½, symmetric; of a diagonal, or of matrices along the diagonal."""
    values, vectors = (moment, None) if moment.dim() == 1 else torch.linalg.eigh(moment)
    if values.min() < -_ROUNDING * values.max():
        raise ConfigurationError(
            f"A Kronecker factor of {name} has eigenvalue {values.min():.3g}, which no second moment has; "
            "measure the factors again."
        )
    values = values.clamp(min=0)
    scales = (values + damping * values.mean()).rsqrt()
    return scales if vectors is None else (vectors * scales.unsqueeze(-2)) @ vectors.mT


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hexadecimal digest of names, shapes, types and numbers."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name].detach().cpu().numpy())
        state.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def _require_moment(moment: Tensor, what: str) -> None:
    if not moment.isfinite().all():
        raise ConfigurationError(
            f"{what} has NaN or infinite entries; measure it on a sample whose losses and weights are finite."
        )
    diagonal = moment if moment.dim() == 1 else moment.diagonal(dim1=-2, dim2=-1)
    if moment.dim() not in (1, 3) or (diagonal < 0).any():
        raise ConfigurationError(
            f"{what} is no second moment: shape {tuple(moment.shape)}, least diagonal entry {diagonal.min():.3g}. "
            "Accepted are [width] and [slice, width, width] with no negative diagonal; measure it again."
        )


def _seen(roles: Mapping[Role, Factors]) -> list[Factors]:
    return [f for f in roles.values() if f.weight > 0 and _trace(f.rows) > 0 and _trace(f.columns) > 0]


def _sum(one: Factors, other: Factors) -> Factors:
    if not (one.weight and other.weight):
        return one if one.weight else other
    if one.rows.shape != other.rows.shape or one.columns.shape != other.columns.shape:
        raise ConfigurationError("Kronecker factors of different shapes cannot be merged; measure them alike.")
    return Factors(rows=one.rows + other.rows, columns=one.columns + other.columns, weight=one.weight + other.weight)


def _total(moments: list[Tensor]) -> Tensor:
    """The sum; a diagonal beside full matrices has nothing off it, since it counts words."""
    full = next((m for m in moments if m.dim() == 3), None)
    if full is not None:
        moments = [torch.diag_embed(m.reshape(full.shape[:2])) if m.dim() == 1 else m for m in moments]
    if any(m.shape != moments[0].shape for m in moments):
        raise ConfigurationError("Kronecker factors mix matrices of different sizes; measure them all in one way.")
    return torch.stack(moments).sum(0)


def _trace(moment: Tensor) -> float:
    return float(moment.sum() if moment.dim() == 1 else moment.diagonal(dim1=1, dim2=2).sum())


def _width(moment: Tensor) -> int:
    return len(moment) if moment.dim() == 1 else moment.shape[0] * moment.shape[1]


def _some(names: Mapping[str, object]) -> str:
    return ", ".join(list(names)[:3]) + ("…" if len(names) > 3 else "")
