"""The documents of a run: source, the user's id, hash, labels, tokens, and the text unless it was left out.

Written in shards, in order; document i of a run is document i for ever. `documents.json` appears when all are there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int32

from ..errors import IncompleteRunError
from .checked import decode_json, digest, encode_json
from .store import Store
from .tables import read_checked, read_table, write_table

_INDEX = "documents/documents.json"
_TOKENIZER = "documents/tokenizer.json"
_LISTS = ("tokens", "starts", "ends", "counts")
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

    def __init__(self, store: Store) -> None:
        self._store = store
        self.keep_shards(16)

    def keep_shards(self, number: int) -> None:
        """Keep so many shards in memory, those read last; whoever reads in order needs two."""
        self._shard = lru_cache(maxsize=number)(lambda shard: _Shard(self._read_shard(shard)))

    @property
    def complete(self) -> bool:
        """Whether every document has been written."""
        return self._store.exists(_INDEX)

    @property
    def index(self) -> dict[str, Any]:
        """What documents.json says: counts, fingerprint of the data, and each shard's first document and digest."""
        return self._index()

    @cache  # noqa: B019 - one per run object, which lives as long as its process wants it
    def _index(self) -> dict[str, Any]:
        if not self.complete:
            raise IncompleteRunError(
                f"The documents of {self._store.root} are not all written; give the collect command that made it again."
            )
        return decode_json(self._store.read(_INDEX), str(self._store.path(_INDEX)), INDEX_SHAPE)

    @cache  # noqa: B019
    def _firsts(self) -> Int32[np.ndarray, " shard"]:
        return np.array([s["first"] for s in self.index["shards"]], np.int32)

    def write(self, shards: Iterator[Sequence[StoredDocument]], *, label_names: Sequence[str]) -> "Totals":
        """Write all documents, shard by shard; returns the totals that `finish` seals."""
        totals = Totals()
        for documents in shards:
            self.write_shard(totals, documents, label_names=label_names)
        return totals

    def write_shard(self, totals: "Totals", documents: Sequence[StoredDocument], *, label_names: Sequence[str]) -> str:
        """Write the shard that comes next, and add it to the totals; returns its digest."""
        sha256 = write_table(self._store, self.shard_key(len(totals.shards)), _to_table(documents, label_names))
        totals.add(sha256, num_documents=len(documents), num_tokens=sum(len(d.tokens) for d in documents))
        return sha256

    @staticmethod
    def shard_key(number: int) -> str:
        """Where a shard lies in the run."""
        return f"documents/{number:05d}.parquet"

    def finish(self, totals: "Totals", *, tokenizer: str, **facts: Any) -> None:  # noqa: ANN401 - JSON facts
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
            np.asarray(pc.list_value_length(self._read_shard(i, ["counts"])["counts"]).combine_chunks(), np.int32)
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
        return self._shard(shard).document(index - int(firsts[shard]), index)

    def _read_shard(self, number: int, columns: list[str] | None = None) -> pa.Table:
        shard = self.index["shards"][number]
        return read_table(self._store, shard["file"], shard["sha256"], columns)


class _Shard:
    """One shard in memory: lists as their values and edges, so that a document is a few slices."""

    def __init__(self, table: pa.Table) -> None:
        chunks = {name: table[name].combine_chunks() for name in table.column_names}
        self._lists = {
            name: (np.asarray(chunks[name].offsets), chunks[name].values.to_numpy(zero_copy_only=False))
            for name in _LISTS
        }
        self._labels = {name.removeprefix("label_"): c for name, c in chunks.items() if name.startswith("label_")}
        self._row, self._source, self._user_id = (chunks[name] for name in ("row", "source", "user_id"))
        self._sha256, self._text = chunks["sha256"], chunks.get("text")

    def document(self, place: int, index: int) -> StoredDocument:
        """The document at a place of the shard, whose number in the run is `index`."""
        lists = {name: values[edges[place] : edges[place + 1]] for name, (edges, values) in self._lists.items()}
        return StoredDocument(
            index=index,
            row=self._row[place].as_py(),
            source=self._source[place].as_py(),
            user_id=self._user_id[place].as_py(),
            labels={name: column[place].as_py() for name, column in self._labels.items()},
            sha256=self._sha256[place].as_py(),
            text=None if self._text is None else self._text[place].as_py(),
            **lists,
        )


@dataclass(slots=True, kw_only=True)
class Totals:
    """Of the shards that were written so far."""

    shards: list[dict[str, Any]] = field(default_factory=list)
    num_documents: int = 0
    num_tokens: int = 0

    def add(self, sha256: str, *, num_documents: int, num_tokens: int) -> None:
        """Count the next shard in."""
        key = Documents.shard_key(len(self.shards))
        self.shards.append({"file": key, "first": self.num_documents, "sha256": sha256})
        self.num_documents += num_documents
        self.num_tokens += num_tokens


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
