"""Figures of one seed, kept in the cache: a benchmark of many seeds can be stopped and goes on where it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def kept(path: Path, measure: Callable[[], dict[str, Any]], *, again: bool) -> dict[str, Any]:
    """What `measure` gave when it was last called for this path; `again` calls it anyway.

    The path must name all that the figures depend on, and a number that is raised when the code behind them changes.
    """
    if path.is_file() and not again:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    made = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(made), encoding="utf-8")
    partial.replace(path)
    return made
