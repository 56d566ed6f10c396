"""The command that clusters rows into quanta: cluster."""

from typing import Annotated, Any

import typer

from ..options import JsonOption, RunArgument, one_of, show
from ..progress_bar import progress_listener


def cluster(
    run: RunArgument,
    name: Annotated[str, typer.Option(help="Under which the quanta are stored.")] = "main",
    rows: Annotated[str | None, typer.Option(help="Row set; the default is the token rows.")] = None,
    num_quanta: Annotated[
        int | None, typer.Option(help="How many quanta; the default lets held-out rows decide.")
    ] = None,
    min_cosine: Annotated[
        float | None, typer.Option(help="Join groups while their mean cosine is at least this.")
    ] = None,
    whitening: Annotated[str, typer.Option(help="none, half or full.")] = "half",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Cluster a run's rows into a tree of quanta, with evidence beside its nulls."""
    from ...attribution.clustering import AverageLinkage, Refined
    from ...attribution.whitening import WhiteningConfig
    from ...jobs.quanta import QuantaConfig, make_quanta, measure
    from ...storage.run import Run

    config = QuantaConfig(
        name=name,
        rows=rows,
        whitening=WhiteningConfig(strength=one_of("--whitening", whitening, "none", "half", "full"), seed=seed),
        clusterer=Refined(
            inner=AverageLinkage(num_quanta=num_quanta, min_cosine=min_cosine, seed=seed),
            keep_all=num_quanta is not None,
        ),
    )
    opened = Run.open(run)
    with opened.store.lock(), progress_listener() as listener:
        quanta = make_quanta(opened, config, listener=listener)
        evidence = measure(quanta)
    facts = quanta.facts
    lines = [f"{facts['num_quanta']} quanta of {facts['num_units']:,} units in {run} ({name})"]
    lines += [
        f"{'  ' + row['name']:<18} next token {_evidence(row)}" for row in evidence["rows"] if "next_token" in row
    ]
    if facts["rank_frequency"]:
        lines.append(facts["rank_frequency"]["sentence"])
    show(
        {"num_quanta": facts["num_quanta"], "num_units": facts["num_units"], "evidence": evidence["rows"]},
        "\n".join(lines),
        as_json=as_json,
    )


def _evidence(row: dict[str, Any]) -> str:
    found = row["next_token"]
    return (
        f"{found['value']:.3f} (95 % {found['low']:.3f} to {found['high']:.3f}; "
        f"99th percentile of shuffles {found['null_99']:.3f})"
    )
