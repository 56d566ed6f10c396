"""The command that makes a run of what another program computed."""

from dataclasses import asdict
from typing import Annotated

import typer

from .options import JsonOption, one_of, place, show
from .progress_bar import progress_listener


def import_store(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="A bergson index, a TRAK save_dir, or an array in a .npy file.")
    ],
    out: Annotated[str, typer.Option(help="Folder of the run; gone on with if it holds half of this import.")],
    store_format: Annotated[
        str | None, typer.Option("--format", help="bergson, trak or npy; the default finds it out.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Which of a TRAK store's model ids.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the row set; the default is its unit type.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="The data that the store was built from, row for row; the default is its own.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set.")] = None,
    config_name: Annotated[str | None, typer.Option(help="Configuration of the data set on the hub.")] = None,
    text_field: Annotated[str | None, typer.Option(help="Field that holds the text.")] = None,
    prompt_field: Annotated[str | None, typer.Option(help="Field of the prompt; with --completion-field.")] = None,
    completion_field: Annotated[str | None, typer.Option(help="Field of the completion.")] = None,
    messages_field: Annotated[str | None, typer.Option(help="Field of chat messages.")] = None,
    id_field: Annotated[str | None, typer.Option(help="Field of the documents' own ids.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Label field to keep; may be repeated.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder of the store's tokenizer.json; the default cuts texts into words.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a run of a gradient store that bergson or TRAK made, or of an array, to cluster, report and export."""
    from ...jobs.data.source import DataSource
    from ...jobs.exchange.importing import Import
    from ...jobs.exchange.importing import import_store as run_import
    from ...jobs.exchange.stores import FORMATS

    data = None
    if dataset is not None:
        data = DataSource(
            dataset=place(dataset),
            split=split,
            config_name=config_name,
            text_field=text_field,
            prompt_field=prompt_field,
            completion_field=completion_field,
            messages_field=messages_field,
            id_field=id_field,
            label_fields=tuple(label or ()),
        )
    job = Import(
        store=place(store),
        out=out,
        format=None if store_format is None else one_of("--format", store_format, *FORMATS),
        checkpoint=checkpoint,
        name=name,
        data=data,
        tokenizer=place(tokenizer) if tokenizer else None,
    )
    with progress_listener() as listener:
        done = run_import(job, listener=listener)
    text = (
        f"{done.num_units:,} rows of {done.dim:,} numbers in {out} ({done.row_set}), from a {done.format} store; "
        f"{done.refused} refused, {done.zero} zero; {done.num_documents:,} documents"
        f"{'' if done.has_text else ' without text (--dataset gives it)'}; {done.rows_here:,} rows imported now"
    )
    if done.unexplained_zeros:
        text += (
            f"\n{done.unexplained_zeros} zero rows are of documents with two tokens or more: the store may not have "
            "been built to its end"
        )
    show(asdict(done), text, as_json=as_json)
