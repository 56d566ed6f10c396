"""What is stored of each quantum and each unit: facts, labels, codes, partners, each with its null where it has one.

Joins attribution's measurements into tables. Knows a run's units and contexts; not how the quanta were found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int

from ...attribution.clustering import Clustering, branch_persistence
from ...attribution.clustering.base import group_sums
from ...attribution.quanta.co_use import CoUse, co_use
from ...attribution.quanta.dimension import effective_dimension
from ...attribution.quanta.facts import QuantumFacts, describe_quanta
from ...attribution.quanta.interference import BEYOND, Interference, find_communities, measure_interference, strongest
from ...attribution.quanta.labels import label_quanta
from ...attribution.quanta.memorisation import null_medians, own_share, self_influence
from ...storage.run import Run
from .clustered import Preparation
from .contexts import Contexts
from .nulls import LEAST_SIZE, CodesOver, coded, null_branches, persistence_facts

_CONTEXT_TOKENS = 32
_MAX_GRAPH = 2_000
"""Quanta up to which communities are looked for; time and memory are quadratic in them."""
_PARTNERS = 5
_NULL_DRAWS = 5


class Namer(Protocol):
    """Gives names that people understand; whatever it cannot name, it leaves out and says so."""

    def __call__(self, described: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """One name or None for each of `label`, `target`, `contexts`."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """Who gave the names, how many, and what went wrong."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """Rows as they are clustered, with the units that they belong to."""

    run: Run
    units: pa.Table
    """The row set's lines of the clustered units."""
    kept: Int[np.ndarray, " row"]
    """Their numbers in the row set."""
    raw: Float32[np.ndarray, "row kept"]
    """Chosen blocks, unit rows, not whitened."""
    norms: Float32[np.ndarray, " row"]
    """Norm of each raw gradient, of the chosen blocks."""
    rows: Float32[np.ndarray, "row kept"]
    """What was clustered."""
    block_norms: Float32[np.ndarray, "row block"]

    @property
    def document(self) -> np.ndarray:
        """Document of each row."""
        return np.asarray(self.units["document"])


