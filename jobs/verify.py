"""Re-read everything that a run holds; name what is damaged, missing, torn or foreign, and what mends it."""

import shlex
from contextlib import suppress
from dataclasses import dataclass

from ..errors import DamagedRunError, QuantascopeError
from ..storage.derived import Derived
from ..storage.inventory import DERIVED_ROOMS, Fault, Inventory
from ..storage.rowset import RowSet
from ..storage.run import MANIFEST, Run, open_store
from ..storage.stale import stale_parts
from ..storage.store import Store
from .workers.progress import Listener, Stage, ignore


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A file with something wrong, and what mends it."""

    file: str
    kind: str
    """damaged, torn, missing, foreign, unfinished or beside (see `storage.inventory.Kind`), or stale."""
    detail: str
    mend: str
    """A command, or what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a run's files came to."""

    num_files: int
    """That were read through."""
    num_bytes: int
    findings: tuple[Finding, ...]
    """What is wrong: no answer should be taken from these parts, and none is."""
    notes: tuple[Finding, ...]
    """What does no harm: what a killed process left, files beside the run, rows not collected yet, older quanta."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def verify(path: str, *, listener: Listener = ignore) -> Verified:
    """Read every file of a run through. Writes nothing, and needs no lock: what is committed meanwhile is left out.

    Raises RunNotFoundError for a folder that holds no run, RunMismatchError for a run of a newer schema.
    """
    store = open_store(path)
    with suppress(DamagedRunError):  # which is what is looked for here
        Run.open(path)
    faults, num_files, num_bytes = read_through(store, listener)
    findings = [finding(path, store, fault) for fault in faults]
    harmless = [fault.is_harmless for fault in faults]
    return Verified(
        num_files=num_files,
        num_bytes=num_bytes,
        findings=tuple(f for f, is_note in zip(findings, harmless, strict=True) if not is_note),
        notes=(*(f for f, is_note in zip(findings, harmless, strict=True) if is_note), *_notes(path, store)),
    )


def read_through(store: Store, listener: Listener) -> tuple[list[Fault], int, int]:
    """What is wrong with a run's files, how many they are, and their bytes."""
    store = store.listed()
    inventory = Inventory(store)
    stage = Stage(listener, "verify", total=sum(1 for _ in store.keys()), unit="files")  # noqa: SIM118 - a method
    faults: list[Fault] = []
    num_files = num_bytes = 0
    for expected in inventory.expected():
        fault = inventory.examine(expected)
        if fault:
            faults.append(fault)
        if fault is None or fault.kind != "missing":
            num_files, num_bytes = num_files + 1, num_bytes + store.size_bytes(expected.key)
            stage.advance(1)
    others = list(inventory.others())
    stage.advance(stage.state.total - stage.state.done)
    return faults + others, num_files, num_bytes


def finding(path: str, store: Store, fault: Fault) -> Finding:
    """A fault with what mends it."""
    return Finding(file=fault.key, kind=fault.kind, detail=fault.detail, mend=_mend(path, store, fault))


def _mend(path: str, store: Store, fault: Fault) -> str:
    run = shlex.quote(str(path))
    repair = f"quantascope repair {run}"
    top, _, name = fault.part.partition("/")
    if fault.kind == "beside":
        return "nothing: it does no harm"
    if fault.kind == "foreign":
        return "move it out of the run"
    if fault.kind == "unfinished":
        return "nothing: the next command that writes to the run removes or replaces it"
    if fault.key == MANIFEST:
        return f"{repair}, then the collect command that made the run"
    if fault.key.endswith("/set.json") and top == "rows":
        return f"{repair}, then the collect command that made these rows"
    if top == "rows" and _is_old(store, name):
        return f"quantascope rm {run} --rows {shlex.quote(name)} --yes, then collect again: this version cannot mend it"
    if top in DERIVED_ROOMS:
        return f"{repair}, then {again(store, path, top, name)}"
    return repair


def again(store: Store, path: str, room: str, name: str) -> str:
    """What computes a derived folder again."""
    run = shlex.quote(str(path))
    if room == "traces":
        return f"quantascope trace {run} … --save again"
    if room == "index" and (flags := _index_flags(store, name)) is not None:
        return f"quantascope index {run} {flags}"
    if room in ("index", "quanta", "evidence"):
        return f"quantascope cluster {run} --name {shlex.quote(name)}"
    return f"what made {room}/{name}"


def _index_flags(store: Store, name: str) -> str | None:
    """The flags that `quantascope index` had; None for the index of quanta, which clustering makes."""
    try:
        facts = Derived(store, "index", name).facts()
        config = facts["config"] if "covers" in facts else None
    except QuantascopeError:  # its facts are what is damaged: quanta of that name tell
        return None if Derived(store, "quanta", name).exists else f"… --name {shlex.quote(name)}"
    if config is None:
        return None
    spec = config["spec"]
    given = {"kind": spec["kind"], "name": name, "rows": config["rows"], "quanta": config["quanta"]} | {
        "lists": spec["num_lists"],
        "bits": spec["bits"],
        "code-bytes": spec["code_bytes"],
        "recall": config["recall"],
        "seed": spec["seed"],
    }
    return " ".join(f"--{flag} {shlex.quote(str(value))}" for flag, value in given.items() if value is not None)


def _is_old(store: Store, name: str) -> bool:
    try:
        return not RowSet(store, name).is_current
    except QuantascopeError:
        return False


def _notes(path: str, store: Store) -> list[Finding]:
    """Row sets that are not finished, and what was computed from other rows; silent where damage hides it."""
    try:
        run = Run.open(path)
        names = run.row_sets()
    except QuantascopeError:
        return []
    notes = []
    for name in names:
        try:
            row_set = run.row_set(name)
            missing = row_set.missing_blocks()
        except QuantascopeError:
            continue
        if missing:
            detail = f"{len(missing)} of {row_set.num_blocks} blocks are not collected yet"
            mend = "the collect command that made it goes on"
            notes.append(Finding(file=row_set.folder, kind="unfinished", detail=detail, mend=mend))
    for room, name, source in stale_parts(run):
        mend = again(store, path, room, name)
        detail = f"computed from other {source} than the run holds now; it is refused when asked"
        notes.append(Finding(file=f"{room}/{name}", kind="stale", detail=detail, mend=mend))
    return notes
