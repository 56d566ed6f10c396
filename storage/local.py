"""Files of one run on a local disk: written whole, claimed once, never overwritten by accident.

Knows bytes and names; not what they mean. Nothing else in storage writes to a run's folder.
"""

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..errors import DamagedRunError, NoSpaceError, RunNotFoundError
from .lease import lease
from .store import Store

_TEMPORARY = ".tmp"
_LOCK = ".lock"
_PIECE_BYTES = 1 << 22


class LocalStore(Store):
    """A folder whose files appear whole or not at all."""

    root: Path

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).absolute()

    def path(self, key: str) -> Path:
        """Where a key lies on disk."""
        return self.root / key

    def exists(self, key: str) -> bool:
        """Whether the file is there, whole."""
        return self.path(key).exists()

    def read(self, key: str) -> bytes:
        """The bytes of a file; RunNotFoundError if there is none, DamagedRunError if the disk does not give them."""
        with self._readable(key):
            return self.path(key).read_bytes()

    def pieces(self, key: str) -> Iterator[bytes]:
        """The same, piece by piece, in little memory."""
        with self._readable(key), self.path(key).open("rb") as handle:
            while piece := handle.read(_PIECE_BYTES):
                yield piece

    def size_bytes(self, key: str) -> int:
        """How large a file is."""
        return self.path(key).stat().st_size

    def names(self, key: str) -> list[str]:
        """Sorted names of what lies in a folder, temporary files left out; empty where there is no folder."""
        folder = self.path(key)
        return sorted(p.name for p in folder.iterdir() if p.name[0] != ".") if folder.is_dir() else []

    def keys(self) -> Iterator[str]:
        """Every file below the root but the lock, folder by folder."""
        for folder, folders, names in os.walk(self.root):
            folders.sort()
            for name in sorted(names):
                key = (Path(folder) / name).relative_to(self.root).as_posix()
                if key.split("/")[-1] != _LOCK:
                    yield key

    def file(self, key: str, sha256: str) -> Path:
        """The run's own file."""
        del sha256
        with self._readable(key):
            if not stat.S_ISREG(self.path(key).stat().st_mode):
                raise IsADirectoryError
        return self.path(key)

    def claim(self, key: str, data: bytes) -> bool:
        """Write a file that must not exist yet; False, and nothing changed, if somebody was first.

        Durable on return: the bytes and the folder entry are synced before the name appears.
        """
        with self._temporary([data]) as temporary:
            target = self.path(key)
            _make_folder(target.parent)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            sync_folder(target.parent)
            return True

    def replace(self, key: str, data: bytes | Iterable[bytes]) -> None:
        """Write a file, in place of what no record names yet (a block that a killed worker left)."""
        with self._temporary([data] if isinstance(data, bytes) else data) as temporary:
            target = self.path(key)
            _make_folder(target.parent)
            temporary.replace(target)
            sync_folder(target.parent)

    @contextmanager
    def new_folder(self, key: str) -> Iterator["LocalStore"]:
        """A folder that appears whole under its name when the block ends well, in place of an older one."""
        temporary, older = LocalStore(self._temporary_path()), self._temporary_path()
        temporary.root.mkdir(parents=True)
        try:
            yield temporary
            with _space(self.root):
                shutil.rmtree(temporary.root / _TEMPORARY, ignore_errors=True)
                target = self.path(key)
                _make_folder(target.parent)
                if target.exists():
                    target.rename(older)
                temporary.root.rename(target)
                sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary.root, ignore_errors=True)
            shutil.rmtree(older, ignore_errors=True)

    @contextmanager
    def scratch(self) -> Iterator["LocalStore"]:
        """A folder on the same disk that nobody reads, gone when the block ends; only under the lock."""
        temporary = LocalStore(self._temporary_path())
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary.root, ignore_errors=True)

    def move(self, key: str, to: str) -> None:
        """Give a file or folder another name, in place of what has that name."""
        with _space(self.root):
            source, target = self.path(key), self.path(to)
            _make_folder(target.parent)
            if target.is_dir():
                self.remove(to)
            source.rename(target)
            sync_folder(target.parent)
            sync_folder(source.parent)

    def remove(self, key: str) -> None:
        """Remove a folder or file: first out of sight, then for good."""
        doomed = self._temporary_path()
        doomed.parent.mkdir(parents=True, exist_ok=True)
        self.path(key).rename(doomed)
        sync_folder(self.path(key).parent)
        shutil.rmtree(doomed) if doomed.is_dir() else doomed.unlink()

    def sweep(self) -> None:
        """Remove what killed processes left half-written; only under the lock."""
        shutil.rmtree(self.root / _TEMPORARY, ignore_errors=True)

    def free_bytes(self) -> int:
        """Free space on the disk that holds, or will hold, the run."""
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing; RunBusyError, naming who has it, if another process does. See `lease`."""
        with _space(self.root):
            _make_folder(self.root)
        with ExitStack() as stack:
            with _space(self.root):
                stack.enter_context(lease(self.root / _LOCK))
            self.sweep()
            yield

    @contextmanager
    def hold(self, key: str, number: int) -> Iterator["LocalStore"]:
        """Wait until no other process holds this number of this folder, and hold it. Ends with the process."""
        with _space(self.root):
            _make_folder(self.path(key))
            handle = (self.path(key) / _LOCK).open("ab", buffering=0)
        with handle:
            with suppress(OSError):  # a file system without locks
                fcntl.lockf(handle, fcntl.LOCK_EX, 1, number)  # one byte of the file stands for the number
            yield self

    def require_ready(self) -> None:
        """Nothing: a folder is made when there is something to write."""

    def leave(self) -> None:
        """Remove the lock, and the folder if nothing else is in it."""
        self.path(_LOCK).unlink()
        if not any(self.root.iterdir()):
            self.root.rmdir()

    @contextmanager
    def _temporary(self, pieces: Iterable[bytes]) -> Iterator[Path]:
        path = self._temporary_path()
        try:
            with _space(self.root):
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, pieces)
                yield path
        finally:
            path.unlink(missing_ok=True)

    def _temporary_path(self) -> Path:
        return self.root / _TEMPORARY / f"{os.getpid()}-{secrets.token_hex(8)}"

    @contextmanager
    def _readable(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise RunNotFoundError(f"{self.path(key)} is missing from the run at {self.root}.") from None
        except OSError as error:
            raise DamagedRunError(f"{self.path(key)} cannot be read ({error.strerror}).") from error


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a new file, and sync its bytes."""
    with path.open("xb") as handle:
        for piece in pieces:
            handle.write(piece)
        handle.flush()
        os.fsync(handle.fileno())


def _make_folder(folder: Path) -> None:
    """Make a folder and what is missing above it, each entry synced, so that what lies in it cannot be lost with it."""
    if folder.is_dir():
        return
    if folder != folder.parent:
        _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries outlast a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _space(root: Path) -> Iterator[None]:
    """Turn the file system's refusals into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                f"The disk that holds {root} is full. What was committed is safe: "
                "free some space, and give the same command again to go on."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise NoSpaceError(f"{root} cannot be written to ({error.strerror}); choose another --out.") from error
        raise
