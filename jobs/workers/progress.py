"""How far a job is: one structured event, which the command line draws and a service can count."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a stage has done so far."""

    stage: str
    """What is going on, in a word or two: `select`, `collect`."""
    done: int
    total: int
    unit: str
    """What is counted: rows, windows, documents."""
    seconds: float
    """Since the stage began in this process."""
    done_before: int = 0
    """What an earlier process had committed already."""

    @property
    def rate(self) -> float:
        """Per second, of what this process did; 0 before anything is done."""
        return (self.done - self.done_before) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At this rate; None while there is none."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None


Listener = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """Listen to nothing."""


class Stage:
    """Counts one stage's progress and tells the listener."""

    def __init__(self, listener: Listener, stage: str, *, total: int, unit: str, done_before: int = 0) -> None:
        self._listener, self._stage, self._unit = listener, stage, unit
        self._total, self._before, self._done = total, done_before, done_before
        self._start = time.monotonic()
        self.advance(0)

    def advance(self, count: int) -> None:
        """Report that `count` more are done."""
        self._done += count
        self._listener(self.state)

    @property
    def state(self) -> Progress:
        """Where the stage stands."""
        return Progress(
            stage=self._stage,
            done=self._done,
            total=self._total,
            unit=self._unit,
            seconds=time.monotonic() - self._start,
            done_before=self._before,
        )
