"""One run: a manifest, documents, row sets, and what was computed from them.

Anyone can read a run with zarr, pyarrow and faiss alone; this module is how quantascope itself does.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import ConfigurationError, RunNotFoundError
from .begun import BEGUN
from .checked import decode_json, encode_json, require_same
from .derived import DERIVED_ROOMS, Derived
from .documents import Documents
from .local import LocalStore
from .migrations import SCHEMA_VERSION, require_readable
from .providers import SCHEMES
from .rowset import RowSet
from .store import Location, Store

MANIFEST = "manifest.json"
MANIFEST_SHAPE: dict[str, type] = {"schema_version": int, "config": dict}
DAMAGED = "damaged"
"""Where `repair` keeps bytes that it takes out of the way, until what replaces them is proved equal."""
COPYING = ".copying"
"""Marks a folder that `copy` has not finished."""


class Run:
    """A run on disk; open it with `Run.open`, make it with `Run.create`."""

    def __init__(self, store: Store, manifest: dict[str, Any]) -> None:
        self.store = store
        self.manifest = manifest
        self.documents = Documents(store)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Run":
        """Open a run that exists; RunNotFoundError if the folder holds none."""
        store = open_store(path)
        if not store.exists(MANIFEST):
            _require_whole_copy(store)
            raise RunNotFoundError(
                f"{store.root} holds no run (no manifest.json). "
                "`quantascope ls FOLDER` lists the runs below a folder; `quantascope collect … --out` makes one."
            )
        manifest = decode_json(store.read(MANIFEST), str(store.path(MANIFEST)), MANIFEST_SHAPE)
        require_readable(manifest["schema_version"], str(store.root))
        return cls(store, manifest)

    @classmethod
    def exists(cls, path: str | os.PathLike[str]) -> bool:
        """Whether the folder holds a run."""
        return open_store(path).exists(MANIFEST)

    @classmethod
    @contextmanager
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        config: dict[str, Any],
        **facts: Any,  # noqa: ANN401
    ) -> Iterator["Run"]:
        """Make a run, or go on with the one that is there, holding it for writing.

        `config` is what must be equal to go on (RunMismatchError prints both sides); `facts` are only recorded. A run
        without all its documents holds nothing that a configuration decided, and takes the new one.
        """
        store = open_store(path)
        _require_own(store)
        if _begun(store):
            _require_config(cls.open(path), config)
        with store.lock():
            if not _begun(store):
                value = {"schema_version": SCHEMA_VERSION, "config": config} | facts
                store.replace(MANIFEST, encode_json(value))
            run = cls.open(path)
            _require_config(run, config)
            yield run

    def upgrade(self) -> None:
        """Say in the manifest that this version writes here now, before it does; older ones then refuse the run."""
        if self.manifest["schema_version"] < SCHEMA_VERSION:
            self.manifest = self.manifest | {"schema_version": SCHEMA_VERSION}
            self.store.replace(MANIFEST, encode_json(self.manifest))

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.store.root.name

    def row_set(self, name: str | None = None) -> RowSet:
        """A row set by its name; without one, the only one, or the token rows where there are several."""
        names = self.row_sets()
        if name is None:
            if not names:
                raise RunNotFoundError(f"{self.store.root} has no row sets yet: `quantascope collect` makes one.")
            name = "token-loss" if "token-loss" in names else names[0]
        if name not in names:
            raise RunNotFoundError(
                f"{self.store.root} has no row set {name!r}; it has {', '.join(names) or 'none yet'}."
            )
        return RowSet(self.store, name)

    def new_row_set(self, name: str) -> RowSet:
        """A row set that may not be planned yet."""
        return RowSet(self.store, require_name(name))

    def row_sets(self) -> list[str]:
        """Names of the planned row sets, sorted."""
        return [name for name in self.store.names("rows") if RowSet(self.store, name).planned]

    def log(self, event: str, **facts: Any) -> None:  # noqa: ANN401 - JSON facts
        """Record who did what, when; the log decides nothing, and is the only part that differs between equal runs."""
        now = datetime.now(UTC)
        value = {"event": event, "time": now.isoformat(timespec="seconds"), "process": os.getpid()} | facts
        self.store.claim(f"log/{now:%Y%m%dT%H%M%S%f}-{event}.json", encode_json(value))

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The records of one kind of event, oldest first."""
        names = [f"log/{n}" for n in self.store.names("log") if n.endswith(f"-{event}.json")]
        return [decode_json(self.store.read(n), str(self.store.path(n))) for n in names]

    def derived(self, room: str, name: str) -> Derived:
        """What was computed from rows: `room` is index, quanta, traces or ledger."""
        return Derived(self.store, room, require_name(name))

    def derived_names(self, room: str) -> list[str]:
        """Names of what a room holds, sorted."""
        return self.store.names(room)


