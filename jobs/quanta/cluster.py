"""From a row set to quanta: choose blocks, precondition, cluster, describe; stored with the fingerprint of the rows.

Joins attribution's arithmetic to the run. `quanta/<name>/` holds the clustering, `index/<name>/` a FAISS index of the
prepared rows, `evidence/<name>/` what the quanta are worth beside their nulls and rivals.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ...attribution.clustering import AverageLinkage, Clusterer, Clustering, Refined
from ...attribution.quanta.block_choice import BlockChoice, ChosenBlocks, choose_blocks
from ...attribution.quanta.envelope import fit_envelope
from ...attribution.quanta.layout import lay_out
from ...attribution.quanta.rank_frequency import TailFit, fit_rank_frequency, fit_tail
from ...attribution.quanta.stability import agreement, half_agreement, random_directions, with_seed
from ...attribution.search.faiss_backend import build_index, require_faiss
from ...attribution.tracing import nearest_elsewhere
from ...attribution.whitening import Whitener, WhiteningConfig
from ...errors import ConfigurationError
from ...storage.rowset import RowSet, Status
from ...storage.run import Run, require_name
from ..workers.progress import Listener, Stage, ignore
from .clustered import Preparation
from .clustered import Quanta as Quanta
from .clustered import require_comparable as require_comparable
from .joined import AnyRows, open_rows
from .nulls import LEAST_SIZE, CodesOver
from .rivals import Roles as Roles
from .rivals import measure as measure
from .table import Namer, Prepared, names_of, quantum_columns, tree_columns

_STEPS = 6
_NOVELTY_SAMPLE = 4_000
_NUM_NULLS = 2
_NULL_ROWS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantaConfig:
    """How rows become quanta."""

    name: str = "main"
    """Under which the quanta are stored; quanta of that name are replaced."""
    rows: str | None = None
    """The row set, or several parted by commas (units of different types); None takes the token rows."""
    blocks: BlockChoice = field(default_factory=BlockChoice)
    whitening: WhiteningConfig = field(default_factory=WhiteningConfig)
    clusterer: Clusterer = field(default_factory=Refined)
    codes: CodesOver = "centroids"
    """What each unit's several quanta are found over: the quanta's centroids, or a dictionary learned from them."""
    num_halves: int = 2
    """Halves of the documents that are clustered again to see whether quanta are stable; 0 leaves stability out."""
    max_stability_rows: int = 20_000
    """More rows are not clustered again."""


def make_quanta(run: Run, config: QuantaConfig, *, namer: Namer | None = None, listener: Listener = ignore) -> Quanta:
    """Cluster a row set and store its quanta; same rows and configuration, same quanta.

    Raises MissingDependencyError before any work if FAISS is missing or doubled, and ConfigurationError for rows that
    cannot be clustered: none, all equal, or of one document where documents are to choose the number of quanta.
    """
    require_faiss()
    require_name(config.name)
    row_set = open_rows(run, config.rows)
    source = row_set.fingerprint()
    stage = Stage(listener, "cluster", total=_STEPS, unit="steps")
    preparation, found = _prepare(run, row_set, config)
    stage.advance(1)
    clustering = config.clusterer.cluster(found.rows, found.document)
    stage.advance(1)
    seed = config.clusterer.seed
    tree = tree_columns(found, clustering, seed=seed)
    stage.advance(1)
    columns, unit_columns, together, address = quantum_columns(
        found, clustering, tree, preparation, damping=config.whitening.damping, seed=seed, codes_over=config.codes
    )
    columns["name"] = pa.array(names_of(namer, found, columns) if namer else [None] * len(address), pa.string())
    stage.advance(1)
    places = lay_out(found.rows, clustering.assignments, clustering.centroids)
    facts = {
        "rows": row_set.name,
        "num_quanta": clustering.num_quanta,
        "num_units": len(found.rows),
        "clusterer": type(config.clusterer).__name__,
        "config": asdict(config),
        "blocks": None if preparation.blocks is None else list(preparation.blocks.names),
        "whitener_arrays": sorted(preparation.whitener.to_arrays()),
        "names": namer.facts if namer else None,
        "rank_frequency": _rank_frequency(found.rows, clustering, config),
        "stability": _stability(run, row_set, found, clustering, config),
        **together,
    }
    stage.advance(1)
    run.derived("index", config.name).write(
        {"rows": row_set.name, "kind": "flat inner product, float16"},
        source=source,
        files={"rows.faiss": build_index(found.rows)},
    )
    run.derived("quanta", config.name).write(
        facts,
        source=source,
        arrays=preparation.to_arrays()
        | {
            "centroids": clustering.centroids,
            "merges": clustering.quanta_tree.merges,
            "address": address,
            "layout": places.quanta,
        },
        tables={
            "quanta": pa.table(columns),
            "tree": tree,
            "units": pa.table(
                {
                    "unit": pa.array(found.kept, pa.int64()),
                    "quantum": pa.array(clustering.assignments, pa.int32()),
                    "cosine": pa.array(clustering.similarity, pa.float32()),
                    "x": pa.array(places.units[:, 0]),
                    "y": pa.array(places.units[:, 1]),
                    "nearest_elsewhere": pa.array(_nearest(found)),
                    **unit_columns,
                }
            ),
        },
    )
    stage.advance(1)
    return Quanta(run, config.name)


def _prepare(run: Run, row_set: AnyRows, config: QuantaConfig) -> tuple[Preparation, Prepared]:
    """The rows that can be clustered, and what was done to them."""
    kept, rows = row_set.unit_rows()
    if not len(rows):
        status = np.asarray(row_set.units()["status"])
        raise ConfigurationError(
            f"No row of {row_set.name!r} can be clustered: of {len(status)} units {(status == Status.ZERO).sum()} have "
            f"a gradient of zero and {(status == Status.REFUSED).sum()} one that is not finite. Collect other units."
        )
    units, norms = row_set.units(), row_set.block_norms()[kept]
    blocks = _chosen(row_set, norms, config)
    if blocks is not None:
        rows = blocks.apply(rows)
    lengths = np.linalg.norm(rows, axis=1)
    usable = lengths > 1e-6
    if not usable.all():  # the gradient lies in blocks that were left out
        kept, rows, lengths, norms = kept[usable], rows[usable], lengths[usable], norms[usable]
    if not len(rows):
        raise ConfigurationError(f"Every row is zero in the blocks {', '.join(config.blocks.blocks)}: choose others.")
    rows /= lengths[:, None]
    units = units.take(pa.array(kept))
    _require_different(rows, np.asarray(units["document"]), config)
    whitener = Whitener.fit(rows, config.whitening)
    preparation = Preparation(whitener=whitener, blocks=blocks)
    found = Prepared(
        run=run,
        units=units,
        kept=kept,
        raw=rows,
        norms=np.asarray(units["norm"], np.float32) * lengths.astype(np.float32),
        rows=whitener.apply(rows),
        block_norms=norms,
    )
    return preparation, found


def _chosen(row_set: AnyRows, norms: np.ndarray, config: QuantaConfig) -> ChosenBlocks | None:
    """The blocks that count, of rows with these norms per block; None where rows stay as they are."""
    if config.blocks.is_plain:
        return None
    squares = np.square(norms.astype(np.float64))
    shares = (squares / np.maximum(squares.sum(axis=1, keepdims=True), 1e-300)).mean(axis=0)
    return choose_blocks(config.blocks, row_set.plan["blocks"], shares)


def _require_different(rows: np.ndarray, document: np.ndarray, config: QuantaConfig) -> None:
    """ConfigurationError where there is nothing to tell apart, or nothing to hold out."""
    if len(rows) < 2 or np.abs(rows - rows[0]).max() < 1e-6:
        what = "There is one row" if len(rows) < 2 else f"All {len(rows)} rows are equal"
        raise ConfigurationError(f"{what}: there is nothing to tell apart. Collect other units.")
    inner = getattr(config.clusterer, "inner", config.clusterer)
    chooses = isinstance(inner, AverageLinkage) and inner.num_quanta is None and inner.min_cosine is None
    if chooses and len(np.unique(document)) < 2:
        raise ConfigurationError(
            f"All {len(rows)} rows lie in one document, so none can be held out to choose how many quanta there are: "
            "give --num-quanta or --min-cosine, or collect more documents."
        )


def _nearest(found: Prepared) -> np.ndarray:
    """Greatest cosine with units of other documents, for up to 4,000 units at equal distances; NaN for the others."""
    rows = found.rows
    sample = np.arange(min(len(rows), _NOVELTY_SAMPLE)) * len(rows) // min(len(rows), _NOVELTY_SAMPLE)
    nearest = np.full(len(rows), np.nan, np.float32)
    nearest[sample] = nearest_elsewhere(rows, found.document, queries=sample)
    return nearest


def _stability(
    run: Run, row_set: AnyRows, found: Prepared, clustering: Clustering, config: QuantaConfig
) -> dict[str, Any] | None:
    """Adjusted Rand indices between clusterings that should agree, beside those of random directions."""
    rows, labels = found.rows, clustering.assignments
    if config.num_halves < 1 or len(rows) > config.max_stability_rows or len(np.unique(found.document)) < 4:
        return None
    clusterer, seed = config.clusterer, config.clusterer.seed
    try:
        halves = half_agreement(clusterer, rows, found.document, labels, num_halves=config.num_halves, seed=seed)
        again = with_seed(clusterer, seed + 1).cluster(rows, found.document).assignments
        null = _null_halves(found, clustering.num_quanta, seed=seed)
    except ConfigurationError:  # as many quanta as were asked for cannot be made of half of the rows
        return None
    return {
        "halves": halves,
        "null_halves": null,
        "other_seed": agreement(labels, again),
        "projections": {
            other.name: _agreement_across(other, found.kept, labels, config)
            for other in _other_projections(run, row_set)
        },
    }


def _null_halves(found: Prepared, num_quanta: int, *, seed: int) -> list[float]:
    """The same for random directions, of at most 2,000 units: their linkage cut to as many quanta.

    Neither chosen nor refined: then they would be one quantum, and one always agrees with one.
    """
    picked = np.arange(min(len(found.rows), _NULL_ROWS)) * len(found.rows) // min(len(found.rows), _NULL_ROWS)
    noise = random_directions(len(picked), found.rows.shape[1], seed=seed)
    number = max(min(num_quanta, len(picked) // 3), 1)
    clusterer = AverageLinkage(num_quanta=number, seed=seed)
    labels = clusterer.cluster(noise).assignments
    return half_agreement(clusterer, noise, found.document[picked], labels, num_halves=1, seed=seed)


def _other_projections(run: Run, row_set: AnyRows) -> Sequence[RowSet]:
    """Complete row sets of the same selection and checkpoint, under another projection."""
    plan = row_set.plan
    found = []
    for name in run.row_sets():
        other = run.row_set(name)
        if name == row_set.name or other.missing_blocks():
            continue
        same = all(other.plan[key] == plan[key] for key in ("unit_type", "loss", "selection_sha256", "preconditioner"))
        weights = other.plan["model"]["fingerprint"] == plan["model"]["fingerprint"]
        if same and weights and other.plan["projection"] != plan["projection"]:
            found.append(other)
    return found


def _agreement_across(other: RowSet, clustered: np.ndarray, labels: np.ndarray, config: QuantaConfig) -> float:
    """Agreement with the clustering of another projection's rows, on the units that both have."""
    kept, rows = other.unit_rows()
    common, here, there = np.intersect1d(clustered, kept, return_indices=True)
    rows = rows[there]
    blocks = _chosen(other, other.block_norms()[common], config)
    if blocks is not None:
        rows = blocks.apply(rows)
    document = np.asarray(other.units().take(pa.array(common))["document"])
    prepared = Whitener.fit(rows, config.whitening).apply(rows)
    return agreement(labels[here], config.clusterer.cluster(prepared, document).assignments)


