"""What a failed task says of the job: stop, try again, or do without it. Knows Ray's errors; no actors, no runs."""

import heapq
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from enum import Enum

from ...errors import QuantascopeError, StoreUnavailableError, WorkerFailedError

MAX_TRIES = 3
MAX_DEPARTURES = 20
"""So often may a worker be taken away from one task before that counts as the task's own doing."""
_WAIT_SECONDS = 1.0
"""Before the second try after a passing failure; doubled for each further one."""
_DEPARTURES = ("node has died", "node was terminated", "node has been drained", "exit_actor", "preempted")
"""What Ray says of actors that died through no fault of theirs."""
_NAMED = 10

_log = logging.getLogger(__name__)


class Failure(Enum):
    """Kinds of failure; each says what follows."""

    FATAL = "fatal"
    """An error that quantascope raises on purpose: no other task would fare better. Raised at once."""
    HOPELESS = "hopeless"
    """WorkerFailedError: the worker itself found that the task cannot be done. Set aside at once."""
    DEPARTED = "departed"
    """The worker was taken away, with its node or by a signal: tried again, and not held against the task."""
    PASSING = "passing"
    """The operating system's or a store's refusal: tried again after a while, on the same workers."""
    OWN = "own"
    """Anything else, a dying worker among it: tried again on another worker, since this one may be spoilt."""


def judge(error: Exception) -> tuple[Failure, BaseException]:
    """The kind of failure that an error of Ray stands for, and its cause."""
    from ray.exceptions import RayActorError, RayTaskError

    if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        cause = error.cause
        if isinstance(cause, WorkerFailedError):
            return Failure.HOPELESS, cause
        if isinstance(cause, QuantascopeError) and not isinstance(cause, StoreUnavailableError):
            return Failure.FATAL, cause
        return (Failure.PASSING if isinstance(cause, OSError) else Failure.OWN), cause
    departed = isinstance(error, RayActorError) and (error.preempted or any(mark in str(error) for mark in _DEPARTURES))
    return (Failure.DEPARTED if departed else Failure.OWN), error


class Tasks:
    """Numbered tasks: which wait, which are to be tried again and when, which were set aside and why."""

    def __init__(self, numbers: Sequence[int], what: str) -> None:
        self._waiting = deque(numbers)
        self._later: list[tuple[float, int]] = []
        self._tries: Counter[int] = Counter()
        self._departures: Counter[int] = Counter()
        self._what = what
        self.set_aside: dict[int, str] = {}
        """Task → its last cause."""
        self.num_done = self.tried_again = 0

    def __len__(self) -> int:
        """Those that wait, now or for later."""
        return len(self._waiting) + len(self._later)

    @property
    def is_due(self) -> bool:
        """Whether one can be given out now."""
        return bool(self._waiting) or bool(self._later and self._later[0][0] <= time.monotonic())

    def next(self) -> int:
        """The one to give out."""
        if self._later and self._later[0][0] <= time.monotonic():
            return heapq.heappop(self._later)[1]
        return self._waiting.popleft()

    def failed(self, task: int, failure: Failure, cause: BaseException) -> None:
        """Put a task back, or aside. Raises its cause where that is fatal, WorkerFailedError where all fail alike."""
        if failure is Failure.FATAL:
            raise cause
        if failure is Failure.DEPARTED:
            self._departures[task] += 1
            if self._departures[task] < MAX_DEPARTURES:
                _log.info("%s %d goes to another worker: its own was taken away", self._what, task)
                self._waiting.appendleft(task)
                return
        self._tries[task] += 1
        if isinstance(cause, StoreUnavailableError) and self._tries[task] >= MAX_TRIES:
            raise cause  # no other task would fare better
        if failure is Failure.HOPELESS or self._tries[task] >= MAX_TRIES or failure is Failure.DEPARTED:
            self.set_aside[task] = last_line(cause)
            _log.warning("%s %d is set aside: %s", self._what, task, self.set_aside[task])
            if not self.num_done and len(self.set_aside) >= MAX_TRIES:
                raise self.error(others=len(self))
            return
        self.tried_again += 1
        _log.warning("%s %d is tried again (%d of %d): %s", self._what, task, self._tries[task] + 1, MAX_TRIES,
                     last_line(cause))  # fmt: skip
        wait = _WAIT_SECONDS * 2 ** (self._tries[task] - 1) if failure is Failure.PASSING else 0.0
        heapq.heappush(self._later, (time.monotonic() + wait, task))

    def require_all(self) -> None:
        """WorkerFailedError, naming them, if tasks were set aside."""
        if self.set_aside:
            raise self.error(others=0)

    def error(self, *, others: int) -> WorkerFailedError:
        """What was set aside; `others` are left undone because of it."""
        numbers = sorted(self.set_aside)
        named = ", ".join(map(str, numbers[:_NAMED])) + (" …" if len(numbers) > _NAMED else "")
        subject = f"{self._what} {named}" if len(numbers) == 1 else f"{len(numbers)} {self._what}s ({named})"
        rest = f"Every one that was tried failed, so {others} others were left." if others else "All others are done."
        return WorkerFailedError(
            f"{subject[0].upper()}{subject[1:]} failed {MAX_TRIES} times and "
            f"{'was' if len(numbers) == 1 else 'were'} set aside; the last cause: {self.set_aside[numbers[-1]]}. "
            f"{rest} What was committed is safe; give the same command again to try what is left."
        )


def last_line(error: BaseException) -> str:
    """An error in one line: of a trace that came from a worker, what it ends with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    return text if not isinstance(error, OSError) and text else f"{type(error).__name__}: {text}".rstrip(": ")
