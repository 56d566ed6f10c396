"""One run: a manifest, documents, row sets, and what was computed from them.

Anyone can read a run with zarr, pyarrow and faiss alone; this module is how quantascope itself does.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, RunNotFoundError
from .checked import decode_json, encode_json, require_same
from .derived import Derived
from .documents import Documents
from .local import LocalStore
from .migrations import SCHEMA_VERSION, require_readable
from .rowset import RowSet

MANIFEST = "manifest.json"
MANIFEST_SHAPE: dict[str, type] = {"schema_version": int, "config": dict}
DAMAGED = "damaged"
"""Where `repair` keeps bytes that it takes out of the way, until what replaces them is proved equal."""
COPYING = ".copying"
"""Marks a folder that `copy` has not finished."""


class Run:
    """A run on disk; open it with `Run.open`, make it with `Run.create`."""

    def __init__(self, store: LocalStore, manifest: dict[str, Any]) -> None:
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


def _require_own(store: LocalStore) -> None:
    """RunNotFoundError for a folder that another thing lies in, or half a copy."""
    _require_whole_copy(store)
    set_aside = store.exists(f"{DAMAGED}/{MANIFEST}")  # then the command that made the run makes its manifest again
    if store.root.is_dir() and not store.exists(MANIFEST) and not set_aside and any(store.names("")):
        raise RunNotFoundError(f"{store.root} is a folder with other things in it and no run; choose another --out.")


def _require_whole_copy(store: LocalStore) -> None:
    if store.exists(COPYING):
        raise RunNotFoundError(
            f"{store.root} is a copy that was not finished: give `quantascope copy` again, or remove the folder."
        )


def _begun(store: LocalStore) -> bool:
    return store.exists(MANIFEST) and Documents(store).complete


def _require_config(run: Run, config: dict[str, Any]) -> None:
    require_same(
        run.manifest["config"],
        config,
        f"The run at {run.store.root}",
        "Choose another --out, or remove the run with `quantascope rm`.",
    )


def open_store(path: str | os.PathLike[str]) -> LocalStore:
    """The place of a run, whether or not one is there."""
    if "://" in os.fspath(path):
        raise ConfigurationError(f"{path}: runs live in folders for now; give a path on a disk.")
    return LocalStore(path)


def require_name(name: str) -> str:
    """The name of a row set or of what was computed, itself; ConfigurationError if it cannot be a folder's name."""
    if not name or name[0] == "." or set(name) & set("/\\\0"):
        raise ConfigurationError(f"{name!r} cannot be a name: use letters, digits, '-', '_' and '.'.")
    return name


def find_runs(folder: str | os.PathLike[str]) -> list[Path]:
    """Folders below (or at) `folder` that hold runs, sorted."""
    return sorted(path.parent for path in Path(folder).rglob(MANIFEST) if (path.parent / "documents").is_dir())


def remove_part(run: Run, *, rows: str | None = None, quanta: str | None = None) -> None:
    """Remove a row set or a clustering (with its index and evidence); RunNotFoundError if there is none."""
    if rows is not None and not run.store.exists(f"rows/{require_name(rows)}"):
        raise RunNotFoundError(f"{run.store.root} has no row set {rows!r}; it has {', '.join(run.row_sets())}.")
    if quanta is not None and not run.derived("quanta", quanta).exists:
        raise RunNotFoundError(
            f"{run.store.root} has no quanta {quanta!r}; it has {', '.join(run.derived_names('quanta')) or 'none'}."
        )
    keys = [f"rows/{rows}", f"curves/{rows}"] if rows is not None else []
    keys += [f"{room}/{quanta}" for room in ("quanta", "index", "evidence")] if quanta is not None else []
    with run.store.lock():
        for key in keys:
            if run.store.exists(key):
                run.store.remove(key)


def remove_run(run: Run) -> None:
    """Remove a whole run: what belongs to it, and its folder if nothing else is in it."""
    with run.store.lock():
        for name in (
            "manifest.json",
            "documents",
            "rows",
            "index",
            "quanta",
            "evidence",
            "curves",
            "traces",
            "ledger",
            "log",
            DAMAGED,
        ):
            if run.store.exists(name):
                run.store.remove(name)
        run.store.sweep()
        run.store.path(".lock").unlink()
    if not any(run.store.root.iterdir()):
        run.store.root.rmdir()
