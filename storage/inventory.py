"""What a run should hold, file by file, and what is wrong with one. Reads names, records and bytes; mends nothing.

Knows the layout of every part. Memory grows with the number of blocks by one integer each, not with their bytes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import DamagedRunError, RunNotFoundError
from .begun import BEGUN
from .checked import MENDING, decode_json
from .chunks import CHECKSUM_BYTES
from .derived import DERIVED_ROOMS as DERIVED_ROOMS
from .derived import FACTS_SHAPE
from .documents import INDEX_SHAPE
from .rowset import PLAN_SHAPE, RECORD_SHAPE, RowSet
from .run import DAMAGED, MANIFEST, MANIFEST_SHAPE
from .store import Store

Kind = Literal["damaged", "torn", "missing", "foreign", "unfinished", "beside"]
"""What is wrong with a file:
damaged: its bytes are not those that were written;
torn: the same, and it ends early;
missing: a record names it, and it is gone;
foreign: nothing names it, and it lies where readers might take it for the run's;
unfinished: a killed process left it, and nothing reads it;
beside: nothing names it, and it lies beside the run's own folders, where it does no harm."""
_BLOCK_FILE = re.compile(
    r"rows/([^/]+)/(?:(?:gradients|block_norms)/c/(\d+)/0|units/(\d{5,})\.parquet|commits/(\d{5,})\.json)"
)
_OWN = ("documents", "rows", "log", *DERIVED_ROOMS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A file that the run should hold."""

    key: str
    part: str
    """The folder that stands or falls with it: documents, rows/NAME, quanta/NAME, log, or the manifest's own name."""
    sha256: str | None = None
    """What its record says; None for JSON that carries its own checksum."""
    size_bytes: int | None = None
    """Where the plan fixes it."""
    block: int | None = None
    """Of rows, the block that it belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with one file."""

    key: str
    kind: Kind
    detail: str
    part: str = ""
    block: int | None = None

    @property
    def is_harmless(self) -> bool:
        """Whether everything that is read is right in spite of it."""
        return self.kind in ("unfinished", "beside")


class Inventory:
    """The files of one run; `expected` is walked before `others`, which are what it did not name."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: set[str] = set()
        self._committed: dict[str, set[int]] = {}
        self._num_blocks: dict[str, int] = {}
        self._row_sets: dict[str, RowSet] = {}
        """Those whose plan can be read."""
        self._blind: list[str] = []
        """Folders whose own record cannot be read: what lies in them cannot be told from foreign files."""

    def expected(self) -> Iterator[Expected]:
        """Every file that a record names, and the records, the manifest last."""
        for found in self._expected():
            if found.block is None:
                self._known.add(found.key)
            yield found

    def others(self) -> Iterator[Fault]:
        """Files that nothing names: foreign, unfinished, or beside the run."""
        for key in self._store.keys():  # noqa: SIM118 - a method of the store
            if key not in self._known and (kind := self._kind(key)):
                detail = "kept by a repair that could not prove its own" if _part(key) == DAMAGED else _WHAT[kind]
                yield Fault(key=key, kind=kind, detail=detail, part=_part(key))

    def examine(self, expected: Expected) -> Fault | None:
        """Read a file through, and say what is wrong with it; None where it is as it was written."""
        try:
            if not self._store.exists(expected.key):
                return _fault(expected, "missing", "a record names it, and it is gone")
            return self._examine_json(expected) if expected.sha256 is None else self._examine_bytes(expected)
        except OSError as error:  # among them DamagedRunError, where the disk does not give the bytes
            return _fault(expected, "damaged", f"it cannot be read: {error.strerror or error}")

    def _examine_bytes(self, expected: Expected) -> Fault | None:
        size, wanted = self._store.size_bytes(expected.key), expected.size_bytes
        if wanted is not None and size < wanted:
            return _fault(expected, "torn", f"it ends after {size:,} of {wanted:,} bytes")
        found = self._store.digest(expected.key)
        if found == expected.sha256:
            return None
        if expected.key.endswith(".parquet") and not _ends_with(self._store, expected.key, b"PAR1"):
            return _fault(expected, "torn", f"it ends after {size:,} bytes without its closing mark")
        return _fault(
            expected, "damaged", f"its SHA-256 is {found[:12]}…, the record says {str(expected.sha256)[:12]}…"
        )

    def _examine_json(self, expected: Expected) -> Fault | None:
        data = self._store.read(expected.key)
        try:
            decode_json(data, expected.key, _SHAPES.get(expected.key.rpartition("/")[2], {}))
            if expected.part in self._row_sets and expected.block is not None:
                self._row_sets[expected.part].record(expected.block)
        except DamagedRunError as error:
            if not data.endswith(b"}\n"):
                return _fault(expected, "torn", f"it ends after {len(data):,} bytes without its closing mark")
            detail = str(error).partition(" is damaged: ")[2] or str(error)
            return _fault(expected, "damaged", detail.removesuffix(f" {MENDING}").rstrip("."))
        return None

    def _expected(self) -> Iterator[Expected]:
        yield from self._documents()
        for name in self._store.names("rows"):
            yield from self._rows(name)
        for room in DERIVED_ROOMS:
            for name in self._store.names(room):
                yield from self._derived(room, name)
        for name in self._store.names("log"):
            yield Expected(key=f"log/{name}", part="log")
        yield Expected(key=MANIFEST, part=MANIFEST)

    def _documents(self) -> Iterator[Expected]:
        key = "documents/documents.json"
        if self._store.exists(key) or self._store.names("rows"):
            yield Expected(key=key, part="documents")
            if index := self._readable(key, INDEX_SHAPE, decides="documents"):
                for shard in index["shards"]:
                    yield Expected(key=shard["file"], part="documents", sha256=shard["sha256"])
                yield Expected(key="documents/tokenizer.json", part="documents", sha256=index["tokenizer_sha256"])

    def _rows(self, name: str) -> Iterator[Expected]:
        row_set = RowSet(self._store, name)
        part, committed = row_set.folder, row_set.committed_blocks()
        if not row_set.planned and not committed:
            return  # a selection that was not finished
        yield Expected(key=f"{part}/set.json", part=part)
        plan = self._readable(f"{part}/set.json", PLAN_SHAPE, decides=part)
        if plan is not None:
            yield Expected(key=f"{part}/selection.parquet", part=part, sha256=plan["selection_sha256"])
            beside = {f"{array}/zarr.json": sha256 for array, sha256 in plan["arrays"].items()} | plan.get("files", {})
            for file, sha256 in beside.items():
                yield Expected(key=f"{part}/{file}", part=part, sha256=sha256)
            committed = [b for b in committed if b < row_set.num_blocks]
            self._num_blocks[name] = row_set.num_blocks
            self._row_sets[part] = row_set
        self._committed[name] = set(committed)
        for block in committed:
            yield from self._block(row_set, block, plan)

    def _block(self, row_set: RowSet, block: int, plan: dict[str, Any] | None) -> Iterator[Expected]:
        part, key = row_set.folder, f"{row_set.folder}/{row_set.record_name(block)}"
        yield Expected(key=key, part=part, block=block)
        record = self._readable(key, RECORD_SHAPE)
        widths = (2 * plan["dim"], 4 * len(plan["blocks"])) if plan else (None, None)
        for file, width in zip(row_set.block_files(block), (*widths, None), strict=True):
            if record is not None and file in record["files"]:
                size = plan["rows_per_block"] * width + CHECKSUM_BYTES if plan and width else None
                sha256 = record["files"][file]
                yield Expected(key=f"{part}/{file}", part=part, sha256=sha256, size_bytes=size, block=block)

    def _derived(self, room: str, name: str) -> Iterator[Expected]:
        part = f"{room}/{name}"
        yield Expected(key=f"{part}/facts.json", part=part)
        if facts := self._readable(f"{part}/facts.json", FACTS_SHAPE, decides=part):
            for file, sha256 in facts["files"].items():
                yield Expected(key=f"{part}/{file}", part=part, sha256=sha256)

    def _readable(self, key: str, shape: dict[str, type], *, decides: str | None = None) -> dict[str, Any] | None:
        """A record, if it can be read; `decides` is the folder of which it tells what belongs there."""
        try:
            return decode_json(self._store.read(key), key, shape)
        except (DamagedRunError, RunNotFoundError):
            if decides:
                self._blind.append(f"{decides}/")
            return None

    def _kind(self, key: str) -> Kind | None:
        """Of a file that no record names; None for one that cannot be told, since its record cannot be read."""
        top, _, rest = key.partition("/")
        if top.startswith(".tmp") or top == BEGUN:
            return "unfinished"
        if not rest or top not in _OWN:
            return "beside"
        if match := _BLOCK_FILE.fullmatch(key):
            name, block = match[1], int(match[2] or match[3] or match[4])
            if block in self._committed.get(name, ()):
                return None
            if block < self._num_blocks.get(name, block + 1):
                return "unfinished"
        if any(key.startswith(folder) for folder in self._blind):
            return None
        is_begun = top == "documents" and not self._store.exists("documents/documents.json")
        is_begun |= top == "rows" and not self._store.exists("/".join((*key.split("/")[:2], "set.json")))
        return "unfinished" if is_begun else "foreign"


_WHAT: dict[Kind, str] = {
    "unfinished": "left by a process that was stopped; nothing reads it",
    "beside": "not part of the run",
    "foreign": "no record names it",
}


_SHAPES = {MANIFEST: MANIFEST_SHAPE, "documents.json": INDEX_SHAPE, "set.json": PLAN_SHAPE, "facts.json": FACTS_SHAPE}


def _fault(expected: Expected, kind: Kind, detail: str) -> Fault:
    return Fault(key=expected.key, kind=kind, detail=detail, part=expected.part, block=expected.block)


def _ends_with(store: Store, key: str, mark: bytes) -> bool:
    last = b""
    for piece in store.pieces(key):
        last = (last + piece)[-len(mark) :]
    return last == mark


def _part(key: str) -> str:
    top, _, rest = key.partition("/")
    return f"{top}/{rest.partition('/')[0]}" if top in ("rows", *DERIVED_ROOMS) else top
