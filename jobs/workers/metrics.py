"""Progress as metrics: Ray's agent on each node serves them to Prometheus, together with Ray's own.

Knows progress and pools; draws nothing. Names begin with `ray_quantascope_` on the page that Prometheus reads.
"""

from typing import Any

from .pool import PoolState
from .progress import Listener, Progress

_STAGE = {
    "quantascope_done": "Units of work that are done, by stage.",
    "quantascope_total": "Units of work in all, by stage; 0 where that is not known.",
    "quantascope_rate": "Units of work per second of this process, by stage.",
    "quantascope_seconds_left": "Time left at this rate, by stage; -1 while there is none.",
}
_POOL = {
    "quantascope_workers": "Workers that are ready or at work.",
    "quantascope_workers_starting": "Workers that wait for room, or load.",
    "quantascope_tried_again": "Pieces of work that failed and were given out once more.",
    "quantascope_set_aside": "Pieces of work that failed on every try.",
}


class Metrics:
    """Gauges of one run; Ray must be connected."""

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Gauge

        self._stage: dict[str, Any] = {
            name: Gauge(name, description=text, tag_keys=("run", "stage", "unit")) for name, text in _STAGE.items()
        }
        self._pool: dict[str, Any] = {
            name: Gauge(name, description=text, tag_keys=("run",)) for name, text in _POOL.items()
        }
        self._run = run
        self._last: PoolState | None = None

    def listen(self, listener: Listener) -> Listener:
        """The listener, with what it hears counted too."""

        def both(event: Progress) -> None:
            listener(event)
            tags = {"run": self._run, "stage": event.stage, "unit": event.unit}
            left = -1.0 if event.seconds_left is None else event.seconds_left
            values = (event.done, event.total, event.rate, left)
            for name, value in zip(_STAGE, values, strict=True):
                self._stage[name].set(float(value), tags)

        return both

    def pool(self, state: PoolState) -> None:
        """Count how a pool stands."""
        if state != self._last:
            self._last = state
            values = (state.workers, state.starting, state.tried_again, state.set_aside)
            for name, value in zip(_POOL, values, strict=True):
                self._pool[name].set(float(value), {"run": self._run})
