"""From a row set to quanta: precondition, cluster, describe, label, map; stored with the fingerprint of the rows.

Joins attribution's arithmetic to the run. `quanta/<name>/` holds the clustering, `index/<name>/` a FAISS index of the
preconditioned rows, `evidence/<name>/` what the quanta are worth beside their nulls and rivals.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int

from ..attribution.clustering import AverageLinkage, Clusterer, Clustering, Refined
from ..attribution.evidence import next_token_evidence, role_evidence, role_information
from ..attribution.faiss_backend import build_index, require_faiss
from ..attribution.labels import label_quanta
from ..attribution.layout import lay_out
from ..attribution.quantum_facts import describe_quanta
from ..attribution.rank_frequency import TailFit, fit_rank_frequency, fit_tail
from ..attribution.tracing import nearest_elsewhere
from ..attribution.whitening import Whitener, WhiteningConfig
from ..errors import ConfigurationError, RunMismatchError
from ..storage.rowset import RowSet
from ..storage.run import Run, require_name
from .contexts import Contexts
from .progress import Listener, Stage, ignore

_STEPS = 6
_CONTEXT_TOKENS = 32
_NOVELTY_SAMPLE = 4_000
_NUM_NULLS = 2
_LEAST_SIZE = 5
"""Quanta below this many units are left out of the rank–frequency fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantaConfig:
    """How rows become quanta."""

    name: str = "main"
    """Under which the quanta are stored; quanta of that name are replaced."""
    rows: str | None = None
    """The row set; None takes the token rows."""
    whitening: WhiteningConfig = field(default_factory=WhiteningConfig)
    clusterer: Clusterer = field(default_factory=Refined)


class Quanta:
    """Stored quanta, opened for reading; RunMismatchError if the rows that they came from changed since."""

    def __init__(self, run: Run, name: str = "main") -> None:
        self.run, self.name = run, name
        self._derived = run.derived("quanta", name)
        self.row_set: RowSet = run.row_set(self._derived.facts()["rows"])
        self.facts = self._derived.facts(source=self.row_set.fingerprint())

    @cached_property
    def units(self) -> pa.Table:
        """One line per clustered unit: unit, quantum, cosine, x, y, nearest_elsewhere; then the row set's columns."""
        table = self._derived.table("units")
        described = self.row_set.units().take(table["unit"])
        for name in described.column_names:
            if name not in table.column_names:
                table = table.append_column(name, described[name])
        return table

    @cached_property
    def table(self) -> pa.Table:
        """One line per quantum, largest first."""
        return self._derived.table("quanta")

    @cached_property
    def centroids(self) -> Float32[np.ndarray, "quantum dim"]:
        """Unit mean directions of the preconditioned rows."""
        return self._derived.array("centroids")

    @cached_property
    def merges(self) -> np.ndarray:
        """The tree above the quanta in scipy's convention, with mean cosines as heights."""
        return self._derived.array("merges")

    @cached_property
    def whitener(self) -> Whitener:
        """What the rows were preconditioned with."""
        names = self.facts["whitener_arrays"]
        return Whitener.from_arrays({n: self._derived.array(f"whitener_{n}") for n in names})

    @cached_property
    def rows(self) -> Float32[np.ndarray, "unit dim"]:
        """The preconditioned unit rows, computed again from the stored ones."""
        return self.whitener.apply(self.row_set.unit_rows()[1])

    def address(self) -> Float32[np.ndarray, "quantum block"]:
        """Share of squared norm per block."""
        return self._derived.array("address")

    def evidence(self) -> dict[str, Any] | None:
        """What `measure` stored; None if it was not run."""
        derived = self.run.derived("evidence", self.name)
        return derived.facts(source=self.fingerprint()) if derived.exists else None

    def fingerprint(self) -> str:
        """Of the clustering itself."""
        return self._derived.fingerprint()


