"""The commands that ask a run: trace, report, info."""

from dataclasses import asdict
from typing import Annotated

import typer

from .options import JsonOption, QuantaOption, RunArgument, place, show


def trace(
    run: RunArgument,
    prompt: Annotated[str, typer.Argument(help="What the model is given.")],
    completion: Annotated[str, typer.Argument(help="What it is to predict, with its leading space if it has one.")],
    k: Annotated[int, typer.Option("-k", "--num-units", help="Units to show.")] = 10,
    save: Annotated[
        str | None, typer.Option(help="Keep the trace in the run under this title, for the report.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The checkpoint, where the run's own path is gone.")] = None,
    quanta: QuantaOption = "main",
    as_json: JsonOption = False,
) -> None:
    """Trace a behaviour to its quanta and to the training units behind it."""
    from ..client import connect
    from ..text.shown import trace_text

    client = connect(run, quanta=quanta)
    if model:
        client.use_model(place(model))
    found = client.trace(prompt, completion, k=k)
    if save:
        with client.run.store.lock():
            client.save_trace(save, found)
    show(asdict(found), trace_text(found), as_json=as_json)


def report(
    run: RunArgument,
    out: Annotated[str, typer.Option(help="The HTML file to write.")] = "report.html",
    quanta: QuantaOption = "main",
) -> None:
    """Write a run's report: one HTML file that needs no network."""
    from ..client import connect

    path = connect(run, quanta=quanta).report(out)
    typer.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


def info(run: RunArgument, as_json: JsonOption = False) -> None:
    """Say what a run holds."""
    from ..client import connect
    from ..text.shown import info_text

    found = connect(run).info()
    show(found, info_text(found), as_json=as_json)
