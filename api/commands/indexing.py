"""The command that indexes a run's rows: index."""

from dataclasses import asdict
from typing import Annotated

import typer

from .options import JsonOption, RunArgument, one_of, show
from .progress_bar import progress_listener


def index(
    run: RunArgument,
    kind: Annotated[str, typer.Option(help="flat, ivf-sq or opq-ivf-pq.")] = "ivf-sq",
    name: Annotated[str | None, typer.Option(help="Under which the index is stored; the default is the kind.")] = None,
    rows: Annotated[str | None, typer.Option(help="Row set; the default is the token rows.")] = None,
    quanta: Annotated[
        str | None, typer.Option(help="Index rows whitened as these quanta's are; the default takes them as stored.")
    ] = None,
    lists: Annotated[int | None, typer.Option(help="Lists; the default is about 4 √rows.")] = None,
    bits: Annotated[int, typer.Option(help="Of each number of an ivf-sq row: 8 or 16.")] = 8,
    code_bytes: Annotated[int | None, typer.Option(help="Of each opq-ivf-pq row.")] = None,
    recall: Annotated[float, typer.Option(help="Share of the exact neighbours that searches have to find.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Ray workers; the default works in this process.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Index a run's rows, or bring an index up to date; its recall is measured and stored with it."""
    from ...attribution.search.index import KINDS, IndexSpec
    from ...jobs.index import IndexConfig, make_index
    from ...jobs.workers.ray_session import RayOptions
    from ...storage.run import Run

    config = IndexConfig(
        name=name,
        rows=rows,
        quanta=quanta,
        spec=IndexSpec(
            kind=one_of("--kind", kind, *KINDS), num_lists=lists, bits=bits, code_bytes=code_bytes, seed=seed
        ),
        recall=recall,
    )
    opened = Run.open(run)
    options = None if workers is None else RayOptions(num_workers=workers)
    with opened.store.lock(), progress_listener() as listener:
        made = make_index(opened, config, ray_options=options, listener=listener)
    facts = {key: value for key, value in made.facts.items() if key != "covers"} | {"blocks": len(made.covers)}
    show(
        facts | {"config": asdict(config)},
        f"{facts['num_rows']:,} rows of {facts['row_set']} in index {made.name} ({facts['kind']}, "
        f"{facts['num_lists']} lists); recall@{facts['recall_neighbours']} {facts['recall']:.3f} with "
        f"{facts['num_probes']} lists searched, measured on {facts['recall_queries']} rows",
        as_json=as_json,
    )
