"""Who may write to a run: one process at a time, on this machine or on another one that shares the disk.

On one machine the kernel's lock on the file decides, which ends with its holder however that dies. Between machines,
where such locks may not be seen, the holder's heartbeat decides: the file's modification time, in the file system's own
clock, so that no two clocks need to agree. The file says who holds it, for whoever is refused.
"""

import errno
import fcntl
import json
import os
import secrets
import shlex
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from ..errors import RunBusyError

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
"""Without a heartbeat for so long, another machine's lease is taken over."""
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class LeaseLostError(RunBusyError):
    """A hold that was taken over, or may have been: its heartbeats did not arrive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who holds a run."""

    host: str
    boot: str
    """The machine's start, where the system tells it: containers of one machine share it, and its locks."""
    process: int
    since: str
    command: str

    def describe(self) -> str:
        """For whoever is refused."""
        return f"process {self.process} on {self.host}, since {self.since} ({self.command})"


@contextmanager
def lease(path: Path) -> Iterator[None]:
    """Hold the run whose lock file this is; RunBusyError, naming the holder, where another process holds it.

    The holder's lease is emptied when the block ends. One that a dead process left on this machine is taken over at
    once, one of another machine when its last heartbeat is STALE_SECONDS old.
    """
    with FileIO(path, "a+") as handle:
        locks = _lock(handle, path)
        _require_free(handle, path, locks=locks)
        own = own_lease()
        handle.truncate(0)
        handle.write(json.dumps(asdict(own)).encode())
        stop = threading.Event()
        heart = threading.Thread(target=_beat, args=(handle.fileno(), stop), daemon=True)
        heart.start()
        try:
            yield
        finally:
            stop.set()
            heart.join()
            handle.truncate(0)


def _lock(handle: FileIO, path: Path) -> bool:
    """Take the kernel's lock; False where the file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _read(handle)
        raise _busy(path, holder.describe() if holder else "a process that has just begun") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _require_free(handle: FileIO, path: Path, *, locks: bool) -> None:
    """Whether the lease that the file tells of is over, where the kernel's lock does not say so."""
    holder = _read(handle)
    if holder is None:
        return
    own = own_lease()
    if holder.host == own.host or (holder.boot and holder.boot == own.boot):
        if not locks and holder.boot == own.boot and holder.process != own.process and process_lives(holder.process):
            raise _busy(path, holder.describe())
        return
    age = _now(path) - path.stat().st_mtime
    if age < STALE_SECONDS:
        raise _busy(
            path,
            f"{holder.describe()}, last heard of {max(age, 0):.0f} s ago; should that machine be dead, its hold ends "
            f"{STALE_SECONDS:.0f} s after it was last heard of",
        )


def _busy(path: Path, holder: str) -> RunBusyError:
    return RunBusyError(
        f"{path.parent} is being written to by {holder}. Wait for it, or stop it, and give the same command again."
    )


def _beat(descriptor: int, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        os.utime(descriptor)


def _now(path: Path) -> float:
    """The time by the clock of the file system that holds the lock file."""
    probe = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _read(handle: FileIO) -> Lease | None:
    """Who the file says holds it; None where it is empty or of no form that is known."""
    handle.seek(0)
    try:
        return Lease(**json.loads(handle.read() or b"null"))
    except (ValueError, TypeError):
        return None


def own_lease() -> Lease:
    """This process's."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return Lease(
        host=socket.gethostname(),
        boot=boot.read_text().strip() if boot.exists() else "",
        process=os.getpid(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join([Path(sys.argv[0] or "python").name, *sys.argv[1:]]),
    )


def process_lives(process: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
