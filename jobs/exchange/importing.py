"""A gradient store that another program made, as a run: its rows, its documents, and where both came from.

The plan carries the store's fingerprint; blocks are committed one by one, and the same call goes on where it stopped.
Such rows can be clustered, reported and exported. They cannot be traced, since the projection is not ours to repeat.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ...errors import ConfigurationError, RunMismatchError
from ...storage.checked import require_same
from ...storage.rowset import RowBlock, Status
from ...storage.run import Run, require_name
from ...storage.tables import read_table
from ..models.model import ModelSource
from ..workers.progress import Listener, Stage, ignore
from .documents import GivenTokenizer, Words, write_documents
from .stores import ForeignStore, StoreFormat, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jaxtyping import Float

    from ...storage.rowset import RowSet
    from ..data.source import DataSource

_CHUNK_BYTES = 16_000_000
_PIECE_BYTES = 1 << 24
_SHOWN_TOKENS = 1024
"""Of a document, in a report."""
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""What bergson calls precisions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """Which store to import, and into which run."""

    store: str
    """A bergson index, a TRAK save_dir, or a .npy file of shape (rows, numbers)."""
    out: str
    """The run's folder; made if it does not exist, gone on with if it holds this import."""
    format: StoreFormat | None = None
    """None finds it out."""
    checkpoint: str | None = None
    """TRAK's model id, where the store has several."""
    name: str | None = None
    """The row set's name; None takes the unit type."""
    data: DataSource | None = None
    """The data set that the store was built from, row for row; None takes what the store kept, if anything."""
    tokenizer: str | None = None
    """A folder with the tokenizer.json that the store was built with: token counts are then held against the store's.
    None cuts texts into words."""

    def __post_init__(self) -> None:
        if self.name is not None:
            require_name(self.name)
        if self.data is not None and self.data.max_documents is not None:
            raise ConfigurationError("An import needs every document that the store has rows of: no max_documents.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import did."""

    format: StoreFormat
    row_set: str
    unit_type: str
    num_units: int
    num_documents: int
    dim: int
    zero: int
    refused: int
    rows_here: int
    """Rows that this call wrote; the others were there."""
    has_text: bool
    unexplained_zeros: int | None
    """Zero rows of documents that have two tokens or more, which a finished bergson index does not have; None where
    the store says no lengths."""


def import_store(job: Import, *, listener: Listener = ignore) -> Imported:
    """Import a store, or go on with an import that was stopped.

    Raises what `stores.open_store` raises; RunMismatchError if the run was made from another store, or the
    data set has not the store's documents; ConfigurationError for rows of single positions without what they need.
    """
    store = open_store(job.store, job.format, checkpoint=job.checkpoint)
    source = job.data or store.texts
    tokenizer = GivenTokenizer(job.tokenizer) if job.tokenizer else Words()
    if store.offsets is not None and source is not None and job.tokenizer is None:
        raise ConfigurationError(
            f"The rows of {store.path} are of single positions: give the --tokenizer that they were counted with."
        )
    described = _describe(store, listener)
    model = asdict(ModelSource(model=str(store.settings.get("model") or "unknown")))
    with Run.create(job.out, config=_config(job, described, source), model=model, versions=_versions()) as run:
        if not run.documents.complete:
            stage = Stage(listener, "read documents", total=store.num_documents, unit="documents")
            write_documents(run, store, _keeping_places(source), tokenizer, stage)
        row_set = run.new_row_set(job.name or _unit_type(store))
        plan = _plan(store, described)
        if row_set.planned:
            require_same(
                {key: row_set.plan[key] for key in plan}, plan, f"Row set {row_set.name!r}", "Choose another --name."
            )
        else:
            run.upgrade()
            row_set.freeze(plan, row_set.write_selection(_units(run, store)))
        rows_here = _write_rows(row_set, store, listener)
        run.log("import", rows=row_set.name, format=store.format, rows_here=rows_here)
        return _imported(row_set, run, store, rows_here=rows_here, has_text=source is not None)


def require_own_rows(row_set: RowSet) -> None:
    """RunMismatchError for rows that were imported: this program cannot compute them, nor a prompt's like them."""
    imported = row_set.plan.get("imported")
    if imported:
        raise RunMismatchError(
            f"Row set {row_set.name!r} was imported from a {imported['format']} store, whose projection is not one of "
            "quantascope's: neither its rows nor a prompt's can be computed here. They can be clustered, reported and "
            "exported. To trace, collect rows with `quantascope collect`; to mend imported rows, remove them with "
            f"`quantascope rm RUN --rows {row_set.name}` and import again."
        )


def _describe(store: ForeignStore, listener: Listener) -> dict[str, Any]:
    """The store as the run remembers it: format, digests of its files, settings. Reads every byte once."""
    stage = Stage(listener, "fingerprint", total=sum(p.stat().st_size for p in store.files), unit="bytes")
    return {
        "format": store.format,
        "files": {path.name: _digest(path, stage) for path in store.files},
        "settings": dict(store.settings),
    }


def _digest(path: Path, stage: Stage) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as opened:
        while piece := opened.read(_PIECE_BYTES):
            sha256.update(piece)
            stage.advance(len(piece))
    return sha256.hexdigest()


def _config(job: Import, described: dict[str, Any], source: DataSource | None) -> dict[str, Any]:
    """What must be equal to go on with the run. The data's name stands where `collect` has it."""
    return {
        "imported": described,
        "data": asdict(source) if source else {"dataset": f"(none: rows of {job.store})"},
        "tokenizer_fingerprint": _tokenizer_fingerprint(job),
        "keep_text": source is not None,
    }


def _tokenizer_fingerprint(job: Import) -> str:
    if job.tokenizer is None:
        return "words"
    return hashlib.sha256(GivenTokenizer(job.tokenizer).serialise().encode()).hexdigest()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"quantascope": version("quantascope")}