def _require_own(store: Store) -> None:
    """RunNotFoundError for a folder that another thing lies in, or half a copy."""
    _require_whole_copy(store)
    set_aside = store.exists(f"{DAMAGED}/{MANIFEST}")  # then the command that made the run makes its manifest again
    if not store.exists(MANIFEST) and not set_aside and any(store.names("")):
        raise RunNotFoundError(f"{store.root} is a folder with other things in it and no run; choose another --out.")


def _require_whole_copy(store: Store) -> None:
    if store.exists(COPYING):
        raise RunNotFoundError(
            f"{store.root} is a copy that was not finished: give `quantascope copy` again, or remove the folder."
        )


def _begun(store: Store) -> bool:
    return store.exists(MANIFEST) and Documents(store).complete


def _require_config(run: Run, config: dict[str, Any]) -> None:
    require_same(
        run.manifest["config"],
        config,
        f"The run at {run.store.root}",
        "Choose another --out, or remove the run with `quantascope rm`.",
    )


def open_store(path: str | os.PathLike[str]) -> Store:
    """The place of a run, whether or not one is there: a folder, or a URI of an object store. Asks nothing of it.

    ConfigurationError for another kind of place.
    """
    place = os.fspath(path)
    scheme, separator, rest = place.partition("://")
    if not separator:
        return LocalStore(path)
    if scheme == "file" and rest.startswith("/"):
        return LocalStore(unquote(rest))
    if scheme in SCHEMES:
        from .remote import RemoteStore

        return RemoteStore(place)
    reason = {
        "memory": "that lives and dies with one process, and workers could not see it",
        "http": "that is no place that can be written to, though a service that answers for a run may be there",
    }.get(scheme.removesuffix("s"), "that kind of place is not known")
    raise ConfigurationError(
        f"{place}: {reason}. A run lies in a folder, or at {', '.join(f'{s}://' for s in SCHEMES)}BUCKET/FOLDER."
    )


def require_name(name: str) -> str:
    """The name of a row set or of what was computed, itself; ConfigurationError if it cannot be a folder's name."""
    if not name or name[0] == "." or set(name) & set("/\\\0"):
        raise ConfigurationError(f"{name!r} cannot be a name: use letters, digits, '-', '_' and '.'.")
    return name


def find_runs(folder: str | os.PathLike[str]) -> Sequence[Path | Location]:
    """Places below (or at) `folder`, or a URI, that hold runs, sorted; RunNotFoundError where there is no folder."""
    from .remote import RemoteStore

    store = open_store(folder)
    if isinstance(store, LocalStore):
        if not store.root.is_dir():
            raise RunNotFoundError(f"{folder} is not a folder.")
        start = store.root if "://" in os.fspath(folder) else Path(folder)
        return sorted(path.parent for path in start.rglob(MANIFEST) if (path.parent / "documents").is_dir())
    assert isinstance(store, RemoteStore)
    return [store.root / key for key in sorted(store.folders_with(MANIFEST, "documents"))]


def remove_part(run: Run, *, rows: str | None = None, quanta: str | None = None, ledger: str | None = None) -> None:
    """Remove a row set, a clustering (with what was made of it under its name), or a ledger.

    RunNotFoundError if there is none of that name.
    """
    if rows is not None and not run.store.exists(f"rows/{require_name(rows)}"):
        raise RunNotFoundError(f"{run.store.root} has no row set {rows!r}; it has {', '.join(run.row_sets())}.")
    for room, name in (("quanta", quanta), ("ledger", ledger)):
        if name is not None and not run.derived(room, name).exists:
            there = ", ".join(run.derived_names(room)) or "none"
            raise RunNotFoundError(f"{run.store.root} has no {room} {name!r}; it has {there}.")
    keys = [f"rows/{rows}", f"curves/{rows}", f"{BEGUN}/rows/{rows}"] if rows is not None else []
    if quanta is not None:
        keys += [f"{room}/{quanta}" for room in ("quanta", "index", "evidence", "emergence")]
        keys += [f"emergence/{quanta}-sizes"]
    keys += [f"ledger/{ledger}"] if ledger is not None else []
    with run.store.lock():
        for key in keys:
            if run.store.exists(key):
                run.store.remove(key)


def remove_run(run: Run) -> None:
    """Remove a whole run: what belongs to it, and its folder if nothing else is in it."""
    with run.store.lock():
        for name in (MANIFEST, "documents", "rows", *DERIVED_ROOMS, "log", BEGUN, DAMAGED):
            if run.store.exists(name):
                run.store.remove(name)
        run.store.sweep()
        run.store.leave()
