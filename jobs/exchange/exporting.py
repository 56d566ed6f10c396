"""What a run holds, as tables for others: rows, units, quanta, assignments, the scores of saved traces.

Reads the run block by block, every byte checked as it is touched, and hands tables on. How they become files is known
by `files`. Writes nothing into the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa

from ...errors import ConfigurationError, RunMismatchError, RunNotFoundError
from ...storage.run import Run
from ...storage.tables import read_table
from ..workers.progress import Listener, Stage, ignore
from .files import ExportFormat, Target, write_export

if TYPE_CHECKING:
    from jaxtyping import Int

    from ...storage.derived import Derived
    from ...storage.rowset import RowSet

ExportPart = Literal["rows", "units", "quanta", "assignments", "scores"]
PARTS: tuple[ExportPart, ...] = get_args(ExportPart)
_QUANTA_PARTS = ("quanta", "assignments", "scores")
_TABLE_UNITS = 65_536
_KEPT_SHARDS = 4
_LISTS = {"units": "supporting", "opposing": "opposing", "windows": "windows", "lexical": "lexical"}
"""A saved trace's lists of units → what a line of the export says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What to export, from which run, and where to."""

    run: str
    what: ExportPart
    """rows: units with their vectors; units: with their text; quanta; assignments: units to quanta; scores: those of
    the saved traces."""
    to: str
    """A file whose name ends in .parquet, or a folder for shards; neither may exist."""
    format: ExportFormat = "parquet"
    rows: str | None = None
    """Row set of rows and units; None takes the token rows, or the only ones."""
    quanta: str = "main"
    """The clustering of quanta, assignments and scores."""

    def __post_init__(self) -> None:
        if self.what not in PARTS:
            raise ConfigurationError(f"what is {self.what!r}; accepted are {', '.join(PARTS)}.")
        if self.rows is not None and self.what in _QUANTA_PARTS:
            raise ConfigurationError(f"--rows is for rows and units; {self.what} have the row set of their --quanta.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export wrote."""

    to: str
    what: ExportPart
    num_lines: int
    num_files: int
    """Of data; the manifest and the folder's README are not counted."""
    num_bytes: int
    left_out: int
    """Saved traces that are of other quanta than these, and were left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    """Tables of one schema, in order, and what is said of them."""

    tables: Callable[[], Iterator[pa.Table]]
    num_lines: int
    facts: dict[str, Any]
    check: Callable[[], None] = lambda: None
    """Raises if what was read changed while it was."""
    left_out: int = 0


def export(job: Export, *, listener: Listener = ignore) -> Exported:
    """Export one part of a run, whole or not at all.

    Raises DamagedRunError for bytes that are not as they were written, IncompleteRunError for rows that are not all
    collected, RunMismatchError for quanta of older rows, RunNotFoundError where there is nothing of the kind,
    ConfigurationError where something lies at `to` already.
    """
    run = Run.open(job.run)
    target = Target(to=job.to, format=job.format, name=job.what)
    content = _of_quanta(run, job) if job.what in _QUANTA_PARTS else _of_rows(run, job)
    stage = Stage(listener, "export", total=content.num_lines, unit="lines")
    written = write_export(target, content.tables(), _facts(run, job, content), check=content.check, stage=stage)
    return Exported(
        to=str(target.path),
        what=job.what,
        num_lines=content.num_lines,
        num_files=written.num_files,
        num_bytes=written.num_bytes,
        left_out=content.left_out,
    )


def _facts(run: Run, job: Export, content: _Content) -> dict[str, Any]:
    """What the manifest says, the files apart: where every number comes from, by fingerprint."""
    from importlib.metadata import version

    return {
        "format": "quantascope export, version 1",
        "quantascope": version("quantascope"),
        "what": job.what,
        "num_lines": content.num_lines,
        "data_fingerprint": run.documents.index.get("fingerprint"),
        **content.facts,
    }


# --- rows and units -----------------------------------------------------------------------------------------------


def _of_rows(run: Run, job: Export) -> _Content:
    row_set = run.row_set(job.rows)
    make = _with_rows if job.what == "rows" else _with_text
    facts = _row_facts(row_set)
    if job.what == "rows":
        facts |= {
            "dim": int(row_set.plan["dim"]),
            "blocks": [{k: b[k] for k in ("name", "first_column", "last_column")} for b in row_set.plan["blocks"]],
        }
    sources = _Sources(run, has_text=job.what == "units")
    return _Content(
        tables=lambda: (make(run, row_set, block, sources) for block in range(row_set.num_blocks)),
        num_lines=len(row_set),
        facts=facts,
    )


def _row_facts(row_set: RowSet) -> dict[str, Any]:
    plan = row_set.plan
    return {
        "rows": row_set.name,
        "rows_fingerprint": row_set.fingerprint(),
        "unit_type": plan["unit_type"],
        "model": {key: plan["model"][key] for key in ("name", "revision", "fingerprint")},
        "projection": plan["projection"],
        "preconditioner": plan["preconditioner"],
    }


def _with_rows(run: Run, row_set: RowSet, block: int, sources: _Sources) -> pa.Table:
    """A block's units with their vectors, as they are stored: row / norm · √dim, in float16."""
    units = sources.add_to(_units(run, row_set, block))
    stored = np.ascontiguousarray(row_set.stored_block(block))
    flat = pa.array(stored.reshape(-1).astype(np.float16, copy=False), pa.float16())
    return units.append_column("row", pa.FixedSizeListArray.from_arrays(flat, stored.shape[1]))


def _with_text(run: Run, row_set: RowSet, block: int, sources: _Sources) -> pa.Table:
    return sources.add_to(_units(run, row_set, block))


def _units(run: Run, row_set: RowSet, block: int) -> pa.Table:
    """One block's units, checked."""
    name = row_set.block_files(block)[2]
    return read_table(run.store, f"{row_set.folder}/{name}", row_set.record(block)["files"][name])


class _Sources:
    """Where units come from: source, the user's id, and the text that a unit covers; a few shards are kept."""

    def __init__(self, run: Run, *, has_text: bool) -> None:
        self._run = run
        self._shards: list[dict[str, Any]] = run.documents.index["shards"]
        self._firsts = np.array([shard["first"] for shard in self._shards], np.int64)
        self._wanted = ["source", "user_id", *(["text"] if has_text else [])]
        self._shard = lru_cache(maxsize=_KEPT_SHARDS)(self._read_shard)

    def add_to(self, units: pa.Table) -> pa.Table:
        """The units, with these columns behind theirs."""
        documents = np.asarray(units["document"], np.int64)
        shard = np.searchsorted(self._firsts, documents, side="right") - 1
        order = np.argsort(shard, kind="stable")
        edges = np.flatnonzero(np.diff(shard[order], prepend=-1))
        parts = [self._take(documents, group) for group in np.split(order, edges[1:])] if len(documents) else []
        found = pa.concat_tables(parts).take(pa.array(np.argsort(order))) if parts else self._shard(0).slice(0, 0)
        for name in found.column_names:
            column = _cut(found[name], units) if name == "text" else found[name]
            units = units.append_column(name, column)
        return units

    def _take(self, documents: Int[np.ndarray, " unit"], group: Int[np.ndarray, " some"]) -> pa.Table:
        number = int(np.searchsorted(self._firsts, documents[group[0]], side="right")) - 1
        return self._shard(number).take(pa.array(documents[group] - self._firsts[number]))

    def _read_shard(self, number: int) -> pa.Table:
        shard = self._shards[number]
        table = read_table(self._run.store, shard["file"], shard["sha256"])
        return table.select([name for name in self._wanted if name in table.column_names])


def _cut(texts: pa.ChunkedArray, units: pa.Table) -> pa.Array:
    """Of each document's text, the characters that the unit is of."""
    columns = (texts.to_pylist(), units["text_start"].to_pylist(), units["text_end"].to_pylist())
    return pa.array([text[a:b] for text, a, b in zip(*columns, strict=True)], pa.string())


# --- quanta -------------------------------------------------------------------------------------------------------


def _of_quanta(run: Run, job: Export) -> _Content:
    derived = run.derived("quanta", job.quanta)
    row_set = run.row_set(derived.facts()["rows"])
    derived.facts(source=row_set.fingerprint())
    before = derived.fingerprint()

    def check() -> None:
        if derived.fingerprint() != before:
            raise RunMismatchError(f"The quanta {job.quanta!r} were replaced while they were read: export again.")

    facts = _row_facts(row_set) | {"quanta": job.quanta, "quanta_fingerprint": before}
    left_out = 0
    if job.what == "quanta":
        table = derived.table("quanta")
    elif job.what == "assignments":
        table = _assignments(run, row_set, derived)
    else:
        table, left_out = _scores(run, row_set, before)
    return _Content(
        tables=lambda: (table.slice(i, _TABLE_UNITS) for i in range(0, max(1, len(table)), _TABLE_UNITS)),
        num_lines=len(table),
        facts=facts,
        check=check,
        left_out=left_out,
    )


def _assignments(run: Run, row_set: RowSet, derived: Derived) -> pa.Table:
    """Unit, quantum, and cosine with the quantum's centre; with the document that the unit is of."""
    found = derived.table("units").select(["unit", "quantum", "cosine"])
    parts, first = [], 0
    units = np.asarray(found["unit"], np.int64)
    sources = _Sources(run, has_text=False)
    for block in range(row_set.num_blocks):
        begin, end = row_set.block_range(block)
        last = int(np.searchsorted(units, end))
        part = found.slice(first, last - first)
        described = _units(run, row_set, block).take(pa.array(units[first:last] - begin))
        for name in ("document", "first_token", "last_token"):
            part = part.append_column(name, described[name])
        parts.append(sources.add_to(part))
        first = last
    return pa.concat_tables(parts)


def _scores(run: Run, row_set: RowSet, quanta: str) -> tuple[pa.Table, int]:
    """One line per unit of each saved trace's lists; and how many traces are of other quanta, and left out."""
    lines: list[dict[str, Any]] = []
    left_out = 0
    for name in run.derived_names("traces"):
        saved = run.derived("traces", name)
        if saved.source != quanta:
            left_out += 1
            continue
        facts = saved.facts()
        trace = facts["trace"]
        for key, kind in _LISTS.items():
            for rank, unit in enumerate(trace.get(key) or ()):
                lines.append(
                    {
                        "trace": facts["title"],
                        "prompt": trace["prompt"],
                        "completion": trace["completion"],
                        "list": kind,
                        "rank": rank,
                        "rows": "window" if kind == "windows" else row_set.name,
                        "score": unit["score"],
                    }
                    | {k: unit[k] for k in ("unit", "quantum", "document", "source", "user_id", "context", "target")}
                )
    if not lines:
        others = f" ({left_out} are of other quanta)" if left_out else ""
        raise RunNotFoundError(
            f"{run.store.root} has no saved traces of these quanta{others}: `quantascope trace … --save TITLE` keeps "
            "one."
        )
    return pa.Table.from_pylist(lines, schema=_SCORE_SCHEMA), left_out


_SCORE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("trace", "prompt", "completion", "list")),
        ("rank", pa.int32()),
        ("rows", pa.string()),
        ("unit", pa.int64()),
        ("score", pa.float32()),
        ("quantum", pa.int32()),
        ("document", pa.int64()),
        *((name, pa.string()) for name in ("source", "user_id", "context", "target")),
    ]
)
