"""The command that follows quanta over a series of checkpoints, or of models of different sizes: when each formed."""

from typing import Annotated

import typer

from ...errors import ConfigurationError
from .options import JsonOption, QuantaOption, RunArgument, one_of, place, show
from .progress_bar import progress_listener


def emerge(
    run: RunArgument,
    checkpoints: Annotated[
        list[str],
        typer.Option(
            help="A checkpoint folder whose name ends in its step (over sizes: any model folder), or a folder of such; "
            "may be repeated."
        ),
    ],
    over: Annotated[
        str, typer.Option(help="steps: checkpoints of one training; sizes: models of different numbers of parameters.")
    ] = "steps",
    quanta: QuantaOption = "main",
    scale: Annotated[
        str, typer.Option(help="A transition is a logistic in the log of the step (or size), or linear.")
    ] = "log",
    units_per_quantum: Annotated[
        int | None,
        typer.Option(help="Units of each quantum whose gradients are computed at every checkpoint; 8, over sizes 0."),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Resamples of the documents behind each interval.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, mps or auto.")] = "cpu",
    workers: Annotated[
        int | None, typer.Option(help="Ray workers; the default is as many as there is room for.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Quanta to print.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Say when each quantum formed: over checkpoints of one training, or over models of different sizes."""
    from ...attribution.change.emergence import EmergenceConfig
    from ...jobs.change.emerge import EmergeConfig, find_checkpoints
    from ...jobs.change.emerge import emerge as emerge_run
    from ...jobs.change.sizes import SizesConfig, emerge_over_sizes, find_models
    from ...jobs.models.model import ModelSource
    from ...jobs.quanta.cluster import Quanta
    from ...jobs.workers.ray_session import RayOptions
    from ...storage.run import Run
    from ..text.emergence import emergence_json, emergence_text

    sizes = one_of("--over", over, "steps", "sizes") == "sizes"
    if sizes and units_per_quantum:
        raise ConfigurationError(
            f"--units-per-quantum is {units_per_quantum}; gradients of models of different sizes have different "
            "shapes, so that --over sizes has none. Leave it out."
        )
    transitions = EmergenceConfig(scale=one_of("--scale", scale, "log", "linear"), num_resamples=resamples, seed=seed)
    opened = Run.open(run)
    dtype = Quanta(opened, quanta).row_set.plan["model"]["dtype"]
    places = find_models(checkpoints) if sizes else find_checkpoints(checkpoints)
    sources = [ModelSource(model=place(c), dtype=dtype, device=device) for c in places]
    options = RayOptions(num_workers=workers)
    with opened.store.lock(), progress_listener() as listener:
        if sizes:
            asked = SizesConfig(quanta=quanta, transitions=transitions)
            found = emerge_over_sizes(opened, sources, options, config=asked, listener=listener)
        else:
            per_quantum = 8 if units_per_quantum is None else units_per_quantum
            config = EmergeConfig(quanta=quanta, units_per_quantum=per_quantum, transitions=transitions)
            found = emerge_run(opened, sources, options, config=config, listener=listener)
    labels = Quanta(opened, quanta).table["phrase"].to_pylist()
    show(emergence_json(found), emergence_text(found, labels, limit=limit), as_json=as_json)
