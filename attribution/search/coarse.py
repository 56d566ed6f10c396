"""Inner products of rows and queries in low precision, with a proved bound of their error.

Legend: x a row, q a query scaled by a power of two so that its norm is in [1, 2); x̂ and q̂ the two rounded to the
working precision with half-unit roundoff u (2⁻⁸ for bfloat16, 0 for float32, which holds float16 exactly). Then

    |⟨x̂, q̂⟩ − ⟨x, q⟩| ≤ ‖x‖ (u ‖q‖ + (1 + u) ‖q̂ − q‖)      by Cauchy–Schwarz, twice

and float32 sums of D products add at most γ ‖x̂‖ ‖q̂‖, γ = (D + 8) 2⁻²³, in whichever order they are taken (Higham,
Accuracy and Stability of Numerical Algorithms, 2002, section 3.1; 2⁻²³ and not 2⁻²⁴, since AMX rounds each of a pair's
products by itself).

float16 becomes bfloat16 by two operations on its bits, where a conversion by way of float32 moves three times the
bytes: shifted right by 3, its exponent and 7 bits of its fraction stand where bfloat16 has them, and the number is
2¹¹² times too small and cut towards zero, x̂ = 2⁻¹¹² x (1−δ) with 0 ≤ δ < 2⁻⁷. The queries carry the power of two and
1 + 2⁻⁸, about which the cut is even: |2¹¹² (1+2⁻⁸) x̂ − x| ≤ 2⁻⁸ (1 + 2⁻⁷) |x|. Entries below 2⁻¹⁴ may be flushed to
zero. It cannot tell infinities and NaN from numbers, so it is for rows that are known to be finite.

Arrays in, arrays out; which rows may answer is the caller's affair.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Float64, Int64
from torch.utils.dlpack import from_dlpack

from ...errors import ConfigurationError

Precision = Literal["auto", "bfloat16", "float32"]

_TINY = 1e-30
"""Far below every score that counts, far above what processors flush to zero."""
_SHIFTED_RIGHT, _KEPT_BITS = 3, np.int16(-0x7001)
"""What makes bfloat16's bits of float16's: the sign, five bits of exponent, seven of fraction."""
_SHIFTED_SCALE = 2.0**112
_EVEN = 1 + 2.0**-8
_LEAST_NORMAL = 2.0**-14
_LOADED_ROWS = 256
"""Rows that are converted at a time: few enough to stay in a core's cache between the two operations."""
_MAX_ELEMENTS = 1 << 21
_MAX_ROWS = 8_192


def fastest_precision() -> Literal["bfloat16", "float32"]:
    """The precision in which this processor multiplies matrices fastest; the answers do not depend on it."""
    told = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return "bfloat16" if any(ask is not None and ask() for ask in told) else "float32"


