"""What could become a unit: the windows and documents of a run, in numbered tasks, and the candidates of one task.

Pure functions of a run's documents (and of token losses, which a model gives): a task's candidates are the same
wherever it is done, with whichever others. Each has a document, and the first and last token (inclusive) that its loss
reads and reaches; beyond these, documents and spans say how many tokens were cut off, token contributions which unit is
their window's rest, and groups how many windows and counted tokens they hold. Knows no limits over all tasks, no Ray.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int, Int64

from ...attribution.selection import ends_seen_trigram, low_loss, thin
from ...errors import ConfigurationError
from ...storage.documents import StoredDocument
from ...storage.run import Run
from ..data.tokens import spans
from .config import SelectionConfig

SCAN_BATCH = 16
"""Windows that go through the model together while scanning: it decides the last bits of their losses."""
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
_COLUMNS = ("document", "first_token", "last_token", "text_start", "text_end", "loss")
_MORE = {
    "document": ("cut_tokens",),
    "span": ("cut_tokens",),
    "token-contribution": ("rest",),
    "group": ("num_windows", "num_tokens"),
}
_Part = dict[str, Any]
"""Columns of some units: an array each, or one value for all of them."""

Losses = Callable[[Int[np.ndarray, "window 3"]], list[Float32[np.ndarray, " token"]]]
"""Losses in nats of each window's tokens, given at most SCAN_BATCH windows; infinity for a window's first token."""


class Scope:
    """The windows (or, for documents and spans, the documents) that are looked at, without a list of them."""

    def __init__(self, run: Run, config: SelectionConfig, window_tokens: int) -> None:
        self._lengths: Int64[np.ndarray, " document"] = run.documents.lengths().astype(np.int64)
        self._window_tokens = window_tokens
        self.is_of_texts = config.unit_type in ("document", "span")
        # as `tokens.windows` cuts them: one after the other, a last token by itself dropped
        counts = np.maximum(0, -(-(self._lengths - 1) // window_tokens))
        self._ends = np.cumsum(counts)
        self._total = int(self._ends[-1]) if len(self._ends) else 0
        limit = self._total
        if config.unit_type == "window":
            limit = min(limit, config.max_units or limit)
        elif config.scan_tokens is not None:
            limit = min(limit, max(1, config.scan_tokens // window_tokens))
        self._num = len(self._lengths) if self.is_of_texts else limit
        if not self.is_of_texts and not self._total:
            raise ConfigurationError("No document has two tokens or more: nothing can be predicted from anything.")

    def __len__(self) -> int:
        return self._num

    def windows(self, first: int = 0, last: int | None = None) -> Int64[np.ndarray, "window 3"]:
        """(document, first token, last token exclusive) of the windows `first` to before `last` that are looked at.

        Where only some of all windows are wanted they are evenly spaced, in order of the documents.
        """
        number = np.arange(first, self._num if last is None else min(last, self._num)) * self._total // self._num
        document = np.searchsorted(self._ends, number, side="right")
        begin = (number - np.concatenate([[0], self._ends])[document]) * self._window_tokens
        end = np.minimum(begin + self._window_tokens, self._lengths[document])
        return np.stack([document, begin, end], axis=1)


def find_candidates(
    run: Run, config: SelectionConfig, scope: Scope, *, first: int, last: int, most_tokens: int, losses: Losses
) -> pa.Table:
    """The candidates among the windows (or documents) `first` to before `last`, with their documents' labels.

    `max_per_window` is applied. ConfigurationError for a label that the documents lack.
    """
    if scope.is_of_texts:
        make = _document if config.unit_type == "document" else _spans_of
        documents = (run.documents[index] for index in range(first, min(last, len(scope))))
        return _table(run, [part for document in documents for part in make(document, most_tokens)], config)
    windows = scope.windows(first, last)
    if config.unit_type == "token-loss":
        return _table(run, list(_low_losses(run, windows, config, losses)), config)
    if config.unit_type == "group":
        return _groups(run, windows, config)
    if config.unit_type == "window":
        return _table(run, [_whole(*found) for found in _counting(run, windows)], config)
    return _table(run, [part for found in _counting(run, windows) for part in _positions(*found, config)], config)


@lru_cache(maxsize=1)
def grouped_windows(
    run: Run, config: SelectionConfig, window_tokens: int
) -> dict[str | None, Int[np.ndarray, "window 3"]]:
    """For each value of the label `config.group_by` the windows of its documents in which a token counts."""
    found: dict[str | None, list[tuple[int, int, int]]] = {}
    for document, first, last in _counting(run, Scope(run, config, window_tokens).windows()):
        found.setdefault(_label(document, config), []).append((document.index, first, last))
    return {value: np.array(found[value], np.int64) for value in found}


def _low_losses(
    run: Run, windows: Int[np.ndarray, "window 3"], config: SelectionConfig, losses: Losses
) -> Iterator[_Part]:
    """Tokens with a low loss that end no seen trigram and count for the loss."""
    for start in range(0, len(windows), SCAN_BATCH):
        chosen = windows[start : start + SCAN_BATCH]
        for (index, first, last), loss in zip(chosen.tolist(), losses(chosen), strict=True):
            document = run.documents[index]
            seen = ends_seen_trigram(document.tokens)[first:last] | ~document.counts[first:last]
            position = low_loss(loss, seen, max_loss=config.max_loss)
            position = position[thin(np.zeros_like(position), max_per_window=config.max_per_window, max_units=None)]
            target = first + position
            yield {
                "document": index,
                "first_token": first,
                "last_token": target,
                "text_start": document.starts[target],
                "text_end": document.ends[target],
                "loss": loss[position],
            }


def _positions(document: StoredDocument, first: int, last: int, config: SelectionConfig) -> list[_Part]:
    """A unit per position that the window's loss depends on, then one with `rest` for all that these leave.

    Positions from the window's first to the one before its last counted token: the others' shares are zero in a causal
    model. `max_per_window` counts the rest in neither.
    """
    num_positions = int(np.flatnonzero(document.counts[first:last])[-1])
    chosen = thin(np.zeros(num_positions, np.int64), max_per_window=config.max_per_window, max_units=None)
    place = first + chosen
    own = {"text_start": document.starts[place], "text_end": document.ends[place], "last_token": place}
    whole = _whole(document, first, last)
    parts = [whole | own | {"rest": False}] if len(chosen) else []
    return [*parts, whole | {"rest": True}]


def _groups(run: Run, windows: Int[np.ndarray, "window 3"], config: SelectionConfig) -> pa.Table:
    """One line per value of the label: its first window here, counts, and the labels on which its documents agree."""
    parts: dict[str | None, _Part] = {}
    labels: dict[str | None, dict[str, str | None]] = {}
    for document, first, last in _counting(run, windows):
        value = _label(document, config)
        if value not in parts:
            parts[value] = _whole(document, first, last) | {"num_windows": 0, "num_tokens": 0}
            labels[value] = dict(document.labels)
        parts[value]["num_windows"] += 1
        parts[value]["num_tokens"] += int(document.counts[first + 1 : last].sum())
        labels[value] = agreed(labels[value], document.labels)
    return _table(run, list(parts.values()), config, list(labels.values()))


def agreed(one: dict[str, str | None], other: dict[str, str | None]) -> dict[str, str | None]:
    """The labels that are equal in both; None for the others."""
    return {name: value if other[name] == value else None for name, value in one.items()}


def _label(document: StoredDocument, config: SelectionConfig) -> str | None:
    assert config.group_by is not None
    if config.group_by not in document.labels:
        raise ConfigurationError(
            f"--group-by is {config.group_by!r}; the documents have the labels "
            f"{', '.join(document.labels) or '(none)'}. Keep a field as a label with --label."
        )
    return document.labels[config.group_by]


def _counting(run: Run, windows: Int[np.ndarray, "window 3"]) -> Iterator[tuple[StoredDocument, int, int]]:
    """Document, first and last token (exclusive) of the windows in which a token has a loss that counts."""
    get = lru_cache(maxsize=1)(run.documents.__getitem__)
    for index, first, last in windows.tolist():
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
    """The document, cut after its first tokens where it is too long; its gradient is zero where none is left."""
    if not document.counts[1:].any():
        return []
    length = min(len(document.tokens), most_tokens)
    return [_whole(document, 0, length) | {"cut_tokens": len(document.tokens) - length}]


def _spans_of(document: StoredDocument, most_tokens: int) -> list[_Part]:
    """Each completion with what precedes it, whose beginning is cut where both are too long."""
    found = []
    for begin, last in spans(document.counts):
        first = max(0, last - most_tokens)
        begin, own = max(begin, 1), max(begin, first + 1)
        if own < last:
            part = _whole(document, first, last) | {"cut_tokens": own - begin}
            found.append(part | {"text_start": document.starts[own]})
    return found


def _table(
    run: Run, parts: list[_Part], config: SelectionConfig, labels: list[dict[str, str | None]] | None = None
) -> pa.Table:
    """Candidates as a table, with the labels given, or else those of their documents."""
    counts = [next((len(v) for v in part.values() if isinstance(v, np.ndarray)), 1) for part in parts]
    columns = {}
    for name in (*_COLUMNS, *_MORE.get(config.unit_type, ())):
        values = [np.broadcast_to(part[name], count) for part, count in zip(parts, counts, strict=True)]
        columns[name] = pa.array(np.concatenate(values) if values else [], _TYPES[name])
    if labels is None:
        get = lru_cache(maxsize=1)(run.documents.__getitem__)
        labels = [get(part["document"]).labels for part in parts]
    for name in run.documents[0].labels if len(run.documents) else ():
        own = [value for found, count in zip(labels, counts, strict=True) for value in [found[name]] * count]
        columns[f"label_{name}"] = pa.array(own, pa.string())
    return pa.table(columns)