def make_quanta(run: Run, config: QuantaConfig, *, listener: Listener = ignore) -> Quanta:
    """Cluster a row set and store its quanta; same rows and configuration, same quanta.

    Raises MissingDependencyError before any work if FAISS is missing or doubled.
    """
    require_faiss()
    require_name(config.name)
    row_set = run.row_set(config.rows)
    source = row_set.fingerprint()
    stage = Stage(listener, "cluster", total=_STEPS, unit="steps")
    kept, rows = row_set.unit_rows()
    units = row_set.units().take(pa.array(kept))
    document = np.asarray(units["document"])
    whitener = Whitener.fit(rows, config.whitening)
    rows = whitener.apply(rows)
    stage.advance(1)
    clustering = config.clusterer.cluster(rows, document)
    stage.advance(1)
    described, address = _describe(run, row_set, units, kept, rows, clustering)
    stage.advance(1)
    places = lay_out(rows, clustering.assignments, clustering.centroids)
    sample = np.arange(min(len(rows), _NOVELTY_SAMPLE)) * len(rows) // min(len(rows), _NOVELTY_SAMPLE)
    nearest = np.full(len(rows), np.nan, np.float32)
    nearest[sample] = nearest_elsewhere(rows, document, queries=sample)
    stage.advance(1)
    frequency = _rank_frequency(rows, clustering, config)
    stage.advance(1)
    arrays = {f"whitener_{n}": a for n, a in whitener.to_arrays().items()}
    run.derived("index", config.name).write(
        {"rows": row_set.name, "kind": "flat inner product, float16"},
        source=source,
        files={"rows.faiss": build_index(rows)},
    )
    run.derived("quanta", config.name).write(
        {
            "rows": row_set.name,
            "num_quanta": clustering.num_quanta,
            "num_units": len(rows),
            "config": asdict(config),
            "whitener_arrays": sorted(whitener.to_arrays()),
            "rank_frequency": frequency,
        },
        source=source,
        arrays=arrays
        | {
            "centroids": clustering.centroids,
            "merges": clustering.quanta_tree.merges,
            "address": address,
            "layout": places.quanta,
        },
        tables={
            "quanta": described,
            "units": pa.table(
                {
                    "unit": pa.array(kept, pa.int64()),
                    "quantum": pa.array(clustering.assignments, pa.int32()),
                    "cosine": pa.array(clustering.similarity, pa.float32()),
                    "x": pa.array(places.units[:, 0]),
                    "y": pa.array(places.units[:, 1]),
                    "nearest_elsewhere": pa.array(nearest),
                }
            ),
        },
    )
    stage.advance(1)
    return Quanta(run, config.name)


Roles = Callable[[Run, pa.Table], Int[np.ndarray, " unit"]]
"""True labels that equal tokens may differ in (a syntactic role, say), as codes; −1 where there is none."""


def measure(quanta: Quanta, *, roles: Roles | None = None, num_shuffles: int = 200) -> dict[str, Any]:
    """Evidence for the quanta beside clusters by target token and by previous token; stored, and returned."""
    contexts = Contexts(quanta.run)
    document = np.asarray(quanta.units["document"])
    target, previous = contexts.token_ids(quanta.units), contexts.token_ids(quanta.units, offset=1)
    rivals = {"quanta": np.asarray(quanta.units["quantum"]), "target token": target, "previous token": previous}
    role = roles(quanta.run, quanta.units) if roles else None
    rows = []
    for name, clusters in rivals.items():
        row: dict[str, Any] = {"name": name}
        if name != "target token":
            found = next_token_evidence(clusters, target, document, num_shuffles=num_shuffles)
            row["next_token"] = asdict(found)
        if role is not None:
            row |= _role_evidence(clusters, target, role, document, num_shuffles=num_shuffles)
        rows.append(row)
    facts = {"num_shuffles": num_shuffles, "rows": rows}
    quanta.run.derived("evidence", quanta.name).write(facts, source=quanta.fingerprint())
    return facts


def _role_evidence(
    clusters: np.ndarray, target: np.ndarray, role: np.ndarray, document: np.ndarray, *, num_shuffles: int
) -> dict[str, Any]:
    """Both figures on roles; nothing where no target token has two roles and enough units to tell them apart."""
    has = role >= 0
    try:
        found = role_evidence(clusters[has], target[has], role[has], document[has], num_shuffles=num_shuffles)
    except ConfigurationError:
        return {}
    return {"role": asdict(found), "role_information": role_information(clusters[has], target[has], role[has])}


