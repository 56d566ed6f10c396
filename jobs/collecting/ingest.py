"""Documents into the run: read, tokenised, and written in shards, once; who was stopped goes on after the last."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from operator import attrgetter
from typing import Any

import numpy as np

from ...errors import BadRowError, ConfigurationError, DamagedRunError
from ...storage.begun import BEGUN, Begun, clear_begun
from ...storage.checked import fingerprint
from ...storage.documents import StoredDocument, Totals
from ...storage.run import Run
from ...storage.tables import read_table
from ..data.source import DataFingerprint, DataSource, Document, DocumentReader, SkippedRow, check_data, read_documents
from ..data.tokens import TokenisedDocument, require_tokens, tokenise_all, tokenizer_fingerprint
from ..workers.progress import Listener, Stage, ignore

_SHARD_TOKENS = 1_000_000
_AT_ONCE = 250_000
"""Characters that are tokenised together, on all cores; a longer document is alone."""


def ingest(
    run: Run,
    source: DataSource,
    tokenizer: Any,  # noqa: ANN401 - partial annotations
    *,
    keep_text: bool,
    vocab_size: int | None = None,
    listener: Listener = ignore,
) -> dict[str, Any]:
    """Write the documents unless they are there; returns documents.json's facts.

    Raises what `read_documents` raises for bad rows, under its policy; ConfigurationError for data without a document.
    """
    if not run.documents.complete:
        facts = check_data(source)
        key = {
            "source": asdict(source),
            "size": [facts.num_rows, facts.size_bytes, facts.revision],
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "vocab_size": vocab_size,
            "keep_text": keep_text,
            "shard_tokens": _SHARD_TOKENS,
        }
        work = _Ingestion(
            run=run,
            source=source,
            tokenizer=tokenizer,
            keep_text=keep_text,
            vocab_size=vocab_size,
            begun=Begun(run.store, "documents", fingerprint(key)),
        )
        work.resume()
        before = work.totals.num_documents
        stage = Stage(listener, "read documents", total=facts.num_rows or 0, unit="documents", done_before=before)
        for num_documents in work.write_shards():
            stage.advance(num_documents)
        work.finish()
    if run.store.exists(BEGUN):
        clear_begun(run.store, "documents")
    return run.documents.index


@dataclass(slots=True, kw_only=True)
class _Ingestion:
    """Documents on their way into a run."""

    run: Run
    source: DataSource
    tokenizer: Any
    keep_text: bool
    vocab_size: int | None
    begun: Begun
    """A record per shard: its digest, and where the reading goes on after it."""
    totals: Totals = field(default_factory=Totals)
    fingerprint: DataFingerprint = field(default_factory=DataFingerprint)
    skipped: list[SkippedRow] = field(default_factory=list)
    next_row: int = 0
    num_read: int = 0
    """Documents that the reader gave, those without a token among them."""

    def resume(self) -> None:
        """Count in the shards that an earlier process committed; what is not as it was written goes, with all after."""
        self.begun.clear_others()
        committed = self.begun.committed()
        whole = list(takewhile(self._count_in, takewhile(lambda n: n == committed[n], range(len(committed)))))
        for number in committed[len(whole) :]:
            self.begun.discard(number)

    def _count_in(self, number: int) -> bool:
        names = [f"label_{name}" for name in self.source.label_fields]
        try:
            record = self.begun.record(number)
            key = self.run.documents.shard_key(number)
            table = read_table(self.run.store, key, record["sha256"], ["sha256", "user_id", *names])
        except DamagedRunError:
            return False
        columns = [table[name].to_pylist() for name in ("sha256", "user_id", *names)]
        for sha256, user_id, *labels in zip(*columns, strict=True):
            self.fingerprint.add_stored(sha256, user_id, dict(zip(self.source.label_fields, labels, strict=True)))
        facts = record["facts"]
        self.totals.add(record["sha256"], num_documents=record["rows"], num_tokens=facts["num_tokens"])
        self.skipped += [SkippedRow(**row) for row in facts["skipped"]]
        self.next_row, self.num_read = facts["next_row"], facts["num_read"]
        return True

    def write_shards(self) -> Iterator[int]:
        """Write and commit the shards that are left; the number of documents of each."""
        reader = read_documents(self.source, self.tokenizer, first_row=self.next_row, num_before=self.num_read)
        shard: list[StoredDocument] = []
        num_tokens = 0
        for document in self._stored(reader):
            shard.append(document)
            num_tokens += len(document.tokens)
            if num_tokens >= _SHARD_TOKENS:
                yield self._write(shard, num_tokens, reader.skipped)
                shard, num_tokens = [], 0
        if shard:
            yield self._write(shard, num_tokens, reader.skipped)
        self.skipped += sorted(reader.skipped, key=attrgetter("row"))

    def _write(self, shard: list[StoredDocument], num_tokens: int, skipped: list[SkippedRow]) -> int:
        """The shard takes, out of the bad rows passed, those that come before the next row: reading runs ahead."""
        number = len(self.totals.shards)
        sha256 = self.run.documents.write_shard(self.totals, shard, label_names=self.source.label_fields)
        own = sorted((row for row in skipped if row.row < self.next_row), key=attrgetter("row"))
        skipped[:] = [row for row in skipped if row.row >= self.next_row]
        self.skipped += own
        facts = {
            "num_tokens": num_tokens,
            "next_row": self.next_row,
            "num_read": self.num_read,
            "skipped": [asdict(row) for row in own],
        }
        self.begun.claim(number, rows=len(shard), sha256=sha256, facts=facts)
        return len(shard)

    def _stored(self, reader: DocumentReader) -> Iterator[StoredDocument]:
        index = self.totals.num_documents
        for document, tokens in _tokenised(self.tokenizer, reader):
            self.num_read += 1
            self.next_row = document.row + 1
            try:
                require_tokens(tokens, document, vocab_size=self.vocab_size)
            except BadRowError as error:
                if self.source.bad_rows != "skip":
                    raise
                reader.skipped.append(SkippedRow(row=document.row, source=document.source, reason=str(error)))
                continue
            index += 1
            yield StoredDocument(
                index=index - 1,
                row=document.row,
                source=document.source,
                user_id=document.user_id,
                labels=dict(document.labels),
                sha256=self.fingerprint.add(document),
                text=document.text if self.keep_text else None,
                tokens=tokens.ids.astype(np.int32),
                starts=tokens.starts,
                ends=tokens.ends,
                counts=tokens.counts,
            )

    def finish(self) -> None:
        """Seal the documents."""
        if not self.totals.num_documents:
            raise ConfigurationError(
                f"{self.source.dataset} has no document left: {len(self.skipped)} rows were skipped as bad."
            )
        self.run.documents.finish(
            self.totals,
            tokenizer=self.tokenizer.backend_tokenizer.to_str(),
            fingerprint=self.fingerprint.hexdigest(),
            skipped=[{"row": s.row, "source": s.source, "reason": s.reason} for s in self.skipped],
        )


def _tokenised(
    tokenizer: Any,  # noqa: ANN401
    reader: Iterable[Document],
) -> Iterator[tuple[Document, TokenisedDocument]]:
    for batch in filter(None, _batches(reader)):
        yield from zip(batch, tokenise_all(tokenizer, batch), strict=True)


def _batches(reader: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents by a number of characters; where the reader fails, first those before it."""
    batch: list[Document] = []
    num_characters = 0
    try:
        for document in reader:
            batch.append(document)
            num_characters += len(document.text)
            if num_characters >= _AT_ONCE:
                yield batch
                batch, num_characters = [], 0
    except Exception:
        yield batch
        raise
    yield batch
