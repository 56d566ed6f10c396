"""Files of one run in an object store: put whole, claimed once, read through a cache on this machine's disk.

A key is the object's name below the run's URI. There are no folders and no renames, so what must change as one is
staged under .tmp/ with a journal; whoever holds the run next does what a journal says that its writer did not finish.
"""

import secrets
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ..errors import ConfigurationError, DamagedRunError, RunNotFoundError
from .checked import MENDING, decode_json, encode_json
from .lease import LeaseLostError
from .local import LocalStore
from .object_cache import ObjectCache, default_cache
from .objects import ObjectFacts, Objects, Version
from .remote_lease import RemoteLease
from .store import UNBOUNDED_BYTES, Location, Store

_TEMPORARY = ".tmp"
_LOCK = ".lock"
_JOURNAL = "journal.json"
_JOURNAL_SHAPE: dict[str, type] = {"folder": str, "names": list}
_IN_MEMORY_BYTES = 32 << 20
"""Larger contents are put together on disk, then sent in parts."""
_READERS = 16
_SMALL = 100_000
"""Records that are kept in memory, at about a kilobyte each."""
_AHEAD = 4
"""Objects that are fetched while the one before them is looked at."""
_HELD: dict[str, RemoteLease] = {}
"""The runs that this process holds, by URI: every store that it has open on one writes under that lease."""


