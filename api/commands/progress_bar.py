"""Progress as a person sees it: bars on a terminal, a line every few seconds elsewhere. Always on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...jobs.workers.progress import Listener, Progress

_LINE_SECONDS = 5.0


@contextmanager
def progress_listener() -> Iterator["Listener"]:
    """A listener that draws what it hears until the block ends."""
    if sys.stderr.isatty():
        with _bars() as listener:
            yield listener
    else:
        yield _lines()


@contextmanager
def _bars() -> Iterator["Listener"]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description:<24}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, progress.TaskID] = {}

        def listen(event: "Progress") -> None:
            if event.stage not in tasks:
                tasks[event.stage] = bars.add_task(event.stage, rate="")
            bars.update(
                tasks[event.stage],
                total=event.total or None,
                completed=event.done,
                rate=f"{event.rate:,.1f} {event.unit}/s",
            )

        yield listen


def _lines() -> "Listener":
    last: dict[str, float] = {}

    def listen(event: "Progress") -> None:
        now = time.monotonic()
        if event.done < event.total and now - last.get(event.stage, -_LINE_SECONDS) < _LINE_SECONDS:
            return
        last[event.stage] = now
        left = f", {event.seconds_left:,.0f} s left" if event.seconds_left and event.done < event.total else ""
        total = f" of {event.total:,}" if event.total else ""
        print(  # noqa: T201 - this is the command line's own output
            f"{event.stage}: {event.done:,}{total} {event.unit}, {event.rate:,.1f}/s{left}", file=sys.stderr, flush=True
        )

    return listen