def require_comparable(quanta: Quanta, other: RowSet) -> None:
    """RunMismatchError unless another row set has the same checkpoint, projection and preconditioner."""
    for key in ("projection", "blocks", "dim", "preconditioner", "files"):
        if quanta.row_set.plan[key] != other.plan[key]:
            raise RunMismatchError(
                f"Row sets {quanta.row_set.name!r} and {other.name!r} differ in {key}: their rows cannot be compared."
            )
    if quanta.row_set.plan["model"]["fingerprint"] != other.plan["model"]["fingerprint"]:
        raise RunMismatchError(f"Row sets {quanta.row_set.name!r} and {other.name!r} are of different checkpoints.")


def _describe(
    run: Run,
    row_set: RowSet,
    units: pa.Table,
    kept: Int[np.ndarray, " row"],
    rows: Float32[np.ndarray, "row dim"],
    clustering: Clustering,
) -> tuple[pa.Table, np.ndarray]:
    """One line per quantum, and the quanta's addresses. Exemplars are unit numbers of the row set."""
    contexts = Contexts(run)
    labels = label_quanta(contexts.before(units, _CONTEXT_TOKENS), contexts.targets(units), clustering.assignments)
    facts = describe_quanta(
        rows,
        clustering.assignments,
        clustering.centroids,
        losses=np.asarray(units["loss"]),
        documents=np.asarray(units["document"]),
        block_norms=row_set.block_norms()[kept],
    )
    columns: Mapping[str, Any] = {
        "quantum": [f.quantum for f in facts],
        "phrase": [label.phrase for label in labels],
        "target": [label.target for label in labels],
        "target_share": [label.target_share for label in labels],
        "pattern": [list(label.pattern) for label in labels],
        "top_tokens": [list(label.top_tokens) for label in labels],
        "size": [f.size for f in facts],
        "use": [f.use for f in facts],
        "mean_loss": [f.mean_loss for f in facts],
        "coherence": [f.coherence for f in facts],
        "num_documents": [f.num_documents for f in facts],
        "exemplars": [kept[f.exemplars].tolist() for f in facts],
        "edge": [kept[f.edge].tolist() for f in facts],
        "counterexamples": [kept[f.counterexamples].tolist() for f in facts],
        "neighbours": [f.neighbours.tolist() for f in facts],
        "neighbour_cosines": [f.neighbour_cosines.tolist() for f in facts],
    }
    return pa.table(columns), np.stack([f.address for f in facts]).astype(np.float32)


def _rank_frequency(rows: np.ndarray, clustering: Clustering, config: QuantaConfig) -> dict[str, Any] | None:
    """The fit over quanta of five units and more beside structureless rows; None for fewer than three such quanta."""
    sizes = clustering.sizes
    last = int((sizes >= _LEAST_SIZE).sum())
    if last < 3:
        return None
    nulls = [_null_sizes(rows, clustering.num_quanta, seed=config.clusterer.seed + i) for i in range(_NUM_NULLS)]
    fit = fit_rank_frequency(sizes, last_rank=last, null_sizes=nulls)
    tail = _tail(sizes)
    return {
        "first_rank": fit.first_rank,
        "last_rank": fit.last_rank,
        "slope": fit.slope,
        "slope_low": fit.slope_low,
        "slope_high": fit.slope_high,
        "intercept": fit.intercept,
        "line_low": _json(fit.line_low),
        "line_high": _json(fit.line_high),
        "null_low": _json(fit.null_low),
        "null_high": _json(fit.null_high),
        "null_slopes": _json(fit.null_slopes),
        "sentence": fit.sentence(),
        "alternatives": tail.sentence() if tail else "",
    }


def _null_sizes(rows: np.ndarray, num_quanta: int, *, seed: int) -> np.ndarray:
    """Sizes of as many clusters at first of rows without groups: every column shuffled over the units by itself."""
    shuffled = np.random.default_rng(seed).permuted(rows, axis=0)
    return Refined(inner=AverageLinkage(num_quanta=num_quanta, seed=seed)).cluster(shuffled).sizes


def _tail(sizes: np.ndarray) -> TailFit | None:
    """The power law beside its rivals; None where there are too few quanta to say anything."""
    try:
        return fit_tail(sizes)
    except ConfigurationError:
        return None


def _json(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]
