"""Who may write to a run in an object store: an object that says who holds it, kept by conditional writes.

Of several that ask at once, exactly one is answered by the store. The holder writes the object again every few
seconds; it is believed until that is STALE_SECONDS old by the store's own clock, so that no clock of this machine can
take it from anyone. The holder in turn gives itself up for lost earlier than that, by a clock that only runs forwards.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from ..errors import QuantascopeError, RunBusyError
from .lease import HEARTBEAT_SECONDS, STALE_SECONDS, Lease, LeaseLostError, own_lease, process_lives
from .objects import Objects, Version

TRUST_SECONDS = 0.75 * STALE_SECONDS
"""For so long after a heartbeat was sent the holder is sure that nobody has taken over."""
_POLL_SECONDS = (0.05, 2.0)
"""How often who waits asks again: at first, and in the end."""


_LIVING: set[str] = set()
"""The holds of this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Holder:
    """A lease, and what tells whether its process lives, from inside the same container."""

    lease: Lease
    namespace: str
    """Of process numbers; containers of one machine have one each."""
    started: str
    """When the process began, in the machine's ticks: numbers are used again."""
    nonce: str
    """Of this one hold."""

    @classmethod
    def own(cls, nonce: str = "") -> Self:
        return cls(lease=own_lease(), namespace=_namespace(), started=_started(os.getpid()), nonce=nonce)

    @classmethod
    def read(cls, data: bytes) -> "_Holder | None":
        """None where it is nobody's, or of a form that is not known."""
        try:
            value = json.loads(data)
            lease = Lease(**value["lease"])
            return cls(lease=lease, **{name: str(value[name]) for name in ("namespace", "started", "nonce")})
        except (ValueError, TypeError, KeyError):
            return None

    def is_dead(self) -> bool:
        """Whether its process can be seen from here to be gone; False also where it cannot be seen."""
        own = _Holder.own()
        if not self.lease.boot or (self.lease.boot, self.namespace) != (own.lease.boot, own.namespace):
            return False
        if (self.lease.process, self.started) == (own.lease.process, own.started):
            return self.nonce not in _LIVING  # its store did not answer any more when this process gave it up
        return not process_lives(self.lease.process) or _started(self.lease.process) != self.started


class RemoteLease:
    """One hold of one lock object."""

    def __init__(self, objects: Objects, key: str) -> None:
        self._objects, self._key = objects, key
        self._brisk = Objects(
            objects.uri, replace(objects.patience, tries=min(3, objects.patience.tries), silence_seconds=10.0)
        )
        """For heartbeats, which are worth nothing if they come late, and for the end, which nobody waits for."""
        self._version: Version | None = None
        self._sent = 0.0
        self._nonce = secrets.token_hex(8)
        self._is_lost = False
        self._stop = threading.Event()

    @contextmanager
    def held(self, *, waits: bool = False, is_kept: bool = True) -> Iterator[Self]:
        """Hold it while the block runs; RunBusyError, naming the holder, where another process does.

        `waits` until it is free instead. A lock that is not kept is deleted at the end, else emptied.
        """
        _LIVING.add(self._nonce)
        try:
            with self._kept(waits=waits, is_kept=is_kept):
                yield self
        finally:
            _LIVING.discard(self._nonce)

    @contextmanager
    def _kept(self, *, waits: bool, is_kept: bool) -> Iterator[None]:
        if is_kept or not self._put(None):  # nobody has one that is deleted at the end, as a rule
            self._take(waits=waits)
        heart = threading.Thread(target=self._beat, daemon=True)
        heart.start()
        try:
            yield
        finally:
            self._stop.set()
            heart.join()
            self._release(is_kept=is_kept)

    def require(self) -> None:
        """LeaseLostError unless nobody can have taken over; asks nothing of the store."""
        if self._is_lost or _clock() - self._sent > TRUST_SECONDS:
            raise self._lost()

    def confirm(self) -> None:
        """The same, asked of the store."""
        self._confirm(self._objects)

    def _confirm(self, objects: Objects) -> None:
        self.require()
        found = objects.read_with_facts(self._key)
        if found is None or _nonce(found[0]) != self._nonce:
            self._is_lost = True
            raise self._lost()

    def _take(self, *, waits: bool) -> None:
        wait, longest = _POLL_SECONDS
        while True:
            found = self._objects.read_with_facts(self._key)
            holder = None
            if found is not None:
                data, facts = found
                holder = _Holder.read(data)
                age = None if not data else self._age(facts.modified.timestamp())
                if age is not None and age < STALE_SECONDS and not (holder and holder.is_dead()):
                    if not waits:
                        raise self._busy(holder, age)
                    time.sleep(wait)
                    wait = min(2 * wait, longest)
                    continue
            if self._put(found[1].version if found else None):
                return

    def _put(self, version: Version | None) -> bool:
        sent = _clock()
        self._version = self._objects.put_if(self._key, self._content(), version)
        self._sent = sent
        return self._version is not None

    def _busy(self, holder: _Holder | None, age: float) -> RunBusyError:
        who = holder.lease.describe() if holder else "a process that another version of quantascope runs"
        return RunBusyError(
            f"{self._objects.uri} is being written to by {who}, last heard of {max(age, 0):.0f} s ago; should it be "
            f"dead, its hold ends {STALE_SECONDS:.0f} s after it was last heard of. Wait for it, or stop it, and give "
            "the same command again."
        )

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(
            f"{self._objects.uri}: this process was not heard of for too long, and another may be writing to the run "
            "now. What was committed is safe: give the same command again."
        )

    def _age(self, modified: float) -> float:
        """Seconds since a moment of the store's clock, by that clock: the time of an object that is written now."""
        key = f".tmp/clock-{secrets.token_hex(8)}"
        self._objects.put(key, b"")
        facts = self._objects.facts(key)
        self._objects.delete([key])
        return 0.0 if facts is None else facts.modified.timestamp() - modified

    def _content(self) -> bytes:
        beat = secrets.token_hex(4)  # so that each heartbeat is another version
        value: dict[str, Any] = {**asdict(_Holder.own(self._nonce)), "beat": beat}
        return json.dumps(value).encode()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            sent = _clock()
            try:
                version = self._brisk.put_if(self._key, self._content(), self._version)
            except QuantascopeError:
                continue  # the next one may arrive; `require` knows how old the last one is
            if version is None:
                self._is_lost = True
                return
            self._version, self._sent = version, sent

    def _release(self, *, is_kept: bool) -> None:
        """Free it, unless it is another's by now; one that cannot be freed ends by its age."""
        try:
            self.require()
            if is_kept:
                self._brisk.put_if(self._key, b"", self._version)
            else:
                self._confirm(self._brisk)
                self._brisk.delete([self._key])
        except QuantascopeError:
            return


def _nonce(data: bytes) -> str | None:
    try:
        value = json.loads(data)
        return str(value["nonce"])
    except (ValueError, TypeError, KeyError):
        return None


def _namespace() -> str:
    path = Path("/proc/self/ns/pid")
    return str(path.readlink()) if path.is_symlink() else ""


def _started(process: int) -> str:
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]


_clock: Callable[[], float] = (
    (lambda: time.clock_gettime(time.CLOCK_BOOTTIME)) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""Runs on while the machine sleeps, and nobody can set it."""