def rows_per_tile(dim: int, num_queries: int) -> int:
    """So many rows that a tile and its products stay in a core's cache or near it."""
    return max(64, min(_MAX_ROWS, _MAX_ELEMENTS // max(dim, num_queries, 1)))


class Coarse:
    """Queries made ready for coarse products."""

    def __init__(self, queries: Float32[np.ndarray, "query dim"], precision: Precision = "auto") -> None:
        if not np.isfinite(queries).all():
            raise ConfigurationError("a query has a NaN or infinite entry; leave it out")
        chosen = fastest_precision() if precision == "auto" else precision
        self.dtype = torch.bfloat16 if chosen == "bfloat16" else torch.float32
        unit = 2.0**-8 * (1 + 2.0**-7) if chosen == "bfloat16" else 0.0
        wide = queries.astype(np.float64)
        norms = np.linalg.norm(wide, axis=1)
        self.scale: Float64[np.ndarray, " query"] = np.exp2(-np.floor(np.log2(np.where(norms > 0, norms, 1))))
        """What each query is multiplied with: a power of two, so nothing is rounded."""
        scaled = wide * self.scale[:, None]
        self._weights, lost = _rounded(scaled, self.dtype)
        self._shifted_weights, lost_shifted = _rounded(scaled, self.dtype, _EVEN, _SHIFTED_SCALE)
        lost = np.maximum(lost, lost_shifted)
        length = norms * self.scale
        sums = (queries.shape[1] + 8) * 2.0**-23
        self._slope = unit * length + (1 + unit) * (lost + sums * (length + lost))
        self._flushed = np.sqrt(queries.shape[1]) * _LEAST_NORMAL * (length + lost)
        self.rounding = unit + 2.0**-24
        """Of a product when it is stored, relative to itself."""
        self._underflow = np.sqrt(queries.shape[1]) * 2.0**-62  # entries whose squares vanish in float32
        self._norm_error = queries.shape[1] * 2.0**-23

    @property
    def num_queries(self) -> int:
        """How many queries there are."""
        return len(self._weights)

    def shifts(self, rows: Float[np.ndarray, "row dim"]) -> bool:
        """Whether such rows can be taken in by their bits (`Workspace.shift`)."""
        return self.dtype == torch.bfloat16 and rows.dtype == np.float16 and rows.flags.c_contiguous

    def error(self, largest_norm: float, *, shifted: bool = False) -> Float64[np.ndarray, " query"]:
        """Bound of |product − exact| before it is rounded for storing, for rows of at most this norm."""
        bound = self._slope * (largest_norm * (1 + self._norm_error) + self._underflow) + _TINY
        return bound + self._flushed if shifted else bound

    def workspace(self, num_rows: int) -> "Workspace":
        """Buffers for tiles of at most so many rows; one for each thread."""
        return Workspace(self, num_rows)

    def keys(self, values: Float64[np.ndarray, " query"]) -> Int64[np.ndarray, " query"]:
        """Thresholds as integers: a product's key is at least this wherever the product is at least the value.

        Rounding is monotone, so a product that was rounded for storing may be compared with a value rounded likewise.
        """
        rounded = torch.from_numpy(values - _TINY).to(self.dtype)
        return _sortable(rounded.view(_INTEGER[self.dtype]).numpy()).astype(np.int64)


class Workspace:
    """One thread's buffers: a tile in the working precision, its norms and its products."""

    def __init__(self, coarse: Coarse, num_rows: int) -> None:
        dim = coarse._weights.shape[1]
        self._coarse = coarse
        self._narrow = torch.empty(num_rows, dim, dtype=coarse.dtype)
        self._bits = self._narrow.view(_INTEGER[coarse.dtype]).numpy()
        self._wide = torch.empty(_LOADED_ROWS, dim)
        self._weights = coarse._weights
        self._products = torch.empty(num_rows, coarse.num_queries, dtype=coarse.dtype)
        self._passes = np.empty((num_rows, coarse.num_queries), np.bool_)

    def load(self, rows: Float[np.ndarray, "row dim"]) -> Float32[np.ndarray, " row"]:
        """Take in a tile; its rows' norms, not finite where a row is not."""
        norms = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _LOADED_ROWS):
            part = slice(start, min(start + _LOADED_ROWS, len(rows)))
            wide = self._wide[: part.stop - start]
            wide.copy_(from_dlpack(rows[part]))
            norms[part] = torch.linalg.vector_norm(wide, dim=1).numpy()
            self._narrow[part].copy_(wide)
        self._weights = self._coarse._weights
        return norms

    def shift(self, rows: Float16[np.ndarray, "row dim"]) -> None:
        """Take in a tile by its bits, in bfloat16; those of rows that are not finite become any numbers."""
        bits = rows.view(np.int16)
        for start in range(0, len(rows), _LOADED_ROWS):
            part = slice(start, min(start + _LOADED_ROWS, len(rows)))
            np.right_shift(bits[part], _SHIFTED_RIGHT, out=self._bits[part])
            np.bitwise_and(self._bits[part], _KEPT_BITS, out=self._bits[part])
        self._weights = self._coarse._shifted_weights

    def multiply(self, num_rows: int, leave_out: Int64[np.ndarray, " out"]) -> None:
        """Products of the tile's first rows with all queries; those of the rows to leave out are 0."""
        narrow = self._narrow[:num_rows]
        if len(leave_out):
            narrow[torch.from_numpy(leave_out)] = 0
        torch.mm(narrow, self._weights.T, out=self._products[:num_rows])

    def passing(self, num_rows: int, keys: Int64[np.ndarray, " query"]) -> Int64[np.ndarray, " pair"]:
        """Flat positions (row · queries + query) of the products that reach their query's key."""
        bits = self._products[:num_rows].view(_INTEGER[self._coarse.dtype]).numpy()
        if (keys <= 0).any():
            bits = _sortable(bits)
        np.greater_equal(bits, keys.astype(bits.dtype), out=self._passes[:num_rows])
        return np.flatnonzero(self._passes[:num_rows])

    def greatest(self, num_rows: int, rank: int, leave_out: Int64[np.ndarray, " out"]) -> Float64[np.ndarray, " query"]:
        """Each query's product of this rank (1 is the greatest) among the rows that are not left out."""
        products = self._products[:num_rows].float()
        if len(leave_out):
            products[torch.from_numpy(leave_out)] = -torch.inf
        return products.T.contiguous().topk(rank, dim=1).values[:, -1].double().numpy()

    def values(self, positions: Int64[np.ndarray, " pair"]) -> Float64[np.ndarray, " pair"]:
        """The products at flat positions."""
        return self._products.view(-1)[torch.from_numpy(positions)].double().numpy()


def _rounded(
    scaled: Float64[np.ndarray, "query dim"], dtype: torch.dtype, even: float = 1.0, power: float = 1.0
) -> tuple[torch.Tensor, Float64[np.ndarray, " query"]]:
    """Queries times `even` and a power of two, in the working precision; what each lost, in units of the query."""
    weights = torch.from_numpy(scaled * (even * power)).to(torch.float32).to(dtype)
    return weights, np.linalg.norm(weights.double().numpy() / power - scaled * even, axis=1)


_INTEGER = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


def _sortable(bits: np.ndarray) -> np.ndarray:
    """Integers that are ordered as the floating-point numbers whose bits these are."""
    return bits ^ ((bits >> (8 * bits.itemsize - 1)) & np.iinfo(bits.dtype).max)
