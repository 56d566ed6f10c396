"""A pool of Ray actors that work through numbered tasks, while actors and whole nodes come and go.

Which failures stop the job, and which cost a task another try, is `failures`' to say. Tasks are idempotent: they commit
their own results. An actor has one task at a time, and gets the next when its result is here: nothing piles up, however
slow the store.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ...errors import RayStartError, WorkerFailedError
from .failures import MAX_TRIES, Failure, Tasks, judge, last_line

_LOOK_SECONDS = 5.0
"""So often the pool looks for room for more workers."""
_NO_ROOM_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """How a pool stands."""

    workers: int
    """Ready or at work."""
    starting: int
    """Waiting for room, or loading."""
    tried_again: int
    """Tasks that were given out once more because they failed, each time counted."""
    set_aside: int
    """Tasks that failed on every try."""


def is_ready(worker: Any) -> Any:  # noqa: ANN401 - Ray's handles are dynamic
    """A reference that resolves once an actor stands."""
    return worker.__ray_ready__.remote()


class WorkerPool:
    """Actors, made when there is work and room for them, kept until the pool is closed."""

    def __init__(
        self,
        make_worker: Callable[[], Any],
        num_workers: int | None,
        *,
        room: Callable[[], int] | None = None,
        prepare: Callable[[Any], Any] = is_ready,
        on_change: Callable[[PoolState], None] = lambda _: None,
    ) -> None:
        """At most `num_workers` (None: any number), and no more than `room()`, which is asked again and again.

        `prepare(worker)` is a reference that resolves when a new worker can be given tasks; what it raises on purpose
        is fatal.
        """
        self._make_worker, self._prepare, self._on_change = make_worker, prepare, on_change
        self._num_workers, self._room = math.inf if num_workers is None else num_workers, room
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Any, int]] = {}
        self._target, self._looked, self._last_alive = 0, -math.inf, time.monotonic()
        self._failed_starts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for worker in [*self._idle, *self._starting.values(), *(w for w, _ in self._running.values())]:
            ray.kill(worker)

    def run(
        self,
        tasks: Sequence[int],
        submit: Callable[[Any, int], Any],
        *,
        on_done: Callable[[int, Any], None],
        what: str = "block",
    ) -> None:
        """Run `submit(worker, task)` for every task, each on one of the actors.

        `on_done(task, result)` is called here, in the order in which tasks end. Raises the first fatal error;
        WorkerFailedError, naming them, when all others are done and some were set aside (or at once, where the first
        ones to end all were); RayStartError where there is no room for a worker any more.
        """
        left = Tasks(tasks, what)
        while len(left) or self._running:
            self._staff(len(left) + len(self._running))
            while left.is_due and self._idle:
                worker, task = self._idle.pop(), left.next()
                self._running[submit(worker, task)] = (worker, task)
            self._tell(left)
            for reference in self._ended(wait_seconds=0.5 if len(left) else _LOOK_SECONDS):
                if reference in self._starting:
                    self._started(reference)
                else:
                    self._finished(reference, left, on_done)
        self._tell(left)
        left.require_all()

    def _staff(self, wanted: int) -> None:
        """Have as many workers as there is work and room for."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._target = int(min(self._num_workers, self._room() if self._room else wanted))
        alive = len(self._idle) + len(self._running)
        for _ in range(alive + len(self._starting), min(self._target, wanted)):
            worker = self._make_worker()
            self._starting[self._prepare(worker)] = worker
        if alive or self._starting:
            self._last_alive = now
        elif now - self._last_alive > _NO_ROOM_SECONDS:
            raise RayStartError(
                f"For {_NO_ROOM_SECONDS:.0f} s no node has had room for a worker. What was committed is safe; give the "
                "same command again when there is one."
            )

    def _ended(self, *, wait_seconds: float) -> list[Any]:
        """References of tasks and starts that have ended; waits for the first, at most so long."""
        import ray

        references = [*self._running, *self._starting]
        if not references:
            time.sleep(wait_seconds)
            return []
        return list(ray.wait(references, num_returns=1, timeout=wait_seconds)[0])

    def _started(self, reference: Any) -> None:  # noqa: ANN401
        import ray

        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            failure, cause = judge(error)
            ray.kill(worker)
            if failure in (Failure.FATAL, Failure.HOPELESS):
                raise cause from None
            self._failed_starts += failure is not Failure.DEPARTED
            if self._failed_starts >= MAX_TRIES:
                raise WorkerFailedError(
                    f"Workers could not start, {MAX_TRIES} times in a row; the last cause: {last_line(cause)}. "
                    "What was committed is safe; give the same command again to go on."
                ) from error
        else:
            self._failed_starts = 0
            self._idle.append(worker)

    def _finished(self, reference: Any, left: Tasks, on_done: Callable[[int, Any], None]) -> None:  # noqa: ANN401
        import ray

        worker, task = self._running.pop(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayError as error:
            failure, cause = judge(error)
            if failure in (Failure.OWN, Failure.DEPARTED):
                ray.kill(worker)
            else:
                self._idle.append(worker)
            left.failed(task, failure, cause)
        else:
            self._idle.append(worker)
            left.num_done += 1
            on_done(task, result)

    def _tell(self, left: Tasks) -> None:
        """Say how the pool stands."""
        self._on_change(
            PoolState(
                workers=len(self._idle) + len(self._running),
                starting=len(self._starting),
                tried_again=left.tried_again,
                set_aside=len(left.set_aside),
            )
        )
