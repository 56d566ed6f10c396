"""A pool of Ray actors that work through numbered tasks; a dead worker costs its task, which another takes over.

Errors that quantascope raises on purpose are fatal at once. Others, and deaths, are tried again a bounded number of
times. Tasks are idempotent: they commit their own results.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Self

from ..errors import QuantascopeError, WorkerFailedError

MAX_TRIES = 3


class WorkerPool:
    """At most `num_workers` actors, made when there is work for them, kept until the pool is closed."""

    def __init__(self, make_worker: Callable[[], Any], num_workers: int) -> None:
        self._make_worker, self._num_workers = make_worker, num_workers
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for worker in [*self._idle, *(w for w, _ in self._running.values())]:
            ray.kill(worker)

    def run(
        self, tasks: Sequence[int], submit: Callable[[Any, int], Any], *, on_done: Callable[[int, Any], None]
    ) -> None:
        """Run `submit(worker, task)` for every task, each on one of the actors.

        `on_done(task, result)` is called here, in the order in which tasks end. Raises the first QuantascopeError of a
        task; WorkerFailedError, naming the task, where one fails MAX_TRIES times.
        """
        import ray

        waiting = deque(tasks)
        tries: Counter[int] = Counter()
        while waiting or self._running:
            while waiting and len(self._running) < self._num_workers:
                worker, task = self._idle.pop() if self._idle else self._make_worker(), waiting.popleft()
                self._running[submit(worker, task)] = (worker, task)
            finished, _ = ray.wait(list(self._running), num_returns=1)
            worker, task = self._running.pop(finished[0])
            try:
                result = ray.get(finished[0])
            except ray.exceptions.RayError as error:
                self._take_back(worker, error)
                tries[task] += 1
                _require_another_try(task, tries[task], error)
                waiting.appendleft(task)
            else:
                self._idle.append(worker)
                on_done(task, result)

    def _take_back(self, worker: Any, error: Exception) -> None:  # noqa: ANN401 - Ray's handles are dynamic
        """A worker whose task raised goes on; a dead one is replaced when there is work."""
        from ray.exceptions import RayActorError

        if not isinstance(error, RayActorError):
            self._idle.append(worker)


def _require_another_try(task: int, tries: int, error: Exception) -> None:
    from ray.exceptions import RayTaskError

    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, QuantascopeError):
        raise cause from None
    if tries >= MAX_TRIES:
        raise WorkerFailedError(
            f"Block {task} failed {MAX_TRIES} times; the last cause: {_last_line(cause)}. "
            "What was committed is safe; give the same command again to go on."
        ) from error


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
