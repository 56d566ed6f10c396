"""What a report says, taken from a run: fills the `Payload` that the page is made from.

Knows the client and the run; nothing of HTML. Sentences are made from the data, and no figure goes without its null.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from .evidence_content import evidence, rank_frequency, together
from .heading_content import header, run_facts
from .payload import Payload, Trace, TraceQuantum, TraceUnit
from .quanta_content import quantum_columns, tree_above, unit_columns
from .source import Source

if TYPE_CHECKING:
    from ..client import Client


def make_payload(client: "Client", *, title: str | None = None) -> Payload:
    """Everything that the report of a client's quanta shows."""
    source = Source(client)
    model, step = source.model()
    return Payload(
        header=header(source, title or f"{model}: skills from gradients", model, step),
        facts=run_facts(source),
        documents=source.documents,
        windows=source.windows,
        units=unit_columns(source),
        quanta=quantum_columns(source),
        checkpoint_steps=source.curves[0] if source.curves else None,
        evidence=evidence(source),
        together=together(source),
        tree=tree_above(source),
        rank_frequency=rank_frequency(source),
        traces=tuple(_trace(source, name, trace) for name, trace in source.traces),
    )


def _trace(source: Source, title: str, trace: dict[str, Any]) -> Trace:
    def scored(units: list[dict[str, Any]]) -> tuple[TraceUnit, ...]:
        return tuple(
            TraceUnit(unit=source.place[u["unit"]], score=u["score"]) for u in units if u["unit"] in source.place
        )

    quanta = tuple(
        TraceQuantum(quantum=q["quantum"], weight=q["weight"], low=q["low"], high=q["high"]) for q in trace["quanta"]
    )
    return Trace(
        title=title,
        prompt=tuple(trace["prompt_tokens"]),
        completion=tuple(trace["completion_tokens"]),
        contributions=np.array(trace["contributions"], np.float32),
        quanta=quanta,
        supporting=scored(trace["units"]),
        opposing=scored(trace["opposing"]),
        lexical=scored(trace["lexical"]),
        novelty=trace["novelty"],
        sentence=f"The completion's loss is {trace['loss']:.2f} nats.",
    )
