"""Fixing the units of a row set: which windows, which of their tokens, in which order. Once, and for ever."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from ..attribution.selection import thin
from ..errors import ConfigurationError
from ..storage.run import Run
from .config import SelectionConfig
from .tokens import windows
from .worker import SCAN_WINDOWS

_COLUMNS = ("document", "first_token", "last_token", "text_start", "text_end", "loss")


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
    rows: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    for index, first, last in scanned_windows(run, config, window_tokens).tolist():
        document = run.documents[index]
        if not document.counts[first + 1 : last].any():
            continue
        for name, value in zip(
            _COLUMNS,
            (index, first, last - 1, document.starts[first], document.ends[last - 1], float("nan")),
            strict=True,
        ):
            rows[name].append(value)
    return _numbered(run, pa.table({n: pa.array(v, _TYPES[n]) for n, v in rows.items()}))


def select_tokens(
    run: Run,
    config: SelectionConfig,
    window_tokens: int,
    scan: Callable[[list[Int[np.ndarray, "window 3"]]], list[pa.Table]],
) -> pa.Table:
    """Low-loss tokens, thinned to the configured limits. `scan` looks at lists of windows, wherever it runs."""
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
    return _numbered(run, table.take(pa.array(kept)))


_TYPES = {
    "document": pa.int64(),
    "first_token": pa.int32(),
    "last_token": pa.int32(),
    "text_start": pa.int32(),
    "text_end": pa.int32(),
    "loss": pa.float32(),
}


def _numbered(run: Run, table: pa.Table) -> pa.Table:
    """With the units' numbers in front and their documents' labels behind."""
    table = table.add_column(0, "unit", pa.array(np.arange(len(table)), pa.int64()))
    documents = {int(d): run.documents[int(d)] for d in pc.unique(table["document"]).to_pylist()}
    names = next(iter(documents.values())).labels.keys() if documents else ()
    for name in names:
        labels = [documents[d].labels[name] for d in table["document"].to_pylist()]
        table = table.append_column(f"label_{name}", pa.array(labels, pa.string()))
    return table
