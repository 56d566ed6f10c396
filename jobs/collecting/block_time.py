"""How long a piece of work takes at a nominal rate, so that blocks are bounded in time without measuring anything.

A plan has to be the same wherever it is made; so the rate goes by the kind of device alone, and is a low one. The work
goes by the model's parameters and the tokens that a unit reads: four operations for each of both, forward and backward.
"""

import logging
from typing import Any

import numpy as np

_BLOCK_SECONDS = 20
"""Of work, about, that a worker's death may cost: machines that are taken away give 30 to 120 s notice."""
_NOTICE_SECONDS = 120
_NOMINAL_RATE = {"cpu": 2e10, "cuda": 1e14}
"""Floating-point operations per second and worker."""
_MOST_ROWS = 65_536

_log = logging.getLogger(__name__)


def nominal_seconds(num_parameters: int, num_tokens: float, device: str) -> float:
    """Of a forward and a backward pass over so many tokens."""
    return 4 * num_parameters * num_tokens / _NOMINAL_RATE.get(device, _NOMINAL_RATE["cpu"])


def bounded_rows(unit_seconds: float, most: float) -> int:
    """Units of one block: as many as take the block's seconds, `most` of them at most, and at least one."""
    return int(np.clip(min(_BLOCK_SECONDS / unit_seconds, most), 1, _MOST_ROWS))


def warn_of_long_blocks(plan: dict[str, Any], num_windows: int = 1) -> None:
    """Log a warning where a block takes longer than the notice that machines give; `num_windows` of a group's."""
    tokens = plan["window_tokens"] * num_windows
    per_window = plan["unit_type"] == "token-contribution"
    units = 1 if per_window or plan["unit_type"] == "group" else plan["rows_per_block"]
    seconds = units * nominal_seconds(plan["model"]["num_parameters"], tokens, plan["device_type"])
    if seconds <= _NOTICE_SECONDS:
        return
    what = f"The largest group has {num_windows:,} windows and is" if plan["unit_type"] == "group" else "A block is"
    advice = "Give a smaller --window-tokens or --rows-per-block, or workers with a GPU."
    if plan["unit_type"] == "group":
        advice = "Give a label with more values, or fewer tokens (--scan-tokens)."
    _log.warning(
        "%s about %.0f s of work for one worker, at a nominal rate, and a worker that is stopped loses all of it. %s",
        what,
        seconds,
        advice,
    )
