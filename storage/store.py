"""What a run needs of the place where it lies: files that appear whole, names that are claimed once, and who may write.

A key is a path relative to the run's root, with forward slashes. `local.LocalStore` keeps files in a folder,
`remote.RemoteStore` keeps objects under a prefix of a bucket; nothing else in storage knows where bytes lie.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ..errors import DamagedRunError, RunNotFoundError
from .checked import MENDING, check, digest

UNBOUNDED_BYTES = 1 << 62
"""What a place has free that does not tell of a bound."""


@dataclass(frozen=True, slots=True)
class Location:
    """A place in an object store, or a key in it: what `Path` is for a folder. `str` and `os.fspath` give the URI."""

    uri: str

    def __str__(self) -> str:
        return self.uri

    def __fspath__(self) -> str:
        return self.uri

    def __truediv__(self, key: str) -> "Location":
        return Location(f"{self.uri}/{key}" if key else self.uri)

    @property
    def name(self) -> str:
        """The last part, which is the bucket's name where there is no other."""
        return self.uri.rpartition("/")[2]

    @property
    def parents(self) -> list["Location"]:
        """The places that hold it, the nearest first, up to the bucket."""
        scheme, _, rest = self.uri.partition("://")
        parts = rest.split("/")
        return [Location(f"{scheme}://{'/'.join(parts[:n])}") for n in range(len(parts) - 1, 0, -1)]


class Store(ABC):
    """The files of one run, wherever they lie."""

    root: Path | Location

    def path(self, key: str) -> Path | Location:
        """Where a key lies, for messages; see `file` for reading in place."""
        return self.root / key

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether the file is there, whole; or the folder."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The bytes of a file; RunNotFoundError if there is none, DamagedRunError if the disk does not give them."""

    @abstractmethod
    def pieces(self, key: str) -> Iterator[bytes]:
        """The same, piece by piece, in little memory, and from where the file lies: never from a cache."""

    def digest(self, key: str) -> str:
        """SHA-256 of a file, in hex, from where it lies."""
        sha256 = hashlib.sha256()
        for piece in self.pieces(key):
            sha256.update(piece)
        return sha256.hexdigest()

    @abstractmethod
    def size_bytes(self, key: str) -> int:
        """How large a file is."""

    @abstractmethod
    def names(self, key: str) -> list[str]:
        """Sorted names of what lies in a folder, temporary files left out; empty where there is no folder."""

    def listed(self) -> "Store":
        """The same store for one walk through all that it holds: where asking is slow, what is there is asked once."""
        return self

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """Every file below the root but the locks."""

    def read_all(self, key: str, names: Iterable[str]) -> dict[str, bytes]:
        """The bytes of many small files of one folder, by name; several at once where that is quicker."""
        return {name: self.read(f"{key}/{name}") for name in names}

    def read_checked(self, key: str, sha256: str) -> bytes:
        """The bytes of a file that a record names; DamagedRunError if they are others, or gone."""
        try:
            data = self.read(key)
        except RunNotFoundError:
            raise DamagedRunError(f"{self.path(key)} is missing, and a record names it. {MENDING}") from None
        check(data, sha256, str(self.path(key)))
        return data

    @abstractmethod
    def file(self, key: str, sha256: str) -> Path:
        """A file on this machine that holds the bytes of that digest: the run's own, or a copy in the cache.

        To be opened at once, and only read. RunNotFoundError if there is none. A copy is made of checked bytes alone;
        what the run's own file holds is not looked at here (see `mapped`).
        """

    def ahead(self, wanted: Sequence[tuple[str, str]]) -> Iterator[None]:
        """Walks beside a reader of many keys and digests, in order: what it reads next is fetched meanwhile."""
        return (None for _ in wanted)

    def mapped(self, key: str, sha256: str, *, is_checked: bool = False) -> UInt8[np.ndarray, " byte"]:
        """A file's bytes, memory-mapped, read only; DamagedRunError if they are others, or gone.

        `is_checked` leaves the check out, for who did it at an earlier touch.
        """
        try:
            found = self._map(self.file(key, sha256))
        except RunNotFoundError:
            raise DamagedRunError(f"{self.path(key)} is missing, and a record names it. {MENDING}") from None
        if not is_checked and digest(found.data) != sha256:
            if self.forget(sha256):  # a copy went bad, and not the run
                return self.mapped(key, sha256)
            check(found.data, sha256, str(self.path(key)))
        return found

    def forget(self, sha256: str) -> bool:
        """Drop the copy that `file` made, if it did; whether there was one."""
        del sha256
        return False

    @abstractmethod
    def claim(self, key: str, data: bytes) -> bool:
        """Write a file that must not exist yet; False, and nothing changed, if somebody was first.

        Durable on return.
        """

    @abstractmethod
    def replace(self, key: str, data: bytes | Iterable[bytes]) -> None:
        """Write a file, in place of what no record names yet (a block that a killed worker left)."""

    @abstractmethod
    def new_folder(self, key: str) -> AbstractContextManager["Store"]:
        """A folder that appears whole under its name when the block ends well, in place of an older one."""

    @abstractmethod
    def scratch(self) -> AbstractContextManager["Store"]:
        """A folder that nobody reads, gone when the block ends; only under the lock."""

    @abstractmethod
    def move(self, key: str, to: str) -> None:
        """Give a file or folder another name, in place of what has that name."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove a folder or file: first out of sight, then for good."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what killed processes left half-written; only under the lock."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Free space where the run lies, or will lie; UNBOUNDED_BYTES where the place does not tell of a bound."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Hold the run for writing; RunBusyError, naming who has it, if another process does. See `lease`."""

    @abstractmethod
    def hold(self, key: str, number: int) -> AbstractContextManager["Store"]:
        """Wait until no other process holds this number of this folder, and hold it. Ends with the process.

        What is written meanwhile goes through the store that this gives: one that lost its hold without knowing can
        write nothing there over what its successor wrote.
        """

    @abstractmethod
    def require_ready(self) -> None:
        """Raise at once what would stop a write: a place that cannot be reached, credentials, a store too simple."""

    @abstractmethod
    def leave(self) -> None:
        """Remove the lock, and the root if nothing else is in it; only under the lock, as the last that is done."""

    @staticmethod
    def _map(path: Path) -> UInt8[np.ndarray, " byte"]:
        if path.stat().st_size == 0:
            return np.empty(0, np.uint8)  # nothing to map
        return np.memmap(path, np.uint8, "r")
