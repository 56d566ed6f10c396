"""The command line: the commands (commands/) in the order of the help, and what happens when one fails.

Progress and errors go to stderr, results to stdout (as JSON with --json). Every error that the library raises on
purpose is one message and its own exit status.
"""

import shlex
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ..errors import QuantascopeError
from .commands import (
    accounting,
    asking,
    clustering,
    collecting,
    comparing,
    demonstrating,
    emerging,
    exporting,
    importing,
    indexing,
    keeping,
    runs,
)

app = typer.Typer(
    name="quantascope",
    help="Find the skills of a language model in its gradients, and the training examples behind each.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

_INTERRUPTED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # read by its callback, before a command is asked for
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    del version


_COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demonstrating.demo,
    "collect": collecting.collect,
    "cluster": clustering.cluster,
    "trace": asking.trace,
    "report": asking.report,
    "info": asking.info,
    "ls": runs.list_runs,
    "rm": runs.remove,
    "verify": keeping.verify,
    "repair": keeping.repair,
    "copy": keeping.copy,
    "ledger": accounting.ledger,
    "emerge": emerging.emerge,
    "compare": comparing.compare,
    "export": exporting.export,
    "import": importing.import_store,
    "index": indexing.index,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    """Run the command line; the exit status says what went wrong (quantascope.errors lists them)."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        interrupted = app(prog_name="quantascope", standalone_mode=False) == _INTERRUPTED  # so typer says it
    except KeyboardInterrupt:
        interrupted = True
    except typer.Abort:
        _fail("aborted", 1)
    except QuantascopeError as error:
        _fail(f"error: {error}", error.exit_status)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "format_message"):
            message = error.format_message()  # without a command: the help
            _fail(message if message.startswith("Usage:") else f"error: {message}", 2)
        raise
    if interrupted:
        command = shlex.join(["quantascope", *sys.argv[1:]])
        _fail(f"interrupted; what was committed is kept. To go on: {command}", _INTERRUPTED)


def _interrupt(_signal: int, _frame: Any) -> None:  # noqa: ANN401 - signal's own signature
    raise KeyboardInterrupt


def _fail(message: str, status: int) -> None:
    typer.echo(message, err=True)
    sys.exit(status)
