"""The documents of a run: source, the user's id, hash, labels, tokens, and the text unless it was left out.

Written in shards, in order; document i of a run is document i for ever. `documents.json` appears when all are there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int32

from ..errors import IncompleteRunError
from .checked import decode_json, digest, encode_json
from .local import LocalStore
from .tables import read_checked, read_table, write_table

_INDEX = "documents/documents.json"
_TOKENIZER = "documents/tokenizer.json"
INDEX_SHAPE: dict[str, type] = {"num_documents": int, "num_tokens": int, "shards": list, "tokenizer_sha256": str}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDocument:
    """One document as a run keeps it."""

    index: int
    """Its number in the run, from 0."""
    row: int
    """Its row number in the data set that it came from."""
    source: str
    user_id: str
    labels: dict[str, str | None]
    sha256: str
    """Digest of the text in UTF-8, kept even where the text is not."""
    text: str | None
    """None where the run was made without text."""
    tokens: Int32[np.ndarray, " token"]
    starts: Int32[np.ndarray, " token"]
    """Character offset of each token's first character."""
    ends: Int32[np.ndarray, " token"]
    """Character offset after each token's last character."""
    counts: Bool[np.ndarray, " token"]
    """Whether the token's loss counts (a completion's tokens, for instance)."""


class Documents:
    """The documents of one run."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._shard = lru_cache(maxsize=16)(self._read_shard)

    @property
    def complete(self) -> bool:
        """Whether every document has been written."""
        return self._store.exists(_INDEX)

    @property
    def index(self) -> dict[str, Any]:
        """What documents.json says: counts, fingerprint of the data, and each shard's first document and digest."""
        if not self.complete:
            raise IncompleteRunError(
                f"The documents of {self._store.root} are not all written; give the collect command that made it again."
            )
        return self._index()

    @cache  # noqa: B019 - one per run object, which lives as long as its process wants it
    def _index(self) -> dict[str, Any]:
        return decode_json(self._store.read(_INDEX), str(self._store.path(_INDEX)), INDEX_SHAPE)

    @cache  # noqa: B019
    def _firsts(self) -> Int32[np.ndarray, " shard"]:
        return np.array([s["first"] for s in self.index["shards"]], np.int32)

    def write(self, shards: Iterator[Sequence[StoredDocument]], *, label_names: Sequence[str]) -> "_Totals":
        """Write all documents, shard by shard; returns the totals that `finish` seals."""
        totals = _Totals(shards=[], num_documents=0, num_tokens=0)
        for number, documents in enumerate(shards):
            key = f"documents/{number:05d}.parquet"
            table = _to_table(documents, label_names)
            totals.shards.append(
                {"file": key, "first": totals.num_documents, "sha256": write_table(self._store, key, table)}
            )
            totals.num_documents += len(documents)
            totals.num_tokens += sum(len(d.tokens) for d in documents)
        return totals

    def finish(self, totals: "_Totals", *, tokenizer: str, **facts: Any) -> None:  # noqa: ANN401 - JSON facts
        """Seal the documents, with the tokenizer (as its library serialises it) that made their tokens."""
        data = tokenizer.encode()
        self._store.replace(_TOKENIZER, data)
        value = {
            "num_documents": totals.num_documents,
            "num_tokens": totals.num_tokens,
            "shards": totals.shards,
            "tokenizer_sha256": digest(data),
        }
        self._store.claim(_INDEX, encode_json(value | facts))

    def tokenizer(self) -> str:
        """The tokenizer that made the tokens, as `tokenizers.Tokenizer.from_str` reads it."""
        return read_checked(self._store, _TOKENIZER, self.index["tokenizer_sha256"]).decode()

    def __len__(self) -> int:
        return int(self.index["num_documents"])

    def lengths(self) -> Int32[np.ndarray, " document"]:
        """Number of tokens of every document."""
        parts = [
            np.asarray(pc.list_value_length(self._shard(i)["tokens"]).combine_chunks(), dtype=np.int32)
            for i in range(len(self.index["shards"]))
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def __iter__(self) -> Iterator[StoredDocument]:
        for i in range(len(self)):
            yield self[i]

    def __getitem__(self, index: int) -> StoredDocument:
        firsts = self._firsts()
        if not 0 <= index < len(self):
            raise IndexError(f"Document {index} of {len(self)}.")
        shard = int(np.searchsorted(firsts, index, side="right")) - 1
        table = self._shard(shard)
        row = index - int(firsts[shard])

        def array(column: str, dtype: type) -> Any:  # noqa: ANN401
            return np.asarray(table[column][row].values, dtype=dtype)

        return StoredDocument(
            index=index,
            row=table["row"][row].as_py(),
            source=table["source"][row].as_py(),
            user_id=table["user_id"][row].as_py(),
            labels={
                c.removeprefix("label_"): table[c][row].as_py() for c in table.column_names if c.startswith("label_")
            },
            sha256=table["sha256"][row].as_py(),
            text=table["text"][row].as_py() if "text" in table.column_names else None,
            tokens=array("tokens", np.int32),
            starts=array("starts", np.int32),
            ends=array("ends", np.int32),
            counts=array("counts", np.bool_),
        )

    def _read_shard(self, number: int) -> pa.Table:
        shard = self.index["shards"][number]
        return read_table(self._store, shard["file"], shard["sha256"])


@dataclass(slots=True, kw_only=True)
class _Totals:
    shards: list[dict[str, Any]]
    num_documents: int
    num_tokens: int


def _to_table(documents: Sequence[StoredDocument], label_names: Sequence[str]) -> pa.Table:
    columns: dict[str, Any] = {
        "document": pa.array([d.index for d in documents], pa.int64()),
        "row": pa.array([d.row for d in documents], pa.int64()),
        "source": pa.array([d.source for d in documents], pa.string()),
        "user_id": pa.array([d.user_id for d in documents], pa.string()),
        "sha256": pa.array([d.sha256 for d in documents], pa.string()),
    }
    for name in label_names:
        columns[f"label_{name}"] = pa.array([d.labels.get(name) for d in documents], pa.string())
    for name, kind in (
        ("tokens", pa.int32()),
        ("starts", pa.int32()),
        ("ends", pa.int32()),
        ("counts", pa.bool_()),
    ):
        columns[name] = pa.array([getattr(d, name) for d in documents], pa.list_(kind))
    if documents and documents[0].text is not None:
        columns["text"] = pa.array([d.text for d in documents], pa.string())
    return pa.table(columns)
