"""Mend a run: recollect exactly what is damaged, from the run's own documents and plan, and prove it by digest.

What is made again takes the damaged bytes' place only where its digest is the one that was promised. Rows that come
out otherwise (on other hardware) are committed anew, and what stood there is kept in `damaged/`, and said. What was
computed from rows is removed and named.
"""

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ..attribution.blocks import find_blocks
from ..errors import ConfigurationError, DamagedRunError, QuantascopeError, RayStartError, RunMismatchError
from ..storage.checked import digest
from ..storage.inventory import DERIVED_ROOMS, Fault
from ..storage.rowset import RowSet
from ..storage.run import DAMAGED, MANIFEST, Run, open_store
from ..storage.selection import encode_groups
from ..storage.store import Store
from .collecting.collection import Collection
from .collecting.config import RowConfig, SelectionConfig, SetConfig
from .collecting.ingest import ingest
from .collecting.passes import scanner, workers
from .collecting.precondition import FACTORS_FILE, encode_factors, measure_factors
from .collecting.worker import Worker, collect_block, make_selecting
from .data.source import DataSource
from .exchange.importing import require_own_rows
from .ledger.rows import require_repeatable
from .models.model import LoadedModel, ModelSource, load_model
from .verify import Finding, again, finding, read_through
from .workers.pool import WorkerPool
from .workers.progress import Listener, Stage, ignore
from .workers.ray_session import RayOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """A file, or a block of rows, that was made again."""

    what: str
    """The file, or the row set's folder with the block's number."""
    proved: bool
    """Whether it has the digests that its record promised."""
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What a repair did."""

    mended: tuple[Mended, ...]
    removed: tuple[Finding, ...]
    """Folders of what was computed, and log entries; `mend` says what makes each again."""
    left: tuple[Finding, ...]
    """What could not be mended, and why."""


class Mender(Worker):
    """A worker that computes committed blocks again."""

    def mend(self, block: int) -> bool:
        """Put a block right; whether that is proved. See `storage.rowset.RowSet.mend`."""
        content, _ = collect_block(self._run, self._set, block, self._engine, batch_tokens=self._planned_tokens(block))
        return self._set.mend(block, content, keep=DAMAGED)

    def _planned_tokens(self, block: int) -> int | None:
        """The batch size that the block was collected with, where memory had not sufficed for the plan's."""
        try:
            return self._set.record(block).get("batch_tokens")
        except (DamagedRunError, FileNotFoundError):
            return None


@dataclass(slots=True, kw_only=True)
class _Repair:
    """One repair while it goes on."""

    path: str
    store: Store
    model: str | None
    dataset: str | None
    options: RayOptions
    listener: Listener
    mended: list[Mended] = field(default_factory=list)
    removed: list[Finding] = field(default_factory=list)
    left: list[Finding] = field(default_factory=list)

    def leave(self, faults: list[Fault], reason: str) -> None:
        """Say why faults stay."""
        self.left += [replace(finding(self.path, self.store, f), detail=f"{f.detail}; {reason}") for f in faults]

    def put(self, fault: Fault, data: bytes, expected: str) -> None:
        """Put bytes made again in a damaged file's place, if they are those that were promised."""
        if digest(data) != expected:
            self.leave([fault], "made again it comes out otherwise, so it stays as it is")
            return
        self.store.replace(fault.key, data)
        self.mended.append(Mended(what=fault.key, proved=True, detail="has the digest that its record promised"))


def repair(
    path: str,
    *,
    model: str | None = None,
    dataset: str | None = None,
    ray_options: RayOptions | None = None,
    listener: Listener = ignore,
) -> Repaired:
    """Mend what is damaged or missing in a run; nothing else is computed or touched.

    `model` and `dataset` say where the run's own are now, if they have moved; their fingerprints are compared. Raises
    RunBusyError where another process writes to the run, RunNotFoundError where there is none.
    """
    store = open_store(path)
    with suppress(DamagedRunError):
        Run.open(path)
    with store.lock():
        work = _Repair(
            path=path,
            store=store,
            model=model,
            dataset=dataset,
            options=ray_options or RayOptions(),
            listener=listener,
        )
        parts: dict[str, list[Fault]] = defaultdict(list)
        for fault in read_through(store, listener)[0]:
            if not fault.is_harmless:
                parts[fault.part].append(fault)
        _mend_parts(work, parts)
    return Repaired(mended=tuple(work.mended), removed=tuple(work.removed), left=tuple(work.left))