def _rank_frequency(rows: np.ndarray, clustering: Clustering, config: QuantaConfig) -> dict[str, Any] | None:
    """The fit over quanta of five units and more beside structureless rows; None for fewer than three such quanta."""
    sizes = clustering.sizes
    last = int((sizes >= LEAST_SIZE).sum())
    if last < 3:
        return None
    nulls = [_null_quanta(rows, clustering.num_quanta, seed=config.clusterer.seed + i) for i in range(_NUM_NULLS)]
    fit = fit_rank_frequency(sizes, last_rank=last, null_sizes=[null.sizes for null in nulls])
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
        "envelope": _envelope(clustering, nulls),
    }


def _envelope(clustering: Clustering, nulls: Sequence[Clustering]) -> dict[str, Any] | None:
    """The largest size at each rank over many cuts of the tree; None where there are too few units for its slope."""
    try:
        found = fit_envelope(clustering.tree, null_trees=[null.tree for null in nulls])
    except ConfigurationError:
        return None
    return {
        "first_rank": found.first_rank,
        "last_rank": found.last_rank,
        "slope": found.slope,
        "slope_low": found.slope_low,
        "slope_high": found.slope_high,
        "null_slopes": _json(found.null_slopes),
        "sentence": found.sentence(),
    }


def _null_quanta(rows: np.ndarray, num_quanta: int, *, seed: int) -> Clustering:
    """As many clusters at first of rows without groups: every column shuffled over the units by itself."""
    shuffled = np.random.default_rng(seed).permuted(rows, axis=0)
    return Refined(inner=AverageLinkage(num_quanta=num_quanta, seed=seed)).cluster(shuffled)


def _tail(sizes: np.ndarray) -> TailFit | None:
    """The power law beside its rivals; None where there are too few quanta to say anything."""
    try:
        return fit_tail(sizes)
    except ConfigurationError:
        return None


def _json(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]
