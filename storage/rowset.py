"""A row set: the gradient rows of one selection of units, at one checkpoint, under one projection.

Row i is unit i, for ever. One block of rows is one Zarr chunk, one units file and one commit record; what has no
record does not exist. Knows arrays and bytes; not how rows come about.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float16, Float32, Int64, UInt8

from ..errors import IncompleteRunError, RunMismatchError
from .checked import check, decode_json, digest, encode_json, fingerprint
from .local import LocalStore
from .tables import encode_table, read_table


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


class RowSet:
    """One row set of a run; see `storage.run.Run.row_set`."""

    def __init__(self, store: LocalStore, name: str) -> None:
        self._store = store
        self.name = name
        self.folder = f"rows/{name}"
        self._checked: set[int] = set()

    @property
    def planned(self) -> bool:
        """Whether the plan is frozen: units, blocks, projection."""
        return self._store.exists(f"{self.folder}/set.json")

    @property
    def plan(self) -> dict[str, Any]:
        """What set.json says."""
        return self._plan()

    @cache  # noqa: B019 - one per row set object, which lives as long as its process wants it
    def _plan(self) -> dict[str, Any]:
        key = f"{self.folder}/set.json"
        return decode_json(self._store.read(key), str(self._store.path(key)))

    def freeze(self, plan: dict[str, Any], selection: pa.Table, files: dict[str, bytes] | None = None) -> None:
        """Write the selection, `files`, the arrays' metadata, then set.json: from here on the plan stands.

        `plan` needs `dim`, `rows_per_block` and `blocks` (each block's name and column range).
        """
        data = encode_table(selection)
        self._store.replace(f"{self.folder}/selection.parquet", data)
        arrays = _array_metadata(len(selection), plan["dim"], len(plan["blocks"]), plan["rows_per_block"])
        for name, metadata in arrays.items():
            self._store.replace(f"{self.folder}/{name}/zarr.json", metadata)
        for name, content in (files or {}).items():
            self._store.replace(f"{self.folder}/{name}", content)
        value = plan | {
            "num_units": len(selection),
            "dtype": "float16",
            "row_scale": "row / norm · sqrt(dim)",
            "selection_sha256": digest(data),
            "arrays": {name: digest(metadata) for name, metadata in arrays.items()},
            "files": {name: digest(content) for name, content in (files or {}).items()},
        }
        if not self._store.claim(f"{self.folder}/set.json", encode_json(value)) and self.plan != value:
            raise RunMismatchError(
                f"Row set {self.name} of {self._store.root} was planned otherwise meanwhile; choose another --name."
            )

    def selection(self) -> pa.Table:
        """The units that the plan fixed, in order: unit, document, first_token, last_token, offsets, loss, labels."""
        return read_table(self._store, f"{self.folder}/selection.parquet", self.plan["selection_sha256"])

    def read(self, name: str) -> bytes:
        """A file that the plan came with, checked."""
        key = f"{self.folder}/{name}"
        data = self._store.read(key)
        check(data, self.plan["files"][name], str(self._store.path(key)))
        return data

    def __len__(self) -> int:
        return int(self.plan["num_units"])

    @property
    def num_blocks(self) -> int:
        """Number of blocks of rows, the last one perhaps shorter."""
        return -(-len(self) // int(self.plan["rows_per_block"]))

    def block_range(self, block: int) -> tuple[int, int]:
        """First unit of a block, and the one after its last."""
        size = int(self.plan["rows_per_block"])
        return block * size, min((block + 1) * size, len(self))

    def missing_blocks(self) -> list[int]:
        """Blocks without a commit record: the work that is left."""
        done = {int(name.removesuffix(".json")) for name in self._store.names(f"{self.folder}/commits")}
        return [b for b in range(self.num_blocks) if b not in done]

    def commit(self, block: int, content: RowBlock) -> dict[str, Any]:
        """Write a block's files, then claim its record. A block committed before is left as it is.

        The same rows give the same bytes: records carry neither time nor host.
        """
        first, last = self.block_range(block)
        assert len(content.rows) == last - first, "a block holds the rows of its units"
        stored, norms, status = _to_stored(content.rows)
        units = content.units.append_column("norm", pa.array(norms)).append_column("status", pa.array(status))
        padded = int(self.plan["rows_per_block"])
        files = {
            self._chunk(block): _encode_chunk(stored, padded, np.float16),
            f"{self.folder}/block_norms/c/{block}/0": _encode_chunk(content.block_norms, padded, np.float32),
            f"{self.folder}/units/{block:05d}.parquet": encode_table(units),
        }
        record = {
            "block": block,
            "first_unit": first,
            "rows": last - first,
            "zero": int((status == Status.ZERO).sum()),
            "refused": int((status == Status.REFUSED).sum()),
            "files": {key.removeprefix(self.folder + "/"): digest(data) for key, data in files.items()},
        }
        if content.batch_tokens is not None:
            record["batch_tokens"] = content.batch_tokens
        if not self._store.exists(self._record(block)):
            for key, data in files.items():
                self._store.replace(key, data)
            self._store.claim(self._record(block), encode_json(record))
        return record

    def record(self, block: int) -> dict[str, Any]:
        """A block's commit record."""
        key = self._record(block)
        return decode_json(self._store.read(key), str(self._store.path(key)))

    def fingerprint(self) -> str:
        """Digest of the plan and of every commit record; what is derived from the rows carries it."""
        self.require_complete()
        return fingerprint([self.plan, [self.record(b)["files"] for b in range(self.num_blocks)]])

    def require_complete(self) -> None:
        """IncompleteRunError, with what to do, unless every block is committed."""
        missing = self.missing_blocks()
        if missing:
            raise IncompleteRunError(
                f"{len(missing)} of {self.num_blocks} blocks of row set {self.name!r} in {self._store.root} are not "
                "collected yet: give the collect command that made it again, and it goes on where it stopped."
            )

    def units(self) -> pa.Table:
        """One line per unit: selection's columns with `loss`, `norm` and `status` as collected."""
        self.require_complete()
        tables = []
        for block in range(self.num_blocks):
            name = f"units/{block:05d}.parquet"
            tables.append(read_table(self._store, f"{self.folder}/{name}", self.record(block)["files"][name]))
        return pa.concat_tables(tables)

    def stored_block(self, block: int) -> Float16[np.ndarray, "unit dim"]:
        """A block's rows as they lie on disk (row / norm · √dim), memory-mapped; checked at the first touch."""
        first, last = self.block_range(block)
        data = np.memmap(self._store.path(self._chunk(block)), np.uint8, "r")
        if block not in self._checked:
            name = self._chunk(block).removeprefix(self.folder + "/")
            check(data.data, self.record(block)["files"][name], str(self._store.path(self._chunk(block))))
            self._checked.add(block)
        shape = (int(self.plan["rows_per_block"]), int(self.plan["dim"]))
        rows: Float16[np.ndarray, "unit dim"] = data[:-4].view("<f2").reshape(shape)[: last - first]
        return rows

    def unit_rows(self) -> tuple[Int64[np.ndarray, " row"], Float32[np.ndarray, "row dim"]]:
        """The units whose status is ok, and their rows in float32 with unit norm."""
        units = self.units()
        keep = np.asarray(units["status"]) == Status.OK
        rows = np.empty((int(keep.sum()), int(self.plan["dim"])), np.float32)
        position = 0
        for block in range(self.num_blocks):
            first, last = self.block_range(block)
            part = self.stored_block(block)[keep[first:last]]
            rows[position : position + len(part)] = part
            position += len(part)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return np.flatnonzero(keep), rows

    def block_norms(self) -> Float32[np.ndarray, "unit block"]:
        """Norm of each block of each row, before normalising; NaN for refused rows."""
        parts = []
        for block in range(self.num_blocks):
            name = f"block_norms/c/{block}/0"
            data = self._store.read(f"{self.folder}/{name}")
            check(data, self.record(block)["files"][name], f"{self.folder}/{name}")
            first, last = self.block_range(block)
            chunk = np.frombuffer(data[:-4], "<f4").reshape(-1, len(self.plan["blocks"]))
            parts.append(chunk[: last - first])
        return np.concatenate(parts)

    def _chunk(self, block: int) -> str:
        return f"{self.folder}/gradients/c/{block}/0"

    def _record(self, block: int) -> str:
        return f"{self.folder}/commits/{block:05d}.json"


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


def _encode_chunk(values: Float[np.ndarray, "unit column"], num_rows: int, dtype: type) -> bytes:
    """A Zarr chunk as `bytes` + `crc32c` codecs write it: little-endian numbers, padded with NaN, then the sum."""
    padded = np.full((num_rows, values.shape[1]), np.nan, np.dtype(dtype).newbyteorder("<"))
    padded[: len(values)] = values
    data = padded.tobytes()
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


def _array_metadata(num_units: int, dim: int, num_blocks: int, rows_per_block: int) -> dict[str, bytes]:
    """zarr.json of each array, made by zarr itself."""
    return {
        "gradients": _zarr_json((num_units, dim), rows_per_block, "float16", ("unit", "dim")),
        "block_norms": _zarr_json((num_units, num_blocks), rows_per_block, "float32", ("unit", "block")),
    }


def _zarr_json(shape: tuple[int, int], rows_per_block: int, dtype: str, names: Sequence[str]) -> bytes:
    import zarr  # slow to import, and needed only where a row set is planned
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