def _mend_parts(work: _Repair, parts: dict[str, list[Fault]]) -> None:
    if MANIFEST in parts:
        _set_aside(work, parts.pop(MANIFEST)[0], "the collect command that made the run writes it again")
        for faults in parts.values():
            work.leave(faults, "the manifest comes first: give that command, and repair again")
        return
    run = Run.open(work.path)
    for part in sorted(parts, key=lambda name: (name != "documents", name)):  # all else reads the documents
        top, _, name = part.partition("/")
        foreign = [f for f in parts[part] if f.kind == "foreign"]
        work.leave(foreign, "it is not the run's")
        faults = [f for f in parts[part] if f.kind != "foreign"]
        if not faults:
            continue
        if top in DERIVED_ROOMS:
            _remove(work, part, again(work.store, work.path, top, name))
        elif top == "log":
            for fault in faults:
                _remove(work, fault.key, "nothing: the log decides nothing")
        else:
            mend = _mend_documents if top == "documents" else _mend_rows
            try:
                mend(work, run, faults)
            except RayStartError:
                raise
            except QuantascopeError as error:
                done = {m.what for m in work.mended}
                work.leave([f for f in faults if f.key not in done and _block_name(f) not in done], str(error))


def _set_aside(work: _Repair, fault: Fault, reason: str) -> None:
    """Move a file that cannot be made from the run itself out of its maker's way; nothing is lost."""
    if work.store.exists(fault.key):
        work.store.move(fault.key, f"{DAMAGED}/{fault.key}")
    work.leave([fault], f"moved to {DAMAGED}/: {reason}")


def _remove(work: _Repair, key: str, how: str) -> None:
    if work.store.exists(key):
        work.store.remove(key)
    work.removed.append(Finding(file=key, kind="removed", detail="it was damaged", mend=how))


def _mend_documents(work: _Repair, run: Run, faults: list[Fault]) -> None:
    """Read the data again, beside the run, and take from that what has the promised digests."""
    config = run.manifest["config"]
    source = _data(config, work.dataset)
    loaded = load_model(_model(run, work.model))
    if loaded.tokenizer_fingerprint != config["tokenizer_fingerprint"]:
        raise RunMismatchError(f"{loaded.facts.name} has another tokenizer than the run: give --model.")
    with work.store.scratch() as scratch:
        other = Run(scratch, run.manifest)
        ingest(
            other,
            source,
            loaded.tokenizer,
            keep_text=config["keep_text"],
            vocab_size=loaded.model.config.vocab_size,
            listener=work.listener,
        )
        index_key = "documents/documents.json"
        index_fault = next((f for f in faults if f.key == index_key), None)
        if index_fault:
            _require_equal(work.store, scratch, other)
            faults = [f for f in faults if f is not index_fault]
        promised = other.documents.index if index_fault else run.documents.index
        digests = {shard["file"]: shard["sha256"] for shard in promised["shards"]}
        digests["documents/tokenizer.json"] = promised["tokenizer_sha256"]
        for fault in faults:
            data = scratch.read(fault.key) if scratch.exists(fault.key) else b""
            work.put(fault, data, digests[fault.key])
        if index_fault:
            work.store.replace(index_key, scratch.read(index_key))
            detail = "every shard that it names is on disk with that digest"
            work.mended.append(Mended(what=index_key, proved=True, detail=detail))


def _require_equal(store: Store, scratch: Store, other: Run) -> None:
    """RunMismatchError unless every file of the documents read again is the one on disk."""
    names = [shard["file"] for shard in other.documents.index["shards"]] + ["documents/tokenizer.json"]
    different = [n for n in names if not store.exists(n) or store.digest(n) != scratch.digest(n)]
    if different or len(store.names("documents")) > len(names) + 1:
        raise RunMismatchError(
            f"documents.json is damaged, and the data does not give the documents on disk again "
            f"({', '.join(different) or 'there are more'}): restore a copy of the run"
        )