def describe(
    run: Run,
    units: pa.Table,
    kept: Int[np.ndarray, " row"],
    rows: Float32[np.ndarray, "row dim"],
    clustering: Clustering,
    block_norms: Float32[np.ndarray, "row block"],
) -> tuple[dict[str, Any], list[QuantumFacts]]:
    """Labels and the facts that any grain has, as columns. Exemplars are unit numbers of the row set."""
    contexts = Contexts(run)
    labels = label_quanta(contexts.before(units, _CONTEXT_TOKENS), contexts.targets(units), clustering.assignments)
    facts = describe_quanta(
        rows,
        clustering.assignments,
        clustering.centroids,
        losses=np.asarray(units["loss"]),
        documents=np.asarray(units["document"]),
        block_norms=block_norms,
    )
    columns = {
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
    return columns, facts


def tree_columns(found: Prepared, clustering: Clustering, *, seed: int) -> pa.Table:
    """One line per merge of the whole tree, with the share of 20 resamples in which its branch comes back."""
    tree = clustering.tree
    persistence = branch_persistence(found.rows, tree, clustering.groups, found.document, seed=seed)
    nodes = quantum_nodes(clustering)
    owner = np.full(tree.num_leaves + len(tree.merges), -1, np.int32)
    owner[nodes] = np.arange(clustering.num_quanta)
    return pa.table(
        {
            "node": pa.array(np.arange(tree.num_leaves, tree.num_leaves + len(tree.merges)), pa.int32()),
            "left": pa.array(tree.merges[:, 0].astype(np.int32)),
            "right": pa.array(tree.merges[:, 1].astype(np.int32)),
            "cosine": pa.array(tree.merges[:, 2]),
            "size": pa.array(tree.merges[:, 3].astype(np.int64)),
            "persistence": pa.array(persistence.astype(np.float32)),
            "quantum": pa.array(owner[tree.num_leaves :]),
        }
    )


def quantum_nodes(clustering: Clustering) -> np.ndarray:
    """The node of the whole tree that each quantum is."""
    tree = clustering.tree
    node = list(range(tree.num_leaves))
    for merge, (left, right) in enumerate(
        tree.merges[: tree.num_leaves - clustering.num_quanta, :2].astype(np.int64).tolist()
    ):
        node.append(tree.num_leaves + merge)
        node[left] = node[right] = -1
    alive = np.array([n for n in node if n >= 0])
    first = np.empty(tree.num_leaves, np.int64)
    first[clustering.groups] = np.arange(len(clustering.groups))
    lowest = list(range(tree.num_leaves))
    for left, right in tree.merges[:, :2].astype(np.int64).tolist():
        lowest.append(min(lowest[left], lowest[right]))
    nodes = np.empty(clustering.num_quanta, np.int64)
    nodes[clustering.assignments[first[np.array(lowest)[alive]]]] = alive
    return nodes


def quantum_columns(
    found: Prepared,
    clustering: Clustering,
    tree: pa.Table,
    preparation: Preparation,
    *,
    damping: float,
    seed: int,
    codes_over: CodesOver = "centroids",
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], np.ndarray]:
    """Columns of the quanta, columns of the units, what holds for all of them together, and the addresses."""
    labels, groups = clustering.assignments, clustering.sizes
    columns, facts = describe(found.run, found.units, found.kept, found.rows, clustering, found.block_norms)
    nodes = quantum_nodes(clustering)
    persistence = np.concatenate([np.full(clustering.tree.num_leaves, np.nan), np.asarray(tree["persistence"])])
    dimension = effective_dimension(found.raw, labels, found.document, seed=seed)
    share = own_share(found.rows, labels, found.document)
    influence = self_influence(found.raw, found.norms, preparation.whitener, damping)
    interference = measure_interference(found.rows, labels)
    used_with = co_use(labels, found.document, seed=seed)
    used = coded(found.rows, labels, over=codes_over, seed=seed)
    codes = used.codes
    branches = null_branches(found.rows, found.document, seed=seed)
    usual = null_medians(influence, groups)
    columns |= {
        "node": nodes.tolist(),
        "persistence": _floats(persistence[nodes]),
        "persistence_null": _floats(branches.beside(groups)),
        "dimension": _floats(dimension.value),
        "dimension_low": _floats(dimension.low),
        "dimension_high": _floats(dimension.high),
        "own_share": _floats(share.value),
        "own_share_null": _floats(share.null),
        "self_influence": [float(np.median(part)) for part in _parts(influence, labels, len(groups))],
        "self_influence_low": _floats(usual[:, 0]),
        "self_influence_high": _floats(usual[:, 1]),
        "monogenic": _known(used.monogenic),
        "monogenic_null": _known(used.null_monogenic),
        "length": interference.lengths.tolist(),
    }
    columns |= _interfering(interference, clustering.centroids) | _partners(used_with, len(groups))
    community, whole = _communities(interference, clustering.centroids, seed=seed)
    columns["community"] = community
    units = {
        "leaf": pa.array(clustering.groups.astype(np.int32)),
        "code_quanta": pa.array([q[q >= 0].tolist() for q in codes.quantum], pa.list_(pa.int32())),
        "code_weights": pa.array(
            [w[q >= 0].tolist() for q, w in zip(codes.quantum, codes.weight, strict=True)], pa.list_(pa.float32())
        ),
        "explained": pa.array(codes.explained),
        "monogenic": pa.array(codes.monogenic),
        "self_influence": pa.array(influence),
    }
    together = {
        "interference": _interference_facts(interference, found, clustering, seed=seed),
        "co_use": {
            "share_beyond": used_with.share_beyond,
            "null_beyond": used_with.null_beyond,
            "num_documents": used_with.num_documents,
        },
        "communities": whole,
        "codes": {
            "over": codes_over,
            "share_several": used.share_several,
            "null_share_several": used.null_share_several,
            "mean_monogenic": _known(np.array([used.mean_monogenic]))[0],
            "null_mean_monogenic": _known(np.array([used.null_mean_monogenic]))[0],
        },
        "memorised": _memorised_facts(columns, groups),
        "dimension_null": dimension.null if np.isfinite(dimension.null) else None,
        "persistence": persistence_facts(groups, persistence[nodes], branches),
    }
    return columns, units, together, np.stack([f.address for f in facts]).astype(np.float32)


def _parts(values: np.ndarray, labels: np.ndarray, num_groups: int) -> list[np.ndarray]:
    """The values of each group's units."""
    ends = np.cumsum(np.bincount(labels, minlength=num_groups))[:-1]
    return np.split(values[np.argsort(labels, kind="stable")], ends)


