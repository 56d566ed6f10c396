"""What was computed from rows: arrays, tables and facts in one folder, with the fingerprint of where they came from."""

import io
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import RunMismatchError, RunNotFoundError
from .checked import decode_json, digest, encode_json, fingerprint
from .store import Store
from .tables import encode_table, read_checked, read_table

DERIVED_ROOMS = ("index", "quanta", "evidence", "emergence", "compare", "curves", "traces", "ledger")
"""The folders below a run's root that hold what was computed."""
_FACTS = "facts.json"
FACTS_SHAPE: dict[str, type] = {"source": str, "facts": dict, "files": dict}


class Derived:
    """A folder in one of DERIVED_ROOMS that appears whole and is refused when its source changed."""

    def __init__(self, store: Store, room: str, name: str) -> None:
        self._store = store
        self.room, self.name = room, name
        self.folder = f"{room}/{name}"

    @property
    def exists(self) -> bool:
        """Whether it has been written, whole."""
        return self._store.exists(f"{self.folder}/{_FACTS}")

    def write(
        self,
        facts: dict[str, Any],
        *,
        source: str,
        arrays: dict[str, np.ndarray] | None = None,
        tables: dict[str, pa.Table] | None = None,
        files: dict[str, bytes] | None = None,
    ) -> None:
        """Write everything, then put it in place of what stood there under this name.

        `source` is the fingerprint of what it was computed from. Arrays become .npy, tables .parquet.
        """
        contents = dict(files or {})
        contents |= {f"{name}.npy": _encode_array(array) for name, array in (arrays or {}).items()}
        contents |= {f"{name}.parquet": encode_table(table) for name, table in (tables or {}).items()}
        with self._store.new_folder(self.folder) as folder:
            for name, data in contents.items():
                folder.claim(name, data)
            value = {
                "source": source,
                "facts": facts,
                "files": {name: digest(data) for name, data in contents.items()},
            }
            folder.claim(_FACTS, encode_json(value))

    def facts(self, *, source: str | None = None) -> dict[str, Any]:
        """The facts; RunMismatchError if `source` is given and is not what they were computed from."""
        value = self._read_facts()
        if source is not None and value["source"] != source:
            raise RunMismatchError(
                f"{self._store.path(self.folder)} was computed from rows {value['source'][:12]}…, "
                f"the run now holds {source[:12]}…: compute it again (`quantascope cluster`)."
            )
        facts = value["facts"]
        assert isinstance(facts, dict)
        return facts

    @property
    def source(self) -> str:
        """Fingerprint of what it was computed from."""
        return str(self._read_facts()["source"])

    def fingerprint(self) -> str:
        """Digest of all that it holds; what is derived from it in turn carries this."""
        return fingerprint(self._read_facts())

    def array(self, name: str) -> np.ndarray:
        """An array, checked."""
        return np.asarray(np.load(io.BytesIO(self.file(f"{name}.npy")), allow_pickle=False))

    def table(self, name: str) -> pa.Table:
        """A table, checked."""
        return read_table(self._store, f"{self.folder}/{name}.parquet", self._digest(f"{name}.parquet"))

    def file(self, name: str) -> bytes:
        """A file's bytes, checked."""
        return read_checked(self._store, f"{self.folder}/{name}", self._digest(name))

    def _digest(self, name: str) -> str:
        files = self._read_facts()["files"]
        if name not in files:
            raise RunNotFoundError(f"{self._store.path(self.folder)} holds no {name}.")
        return str(files[name])

    def _read_facts(self) -> dict[str, Any]:
        if not self.exists:
            raise RunNotFoundError(
                f"{self._store.root} has no {self.room} named {self.name!r}; it has "
                f"{', '.join(self._store.names(self.room)) or 'none yet'}."
            )
        key = f"{self.folder}/{_FACTS}"
        return decode_json(self._store.read(key), str(self._store.path(key)), FACTS_SHAPE)


def _encode_array(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=False)
    return sink.getvalue()
