"""The first screen of a report, and what it takes to make the run again."""

from .payload import Figure, Header, RunFacts
from .source import Source

_KINDS = {"token-loss": "low-loss tokens", "window": "windows", "document": "documents", "mixed": "units"}
"""What people call the units of each type."""


def header(source: Source, title: str, model: str, step: int | None) -> Header:
    """Title, the report in one sentence, and the first figures."""
    plan, facts = source.quanta.row_set.plan, source.quanta.facts
    parameters = plan["model"]["num_parameters"] or 0  # of imported rows nobody says it
    size = f", {_short(parameters)} parameters" if parameters else ""
    share = sum(source.quanta.table["use"].to_pylist()[:10])
    kind = _KINDS.get(plan["unit_type"], f"{plan['unit_type']} units")
    at = f", step {step:,}" if step is not None else ""
    return Header(
        title=title,
        model=model,
        num_parameters=parameters,
        step=step,
        sentence=(
            f"{model}{size}{at}: {facts['num_quanta']:,} skills in "
            f"{facts['num_units']:,} {kind}; the ten most used cover {share:.0%}."
        ),
        figures=tuple(_figures(source)),
    )


def run_facts(source: Source) -> RunFacts:
    """Sizes, versions, fingerprints and commands."""
    plan = source.quanta.row_set.plan
    logs = [log for log in source.run.logged("collect") if log["rows"] in source.quanta.row_set.name.split(",")]
    seconds = sum(log["seconds"] for log in logs)
    dim, projection = plan["dim"], plan["projection"]["kind"]
    return RunFacts(
        num_rows=len(source.quanta.row_set),
        dimension=dim,
        projection=projection,
        tokens_per_second=sum(log["tokens_here"] for log in logs) / seconds if seconds else None,
        versions=dict(source.run.manifest["versions"]),
        fingerprints={
            "model": plan["model"]["fingerprint"],
            "tokenizer": source.run.manifest["config"]["tokenizer_fingerprint"],
            "data": source.run.documents.index["fingerprint"],
            "rows": source.quanta.row_set.fingerprint(),
        },
        commands=(f"quantascope cluster {source.run.name}", f"quantascope report {source.run.name}"),
        other={
            "units": plan["unit_type"],
            "whitening": source.quanta.facts["config"]["whitening"]["strength"],
            "parameters with rows": _share(plan["coverage"]["covered_share"]),
        },
    )


def _figures(source: Source) -> list[Figure]:
    figures = []
    command = f"quantascope cluster {source.run.name}"
    rows = {row["name"]: row for row in source.evidence_facts["rows"]}
    for key, name, definition in (
        (
            "next_token",
            "next token told",
            "Units whose target is the commonest of their quantum elsewhere.",
        ),
        (
            "role",
            "roles of equal tokens told",
            "Units whose syntactic role their quantum tells elsewhere.",
        ),
    ):
        ours = rows.get("quanta", {}).get(key)
        if ours:
            rival = rows["previous token"][key]["value"]
            figures.append(
                Figure(
                    name=name,
                    value=f"{ours['value']:.0%}",
                    null=f"null {ours['null_99']:.0%}, previous token {rival:.0%}",
                    definition=definition,
                    caveat=f"95 % interval over documents {ours['low']:.1%} to {ours['high']:.1%}.",
                    command=command,
                )
            )
    found = source.quanta.facts["rank_frequency"]
    if found:
        nulls = [s for s in found["null_slopes"] if s is not None]
        null = f"95 % {found['slope_low']:.2f} to {found['slope_high']:.2f}"
        figures.append(
            Figure(
                name="rank–frequency slope",
                value=f"{found['slope']:.2f}",
                null=f"{null}; null {min(nulls):.2f} to {max(nulls):.2f}" if nulls else null,
                definition="Slope of log size on log rank of the quanta; the Quantization Model says −(1 + α).",
                caveat=found["alternatives"],
                command=command,
            )
        )
    figures.append(
        Figure(
            name="gradient rows",
            value=f"{len(source.quanta.row_set):,}",
            null=f"{source.quanta.row_set.plan['dim']:,} numbers each",
            definition="Units whose projected gradients were stored.",
            command=f"quantascope info {source.run.name}",
        )
    )
    return figures


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"


def _short(count: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {letter}"
    return str(count)
