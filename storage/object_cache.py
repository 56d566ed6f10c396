"""Copies of stored objects on this machine's disk, by their SHA-256, so that no query fetches what another one did.

Several processes share the folder: a copy gets its name once it is whole and right, and what is dropped while somebody
reads it stays readable for them. Knows digests and bytes; not where they come from, nor what they mean.
"""

import errno
import hashlib
import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ConfigurationError, NoSpaceError

MAX_BYTES = 32 << 30
"""By default; the environment variable QUANTASCOPE_CACHE_BYTES says otherwise."""
_LOOKS = 64
"""The folder is measured again whenever this share of the bound was added."""


class ObjectCache:
    """A folder of copies, of which those used longest ago go once they are more than `max_bytes` together."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._added = max_bytes  # so that the first addition measures what others left
        self._guard = threading.Lock()

    def get(self, sha256: str) -> Path | None:
        """The copy with this digest, marked as just used; None if there is none."""
        path = self._path(sha256)
        try:
            os.utime(path)
        except OSError:
            return None
        return path

    def put(self, sha256: str, pieces: Iterable[bytes]) -> Path | None:
        """Keep these bytes; None, and nothing is kept, if they have another digest.

        Raises NoSpaceError where the disk is full, ConfigurationError where the folder cannot be written to.
        """
        path, found, size = self._path(sha256), hashlib.sha256(), 0
        temporary = self.folder / f".{os.getpid()}-{secrets.token_hex(8)}"
        self._make_folder(path.parent)
        try:
            with _space(self.folder), temporary.open("xb") as handle:
                for piece in pieces:
                    found.update(piece)
                    size += len(piece)
                    handle.write(piece)
            if found.hexdigest() != sha256:
                return None
            with _space(self.folder):
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._trim(path, size)
        return path

    def drop(self, sha256: str) -> bool:
        """Remove a copy; whether there was one."""
        try:
            self._path(sha256).unlink()
        except FileNotFoundError:
            return False
        return True

    def _path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    def _make_folder(self, folder: Path) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # copies of training text are nobody else's
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"{self.folder} cannot be made ({error.strerror}): copies of what a run in an object store holds are "
                "kept there. Let XDG_CACHE_HOME name a folder that can be written to."
            ) from error

    def _trim(self, newest: Path, size: int) -> None:
        """Drop the copies used longest ago until the rest is within the bound; the newest stays in any case."""
        with self._guard:
            self._added += size
            if self._added < self.max_bytes / _LOOKS:
                return
            self._added = 0
            copies = sorted(self._copies(), reverse=True)
            total = sum(length for _, length, _ in copies)
            while copies and total > self.max_bytes:
                _, length, path = copies.pop()
                if path != newest:
                    path.unlink(missing_ok=True)
                    total -= length

    def _copies(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size and place of every copy."""
        found = []
        for folder in self.folder.iterdir():
            if folder.is_dir():
                for path in folder.iterdir():
                    with suppress(FileNotFoundError):
                        status = path.stat()
                        found.append((status.st_mtime, status.st_size, path))
        return found


@contextmanager
def _space(folder: Path) -> Iterator[None]:
    """Turn a full disk into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpaceError(
            f"{folder} has no room for a copy of what the object store holds: free some space, let XDG_CACHE_HOME name "
            "a folder on another disk, or lower QUANTASCOPE_CACHE_BYTES."
        ) from error


def default_cache() -> ObjectCache:
    """The cache of this user: below XDG_CACHE_HOME, or ~/.cache; ConfigurationError for a bound that is no number."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    bound = os.environ.get("QUANTASCOPE_CACHE_BYTES", str(MAX_BYTES))
    if not bound.isdecimal():
        raise ConfigurationError(f"QUANTASCOPE_CACHE_BYTES is {bound!r}; a number of bytes is accepted.")
    return ObjectCache(home / "quantascope" / "objects", int(bound))