def _mend_rows(work: _Repair, run: Run, faults: list[Fault]) -> None:
    """A row set's files beside its plan, then its blocks, on workers with the run's model."""
    name = faults[0].part.partition("/")[2]
    plan_fault = next((f for f in faults if f.key == f"rows/{name}/set.json"), None)
    if plan_fault:
        _set_aside(work, plan_fault, "the collect command that made these rows writes it again")
        work.leave([f for f in faults if f is not plan_fault], "the plan comes first: give that command, repair again")
        return
    row_set = run.row_set(name)
    row_set.require_current()
    require_own_rows(row_set)
    require_repeatable(row_set)
    metadata = {f.key: f for f in faults if f.key.endswith("/zarr.json")}
    for array, data in row_set.metadata().items() if metadata else ():
        if fault := metadata.get(f"{row_set.folder}/{array}/zarr.json"):
            work.put(fault, data, row_set.plan["arrays"][array])
    rest = [f for f in faults if f.key not in metadata]
    if not rest:
        return
    collection = _collection(work, run, row_set)
    loaded = load_model(collection.model)
    if loaded.fingerprint != row_set.plan["model"]["fingerprint"]:
        raise RunMismatchError(
            f"{loaded.facts.name} has weights {loaded.fingerprint[:12]}…, the rows are of "
            f"{row_set.plan['model']['fingerprint'][:12]}…: say with --model where those are"
        )
    with workers(collection, run, work.options, work.listener, Mender) as (pool, _, _):
        beside = {f.key.partition(f"{row_set.folder}/")[2]: f for f in rest if f.block is None}
        if not _mend_beside(work, run, row_set, beside, collection.config, loaded, pool):
            work.leave([f for f in rest if f.block is not None], "what its rows depend on could not be mended")
            return
        _mend_blocks(work, row_set, [f for f in rest if f.block is not None], pool)


def _mend_beside(
    work: _Repair,
    run: Run,
    row_set: RowSet,
    faults: dict[str, Fault],
    config: SetConfig,
    loaded: LoadedModel,
    pool: WorkerPool,
) -> bool:
    """The selection and a preconditioner's factors; whether both are right now."""
    plan, num_left = row_set.plan, len(work.left)
    if fault := faults.get("selection.parquet"):
        selecting = make_selecting(run, row_set.name, config, loaded)
        units = encode_groups(selecting.units(scanner(pool, selecting, work.listener)))
        work.put(fault, b"".join(units), plan["selection_sha256"])
        selecting.done()
    if (fault := faults.get(FACTORS_FILE)) and len(work.left) == num_left:
        blocks = find_blocks(loaded.model, config.rows.blocks).blocks
        factors = measure_factors(run, row_set.selected, plan, loaded, blocks)
        work.put(fault, encode_factors(factors), plan["files"][FACTORS_FILE])
    return len(work.left) == num_left


def _mend_blocks(work: _Repair, row_set: RowSet, faults: list[Fault], pool: WorkerPool) -> None:
    names = {f.block: _block_name(f) for f in faults if f.block is not None}
    stage = Stage(work.listener, "repair", total=len(names), unit="blocks")

    def done(block: int, proved: bool) -> None:
        differs = f"its rows come out otherwise on this machine; what stood there is in {DAMAGED}/{row_set.folder}/"
        detail = "has the digests that its record promised" if proved else differs
        work.mended.append(Mended(what=names[block], proved=proved, detail=detail))
        stage.advance(1)

    pool.run(sorted(names), lambda worker, block: worker.mend.remote(block), on_done=done)


def _block_name(fault: Fault) -> str:
    return f"{fault.part} block {fault.block}"


def _collection(work: _Repair, run: Run, row_set: RowSet) -> Collection:
    """The collection that made a row set, from its plan."""
    plan = row_set.plan
    model = _model(run, work.model or plan["model"]["name"], plan["model"]["revision"])
    if model.device.split(":")[0] not in ("auto", "spread", plan["device_type"]):
        model = replace(model, device=plan["device_type"])
    rows = {key: plan[key] for key in ("rows_per_block", "batch_tokens", "threads_per_worker")}
    return Collection(
        out=work.path,
        model=replace(model, dtype=plan["model"]["dtype"]),
        data=_data(run.manifest["config"], None),
        config=SetConfig(selection=SelectionConfig(**plan["selection"]), rows=RowConfig(**plan["request"] | rows)),
        name=row_set.name,
        keep_text=run.manifest["config"]["keep_text"],
    )


def _model(run: Run, model: str | None, revision: str | None = None) -> ModelSource:
    """How the run loads its model, from where it is now."""
    if "model" not in run.manifest:
        raise ConfigurationError("the manifest does not say which model made the run")
    recorded = ModelSource(**run.manifest["model"])
    return recorded if model is None else replace(recorded, model=model, revision=revision or recorded.revision)


def _data(config: dict[str, Any], dataset: str | None) -> DataSource:
    """The run's data source, from where it is now."""
    if "data" not in config:
        raise ConfigurationError("the manifest does not say which data the run was made of")
    fields = config["data"] | {"label_fields": tuple(config["data"]["label_fields"])}
    return DataSource(**fields | ({"dataset": dataset} if dataset else {}))
