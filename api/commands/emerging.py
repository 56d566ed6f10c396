"""The command that follows quanta over a series of checkpoints: when each formed."""

from typing import Annotated

import typer

from .options import JsonOption, QuantaOption, RunArgument, one_of, place, show
from .progress_bar import progress_listener


def emerge(
    run: RunArgument,
    checkpoints: Annotated[
        list[str],
        typer.Option(help="A checkpoint folder whose name ends in its step, or a folder of such; may be repeated."),
    ],
    quanta: QuantaOption = "main",
    scale: Annotated[str, typer.Option(help="A transition is a logistic in the log of the step, or linear.")] = "log",
    units_per_quantum: Annotated[
        int, typer.Option(help="Units of each quantum whose gradients are computed at every checkpoint; 0: none.")
    ] = 8,
    resamples: Annotated[int, typer.Option(help="Resamples of the documents behind each interval.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, mps or auto.")] = "cpu",
    workers: Annotated[
        int | None, typer.Option(help="Ray workers; the default is as many as there is room for.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Quanta to print.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Say when each quantum formed, over a series of checkpoints of one training."""
    from ...attribution.change.emergence import EmergenceConfig
    from ...jobs.change.emerge import EmergeConfig, find_checkpoints
    from ...jobs.change.emerge import emerge as emerge_run
    from ...jobs.models.model import ModelSource
    from ...jobs.quanta.cluster import Quanta
    from ...jobs.workers.ray_session import RayOptions
    from ...storage.run import Run
    from ..text.emergence import emergence_json, emergence_text

    config = EmergeConfig(
        quanta=quanta,
        units_per_quantum=units_per_quantum,
        transitions=EmergenceConfig(
            scale=one_of("--scale", scale, "log", "linear"), num_resamples=resamples, seed=seed
        ),
    )
    opened = Run.open(run)
    dtype = Quanta(opened, quanta).row_set.plan["model"]["dtype"]
    sources = [ModelSource(model=place(c), dtype=dtype, device=device) for c in find_checkpoints(checkpoints)]
    with opened.store.lock(), progress_listener() as listener:
        found = emerge_run(opened, sources, RayOptions(num_workers=workers), config=config, listener=listener)
    labels = Quanta(opened, quanta).table["phrase"].to_pylist()
    show(emergence_json(found), emergence_text(found, labels, limit=limit), as_json=as_json)
