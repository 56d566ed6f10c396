"""The command that clusters rows into quanta: cluster."""

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import ConfigurationError
from .options import JsonOption, RunArgument, one_of, show
from .progress_bar import progress_listener

if TYPE_CHECKING:
    from ...attribution.quanta.block_choice import BlockChoice
    from ..naming import EndpointNamer


def cluster(
    run: RunArgument,
    name: Annotated[str, typer.Option(help="Under which the quanta are stored.")] = "main",
    rows: Annotated[
        str | None, typer.Option(help="Row set, or several parted by commas; the default is the token rows.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="default, average, graph, density, spectral or spectral-squared.")
    ] = "default",
    num_quanta: Annotated[
        int | None, typer.Option(help="How many quanta; the default lets held-out rows decide.")
    ] = None,
    min_cosine: Annotated[
        float | None, typer.Option(help="Join groups while their mean cosine is at least this.")
    ] = None,
    resolution: Annotated[float | None, typer.Option(help="Of graph: higher makes more quanta.")] = None,
    min_size: Annotated[int | None, typer.Option(help="Of density: units that make a quantum.")] = None,
    blocks: Annotated[
        str | None, typer.Option(help="Blocks that count: all, paper, or patterns such as '*mlp*,*attention*'.")
    ] = None,
    block_weights: Annotated[
        str | None, typer.Option(help="equal or unit, or weights such as '*mlp*=2,*layers.0*=0.5'.")
    ] = None,
    whitening: Annotated[str, typer.Option(help="none, half or full.")] = "half",
    damping: Annotated[
        float, typer.Option(help="Added to every direction's scale before whitening, in mean eigenvalues.")
    ] = 0.1,
    codes: Annotated[
        str, typer.Option(help="What a unit's several quanta are found over: centroids or dictionary (learned).")
    ] = "centroids",
    names_from: Annotated[
        str | None, typer.Option(help="Address of an OpenAI-compatible endpoint that names the quanta.")
    ] = None,
    names_model: Annotated[str | None, typer.Option(help="The model to ask there.")] = None,
    activations: Annotated[
        bool, typer.Option("--activations", help="Compare with clusters of hidden states; loads the run's checkpoint.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Cluster a run's rows into a tree of quanta, with evidence beside its nulls."""
    from ...attribution.clustering import MethodConfig
    from ...attribution.whitening import WhiteningConfig
    from ...jobs.quanta.cluster import QuantaConfig, make_quanta, measure
    from ...jobs.quanta.rivals import checkpoint_of
    from ...storage.run import Run
    from ..text.quanta import quanta_text

    settings = MethodConfig(
        method=method,
        num_quanta=num_quanta,
        min_cosine=min_cosine,
        resolution=resolution,
        min_size=min_size,
        seed=seed,
    )
    config = QuantaConfig(
        name=name,
        rows=rows,
        blocks=_blocks(blocks, block_weights),
        whitening=WhiteningConfig(
            strength=one_of("--whitening", whitening, "none", "half", "full"), damping=damping, seed=seed
        ),
        clusterer=settings.clusterer(),
        codes=one_of("--codes", codes, "centroids", "dictionary"),
    )
    namer = _namer(names_from, names_model)
    opened = Run.open(run)
    with opened.store.lock(), progress_listener() as listener:
        quanta = make_quanta(opened, config, namer=namer, listener=listener)
        evidence = measure(quanta, model=checkpoint_of(quanta) if activations else None)
    facts = quanta.facts
    kept = ("stability", "persistence", "interference", "co_use", "communities", "codes", "memorised", "names")
    show(
        {"num_quanta": facts["num_quanta"], "num_units": facts["num_units"], "method": asdict(settings)}
        | {"evidence": evidence["rows"]}
        | {key: facts[key] for key in kept},
        quanta_text(run, name, facts, evidence["rows"], asked=num_quanta),
        as_json=as_json,
    )


def _blocks(blocks: str | None, weights: str | None) -> "BlockChoice":
    from ...attribution.quanta.block_choice import BlockChoice

    chosen = tuple(part.strip() for part in (blocks or "").split(",") if part.strip())
    if weights is None:
        return BlockChoice(blocks=chosen)
    if "=" not in weights:
        return BlockChoice(blocks=chosen, scale=one_of("--block-weights", weights.strip(), "equal", "unit"))
    pairs: list[tuple[str, float]] = []
    for part in weights.split(","):
        pattern, _, value = part.rpartition("=")
        try:
            pairs.append((pattern.strip(), float(value)))
        except ValueError:
            pattern = ""
        if not pattern.strip():
            raise ConfigurationError(f"--block-weights has {part!r}; give equal, unit or PATTERN=WEIGHT,…")
    return BlockChoice(blocks=chosen, weights=tuple(pairs))


def _namer(url: str | None, model: str | None) -> "EndpointNamer | None":
    if url is None:
        if model is not None:
            raise ConfigurationError("--names-model needs --names-from: the address of the endpoint to ask")
        return None
    from ..naming import KEY_VARIABLE, EndpointNamer, NamingConfig

    return EndpointNamer(NamingConfig(url=url, model=model or "", key=os.environ.get(KEY_VARIABLE)))
