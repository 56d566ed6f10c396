"""Documents into the run: read, tokenised, and written in shards, once."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import BadRowError, ConfigurationError
from ..storage.documents import StoredDocument
from ..storage.run import Run
from .data import DataFingerprint, DataSource, DocumentReader, SkippedRow, check_data, read_documents
from .progress import Listener, Stage, ignore
from .tokens import tokenise

_SHARD_TOKENS = 1_000_000


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
        reader = read_documents(source, tokenizer)
        fingerprint = DataFingerprint()
        stage = Stage(listener, "read documents", total=check_data(source).num_rows or 0, unit="documents")
        documents = _stored(source, reader, tokenizer, fingerprint, keep_text=keep_text, vocab_size=vocab_size)
        totals = run.documents.write(_shards(documents, stage), label_names=source.label_fields)
        if not totals.num_documents:
            raise ConfigurationError(
                f"{source.dataset} has no document left: {len(reader.skipped)} rows were skipped as bad."
            )
        run.documents.finish(
            totals,
            tokenizer=tokenizer.backend_tokenizer.to_str(),
            fingerprint=fingerprint.hexdigest(),
            skipped=[{"row": s.row, "source": s.source, "reason": s.reason} for s in reader.skipped],
        )
    return run.documents.index


def _stored(
    source: DataSource,
    reader: DocumentReader,
    tokenizer: Any,  # noqa: ANN401
    fingerprint: DataFingerprint,
    *,
    keep_text: bool,
    vocab_size: int | None,
) -> Iterator[StoredDocument]:
    index = 0
    for document in reader:
        try:
            tokens = tokenise(tokenizer, document, vocab_size=vocab_size)
        except BadRowError as error:
            if source.bad_rows != "skip":
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
            sha256=fingerprint.add(document),
            text=document.text if keep_text else None,
            tokens=tokens.ids.astype(np.int32),
            starts=tokens.starts,
            ends=tokens.ends,
            counts=tokens.counts,
        )


def _shards(documents: Iterator[StoredDocument], stage: Stage) -> Iterator[list[StoredDocument]]:
    shard: list[StoredDocument] = []
    num_tokens = 0
    for document in documents:
        shard.append(document)
        num_tokens += len(document.tokens)
        if num_tokens >= _SHARD_TOKENS:
            yield shard
            stage.advance(len(shard))
            shard, num_tokens = [], 0
    if shard:
        yield shard
        stage.advance(len(shard))
