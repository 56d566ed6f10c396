"""Files of one run on a local disk: written whole, claimed once, never overwritten by accident.

Knows bytes and names; not what they mean. A key is a path relative to the run's root, with forward slashes. An
object store can take this class's place: nothing else in storage touches the file system to write.
"""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import NoSpaceError, RunBusyError, RunNotFoundError

_TEMPORARY = ".tmp"
_LOCK = ".lock"


class LocalStore:
    """A folder whose files appear whole or not at all."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).absolute()

    def path(self, key: str) -> Path:
        """Where a key lies on disk."""
        return self.root / key

    def exists(self, key: str) -> bool:
        """Whether the file is there, whole."""
        return self.path(key).exists()

    def read(self, key: str) -> bytes:
        """The bytes of a file; RunNotFoundError if there is none."""
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError:
            raise RunNotFoundError(f"{self.path(key)} is missing from the run at {self.root}.") from None

    def names(self, key: str) -> list[str]:
        """Sorted names of what lies in a folder, temporary files left out; empty where there is no folder."""
        folder = self.path(key)
        return sorted(p.name for p in folder.iterdir() if p.name[0] != ".") if folder.is_dir() else []

    def claim(self, key: str, data: bytes) -> bool:
        """Write a file that must not exist yet; False, and nothing changed, if somebody was first.

        Durable on return: the bytes and the folder entry are synced before the name appears.
        """
        with self._temporary(data) as temporary:
            target = self.path(key)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            _sync_folder(target.parent)
            return True

    def replace(self, key: str, data: bytes) -> None:
        """Write a file, in place of what no record names yet (a block that a killed worker left)."""
        with self._temporary(data) as temporary:
            target = self.path(key)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)
            _sync_folder(target.parent)

    @contextmanager
    def new_folder(self, key: str) -> Iterator["LocalStore"]:
        """A folder that appears whole under its name when the block ends well, in place of an older one."""
        temporary = LocalStore(self._temporary_path())
        temporary.root.mkdir(parents=True)
        try:
            yield temporary
            with _space(self.root):
                shutil.rmtree(temporary.root / _TEMPORARY, ignore_errors=True)
                target = self.path(key)
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    target.rename(self._temporary_path())
                temporary.root.rename(target)
                _sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary.root, ignore_errors=True)

    def remove(self, key: str) -> None:
        """Remove a folder or file: first out of sight, then for good."""
        doomed = self._temporary_path()
        doomed.parent.mkdir(parents=True, exist_ok=True)
        self.path(key).rename(doomed)
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
        """Hold the run for writing; RunBusyError if another process has it. Ends with the process."""
        with _space(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            handle = (self.root / _LOCK).open("a+b", buffering=0)  # unbuffered: closing it can't meet a full disk
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                raise RunBusyError(
                    f"{self.root} is being written to by process {handle.read().decode().strip() or 'unknown'}; "
                    "wait for it, or stop it, and give the same command again."
                ) from None
            with _space(self.root):
                handle.truncate(0)
                handle.write(str(os.getpid()).encode())
            self.sweep()
            yield

    @contextmanager
    def _temporary(self, data: bytes) -> Iterator[Path]:
        path = self._temporary_path()
        try:
            with _space(self.root):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as handle:
                    handle.write(data)
                    handle.flush()
                    os.fsync(handle.fileno())
                yield path
        finally:
            path.unlink(missing_ok=True)

    def _temporary_path(self) -> Path:
        return self.root / _TEMPORARY / f"{os.getpid()}-{secrets.token_hex(8)}"


def _sync_folder(folder: Path) -> None:
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
