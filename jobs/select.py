"""Fixing the units of a row set: which, and in which order. Once, and for ever.

Every unit has a document, and the first and last token (inclusive) that its loss reads and reaches; beyond these,
documents and spans say how many tokens were cut off, token contributions which unit is their window's rest, and
groups how many windows and counted tokens they hold.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from ..attribution.selection import thin
from ..errors import ConfigurationError
from ..storage.documents import StoredDocument
from ..storage.run import Run
from .config import SelectionConfig
from .tokens import spans, windows

Scan = Callable[[list[Int[np.ndarray, "window 3"]]], list[pa.Table]]
"""Looks at lists of windows, wherever it runs, and gives their token-loss candidates."""

SCAN_WINDOWS = 64
"""Windows of one scanning task."""
_TYPES = {
    "document": pa.int64(),
    "first_token": pa.int32(),
    "last_token": pa.int32(),
    "text_start": pa.int32(),
    "text_end": pa.int32(),
    "loss": pa.float32(),
    "cut_tokens": pa.int32(),
    "rest": pa.bool_(),
    "num_windows": pa.int64(),
    "num_tokens": pa.int64(),
}
_Part = dict[str, Any]
"""Columns of some units: an array each, or one value for all of them."""


def select_units(run: Run, config: SelectionConfig, window_tokens: int, scan: Scan) -> pa.Table:
    """The units that the configuration asks for, numbered, with their documents' labels.

    Only token-loss units need a model, behind `scan`. ConfigurationError if there are none.
    """
    if config.unit_type == "token-loss":
        return select_token_losses(run, config, window_tokens, scan)
    if config.unit_type == "group":
        return select_groups(run, config, window_tokens)
    if config.unit_type == "token-contribution":
        return select_contributions(run, config, window_tokens)
    if config.unit_type == "window":
        return select_windows(run, config, window_tokens)
    return select_texts(run, config, window_tokens)


def scanned_windows(run: Run, config: SelectionConfig, window_tokens: int) -> Int[np.ndarray, "window 3"]:
    """(document, first token, last token exclusive) of the windows that are looked at, in order of the documents.

    Where only some are wanted they are evenly spaced. ConfigurationError if no document has two tokens.
    """
    found = [
        (document, first, last)
        for document, length in enumerate(run.documents.lengths().tolist())
        for first, last in windows(length, window_tokens)
    ]
    if not found:
        raise ConfigurationError("No document has two tokens or more: nothing can be predicted from anything.")
    limit = len(found)
    if config.unit_type == "window":
        limit = min(limit, config.max_units or limit)
    elif config.scan_tokens is not None:
        limit = min(limit, max(1, config.scan_tokens // window_tokens))
    table = np.array(found, np.int64)
    return table[np.arange(limit) * len(table) // limit]


def select_windows(run: Run, config: SelectionConfig, window_tokens: int) -> pa.Table:
    """One unit per window; a window none of whose tokens counts for the loss is left out."""
    table = scanned_windows(run, config, window_tokens)
    return _numbered(run, [_whole(document, first, last) for document, first, last in _counting(run, table)])


def select_texts(run: Run, config: SelectionConfig, most_tokens: int) -> pa.Table:
    """One unit per document, or per completion of a document; those none of whose tokens counts are left out.

    A document longer than `most_tokens` is cut after its first ones; one whose completion is then cut off wholly
    stays, with a gradient of zero. A span reads what precedes it, of which the beginning is cut where both are longer
    than `most_tokens`. `cut_tokens` counts what was lost: of a document the tokens after the cut, of a span its own.
    """
    make = _document if config.unit_type == "document" else _spans_of
    parts = [part for document in run.documents for part in make(document, most_tokens)]
    kept = thin(np.arange(len(parts)), max_per_window=None, max_units=config.max_units)
    return _numbered(run, [parts[i] for i in kept])


def select_contributions(run: Run, config: SelectionConfig, window_tokens: int) -> pa.Table:
    """For each window a unit per position that its loss depends on, then one with `rest` for all that these leave.

    Positions from the window's first to the one before its last counted token: the others' shares are zero in a
    causal model. A window's units always add up to the window's row. `max_per_window` counts the rest in neither;
    `max_units` keeps as many whole windows as fit, evenly spaced, or part of one.
    """
    found = list(_counting(run, scanned_windows(run, config, window_tokens)))
    per_window = []
    for document, first, last in found:
        num_positions = int(np.flatnonzero(document.counts[first:last])[-1])
        chosen = thin(np.zeros(num_positions, np.int64), max_per_window=config.max_per_window, max_units=None)
        per_window.append((document, first, last, chosen))
    if config.max_units is not None and per_window:
        limit = max(1, config.max_units // max(len(chosen) + 1 for *_, chosen in per_window))
        kept = thin(np.arange(len(per_window)), max_per_window=None, max_units=limit)
        per_window = [per_window[i] for i in kept]
        most = config.max_units - 1
        per_window = [(d, f, e, c[thin(c, max_per_window=None, max_units=most)]) for d, f, e, c in per_window]
    parts = []
    for document, first, last, chosen in per_window:
        place = first + chosen
        own = {"text_start": document.starts[place], "text_end": document.ends[place], "last_token": place}
        whole = _whole(document, first, last)
        parts += [whole | own | {"rest": False}] if len(chosen) else []
        parts.append(whole | {"rest": True})
    return _numbered(run, parts)


def select_groups(run: Run, config: SelectionConfig, window_tokens: int) -> pa.Table:
    """One unit per value of the label, in alphabetical order, documents without one last.

    A group's document and tokens are those of its first window, as an example of it. Of the other labels it has
    those on which all its documents agree. ConfigurationError for a label that the documents lack.
    """
    groups = list(grouped_windows(run, config, window_tokens).values())
    groups = [groups[i] for i in thin(np.arange(len(groups)), max_per_window=None, max_units=config.max_units)]
    parts, labels = [], []
    for table in groups:
        num_tokens = 0
        shared = dict(run.documents[int(table[0, 0])].labels)
        for document, first, last in _counting(run, table):
            num_tokens += int(document.counts[first + 1 : last].sum())
            shared = {n: v if document.labels[n] == v else None for n, v in shared.items()}
        example = _whole(run.documents[int(table[0, 0])], int(table[0, 1]), int(table[0, 2]))
        parts.append(example | {"num_windows": len(table), "num_tokens": num_tokens})
        labels.append(shared)
    return _numbered(run, parts, labels)


@lru_cache(maxsize=1)
def grouped_windows(
    run: Run, config: SelectionConfig, window_tokens: int
) -> dict[str | None, Int[np.ndarray, "window 3"]]:
    """For each value of the label `config.group_by` the windows of its documents in which a token counts."""
    found: dict[str | None, list[tuple[int, int, int]]] = {}
    for document, first, last in _counting(run, scanned_windows(run, config, window_tokens)):
        if config.group_by not in document.labels:
            raise ConfigurationError(
                f"--group-by is {config.group_by!r}; the documents have the labels "
                f"{', '.join(document.labels) or '(none)'}. Keep a field as a label with --label."
            )
        found.setdefault(document.labels[config.group_by], []).append((document.index, first, last))
    order = sorted(found, key=lambda value: (value is None, value or ""))
    return {value: np.array(found[value], np.int64) for value in order}


def select_token_losses(run: Run, config: SelectionConfig, window_tokens: int, scan: Scan) -> pa.Table:
    """Low-loss tokens, thinned to the configured limits."""
    chosen = scanned_windows(run, config, window_tokens)
    tasks = [chosen[i : i + SCAN_WINDOWS] for i in range(0, len(chosen), SCAN_WINDOWS)]
    table = pa.concat_tables(scan(tasks))
    key = np.asarray(table["document"]) * 2**32 + np.asarray(table["first_token"])
    kept = thin(key, max_per_window=config.max_per_window, max_units=config.max_units)
    if not len(kept):
        raise ConfigurationError(
            f"None of {len(chosen)} windows has a token with a loss below {config.max_loss} nats that ends a new "
            "trigram: give a larger --max-loss, more --scan-tokens, or a better trained model."
        )
    return _with_labels(run, table.take(pa.array(kept)), None)


def _counting(run: Run, table: Int[np.ndarray, "window 3"]) -> Iterator[tuple[StoredDocument, int, int]]:
    """Document, first and last token (exclusive) of the windows in which a token has a loss that counts."""
    get = lru_cache(maxsize=1)(run.documents.__getitem__)
    for index, first, last in table.tolist():
        document = get(index)
        if document.counts[first + 1 : last].any():
            yield document, first, last


def _whole(document: StoredDocument, first: int, last: int) -> _Part:
    """A unit of the tokens from `first` to before `last`."""
    return {
        "document": document.index,
        "first_token": first,
        "last_token": last - 1,
        "text_start": document.starts[first],
        "text_end": document.ends[last - 1],
        "loss": float("nan"),
    }


def _document(document: StoredDocument, most_tokens: int) -> list[_Part]:
    if not document.counts[1:].any():
        return []
    length = min(len(document.tokens), most_tokens)
    return [_whole(document, 0, length) | {"cut_tokens": len(document.tokens) - length}]


def _spans_of(document: StoredDocument, most_tokens: int) -> list[_Part]:
    found = []
    for begin, last in spans(document.counts):
        first = max(0, last - most_tokens)
        begin, own = max(begin, 1), max(begin, first + 1)
        if own < last:
            part = _whole(document, first, last) | {"cut_tokens": own - begin}
            found.append(part | {"text_start": document.starts[own]})
    return found


def _numbered(run: Run, parts: list[_Part], labels: list[dict[str, str | None]] | None = None) -> pa.Table:
    if not parts:
        raise ConfigurationError("No token of the documents counts for a loss and has a token before it: no units.")
    counts = [max(np.size(value) for value in part.values()) for part in parts]
    columns = {
        name: np.concatenate([np.broadcast_to(part[name], n) for part, n in zip(parts, counts, strict=True)])
        for name in parts[0]
    }
    return _with_labels(run, pa.table({n: pa.array(v, _TYPES[n]) for n, v in columns.items()}), labels)


def _with_labels(run: Run, table: pa.Table, labels: list[dict[str, str | None]] | None) -> pa.Table:
    """With the units' numbers in front, and behind the labels given, or else their documents'."""
    table = table.add_column(0, "unit", pa.array(np.arange(len(table)), pa.int64()))
    if labels is None:
        known = {int(d): run.documents[int(d)].labels for d in pc.unique(table["document"]).to_pylist()}
        labels = [known[d] for d in table["document"].to_pylist()]
    for name in labels[0] if labels else ():
        table = table.append_column(f"label_{name}", pa.array([found[name] for found in labels], pa.string()))
    return table
