"""Fixing the units of a row set: which, and in which order. Once, and for ever.

A sharded, committed pass: numbered tasks of windows (or documents), whose candidates any worker finds and commits; then
the driver thins them to the configured limits, numbers them, and hands them on table by table. The units are the same
for any number of workers, and whoever was stopped in between.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from ...attribution.selection import thin_part
from ...errors import ConfigurationError
from ...storage.begun import Begun
from ...storage.checked import fingerprint
from ...storage.run import Run
from ..models.model import LoadedModel
from .block_time import nominal_seconds
from .candidates import SCAN_BATCH, Losses, Scope, agreed, find_candidates
from .config import SelectionConfig

Scan = Callable[[list[int]], None]
"""Has numbered tasks of a `Selecting` done, wherever that runs; each commits what it finds."""

_TASK_SECONDS = 10
"""Of a task, about, at the nominal rate."""
_MOST_WINDOWS = 1024


class Selecting:
    """One selection while it goes on; the same on the driver and on every worker."""

    def __init__(
        self,
        run: Run,
        set_name: str,
        config: SelectionConfig,
        *,
        window_tokens: int,
        loaded: LoadedModel | None,
        num_threads: int = 1,
    ) -> None:
        self._run, self._set_name, self._config = run, set_name, config
        self._window_tokens = window_tokens
        self._loaded = loaded if config.unit_type == "token-loss" else None
        """Whose losses decide; None where none do."""
        self._num_threads = num_threads

    @cached_property
    def _scope(self) -> Scope:
        return Scope(self._run, self._config, self._window_tokens)

    @cached_property
    def _task_size(self) -> int:
        """Windows of one task: about ten seconds' work at a nominal rate, the same on every machine of its kind."""
        if self._loaded is None:
            return _MOST_WINDOWS
        model = self._loaded.model
        num_parameters = sum(p.numel() for p in model.parameters())
        seconds = nominal_seconds(num_parameters, self._window_tokens, model.device.type) / 2  # the forward pass alone
        wanted = _TASK_SECONDS / seconds
        if wanted >= SCAN_BATCH:
            wanted -= wanted % SCAN_BATCH
        return int(np.clip(wanted, 1, _MOST_WINDOWS))

    @cached_property
    def shards(self) -> Begun:
        """Where tasks commit: under a key that says all that decides what they find."""
        model = self._loaded and {
            "fingerprint": self._loaded.fingerprint,
            "dtype": str(self._loaded.model.dtype),
            "device_type": self._loaded.model.device.type,
            "num_threads": self._num_threads,
        }
        decides = {
            "documents": [shard["sha256"] for shard in self._run.documents.index["shards"]],
            "selection": asdict(self._config),
            "window_tokens": self._window_tokens,
            "task_size": self._task_size,
            "model": model,
        }
        return Begun(self._run.store, f"rows/{self._set_name}", fingerprint(decides))

    @property
    def num_windows(self) -> int:
        """Windows (or documents) that are looked at."""
        return len(self._scope)

    @property
    def counts_in(self) -> str:
        """What they are called."""
        return "documents" if self._scope.is_of_texts else "windows"

    @property
    def num_tasks(self) -> int:
        """Into how many tasks they fall."""
        return -(-len(self._scope) // self._task_size)

    def task_range(self, task: int) -> tuple[int, int]:
        """First window (or document) of a task, and the one after its last."""
        return task * self._task_size, min((task + 1) * self._task_size, len(self._scope))

    def scan(self, task: int, losses: Losses) -> dict[str, Any]:
        """Find and commit the candidates of one task; its record."""
        first, last = self.task_range(task)
        table = find_candidates(
            self._run,
            self._config,
            self._scope,
            first=first,
            last=last,
            most_tokens=self._window_tokens,
            losses=losses,
        )
        return self.shards.commit(task, table, _window_facts(table))

    def units(self, scan: Scan) -> Iterator[pa.Table]:
        """Have done what no earlier process did, then give the units, table after table.

        ConfigurationError if there are none.
        """
        self.shards.clear_others()
        scan(self.shards.missing(range(self.num_tasks)))
        return self._numbered(self._thinned())

    def done(self) -> None:
        """Forget what tasks committed: the units are frozen."""
        self.shards.clear()

    def _thinned(self) -> Iterator[pa.Table]:
        if self._config.unit_type == "group":
            yield self._merged_groups()
            return
        records = [self.shards.record(task) for task in range(self.num_tasks)]
        if self._config.unit_type == "token-contribution" and self._config.max_units is not None:
            yield from self._whole_windows([r["facts"] for r in records], self._config.max_units)
            return
        # of windows, those that are looked at were thinned
        limit = None if self._config.unit_type == "window" else self._config.max_units
        total, first = sum(r["rows"] for r in records), 0
        for task, record in enumerate(records):
            last = first + record["rows"]
            kept = thin_part(first, last, count=total, limit=limit)
            first = last
            if len(kept):
                yield self.shards.table(task).take(pa.array(kept))

    def _whole_windows(self, facts: list[dict[str, Any]], max_units: int) -> Iterator[pa.Table]:
        """As many whole windows as fit, evenly spaced, or part of one: a window's units add up to its row."""
        total = sum(f["num_windows"] for f in facts)
        limit = max(1, max_units // max([f["largest_window"] for f in facts], default=1)) if total else 1
        first = 0
        for task, fact in enumerate(facts):
            last = first + fact["num_windows"]
            kept = thin_part(first, last, count=total, limit=limit)
            first = last
            if not len(kept):
                continue
            table = self.shards.table(task)
            begin, end = _window_edges(table)
            for window in kept:
                own = np.arange(begin[window], end[window])
                chosen = thin_part(0, len(own) - 1, count=len(own) - 1, limit=max_units - 1)
                yield table.take(pa.array(np.concatenate([own[:-1][chosen], own[-1:]])))

    def _merged_groups(self) -> pa.Table:
        """One unit per value of the label, in alphabetical order, documents without one last.

        A group's document and tokens are those of its first window, as an example of it. Of the other labels it has
        those on which all its documents agree.
        """
        found: dict[str | None, dict[str, Any]] = {}
        schema: pa.Schema | None = None
        for task in range(self.num_tasks):
            table = self.shards.table(task)
            schema = table.schema
            for line in table.to_pylist():
                value = line[f"label_{self._config.group_by}"]
                found[value] = _joined(found[value], line) if value in found else line
        order = sorted(found, key=lambda value: (value is None, value or ""))
        kept = thin_part(0, len(order), count=len(order), limit=self._config.max_units)
        return pa.Table.from_pylist([found[order[i]] for i in kept], schema)

    def _numbered(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """With the units' numbers in front."""
        first = 0
        for table in tables:
            if len(table):
                numbers = pa.array(np.arange(first, first + len(table)), pa.int64())
                first += len(table)
                yield table.add_column(0, "unit", numbers)
        if not first:
            raise ConfigurationError(self._why_none())

    def _why_none(self) -> str:
        if self._config.unit_type == "token-loss":
            return (
                f"None of {self.num_windows} windows has a token with a loss below {self._config.max_loss} nats that "
                "ends a new trigram: give a larger --max-loss, more --scan-tokens, or a better trained model."
            )
        return "No token of the documents counts for a loss and has a token before it: no units."


def select_units(selecting: Selecting, losses: Losses) -> pa.Table:
    """All units at once, found in this process; what was committed on the way is left in the run."""

    def scan(tasks: list[int]) -> None:
        for task in tasks:
            selecting.scan(task, losses)

    return pa.concat_tables(selecting.units(scan)).combine_chunks()


def _window_facts(table: pa.Table) -> dict[str, Any]:
    """Of contributions: how many windows they are of, and the most units that one has."""
    if "rest" not in table.column_names:
        return {}
    begin, end = _window_edges(table)
    return {"num_windows": len(begin), "largest_window": int((end - begin).max()) if len(begin) else 0}


def _window_edges(table: pa.Table) -> tuple[Int[np.ndarray, " window"], Int[np.ndarray, " window"]]:
    """First line of each window's contributions, and the one after its last, which is its rest."""
    end = np.flatnonzero(np.asarray(table["rest"]).astype(np.bool_)) + 1
    return np.concatenate([[0], end[:-1]]).astype(np.int64)[: len(end)], end


def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A group's line from an earlier and a later task."""
    counts = {name: one[name] + other[name] for name in ("num_windows", "num_tokens")}
    labels = {name: value for name, value in one.items() if name.startswith("label_")}
    return one | counts | agreed(labels, other)
