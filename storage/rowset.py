"""A row set: the gradient rows of one selection of units, at one checkpoint, under one projection.

Row i is unit i, for ever. One block of rows is one Zarr chunk, one units file and one commit record; what has no
record does not exist. Knows arrays and bytes; not how rows come about.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float16, Float32, Int64

from ..errors import DamagedRunError, IncompleteRunError, RunMismatchError, RunNotFoundError
from .checked import MENDING, decode_json, digest, encode_json, fingerprint
from .chunks import CHECKSUM_BYTES, array_metadata
from .lease import LeaseLostError
from .migrations import SCHEMA_VERSION, plan_version, require_readable, upgrade_plan
from .row_block import RowBlock as RowBlock
from .row_block import Status as Status
from .row_block import encode_block
from .selection import StoredSelection, encode_groups
from .store import Store
from .tables import read_checked, read_table

PLAN_SHAPE: dict[str, type] = {
    **dict.fromkeys(("num_units", "dim", "rows_per_block"), int),
    "blocks": list,
    "arrays": dict,
    "selection_sha256": str,
}
RECORD_SHAPE: dict[str, type] = {"block": int, "rows": int, "files": dict}


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedUnits:
    """The units of a row set to be, as they were written."""

    num_units: int
    sha256: str


class RowSet:
    """One row set of a run; see `storage.run.Run.row_set`."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self.name = name
        self.folder = f"rows/{name}"
        self._checked: dict[int, tuple[str, str]] = {}
        """Key and digest of the rows of each block that was read."""

    @property
    def planned(self) -> bool:
        """Whether the plan is frozen: units, blocks, projection."""
        return self._store.exists(f"{self.folder}/set.json")

    @property
    def plan(self) -> dict[str, Any]:
        """What set.json says, brought up to date where an older version wrote it."""
        return self._plan()

    @property
    def schema_version(self) -> int:
        """Of the version that planned it."""
        return plan_version(self._stored_plan())

    @property
    def is_current(self) -> bool:
        """Whether this version makes such rows, or else only reads them."""
        return self.schema_version == SCHEMA_VERSION

    def require_current(self) -> None:
        """RunMismatchError, with the reason, for rows that this version can read and cannot make."""
        if not self.is_current:
            raise RunMismatchError(
                f"Row set {self.name!r} of {self._store.root} was planned under schema {self.schema_version} with the "
                f"projection {self.plan['projection']}; this version plans under schema {SCHEMA_VERSION} and does not "
                "make that projection any more. Its rows can be read, clustered and copied; to collect, choose another "
                "--name, or use the version that made them."
            )

    @cache  # noqa: B019 - one per row set object, which lives as long as its process wants it
    def _plan(self) -> dict[str, Any]:
        return upgrade_plan(self._stored_plan())

    @cache  # noqa: B019
    def _stored_plan(self) -> dict[str, Any]:
        key = f"{self.folder}/set.json"
        name = str(self._store.path(key))
        plan = decode_json(self._store.read(key), name, PLAN_SHAPE)
        require_readable(plan_version(plan), name)
        if min(plan["num_units"] + 1, plan["dim"], plan["rows_per_block"]) < 1:
            raise DamagedRunError(f"{name} is damaged: its sizes cannot be. {MENDING}")
        return plan

    @cache  # noqa: B019
    def _plan_fingerprint(self) -> str:
        return fingerprint(self._stored_plan())

    def write_selection(self, units: Iterable[pa.Table]) -> SelectedUnits:
        """Write the units, table after table; they are nobody's until the plan is frozen with what this returns."""
        sha256, num_units = hashlib.sha256(), 0

        def counted() -> Iterator[pa.Table]:
            nonlocal num_units
            for table in units:
                num_units += len(table)
                yield table

        def pieces() -> Iterator[bytes]:
            for piece in encode_groups(counted()):
                sha256.update(piece)
                yield piece

        self._store.replace(self._selection_key, pieces())
        return SelectedUnits(num_units=num_units, sha256=sha256.hexdigest())

    def written(self, units: SelectedUnits) -> StoredSelection:
        """What `write_selection` wrote, to be read before the plan is frozen."""
        return StoredSelection(self._store, self._selection_key, units.sha256)

    def freeze(
        self, plan: dict[str, Any], selection: pa.Table | SelectedUnits, files: dict[str, bytes] | None = None
    ) -> None:
        """Write the selection, `files`, the arrays' metadata, then set.json: from here on the plan stands.

        `plan` needs `dim`, `rows_per_block` and `blocks` (each block's name and column range).
        """
        units = self.write_selection([selection]) if isinstance(selection, pa.Table) else selection
        arrays = array_metadata(units.num_units, plan["dim"], len(plan["blocks"]), plan["rows_per_block"])
        for name, metadata in arrays.items():
            self._store.replace(f"{self.folder}/{name}/zarr.json", metadata)
        for name, content in (files or {}).items():
            self._store.replace(f"{self.folder}/{name}", content)
        value = plan | {
            "schema_version": SCHEMA_VERSION,
            "num_units": units.num_units,
            "dtype": "float16",
            "row_scale": "row / norm · sqrt(dim)",
            "selection_sha256": units.sha256,
            "arrays": {name: digest(metadata) for name, metadata in arrays.items()},
            "files": {name: digest(content) for name, content in (files or {}).items()},
        }
        if not self._store.claim(f"{self.folder}/set.json", encode_json(value)) and self.plan != value:
            raise RunMismatchError(
                f"Row set {self.name} of {self._store.root} was planned otherwise meanwhile; choose another --name."
            )

    def selection(self) -> pa.Table:
        """The units that the plan fixed, in order: unit, document, first_token, last_token, offsets, loss, labels."""
        return read_table(self._store, self._selection_key, self.plan["selection_sha256"])

    @property
    def selected(self) -> StoredSelection:
        """The same, read where it is asked for."""
        return self._selected()

    @cache  # noqa: B019
    def _selected(self) -> StoredSelection:
        return StoredSelection(self._store, self._selection_key, self.plan["selection_sha256"])

    @property
    def _selection_key(self) -> str:
        return f"{self.folder}/selection.parquet"

    def read(self, name: str) -> bytes:
        """A file that the plan came with, checked."""
        return read_checked(self._store, f"{self.folder}/{name}", self.plan["files"][name])

    def metadata(self) -> dict[str, bytes]:
        """zarr.json of each array, as the plan would have this version write it."""
        return array_metadata(len(self), self.plan["dim"], len(self.plan["blocks"]), self.plan["rows_per_block"])

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
        done = set(self.committed_blocks())
        return [b for b in range(self.num_blocks) if b not in done]

    def committed_blocks(self) -> list[int]:
        """Blocks with a commit record, in order."""
        names = self._store.names(f"{self.folder}/commits")
        numbers = [int(name[: -len(".json")]) for name in names if re.fullmatch(r"\d{5,18}\.json", name)]
        return sorted(set(numbers))

    def block_files(self, block: int) -> list[str]:
        """The names of a block's files in the row set's folder, as its record has them."""
        return [f"gradients/c/{block}/0", f"block_norms/c/{block}/0", f"units/{block:05d}.parquet"]

    def record_name(self, block: int) -> str:
        """The name of a block's record in the row set's folder."""
        return f"commits/{block:05d}.json"

    def commit(self, block: int, content: RowBlock) -> dict[str, Any]:
        """Write a block's files, then claim its record. A block committed before is left as it is.

        The same rows give the same bytes: records carry neither time nor host. Of several processes with one block
        the first commits it, whole; the others find its record.
        """
        files, record = self._encode(block, content)
        try:
            self._commit(block, files, record)
        except LeaseLostError:  # it slept, and another took over: who finds its record, or does it again
            self._commit(block, files, record)
        return self.record(block)

    def _commit(self, block: int, files: dict[str, bytes], record: dict[str, Any]) -> None:
        with self._store.hold(self.folder, block) as held:
            if not held.exists(self._record(block)):
                for name, data in files.items():
                    held.replace(f"{self.folder}/{name}", data)
                held.claim(self._record(block), encode_json(record))

    def mend(self, block: int, content: RowBlock, *, keep: str) -> bool:
        """Put a committed block's files right, from its rows computed again; True where that is proved.

        Proved: every byte is what the block's record promised, or, where the record itself is damaged, what the files
        hold. Otherwise the block is committed anew, and what stood there is moved into the folder `keep`.
        """
        files, record = self._encode(block, content)
        with self._store.hold(self.folder, block) as held:
            try:
                promised, is_recorded = self.record(block)["files"], True
            except (DamagedRunError, RunNotFoundError):
                promised, is_recorded = self._digests(files), False
            proved = promised == record["files"]
            if not proved:
                for name in (self.record_name(block), *files):  # the record first: then the block is not committed
                    if held.exists(f"{self.folder}/{name}"):
                        held.move(f"{self.folder}/{name}", f"{keep}/{self.folder}/{name}")
            there = self._digests(files)
            for name, data in files.items():
                if there[name] != record["files"][name]:
                    held.replace(f"{self.folder}/{name}", data)
            if not (proved and is_recorded):
                held.replace(self._record(block), encode_json(record))
        return proved

    def _encode(self, block: int, content: RowBlock) -> tuple[dict[str, bytes], dict[str, Any]]:
        """A block's files and its record."""
        first, last = self.block_range(block)
        assert len(content.rows) == last - first, "a block holds the rows of its units"
        data, status = encode_block(content, int(self.plan["rows_per_block"]))
        files = dict(zip(self.block_files(block), data, strict=True))
        record = {
            "plan": self._plan_fingerprint(),
            "block": block,
            "first_unit": first,
            "rows": last - first,
            "zero": int((status == Status.ZERO).sum()),
            "refused": int((status == Status.REFUSED).sum()),
            "files": {name: digest(part) for name, part in files.items()},
        }
        return files, record | ({} if content.batch_tokens is None else {"batch_tokens": content.batch_tokens})

    def _digests(self, names: Iterable[str]) -> dict[str, str | None]:
        """Of files as they lie; None for one that is missing."""
        keys = {name: f"{self.folder}/{name}" for name in names}
        return {name: self._store.digest(key) if self._store.exists(key) else None for name, key in keys.items()}

    def record(self, block: int) -> dict[str, Any]:
        """A block's commit record; DamagedRunError if it is not one of this block under this plan."""
        return self._decode_record(block, self._store.read(self._record(block)))

    def records(self) -> list[dict[str, Any]]:
        """Every block's record, in order; IncompleteRunError, with what to do, unless all are committed."""
        self.require_complete()
        names = [self.record_name(block).rpartition("/")[2] for block in range(self.num_blocks)]
        found = self._store.read_all(f"{self.folder}/commits", names)
        return [self._decode_record(block, found[name]) for block, name in enumerate(names)]

    def _decode_record(self, block: int, data: bytes) -> dict[str, Any]:
        key = self._record(block)
        record = decode_json(data, str(self._store.path(key)), RECORD_SHAPE)
        first, last = self.block_range(block)
        if (record["block"], record["rows"]) != (block, last - first) or set(record["files"]) != set(
            self.block_files(block)
        ):
            raise DamagedRunError(f"{self._store.path(key)} is damaged: it is no record of block {block}. {MENDING}")
        if "plan" in record and record["plan"] != self._plan_fingerprint():
            raise DamagedRunError(
                f"{self._store.path(key)} is of another plan than {self.folder}/set.json: the block was collected "
                f"otherwise. {MENDING}"
            )
        return record

    def fingerprint(self) -> str:
        """Digest of the plan and of every commit record; what is derived from the rows carries it."""
        return fingerprint([self._stored_plan(), [record["files"] for record in self.records()]])

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
        return pa.concat_tables([read_table(self._store, *place) for place in self._places(2)])

    def stored_block(self, block: int) -> Float16[np.ndarray, "unit dim"]:
        """A block's rows as they lie on disk (row / norm · √dim), memory-mapped; checked at the first touch."""
        if (place := self._checked.get(block)) is None:
            place = self._place(block, 0, self.record(block))
        return self._rows_of(block, place)

    def _places(self, which: int) -> Iterator[tuple[str, str]]:
        """Key and digest of one of the files of every block, in order, the next ones fetched meanwhile."""
        places = [self._place(block, which, record) for block, record in enumerate(self.records())]
        return (place for place, _ in zip(places, self._store.ahead(places), strict=True))

    def _place(self, block: int, which: int, record: dict[str, Any]) -> tuple[str, str]:
        name = self.block_files(block)[which]
        return f"{self.folder}/{name}", str(record["files"][name])

    def _rows_of(self, block: int, place: tuple[str, str]) -> Float16[np.ndarray, "unit dim"]:
        first, last = self.block_range(block)
        shape = (int(self.plan["rows_per_block"]), int(self.plan["dim"]))
        key, sha256 = place
        path = self._store.path(key)
        problem = f"{path} is damaged: it is missing, or not as long as the plan says. {MENDING}"
        try:
            size = self._store.file(key, sha256).stat().st_size
        except RunNotFoundError:
            raise DamagedRunError(problem) from None
        if size != 2 * shape[0] * shape[1] + CHECKSUM_BYTES:
            raise DamagedRunError(problem)
        data = self._store.mapped(key, sha256, is_checked=block in self._checked)
        self._checked[block] = place
        rows: Float16[np.ndarray, "unit dim"] = data[:-CHECKSUM_BYTES].view("<f2").reshape(shape)[: last - first]
        return rows

    def unit_rows(self) -> tuple[Int64[np.ndarray, " row"], Float32[np.ndarray, "row dim"]]:
        """The units whose status is ok, and their rows in float32 with unit norm."""
        units = self.units()
        keep = np.asarray(units["status"]) == Status.OK
        rows = np.empty((int(keep.sum()), int(self.plan["dim"])), np.float32)
        position = 0
        for block, place in enumerate(self._places(0)):
            first, last = self.block_range(block)
            part = self._rows_of(block, place)[keep[first:last]]
            rows[position : position + len(part)] = part
            position += len(part)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return np.flatnonzero(keep), rows

    def block_norms(self) -> Float32[np.ndarray, "unit block"]:
        """Norm of each block of each row, before normalising; NaN for refused rows."""
        parts = []
        for block, place in enumerate(self._places(1)):
            data = read_checked(self._store, *place)
            first, last = self.block_range(block)
            chunk = np.frombuffer(data[:-CHECKSUM_BYTES], "<f4").reshape(-1, len(self.plan["blocks"]))
            parts.append(chunk[: last - first])
        return np.concatenate(parts)

    def _record(self, block: int) -> str:
        return f"{self.folder}/{self.record_name(block)}"
