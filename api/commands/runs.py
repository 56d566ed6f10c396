"""The commands for whole runs: ls, rm."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ...errors import ConfigurationError, RunNotFoundError
from ..options import JsonOption, RunArgument, show


def list_runs(
    folder: Annotated[str, typer.Argument(help="Where to look, at any depth.")] = ".", as_json: JsonOption = False
) -> None:
    """List the runs below a folder."""
    from ...storage.run import find_runs

    if not Path(folder).is_dir():
        raise RunNotFoundError(f"{folder} is not a folder.")
    runs = [str(path) for path in find_runs(folder)]
    show({"runs": runs}, "\n".join(runs) or f"no runs below {folder}", as_json=as_json)


def remove(
    run: RunArgument,
    rows: Annotated[str | None, typer.Option(help="Remove only this row set.")] = None,
    quanta: Annotated[str | None, typer.Option(help="Remove only these quanta.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a run, one of its row sets, or its quanta."""
    from ...storage.run import Run, remove_part, remove_run

    opened = Run.open(run)
    if rows and quanta:
        raise ConfigurationError("Give --rows or --quanta, not both.")
    what = f"row set {rows} of {run}" if rows else f"quanta {quanta} of {run}" if quanta else f"the run {run}"
    if not yes and not (sys.stdin.isatty() and typer.confirm(f"Remove {what} for good?")):
        raise ConfigurationError(f"Nothing was removed: confirm, or give --yes to remove {what}.")
    if rows or quanta:
        remove_part(opened, rows=rows, quanta=quanta)
    else:
        remove_run(opened)
    typer.echo(f"removed {what}")
