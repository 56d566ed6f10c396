"""What a stage that is not finished yet has committed: numbered shards, gone once the stage's own files stand.

A stage that was stopped goes on with what lies here under the same key, and only there: the key says all that decides
the shards' bytes. Nothing that reads a run reads this. Knows tables and records; not what they mean.
"""

import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from ..errors import DamagedRunError, RunNotFoundError
from .checked import decode_json, digest, encode_json
from .store import Store
from .tables import encode_table, read_table

BEGUN = "begun"
"""The folder that holds them, below the run's root."""
_RECORD_SHAPE: dict[str, type] = {"number": int, "rows": int, "sha256": str, "facts": dict}


class Begun:
    """The shards of one stage; `key` is the fingerprint of all that decides them."""

    def __init__(self, store: Store, stage: str, key: str) -> None:
        self._store = store
        self._stage = f"{BEGUN}/{stage}"
        self.folder = f"{self._stage}/{key[:16]}"

    def commit(self, number: int, table: pa.Table, facts: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write a shard, then claim its record, which is returned; one that was committed before stays as it is."""
        with self._store.hold(self.folder, number) as held:
            if not held.exists(self._record(number)):
                data = encode_table(table)
                held.replace(self._table(number), data)
                held.claim(self._record(number), _encode_record(number, len(table), digest(data), facts or {}))
        return self.record(number)

    def claim(self, number: int, *, rows: int, sha256: str, facts: dict[str, Any]) -> None:
        """Only the record, of a shard whose bytes lie elsewhere."""
        self._store.claim(self._record(number), _encode_record(number, rows, sha256, facts))

    def committed(self) -> list[int]:
        """The numbers of the shards that are there, in order."""
        names = self._store.names(self.folder)
        return sorted(int(name[: -len(".json")]) for name in names if re.fullmatch(r"\d{6,18}\.json", name))

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those of some shards that are not there."""
        done = set(self.committed())
        return [number for number in numbers if number not in done]

    def record(self, number: int) -> dict[str, Any]:
        """Number of rows, digest and facts of a shard."""
        key = self._record(number)
        record = decode_json(self._store.read(key), str(self._store.path(key)), _RECORD_SHAPE)
        if record["number"] != number:
            raise DamagedRunError(f"{self._store.path(key)} is damaged: remove it, and give the same command again.")
        return record

    def table(self, number: int) -> pa.Table:
        """A shard, checked; DamagedRunError, with what to remove, where it is not what was written."""
        try:
            return read_table(self._store, self._table(number), self.record(number)["sha256"])
        except (DamagedRunError, RunNotFoundError):
            self.discard(number)
            raise DamagedRunError(
                f"{self._store.path(self._table(number))} was damaged, and is removed: give the same command again, "
                "and it is made again."
            ) from None

    def discard(self, number: int) -> None:
        """Take a shard back, its record first."""
        for key in (self._record(number), self._table(number)):
            if self._store.exists(key):
                self._store.remove(key)

    def clear_others(self) -> None:
        """Remove what the stage left under other keys."""
        own = self.folder.rpartition("/")[2]
        for name in self._store.names(self._stage):
            if name != own:
                self._store.remove(f"{self._stage}/{name}")

    def clear(self) -> None:
        """Remove all that the stage left, and the folder above where nothing else is begun."""
        clear_begun(self._store, self._stage.partition("/")[2])

    def _record(self, number: int) -> str:
        return f"{self.folder}/{number:06d}.json"

    def _table(self, number: int) -> str:
        return f"{self.folder}/{number:06d}.parquet"


def clear_begun(store: Store, stage: str) -> None:
    """Remove what a stage left, under whichever key, and the folder above where nothing else is begun."""
    if store.exists(f"{BEGUN}/{stage}"):
        store.remove(f"{BEGUN}/{stage}")
    for folder in (f"{BEGUN}/{stage}".rpartition("/")[0], BEGUN):
        if store.exists(folder) and not store.names(folder):
            store.remove(folder)


def _encode_record(number: int, rows: int, sha256: str, facts: dict[str, Any]) -> bytes:
    return encode_json({"number": number, "rows": rows, "sha256": sha256, "facts": facts})
