"""Two models on the same units: what a run's quanta became in another one, in a checkpoint, or without a part of it.

Units are the same token of the same document (by the digest of its text), read from the same first token on. Every
unit that either run clustered gets its loss under every model (losses.py). Quanta of both runs are matched
through the units that both clustered. What is found lies in `compare/<name>/` of the first run.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from ...attribution.change.compare import Changes, changes_against_documents, changes_against_seeds, match_quanta
from ...errors import ConfigurationError, RunMismatchError
from ...storage.run import Run
from ..quanta.cluster import Quanta
from ..workers.progress import Listener, ignore
from ..workers.ray_session import RayOptions
from .losses import ComparedModel, losses_under, model_of

ROOM = "compare"
_OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """What is compared with what."""

    other: str | None = None
    """Another run, or a checkpoint folder; None where lesions are asked for."""
    seeds: tuple[str, ...] = ()
    """Runs or checkpoints that differ from the other one in their seed alone: what chance does."""
    lesions: tuple[str, ...] = ()
    """Parts left out of the first run's model, each a comparison of its own (attribution/change/lesions.py)."""
    quanta: str = "main"
    """The clustering of the first run, and of the other one."""
    level: float = 0.05
    """False discovery rate."""
    num_flips: int = 2_000
    """Of documents' signs, where there are no seeds."""
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if (self.other is None) == (not self.lesions):
            raise ConfigurationError("Give another run or checkpoint, or --lesion: one of the two.")
        if self.seeds and self.other is None:
            raise ConfigurationError("--seed-run belongs to a comparison with another model; a lesion has no seed.")
        if not 0 < self.level < 1:
            raise ConfigurationError(f"--level is {self.level}; give a rate between 0 and 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredComparison:
    """What a run keeps of a comparison."""

    name: str
    quanta: pa.Table
    """A line per quantum of the first run and model that it is compared with: sizes, losses, change, q-value, partner
    in the other run (−1: none beyond chance, null: the other has no quanta), mean gradient norms of shared units."""
    others: pa.Table
    """The same of the other run's quanta, with their partners in the first; empty where it has none."""
    facts: dict[str, Any]


def compare(
    run: Run,
    config: CompareConfig,
    ray_options: RayOptions,
    *,
    name: str | None = None,
    listener: Listener = ignore,
) -> StoredComparison:
    """Compare, store under `name` (made of what is compared if None), and return what was stored.

    RunMismatchError for runs of other tokenizers, without units in common, and for checkpoints that are no longer what
    the run was collected with.
    """
    quanta = Quanta(run, config.quanta)
    second = _quanta_of(config)
    keys, first_place, second_place = _union(run, quanta, second)
    losses = losses_under(run, keys, _models(quanta, second, config), ray_options, listener)
    first = _Side(quanta, first_place)
    base = losses["first"]
    seeds = [losses[name] for name in losses if name.startswith("seed ")]
    names = [_OTHER] if config.other is not None else list(config.lesions)
    lines = [_lines(first, model, base, losses[model], seeds, keys[:, 0], config) for model in names]
    others: list[pa.Table] = []
    match: dict[str, Any] = {}
    if second is not None:
        side = _Side(second, second_place)
        match = _match(first, side, config)
        lines = [_with_partners(lines[0], match["forth"])]
        line = _lines(side, _OTHER, base, losses[_OTHER], seeds, keys[:, 0], config)
        others = [_with_partners(line, match["back"])]
    facts = {
        "models": {_OTHER: config.other} if config.other is not None else {part: part for part in config.lesions},
        "num_units": len(keys),
        "num_shared": match.get("num_shared"),
        "null_jaccard": match.get("null_99"),
        "against": "seeds" if seeds else "documents",
        "config": asdict(config),
    }
    target = name or _name(config)
    run.derived(ROOM, target).write(
        facts,
        source=quanta.fingerprint(),
        tables={"quanta": pa.concat_tables(lines), "others": pa.concat_tables(others or [lines[0].slice(0, 0)])},
    )
    return read_comparison(run, target)


def read_comparison(run: Run, name: str) -> StoredComparison:
    """What `compare` stored; RunMismatchError if the run's quanta changed since."""
    derived = run.derived(ROOM, name)
    quanta = run.derived("quanta", derived.facts()["config"]["quanta"])
    facts = derived.facts(source=quanta.fingerprint())
    return StoredComparison(name=name, quanta=derived.table("quanta"), others=derived.table("others"), facts=facts)


class _Side:
    """One run's clustered units that the first run has too, by their place among the units of both."""

    def __init__(self, quanta: Quanta, place: Int64[np.ndarray, " unit"]) -> None:
        kept = np.flatnonzero(place >= 0)
        self.place = place[kept]
        self.quantum = np.asarray(quanta.units["quantum"]).astype(np.int64)[kept]
        self.norm: Float32[np.ndarray, " unit"] = np.asarray(quanta.units["norm"])[kept]
        self.num_quanta = len(quanta.table)


def _quanta_of(config: CompareConfig) -> Quanta | None:
    """The other run's, where it is a run with quanta."""
    if config.other is None or not Run.exists(config.other):
        return None
    other = Run.open(config.other)
    return Quanta(other, config.quanta) if config.quanta in other.derived_names("quanta") else None


def _union(
    run: Run, first: Quanta, second: Quanta | None
) -> tuple[Int64[np.ndarray, "unit 3"], Int64[np.ndarray, " own"], Int64[np.ndarray, " other"]]:
    """The units of both as (document, first token, last token) of the first run, and where each one's lie in them."""
    own = _keys(first)
    theirs = np.zeros((0, 3), np.int64)
    if second is not None:
        if run.manifest["config"]["tokenizer_fingerprint"] != second.run.manifest["config"]["tokenizer_fingerprint"]:
            raise RunMismatchError(
                f"{run.store.root} and {second.run.store.root} have other tokenizers: their tokens are not the same."
            )
        number = {document.sha256: document.index for document in run.documents}
        translate = np.array([number.get(document.sha256, -1) for document in second.run.documents], np.int64)
        theirs = _keys(second)
        theirs[:, 0] = translate[theirs[:, 0]]
    known = theirs[:, 0] >= 0
    keys, place = np.unique(np.concatenate([own, theirs[known]]), axis=0, return_inverse=True)
    place = place.reshape(-1)
    second_place = np.full(len(theirs), -1)
    second_place[known] = place[len(own) :]
    return keys, place[: len(own)], second_place


def _keys(quanta: Quanta) -> Int64[np.ndarray, "unit 3"]:
    columns = [np.asarray(quanta.units[c]).astype(np.int64) for c in ("document", "first_token", "last_token")]
    if quanta.row_set.plan["unit_type"] != "token-loss":
        raise ConfigurationError(
            f"{quanta.run.store.root} has quanta of {quanta.row_set.plan['unit_type']} units; models are compared on "
            "token losses."
        )
    return np.stack(columns, axis=1)


def _models(quanta: Quanta, second: Quanta | None, config: CompareConfig) -> dict[str, ComparedModel]:
    dtype = quanta.row_set.plan["model"]["dtype"]

    def at(place: str, set_name: str | None = None) -> ComparedModel:
        return model_of(place, dtype=dtype, device=config.device, set_name=set_name)

    first = at(str(quanta.run.store.root), quanta.row_set.name)
    models = {"first": first}
    if config.other is not None:
        models[_OTHER] = at(config.other, second.row_set.name if second else None)
    for number, place in enumerate(config.seeds):
        models[f"seed {number}"] = at(place)
    for part in config.lesions:
        models[part] = ComparedModel(source=first.source, fingerprint=first.fingerprint, lesion=part)
    return models


def _lines(
    side: _Side,
    model: str,
    base: np.ndarray,
    found: np.ndarray,
    seeds: Sequence[np.ndarray],
    document: np.ndarray,
    config: CompareConfig,
) -> pa.Table:
    """A line per quantum: its mean loss under both models, the change, and what chance makes of it."""
    numbers, dense = np.unique(side.quantum, return_inverse=True)
    before, after = base[side.place].astype(np.float64), found[side.place].astype(np.float64)
    if seeds:
        null = [seed[side.place] - after for seed in seeds]
        changes: Changes = changes_against_seeds(after - before, null, dense)
    else:
        changes = changes_against_documents(
            after - before, dense, document[side.place], num_flips=config.num_flips, seed=config.seed
        )
    sizes = np.bincount(dense)
    changed = changes.changed(config.level)
    verdicts = np.where(changed, np.where(changes.change < 0, "strengthened", "weakened"), "same")
    return pa.table(
        {
            "model": [model] * len(numbers),
            "quantum": numbers,
            "size": sizes,
            "loss_first": np.bincount(dense, weights=before) / sizes,
            "loss_other": np.bincount(dense, weights=after) / sizes,
            "change": changes.change,
            "spread": changes.spread,
            "p_value": changes.p_value,
            "q_value": changes.q_value,
            "verdict": verdicts.tolist(),
            "partner": pa.nulls(len(numbers), pa.int64()),
            "jaccard": pa.nulls(len(numbers), pa.float64()),
            "num_shared": pa.nulls(len(numbers), pa.int64()),
            "norm_own": pa.nulls(len(numbers), pa.float64()),
            "norm_other": pa.nulls(len(numbers), pa.float64()),
        }
    )


def _match(first: _Side, second: _Side, config: CompareConfig) -> dict[str, Any]:
    """Partners both ways, over the units that both runs clustered, and these units' mean gradient norms."""
    _, mine, their = np.intersect1d(first.place, second.place, return_indices=True)
    if not len(mine):
        raise RunMismatchError(
            f"The runs have no clustered unit in common ({len(first.place)} and {len(second.place)}): collect both on "
            "the same documents with the same selection, and a --max-loss that keeps the same tokens."
        )
    one, two = first.quantum[mine], second.quantum[their]
    forth = match_quanta(one, two, seed=config.seed)
    back = match_quanta(two, one, seed=config.seed)
    norms = first.norm[mine], second.norm[their]
    return {
        "num_shared": len(mine),
        "null_99": forth.null_99,
        "forth": _partners(first.num_quanta, one, forth.partner, forth.jaccard, norms),
        "back": _partners(second.num_quanta, two, back.partner, back.jaccard, norms[::-1]),
    }


def _partners(
    num_quanta: int, quantum: np.ndarray, partner: np.ndarray, jaccard: np.ndarray, norms: tuple[np.ndarray, np.ndarray]
) -> dict[str, np.ndarray]:
    """By quantum; those without a shared unit have no partner that could be known (null)."""
    counts = np.bincount(quantum, minlength=num_quanta)
    means = [np.bincount(quantum, weights=n, minlength=num_quanta) / np.maximum(counts, 1) for n in norms]
    missing = num_quanta - len(partner)
    return {
        "partner": np.concatenate([partner, np.full(missing, -1)]),
        "jaccard": np.concatenate([jaccard, np.zeros(missing)]),
        "num_shared": counts,
        "norm_own": means[0],
        "norm_other": means[1],
    }


def _with_partners(lines: pa.Table, partners: dict[str, np.ndarray]) -> pa.Table:
    quantum = np.asarray(lines["quantum"])
    unknown = partners["num_shared"][quantum] == 0
    for name, values in partners.items():
        mask = unknown if name != "num_shared" else np.zeros(len(unknown), np.bool_)
        column = pa.array(values[quantum], mask=mask).cast(lines.schema.field(name).type)
        lines = lines.set_column(lines.column_names.index(name), name, column)
    return lines


def _name(config: CompareConfig) -> str:
    place = Path(config.other).resolve() if config.other is not None else None
    text = f"{place.parent.name}-{place.name}" if place else "-".join(("without", *config.lesions))
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:100] or "comparison"
