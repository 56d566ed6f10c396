"""The commands for whole runs: ls, rm."""

import sys
from typing import Annotated

import typer

from ...errors import ConfigurationError
from .options import JsonOption, RunArgument, show


def list_runs(
    folder: Annotated[str, typer.Argument(help="Where to look, at any depth: a folder, or a URI.")] = ".",
    as_json: JsonOption = False,
) -> None:
    """List the runs below a folder."""
    from ...storage.run import find_runs

    runs = [str(path) for path in find_runs(folder)]
    show({"runs": runs}, "\n".join(runs) or f"no runs below {folder}", as_json=as_json)


def remove(
    run: RunArgument,
    rows: Annotated[str | None, typer.Option(help="Remove only this row set.")] = None,
    quanta: Annotated[str | None, typer.Option(help="Remove only these quanta.")] = None,
    ledger: Annotated[str | None, typer.Option(help="Remove only this ledger.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a run, one of its row sets, its quanta, or a ledger."""
    from ...storage.run import Run, remove_part, remove_run

    opened = Run.open(run)
    parts = [f"{kind} {name}" for kind, name in (("row set", rows), ("quanta", quanta), ("ledger", ledger)) if name]
    if len(parts) > 1:
        raise ConfigurationError("Give one of --rows, --quanta and --ledger, not several.")
    what = f"{parts[0]} of {run}" if parts else f"the run {run}"
    if not yes and not (sys.stdin.isatty() and typer.confirm(f"Remove {what} for good?")):
        raise ConfigurationError(f"Nothing was removed: confirm, or give --yes to remove {what}.")
    if parts:
        remove_part(opened, rows=rows, quanta=quanta, ledger=ledger)
    else:
        remove_run(opened)
    typer.echo(f"removed {what}")