def _known(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def _memorised_facts(columns: Mapping[str, Any], sizes: np.ndarray) -> dict[str, Any]:
    """Of the quanta of five units and more: how many are more memorised than their nulls, by either figure."""
    large = sizes >= LEAST_SIZE
    share, null = np.array(columns["own_share"])[large], np.array(columns["own_share_null"])[large]
    influence, high = np.array(columns["self_influence"])[large], np.array(columns["self_influence_high"])[large]
    return {
        "num_quanta": int(large.sum()),
        "median_own_share": _known(np.array([np.median(share)]))[0] if large.any() else None,
        "median_own_share_null": _known(np.array([np.median(null)]))[0] if large.any() else None,
        "num_influential": int((influence > high).sum()),
        "expected_influential": float(large.sum() * 0.025),
    }


def _floats(values: np.ndarray) -> list[float]:
    return [float(v) for v in values]


def _interfering(found: Interference, centroids: np.ndarray) -> dict[str, Any]:
    """For each quantum those that it unlearns when it is learned, furthest below the null first."""
    others, cosines, lows = [], [], []
    for start in range(0, len(centroids), 256):
        chosen = np.arange(start, min(start + 256, len(centroids)))
        values, spread = found.cosines(centroids, chosen), found.spread(chosen)
        for row, width in zip(values, spread, strict=True):
            low = found.mean - BEYOND * width
            near = strongest(np.where(row < 0, low - row, np.nan), num=_PARTNERS, least=0.0)
            others.append(near.tolist())
            cosines.append(row[near].tolist())
            lows.append(low[near].tolist())
    return {"interferes": others, "interferes_cosines": cosines, "interferes_null": lows}


def _partners(found: CoUse, num_quanta: int) -> dict[str, Any]:
    places = [np.flatnonzero(found.quantum == q) for q in range(num_quanta)]
    return {
        "used_with": [found.other[p].tolist() for p in places],
        "used_with_shared": [found.shared[p].tolist() for p in places],
        "used_with_expected": [found.expected[p].tolist() for p in places],
    }


def _communities(found: Interference, centroids: np.ndarray, *, seed: int) -> tuple[list[int], dict[str, Any] | None]:
    """Each quantum's community, and modularity beside its null; −1 and None where there are too many quanta."""
    if len(centroids) > _MAX_GRAPH:
        return [-1] * len(centroids), None
    cosines = found.cosines(centroids)
    scores = (cosines - found.mean) / found.spread()
    made = find_communities(np.where(np.abs(scores) >= BEYOND, np.abs(cosines - found.mean), 0.0), seed=seed)
    sizes = np.bincount(made.community)
    return made.community.tolist(), {
        "modularity": made.modularity,
        "null_mean": float(made.null.mean()) if len(made.null) else None,
        "null_max": float(made.null.max()) if len(made.null) else None,
        "num_communities": int((sizes > 1).sum()),
        "num_alone": int((sizes == 1).sum()),
        "num_edges": made.num_edges,
        "beyond": BEYOND,
    }


def _interference_facts(
    found: Interference, prepared: Prepared, clustering: Clustering, *, seed: int
) -> dict[str, Any]:
    """The null's three numbers, and the share of pairs of quanta below it beside that of shuffled quanta."""
    centroids = clustering.centroids
    facts = {
        "mean": found.mean,
        "row_variance": found.row_variance,
        "pair_variance": found.pair_variance,
        "beyond": BEYOND,
        "share_below": _share_below(found, centroids),
        "null_share_below": None,
    }
    rng = np.random.default_rng(seed)
    if len(centroids) > 1 and len(prepared.rows) <= 50_000:
        shares = []
        for _ in range(_NULL_DRAWS):
            sums = group_sums(prepared.rows, rng.permutation(clustering.assignments), len(centroids))
            norms = np.linalg.norm(sums, axis=1, keepdims=True)
            again = replace(found, lengths=norms[:, 0].astype(np.float64) / found.sizes)  # the rest is of rows alone
            shares.append(_share_below(again, sums / np.maximum(norms, np.finfo(np.float32).tiny)))
        facts["null_share_below"] = float(np.mean(shares))
    return facts


def _share_below(found: Interference, centroids: np.ndarray) -> float:
    """Share of pairs of quanta whose mean cosine lies below the null's mean by three standard deviations."""
    below, pairs = 0, 0
    for start in range(0, len(centroids), 256):
        scores = found.scores(centroids, np.arange(start, min(start + 256, len(centroids))))
        below += int((scores <= -BEYOND).sum())
        pairs += int(np.isfinite(scores).sum())
    return below / max(pairs, 1)


def names_of(namer: Namer, found: Prepared, columns: Mapping[str, Any]) -> list[str | None]:
    """A name for each quantum from its label and the contexts of its exemplars."""
    contexts = Contexts(found.run)
    place = {int(unit): i for i, unit in enumerate(found.kept)}
    described = []
    for phrase, target, exemplars in zip(columns["phrase"], columns["target"], columns["exemplars"], strict=True):
        lines = found.units.take(pa.array([place[u] for u in exemplars], pa.int64()))
        before = contexts.before(lines, _CONTEXT_TOKENS)
        after = contexts.targets(lines)
        described.append(
            {
                "label": phrase,
                "target": target,
                "contexts": [("".join(b), a) for b, a in zip(before, after, strict=True)],
            }
        )
    return namer(described)