def _keeping_places(source: DataSource | None) -> DataSource | None:
    """The source, with bad rows passed over rather than raised: each becomes an empty document."""
    from dataclasses import replace

    return None if source is None else replace(source, bad_rows="skip")


def _unit_type(store: ForeignStore) -> str:
    return "document" if store.offsets is None else "token-contribution"


def _plan(store: ForeignStore, described: dict[str, Any]) -> dict[str, Any]:
    """The plan as set.json keeps it. What only the other program knows is null, or said to be unknown."""
    settings = store.settings
    ends = np.cumsum([width for _, width in store.blocks])
    return {
        "unit_type": _unit_type(store),
        "window_tokens": _SHOWN_TOKENS,
        "model": {
            "name": str(settings.get("model") or "unknown"),
            "revision": settings.get("revision"),
            "fingerprint": "unknown",
            "num_parameters": None,
            "dtype": _DTYPES.get(str(settings.get("precision")), "unknown"),
        },
        "loss": " ".join(str(settings[k]) for k in ("loss_reduction", "loss_fn") if k in settings) or "unknown",
        "selection": {"unit_type": _unit_type(store), "loss_reduction": None, "group_by": None},
        "request": {"projection": store.format, "seed": settings.get("projection_seed")},
        "projection": {"kind": f"{store.format}'s own", "settings": dict(settings)},
        "preconditioner": "none",
        "dim": store.dim,
        "blocks": [
            {
                "name": name,
                "kind": "imported",
                "found_by": "import",
                "modules": [name],
                "parameters": [],
                "first_column": int(end) - width,
                "last_column": int(end) - 1,
            }
            for (name, width), end in zip(store.blocks, ends, strict=True)
        ],
        "coverage": {"covered_share": None, "left_out": {}, "uncovered": {}},
        "rows_per_block": int(min(max(_CHUNK_BYTES // (2 * store.dim), 8), 65_536, len(store.rows))),
        "imported": described,
    }


def _units(run: Run, store: ForeignStore) -> Iterator[pa.Table]:
    """One unit per row, shard by shard of the documents: a document's tokens, or one position of it."""
    first_unit = 0
    for shard in run.documents.index["shards"]:
        documents = read_table(run.store, shard["file"], shard["sha256"])
        index = documents["document"].to_numpy()
        starts, ends = documents["starts"].combine_chunks(), documents["ends"].combine_chunks()
        edges = starts.offsets.to_numpy()
        if store.offsets is None:
            owner, token = np.arange(len(index)), np.diff(edges) - 1
            first_character = edges[:-1]
        else:
            counts = np.diff(store.offsets)[index]
            owner = np.repeat(np.arange(len(index)), counts)
            token = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
            first_character = edges[owner] + token
        losses = store.losses if store.offsets is None else None
        columns = {
            "unit": pa.array(np.arange(first_unit, first_unit + len(owner)), pa.int64()),
            "document": pa.array(index[owner], pa.int64()),
            "first_token": pa.array(np.zeros(len(owner), np.int32)),
            "last_token": pa.array(token, pa.int32()),
            "text_start": pa.array(starts.values.to_numpy()[first_character], pa.int32()),
            "text_end": pa.array(ends.values.to_numpy()[edges[owner] + token], pa.int32()),
            "loss": pa.array(np.full(len(owner), np.nan) if losses is None else losses[index], pa.float32()),
        }
        labels = {name: documents[name] for name in documents.column_names if name.startswith("label_")}
        yield pa.table(columns | {name: column.take(pa.array(owner)) for name, column in labels.items()})
        first_unit += len(owner)


def _write_rows(row_set: RowSet, store: ForeignStore, listener: Listener) -> int:
    missing = row_set.missing_blocks()
    left = sum(b - a for a, b in map(row_set.block_range, missing))
    stage = Stage(listener, "import", total=len(row_set), unit="rows", done_before=len(row_set) - left)
    for block in missing:
        first, last = row_set.block_range(block)
        rows = store.read(first, last)
        row_set.commit(
            block,
            RowBlock(rows=rows, block_norms=_block_norms(rows, store), units=row_set.selected.slice(first, last)),
        )
        stage.advance(last - first)
    return left


def _block_norms(rows: Float[np.ndarray, "unit dim"], store: ForeignStore) -> Float[np.ndarray, "unit block"]:
    edges = np.cumsum([0, *(width for _, width in store.blocks)])[:-1]
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.add.reduceat(np.square(rows, dtype=np.float64), edges, axis=1)).astype(np.float32)
    norms[~np.isfinite(rows).all(axis=1)] = np.nan
    return norms


def _imported(row_set: RowSet, run: Run, store: ForeignStore, *, rows_here: int, has_text: bool) -> Imported:
    records = [row_set.record(b) for b in range(row_set.num_blocks)]
    zero = sum(r["zero"] for r in records)
    unexplained = None
    if store.lengths is not None and store.offsets is None:
        is_zero = row_set.units()["status"].to_numpy() == Status.ZERO if zero else np.zeros(len(row_set), np.bool_)
        unexplained = int((is_zero & (store.lengths >= 2)).sum())
    return Imported(
        format=store.format,
        row_set=row_set.name,
        unit_type=str(row_set.plan["unit_type"]),
        num_units=len(row_set),
        num_documents=len(run.documents),
        dim=store.dim,
        zero=zero,
        refused=sum(r["refused"] for r in records),
        rows_here=rows_here,
        has_text=has_text,
        unexplained_zeros=unexplained,
    )