class RemoteStore(Store):
    """A prefix of a bucket whose objects appear whole or not at all."""

    root: Location

    def __init__(self, uri: str, cache: ObjectCache | None = None) -> None:
        self.root = Location(uri.rstrip("/"))
        self._objects = Objects(self.root.uri)
        self._cache = cache or default_cache()
        self._right: set[str] = set()
        """Digests of copies that were checked by this store."""
        self._small: dict[str, tuple[Version, bytes]] = {}
        """Records by key, each with the version that it was read in."""

    def exists(self, key: str) -> bool:
        """Whether the object is there; or anything below it."""
        return self._objects.facts(key) is not None or next(self._objects.below(key), None) is not None

    def read(self, key: str) -> bytes:
        """The bytes of an object; RunNotFoundError if there is none."""
        data = self._objects.read(key)
        if data is None:
            raise self._missing(key)
        return data

    def pieces(self, key: str) -> Iterator[bytes]:
        """The same, piece by piece, in little memory, from the object store itself."""
        pieces = self._objects.pieces(key)
        if pieces is None:
            raise self._missing(key)
        return pieces

    def size_bytes(self, key: str) -> int:
        """How large an object is."""
        facts = self._objects.facts(key)
        if facts is None:
            raise self._missing(key)
        return facts.size_bytes

    def names(self, key: str) -> list[str]:
        """Sorted names of what lies directly below a key, temporary objects left out."""
        folders, names = self._objects.directly_in(key)
        return sorted({name for name in (*folders, *names) if name[:1] not in ("", ".")})

    def keys(self) -> Iterator[str]:
        """Every object below the root but the locks."""
        return (key for key, _ in self._objects.below("") if not key.rpartition("/")[2].startswith(_LOCK))

    def folders_with(self, *names: str) -> Iterator[str]:
        """Keys that have all these names directly below them, at any depth; below such a one none is looked for."""
        waiting = [""]
        while waiting:
            key = waiting.pop()
            folders, objects = self._objects.directly_in(key)
            if set(names) <= {*folders, *objects}:
                yield key
            else:
                waiting += [f"{key}/{name}" if key else name for name in folders]

    def listed(self) -> "RemoteStore":
        """A view of what is there now, without what is written later."""
        return _ListedStore(self)

    def read_all(self, key: str, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of many small objects, several at once; those that did not change since are not fetched again."""
        versions = {name: facts.version for name, facts in self._objects.directly_in(key)[1].items()}
        found, wanted = {}, []
        for name in names:
            version, data = self._small.get(f"{key}/{name}", (None, b""))
            if version is not None and version == versions.get(name):
                found[name] = data
            else:
                wanted.append(name)
        with ThreadPoolExecutor(max(1, min(_READERS, len(wanted)))) as readers:
            for name, data in zip(wanted, readers.map(lambda name: self.read(f"{key}/{name}"), wanted), strict=True):
                found[name] = data
                if name in versions and len(self._small) < _SMALL:
                    self._small[f"{key}/{name}"] = (versions[name], data)
        return found

    def read_checked(self, key: str, sha256: str) -> bytes:
        """The bytes of an object that a record names, from its copy; DamagedRunError if they are others, or gone."""
        return bytes(self.mapped(key, sha256))

    def file(self, key: str, sha256: str) -> Path:
        """A copy in the cache, fetched if there is none; DamagedRunError if the object holds other bytes."""
        if path := self._cache.get(sha256):
            return path
        path = self._cache.put(sha256, self.pieces(key))
        if path is None:
            raise DamagedRunError(
                f"{self.path(key)} is damaged: its SHA-256 is not the {sha256[:12]}… that the record says. {MENDING}"
            )
        self._right.add(sha256)
        return path

    def ahead(self, wanted: Sequence[tuple[str, str]]) -> Iterator[None]:
        """Fetches the next copies while the reader looks at one; what is damaged or missing the reader will find."""
        with ThreadPoolExecutor(_AHEAD) as readers:
            waiting: deque[Future[Path]] = deque()
            left = iter(wanted)
            for _ in wanted:
                waiting += [readers.submit(self.file, *place) for place in islice(left, _AHEAD + 1 - len(waiting))]
                with suppress(DamagedRunError, RunNotFoundError):
                    waiting.popleft().result()
                yield

    def mapped(self, key: str, sha256: str, *, is_checked: bool = False) -> UInt8[np.ndarray, " byte"]:
        """A copy's bytes, memory-mapped; see `Store.mapped`. What this store fetched is not checked again."""
        for _ in range(3):
            try:
                found = super().mapped(key, sha256, is_checked=is_checked or sha256 in self._right)
            except FileNotFoundError as error:
                if isinstance(error, RunNotFoundError):
                    raise
                continue  # another process dropped the copy between its name and its opening
            self._right.add(sha256)
            return found
        raise ConfigurationError(
            f"{self._cache.folder} drops copies before they are read: raise QUANTASCOPE_CACHE_BYTES, which is "
            f"{self._cache.max_bytes:,}."
        )

    def forget(self, sha256: str) -> bool:
        """Drop the copy of this digest."""
        self._right.discard(sha256)
        return self._cache.drop(sha256)

    def claim(self, key: str, data: bytes) -> bool:
        """Put an object that must not exist yet; False, and nothing changed, if somebody was first."""
        self._require_held()
        return self._objects.put_if(key, data, None) is not None

    def replace(self, key: str, data: bytes | Iterable[bytes]) -> None:
        """Put an object, whole; nothing of it shows before its last byte has arrived."""
        if isinstance(data, bytes):
            self._require_held()
            self._objects.put(key, data)
            return
        with self.scratch() as folder:  # so that a try that fails half way can begin again
            path = folder.root / "content"
            with path.open("wb") as handle:
                handle.writelines(data)
            self._put_file(key, path)

    @contextmanager
    def new_folder(self, key: str) -> Iterator[Store]:
        """Files that appear as objects below a key when the block ends well, in place of what was there."""
        with self.scratch() as folder:
            yield folder
            names = [name for name in folder.keys() if not name.startswith(_TEMPORARY)]  # noqa: SIM118 - a method
            stage = f"{_TEMPORARY}/{secrets.token_hex(8)}"
            for name in names:
                self._put_file(f"{stage}/{name}", folder.root / name)
            self._change(stage, key, names)

    @contextmanager
    def scratch(self) -> Iterator[LocalStore]:
        """A folder of this machine that nobody reads, gone when the block ends."""
        with tempfile.TemporaryDirectory(prefix="quantascope-") as folder:
            yield LocalStore(folder)

    def move(self, key: str, to: str) -> None:
        """Give objects other names, each copied and then deleted."""
        self._require_held()
        names = self._below(key)
        if self._objects.facts(to) is None and self.exists(to):
            self.remove(to)
        for name in names:
            self._objects.copy(key + name, to + name)
            self._objects.delete([key + name])

    def remove(self, key: str) -> None:
        """Delete an object, or all below a key: what names the others goes first, and an end is sure to be made."""
        if self._objects.facts(key) is not None:
            self._require_held()
            self._objects.delete([key])
        if next(self._objects.below(key), None) is not None:
            self._change(f"{_TEMPORARY}/{secrets.token_hex(8)}", key, [])

    def sweep(self) -> None:
        """Finish what journals say, and delete what killed processes left; only under the lock."""
        self._finish()
        self._objects.delete([key for key, _ in self._objects.below(_TEMPORARY)])

    def _finish(self) -> None:
        for key in [key for key, _ in self._objects.below(_TEMPORARY) if key.endswith(f"/{_JOURNAL}")]:
            try:
                value = decode_json(self.read(key), str(self.path(key)), _JOURNAL_SHAPE)
            except (DamagedRunError, RunNotFoundError):
                continue
            self._carry_out(key.rpartition("/")[0], value["folder"], value["names"])

    def free_bytes(self) -> int:
        """UNBOUNDED_BYTES: a bucket has no bound that it tells of."""
        return UNBOUNDED_BYTES

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing; RunBusyError, naming who has it, if another process does. See `remote_lease`."""
        self.require_ready()
        with RemoteLease(self._objects, _LOCK).held() as lease:
            _HELD[self.root.uri] = lease
            try:
                self.sweep()
                yield
            finally:
                del _HELD[self.root.uri]

    @contextmanager
    def hold(self, key: str, number: int) -> Iterator["RemoteStore"]:
        """Wait until no other process holds this number of this folder, and hold it. Ends with the process."""
        with RemoteLease(self._objects, f"{key}/{_LOCK}-{number}").held(waits=True, is_kept=False) as lease:
            yield _HeldStore(self, lease)

    def require_ready(self) -> None:
        """Raise at once where the store cannot be reached or written to, or has no conditional writes."""
        key = f"{_TEMPORARY}/probe-{secrets.token_hex(8)}"
        version = self._objects.put_if(key, b"1", None)
        is_kept = version is not None and self._objects.put_if(key, b"2", None) is None
        is_kept &= self._objects.put_if(key, b"3", ('"0123456789abcdef0123456789abcdef"', "1")) is None
        self._objects.delete([key])
        if not is_kept:
            raise ConfigurationError(
                f"{self.root}: the store overwrites what it was asked to keep (it knows no If-None-Match or If-Match), "
                "so two processes could damage each other's work. Use a store with conditional writes, or a folder, "
                "and `quantascope copy`."
            )

    def leave(self) -> None:
        """Delete the locks; a prefix without objects is nothing that could be left."""
        self._objects.delete([key for key, _ in self._objects.below("") if key.rpartition("/")[2].startswith(_LOCK)])

    def _change(self, stage: str, folder: str, names: list[str]) -> None:
        """Put what is staged, or nothing, in a folder's place; if need be, whoever holds the run next ends it."""
        self._require_held()
        self._finish()  # so that no older journal is carried out after this one
        self._objects.put(f"{stage}/{_JOURNAL}", encode_json({"folder": folder, "names": names}))
        self._carry_out(stage, folder, names)

    def _carry_out(self, stage: str, folder: str, names: list[str]) -> None:
        """Delete a folder's objects, records first; copy the staged ones, records last; then drop the journal."""
        there = sorted((f"{folder}{name}" for name in self._below(folder)), key=_is_data)
        records = [key for key in there if not _is_data(key)]
        self._require_held()
        self._objects.delete(records)
        self._objects.delete([key for key in there if _is_data(key)])
        for name in sorted(names, key=_is_data, reverse=True):
            self._require_held()
            self._objects.copy(f"{stage}/{name}", f"{folder}/{name}")
        self._objects.delete([f"{stage}/{_JOURNAL}"])
        self._objects.delete([f"{stage}/{name}" for name in names])

    def _below(self, key: str) -> list[str]:
        """What follows a key in the names of the object itself and of those below it."""
        found = [name[len(key) :] for name, _ in self._objects.below(key)]
        return found or ([""] if self._objects.facts(key) is not None else [])

    def _put_file(self, key: str, path: Path) -> None:
        self._require_held()
        self._objects.put(key, path if path.stat().st_size > _IN_MEMORY_BYTES else path.read_bytes())

    def _require_held(self) -> None:
        if lease := _HELD.get(self.root.uri):
            lease.require()

    def _missing(self, key: str) -> RunNotFoundError:
        return RunNotFoundError(f"{self.path(key)} is missing from the run at {self.root}.")


class _HeldStore(RemoteStore):
    """What is written under a hold: nothing over what a later holder wrote, even by one that slept meanwhile.

    An object is created, or replaced in the version that was there while the hold was confirmed; so a write by a holder
    that was given up and a write by its successor cannot both be the last.
    """

    def __init__(self, store: RemoteStore, lease: RemoteLease) -> None:
        super().__init__(store.root.uri, store._cache)
        self._hold = lease

    def replace(self, key: str, data: bytes | Iterable[bytes]) -> None:
        """Put an object; LeaseLostError where somebody else does so meanwhile."""
        content = data if isinstance(data, bytes) else b"".join(data)
        self._require_held()
        version = None
        for _ in range(4):
            if self._objects.put_if(key, content, version) is not None:
                return
            facts = self._objects.facts(key)
            version = None if facts is None else facts.version
            self._hold.confirm()  # after the look: what was seen is older than any successor
        raise LeaseLostError(f"{self.path(key)} is being written by another process too: give the same command again.")

    def claim(self, key: str, data: bytes) -> bool:
        """Put an object that must not exist yet.

        One that a former holder put there after it was given up names files that are not there any more: it is
        replaced.
        """
        self._hold.confirm()
        if self._objects.put_if(key, data, None) is None:
            self.replace(key, data)
        return True


class _ListedStore(RemoteStore):
    """What a store held at one moment, for whoever walks through all of it."""

    def __init__(self, store: RemoteStore) -> None:
        super().__init__(store.root.uri, store._cache)
        self._there: dict[str, ObjectFacts] = dict(self._objects.below(""))
        self._folders = {key[:place] for key in self._there for place in _slashes(key)}

    def exists(self, key: str) -> bool:
        """Whether it was there."""
        return key in self._there or key in self._folders

    def size_bytes(self, key: str) -> int:
        """How large it was."""
        if key not in self._there:
            raise self._missing(key)
        return self._there[key].size_bytes

    def keys(self) -> Iterator[str]:
        """Every object that was there but the locks."""
        return (key for key in self._there if not key.rpartition("/")[2].startswith(_LOCK))


def _slashes(key: str) -> Iterator[int]:
    return (place for place, letter in enumerate(key) if letter == "/")


def _is_data(key: str) -> bool:
    """Whether an object is one that records name, and no record."""
    return not key.endswith(".json")
