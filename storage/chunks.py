"""Zarr chunks and array metadata as bytes: what anyone reads with zarr alone."""

from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import Float

CHECKSUM_BYTES = 4
"""Of the crc32c that a chunk ends with."""


def encode_chunk(values: Float[np.ndarray, "unit column"], num_rows: int, dtype: type) -> bytes:
    """A Zarr chunk as `bytes` + `crc32c` codecs write it: little-endian numbers, padded with NaN, then the sum."""
    padded = np.full((num_rows, values.shape[1]), np.nan, np.dtype(dtype).newbyteorder("<"))
    padded[: len(values)] = values
    data = padded.tobytes()
    return data + int(google_crc32c.value(data)).to_bytes(CHECKSUM_BYTES, "little")


def array_metadata(num_units: int, dim: int, num_blocks: int, rows_per_block: int) -> dict[str, bytes]:
    """zarr.json of each array of a row set, made by zarr itself."""
    return {
        "gradients": _zarr_json((num_units, dim), rows_per_block, "float16", ("unit", "dim")),
        "block_norms": _zarr_json((num_units, num_blocks), rows_per_block, "float32", ("unit", "block")),
    }


def _zarr_json(shape: tuple[int, int], rows_per_block: int, dtype: str, names: Sequence[str]) -> bytes:
    import zarr  # slow to import, and needed only where a row set is planned or mended
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.storage import MemoryStore

    store: dict[str, Any] = {}
    zarr.create_array(
        store=MemoryStore(store),
        shape=shape,
        chunks=(rows_per_block, shape[1]),
        dtype=dtype,
        fill_value=float("nan"),
        serializer=BytesCodec(),
        compressors=[Crc32cCodec()],
        filters=None,
        dimension_names=list(names),
        config={"write_empty_chunks": True},
    )
    return bytes(store["zarr.json"].to_bytes())
