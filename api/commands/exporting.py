"""The command that hands a run's contents to other programs."""

from dataclasses import asdict
from typing import Annotated

import typer

from .options import JsonOption, QuantaOption, RunArgument, one_of, show
from .progress_bar import progress_listener


def export(
    run: RunArgument,
    what: Annotated[str, typer.Option(help="rows, units, quanta, assignments, or scores of the saved traces.")],
    to: Annotated[str, typer.Option(help="A file that ends in .parquet, or a folder; it may not exist yet.")],
    export_format: Annotated[str, typer.Option("--format", help="parquet or datasets.")] = "parquet",
    rows: Annotated[str | None, typer.Option(help="Row set of rows and units; the default is the token rows.")] = None,
    quanta: QuantaOption = "main",
    as_json: JsonOption = False,
) -> None:
    """Write a part of a run as Parquet or as a folder of the datasets library, whole or not at all."""
    from ...jobs.exchange.exporting import PARTS, Export
    from ...jobs.exchange.exporting import export as run_export
    from ...jobs.exchange.files import FORMATS

    job = Export(
        run=run,
        what=one_of("--what", what, *PARTS),
        to=to,
        format=one_of("--format", export_format, *FORMATS),
        rows=rows,
        quanta=quanta,
    )
    with progress_listener() as listener:
        done = run_export(job, listener=listener)
    files = "1 file" if done.num_files == 1 else f"{done.num_files} files"
    text = f"{done.num_lines:,} {done.what} of {run} in {done.to} ({files}, {done.num_bytes / 1e6:,.1f} MB)"
    if done.left_out:
        text += f"; {done.left_out} saved traces are of other quanta, and were left out"
    show(asdict(done), text, as_json=as_json)
