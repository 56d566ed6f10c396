"""The command that lays two models beside each other, skill by skill; and one model beside itself without a part."""

from typing import Annotated

import typer

from .options import JsonOption, QuantaOption, RunArgument, place, show
from .progress_bar import progress_listener


def compare(
    run: RunArgument,
    other: Annotated[str | None, typer.Argument(metavar="[OTHER]", help="Another run, or a checkpoint folder.")] = None,
    seed_run: Annotated[
        list[str] | None,
        typer.Option(help="A run or checkpoint that differs from OTHER in its seed alone; may be repeated."),
    ] = None,
    lesion: Annotated[
        list[str] | None,
        typer.Option(help="In place of OTHER: RUN's model without layers.3, or layers.3.heads.1; may be repeated."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Under which the comparison is stored.")] = None,
    quanta: QuantaOption = "main",
    level: Annotated[float, typer.Option(help="False discovery rate of what counts as changed.")] = 0.05,
    flips: Annotated[int, typer.Option(help="Flips of documents' signs, where no --seed-run is given.")] = 2_000,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, mps or auto.")] = "cpu",
    workers: Annotated[
        int | None, typer.Option(help="Ray workers; the default is as many as there is room for.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Quanta to print for each model.")] = 15,
    as_json: JsonOption = False,
) -> None:
    """Compare two models on the same units: which skills they share, and which were gained, lost or changed."""
    from ...jobs.change.compare import CompareConfig
    from ...jobs.change.compare import compare as compare_runs
    from ...jobs.quanta.cluster import Quanta
    from ...jobs.workers.ray_session import RayOptions
    from ...storage.run import Run
    from ..text.compare import compare_json, compare_text

    config = CompareConfig(
        other=None if other is None else place(other),
        seeds=tuple(map(place, seed_run or ())),
        lesions=tuple(lesion or ()),
        quanta=quanta,
        level=level,
        num_flips=flips,
        device=device,
    )
    opened = Run.open(run)
    with opened.store.lock(), progress_listener() as listener:
        found = compare_runs(opened, config, RayOptions(num_workers=workers), name=name, listener=listener)
    labels = Quanta(opened, quanta).table["phrase"].to_pylist()
    show(compare_json(found), compare_text(found, labels, limit=limit), as_json=as_json)
