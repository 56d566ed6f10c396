"""The command that shows everything on a small model: demo."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .progress_bar import progress_listener


def demo(
    out: Annotated[str, typer.Option(help="Folder of the run; made if there is none.")] = "runs/demo",
    cache: Annotated[str | None, typer.Option(help="Where corpus and trained model are kept.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="About a minute: less of everything.")] = False,
    workers: Annotated[int | None, typer.Option(help="Ray workers; the default is one per core.")] = None,
) -> None:
    """Train a small model on Python's own library, find its skills, and write a report: about seven minutes."""
    from ..demo.run import DemoConfig, run_demo

    folder = cache or str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "quantascope")
    with progress_listener() as listener:
        summary = run_demo(DemoConfig(out=out, cache=folder, quick=quick, num_workers=workers), listener)
    typer.echo(summary)
