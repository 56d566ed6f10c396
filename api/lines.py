"""From lines of stored tables to the client's answers. Knows the columns of both, and reads nothing."""

from math import isfinite
from typing import Any

from .answers import Quantum, QuantumMeasures


def quantum_of(row: dict[str, Any]) -> Quantum:
    """From a line of the quanta's table, or of the table at another grain."""
    return Quantum(
        id=row["quantum"],
        label=row["phrase"],
        target=row["target"],
        pattern=tuple(row["pattern"]),
        distinguishing=tuple(row["top_tokens"]),
        size=row["size"],
        use=row["use"],
        mean_loss=row["mean_loss"],
        coherence=row["coherence"],
        num_documents=row["num_documents"],
        nearest=tuple(zip(row["neighbours"], row["neighbour_cosines"], strict=True)),
        exemplars=tuple(row["exemplars"]),
        edge=tuple(row["edge"]),
        counterexamples=tuple(row["counterexamples"]),
        node=row.get("node"),
        persistence=finite(row.get("persistence")),
        name=row.get("name"),
    )


def measures_of(row: dict[str, Any], address: dict[str, float]) -> QuantumMeasures | None:
    """What is measured of a quantum alone; None for quanta that an older version stored."""
    if "own_share" not in row:
        return None
    lists = (row[c] for c in ("interferes", "interferes_cosines", "interferes_null"))
    partners = (row[c] for c in ("used_with", "used_with_shared", "used_with_expected"))
    return QuantumMeasures(
        dimension=finite(row["dimension"]),
        dimension_low=finite(row["dimension_low"]),
        dimension_high=finite(row["dimension_high"]),
        own_share=row["own_share"],
        own_share_null=row["own_share_null"],
        self_influence=row["self_influence"],
        self_influence_null=_range(row.get("self_influence_low"), row.get("self_influence_high")),
        monogenic=finite(row["monogenic"]),
        monogenic_null=finite(row.get("monogenic_null")),
        persistence_null=finite(row.get("persistence_null")),
        community=row["community"],
        interferes=tuple(zip(*lists, strict=True)),
        used_with=tuple(zip(*partners, strict=True)),
        address=address,
    )


def finite(value: float | None) -> float | None:
    """The value; None for what is not known or has no bound."""
    return value if value is not None and isfinite(value) else None


def _range(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)
