"""A block of rows as a worker hands it in, and as its files hold it: normalised, in float16, with norms and statuses.

Knows arrays and bytes; not where files lie, and not what makes them count (`rowset`).
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float16, Float32, UInt8

from .chunks import encode_chunk
from .tables import encode_table


class Status(IntEnum):
    """What became of a unit's row."""

    OK = 1
    ZERO = 2
    """The gradient is exactly zero: stored as zeros."""
    REFUSED = 3
    """The gradient holds NaN or an infinity: stored as NaN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """What a worker hands in: the rows of consecutive units, in compute precision."""

    rows: Float[np.ndarray, "unit dim"]
    """Projected gradients as they come, neither divided by their norms nor rounded."""
    block_norms: Float[np.ndarray, "unit block"]
    units: pa.Table
    """One line per unit: its selection's columns, and `loss`."""
    batch_tokens: int | None = None
    """Where memory forced smaller batches than planned: their padded tokens."""


def encode_block(content: RowBlock, padded: int) -> tuple[tuple[bytes, bytes, bytes], UInt8[np.ndarray, " unit"]]:
    """The chunks of rows and of block norms, both `padded` rows long, and the units; and each row's status."""
    stored, norms, status = _to_stored(content.rows)
    units = content.units.append_column("norm", pa.array(norms)).append_column("status", pa.array(status))
    data = (
        encode_chunk(stored, padded, np.float16),
        encode_chunk(content.block_norms, padded, np.float32),
        encode_table(units),
    )
    return data, status


def _to_stored(
    rows: Float[np.ndarray, "unit dim"],
) -> tuple[Float16[np.ndarray, "unit dim"], Float32[np.ndarray, " unit"], UInt8[np.ndarray, " unit"]]:
    """Rows divided by their norms, times √dim, in float16; the norms; the statuses."""
    wide = rows.astype(np.float64, copy=False)
    norms = np.linalg.norm(wide, axis=1)
    status = np.full(len(rows), Status.OK, np.uint8)
    status[norms == 0] = Status.ZERO
    status[~np.isfinite(norms)] = Status.REFUSED
    stored = np.full(rows.shape, np.nan, np.float16)
    stored[status == Status.ZERO] = 0
    fine = status == Status.OK
    stored[fine] = wide[fine] * (np.sqrt(rows.shape[1]) / norms[fine])[:, None]
    return stored, norms.astype(np.float32), status
