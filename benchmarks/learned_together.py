"""Are the units of a quantum learned together? Gradients against every rival, on a model of Python over its training.

A quantum should be what is learned together, so that the evidence is about learning, and the same functions
(attribution/learning) judge gradients and rivals: activations of every layer and of all of them, as they are and
whitened, the target token, the token before it, tf–idf vectors of the context, and shuffles.

- *Co-emergence*: R² of foretelling a unit's log-loss curve over the checkpoints from its 5 or 10 nearest units, or from
  its cluster mates (100, 200, and as many clusters as there are previous tokens), always of the same target token and
  of other documents, beyond the mean curve of that token. `beyond last` is the same once the loss at the end of
  training has been allowed for.
- *Transfer*: selectivity of small steps: how much the log loss falls in the documents of a quantum that took no part,
  over how much it changes in units outside; `same token` counts outside units of the same target token only. The quanta
  of every method are those that the same units belong to, drawn among units that have a quantum of two halves in all.
  Steps go along all weights, or along those alone whose gradients the rows hold (the paper's blocks).

Five models, of five seeds: the demonstration's own and four of 300 steps (python_model.py); `--language english` trains
five of 300 steps on the prose of docstrings. Means over them; bars ask
that gradients (of the paper's blocks, each made unit, whitened) beat the best rival, chosen afterwards: the lower
end of the 95 % interval of the paired difference (Student's t over the seeds) is above 0; of one seed, the difference.
"""

import argparse
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from planted.keep import kept
from planted.statistics import half_interval
from python_model import BLOCK, Units, cached_units, load
from result import Bar, arguments, finish
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits
from torch import Tensor

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.clustering import average_linkage, refine
from quantascope.attribution.learning import (
    CoEmergence,
    TransferTotals,
    beyond_last,
    co_emergence,
    co_emergence_gain,
    mates_in_groups,
    measure_steps,
    nearest_mates,
    split_documents,
)
from quantascope.attribution.losses import token_losses
from quantascope.attribution.whitening import Whitener, WhiteningConfig, unit_rows

LOSS = "gradient, half whitened"
MARGIN = "gradient of margins, half whitened"
DEFAULT = "gradient, unit blocks, whitened at damping 5"
"""Chosen on seed 0 among powers and dampings; the other seeds had no say."""
RECIPE, STEPS_RECIPE = 2, 1
"""Of co-emergence and of transfer; raised when what is measured changes: figures in the cache are then made again."""
STEPPED = (
    DEFAULT, "gradient", LOSS, MARGIN, "activations 3, half whitened", "activations 4, half whitened",
    "activations of all layers, whitened", "tf–idf of 8 tokens", "target token", "previous token",
    "shuffled within target",
)  # fmt: skip
"""Whose transfer is measured, of those that a model of few layers has."""
NEIGHBOURS = (5, 10)
AS_MANY = "as many clusters as previous tokens"
CLUSTERS = {"100 clusters": 100, "200 clusters": 200}
STEPS = {"step 0.0003": (None, 0.0003), "step 0.003": (None, 0.003), "sign step 0.001": (torch.sign, 0.001)}
"""Direction and length of a step, relative to the norm of all weights; signs are the first step of Adam."""
MAX_HALF, MIN_HALF = 6, 4
"""Units of half a quantum."""
NUM_QUANTA, NUM_OUTSIDE, NUM_SAME = 16, 12, 12
"""Quanta of each method whose transfer is measured, and units outside: any, and of the same target token."""

Figures = dict[str, float]


def described(units: Units) -> dict[str, np.ndarray]:
    """Unit rows of every description that has a geometry, by name."""
    paper = units.rows[:, units.kinds == 0]
    found = {
        "gradient": paper,
        LOSS: _whitened(paper, "half"),
        "gradient, whitened": _whitened(paper, "full"),
        "gradient, whitened at damping 5": _whitened(paper, "full", 5.0),
        DEFAULT: _whitened(unit_blocks(paper), "full", 5.0),
        "gradient of all blocks, half whitened": _whitened(units.rows, "half"),
    }
    margins = units.margin_rows[:, units.kinds == 0]
    found |= {"gradient of margins": margins, MARGIN: _whitened(margins, "half")}
    for layer in range(units.activations.shape[0] - 1):
        own = units.rows[:, (units.layers == layer) & (units.kinds == 0)]
        found[f"gradient of layer {layer + 1}, half whitened"] = _whitened(own, "half")
    for layer, values in enumerate(units.activations[1:], start=1):
        found[f"activations {layer}"] = values
        found[f"activations {layer}, half whitened"] = _whitened(values, "half")
        found[f"activations {layer}, whitened"] = _whitened(values, "full")
    together = np.concatenate([unit_rows(layer) for layer in units.activations[1:]], axis=1)
    found["activations of all layers"] = together
    found["activations of all layers, half whitened"] = _whitened(together, "half")
    found["activations of all layers, whitened"] = _whitened(together, "full")
    found["activations of all layers, whitened at damping 0.01"] = _whitened(together, "full", 0.01)
    for length in (8, 32):
        found[f"tf–idf of {length} tokens"] = tf_idf(units.contexts(length), int(units.ids.max()) + 1)
    return {name: unit_rows(rows) for name, rows in found.items()}


def unit_blocks(rows: np.ndarray) -> np.ndarray:
    """Each block's 256 numbers made unit, so that all blocks weigh the same."""
    blocks = rows.reshape(len(rows), -1, BLOCK)
    return np.asarray(
        (blocks / np.maximum(np.linalg.norm(blocks, axis=2, keepdims=True), 1e-12)).reshape(len(rows), -1)
    )


def is_rival(name: str) -> bool:
    return not name.startswith(("gradient", "shuffled", "random", "loss at the end"))


def tf_idf(contexts: list[np.ndarray], vocabulary: int) -> np.ndarray:
    """Counts times log((1 + n) / (1 + df)) + 1, dense."""
    row = np.repeat(np.arange(len(contexts)), [len(c) for c in contexts])
    token = np.concatenate(contexts)
    counts = csr_array((np.ones(len(row), np.float32), (row, token)), shape=(len(contexts), vocabulary)).toarray()
    document_counts = (counts > 0).sum(axis=0)
    weights = np.log((1 + len(contexts)) / (1 + document_counts)) + 1
    return counts[:, document_counts > 0] * weights[document_counts > 0].astype(np.float32)


def clustered(rows: np.ndarray, wanted: dict[str, int]) -> dict[str, np.ndarray]:
    """The default clusterer's labels at each number of clusters; no more than one for two units."""
    tree = average_linkage(rows)
    return {name: refine(rows, tree.cut(min(num, len(rows) // 2))) for name, num in wanted.items()}


def labels_of(units: Units, geometries: dict[str, np.ndarray], seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Clusters of every method, by their number; the previous token fixes how many it makes."""
    wanted = {**CLUSTERS, AS_MANY: len(np.unique(units.previous))}
    found = {name: clustered(rows, wanted) for name, rows in geometries.items() if _is_clustered(name)}
    rng = np.random.default_rng(seed)
    found["target token"] = dict.fromkeys(wanted, np.unique(units.target, return_inverse=True)[1])
    found["previous token"] = {AS_MANY: np.unique(units.previous, return_inverse=True)[1]}
    found["shuffled"] = {name: rng.permutation(found[DEFAULT][name]) for name in wanted}
    found["shuffled within target"] = {name: _within(found[DEFAULT][name], units.target, rng) for name in wanted}
    return found


def co_emerging(
    units: Units, geometries: dict[str, np.ndarray], labels: dict[str, dict[str, np.ndarray]], seed: int
) -> dict[str, dict[str, CoEmergence]]:
    """By method and column."""
    target, document, curves = units.target, units.document, units.curves.astype(np.float64)
    beyond = beyond_last(curves, target)
    rng = np.random.default_rng(seed)
    queries = {**geometries, "random": unit_rows(rng.standard_normal((len(target), 8)))}
    found: dict[str, dict[str, CoEmergence]] = {}
    for name, rows in queries.items():
        own = found.setdefault(name, {})
        for count in NEIGHBOURS:
            mates = nearest_mates(rows, target, document, num_neighbours=count)
            own[f"{count} nearest"] = co_emergence(curves, mates, target, document, seed=seed)
            if count == NEIGHBOURS[-1]:
                own[f"{count} nearest, beyond last"] = co_emergence(beyond, mates, target, document, seed=seed)
    for name, by_number in labels.items():
        own = found.setdefault(name, {})
        for column, values in by_number.items():
            mates = mates_in_groups(values, target, document)
            own[column] = co_emergence(curves, mates, target, document, seed=seed)
    found["loss at the end"] = {
        f"{count} nearest": co_emergence(curves, _nearest_in(curves[:, -1], units, count), target, document, seed=seed)
        for count in NEIGHBOURS
    }
    return found


def transferring(
    units: Units,
    folder: Path,
    labels: dict[str, dict[str, np.ndarray]],
    seed: int,
    *,
    num_quanta: int,
    blocks: str,
) -> dict[str, dict[str, TransferTotals]]:
    """By method and step: what carried over and what spilled, of steps along the weights of these blocks."""
    model = load(folder)
    chosen_names = {name for block in find_blocks(model, blocks).blocks for name in block.parameters}
    weights = [weight for name, weight in model.named_parameters() if name in chosen_names]

    def losses(chosen: np.ndarray) -> Tensor:
        return token_losses(model, units.batch(chosen))

    rng = np.random.default_rng(seed)
    windows = rng.permutation(np.unique(units.window))[: NUM_OUTSIDE // 3]
    panel = np.flatnonzero(np.isin(units.window, windows))[:NUM_OUTSIDE]
    chosen = {name: labels[name].get("200 clusters", labels[name][AS_MANY]) for name in STEPPED if name in labels}
    able = np.flatnonzero(np.all([_can_be_halved(own, units.document) for own in chosen.values()], axis=0))
    anchors = rng.permutation(able)[:num_quanta]
    found: dict[str, dict[str, TransferTotals]] = {}
    for name, own in chosen.items():
        sums: dict[str, list[tuple[float, float, float]]] = {}
        for anchor in anchors:
            drawn = np.random.default_rng([seed, int(anchor)])
            members = np.flatnonzero(own == own[anchor])
            first, second = split_documents(members, units.document[members], drawn, max_units=MAX_HALF)
            outside = panel[own[panel] != own[anchor]]
            same = np.flatnonzero(np.isin(units.target, units.target[second]) & (own != own[anchor]))
            same = np.sort(drawn.permutation(same)[:NUM_SAME])
            others = np.concatenate([second, same, outside])
            steps = measure_steps(losses, weights, first, others, steps=list(STEPS.values()))
            for how, step in zip(STEPS, steps, strict=True):
                falls = np.split(step.falls, [len(second), len(second) + len(same)])
                carried, alike, away = falls[0].mean(), np.abs(falls[1]), np.abs(falls[2])
                sums.setdefault(how, []).append((carried, away.mean(), alike.mean() if len(alike) else np.nan))
        for how, values in sums.items():
            carried, spilled, alike = np.array(values).T
            key = found.setdefault(name, {})
            key[how] = TransferTotals(carried=carried, spilled=spilled)
            known = np.isfinite(alike)
            if known.mean() > 0.5:
                key[f"{how}, same token"] = TransferTotals(carried=carried[known], spilled=alike[known])
    return found


def measure(seed: int, options: argparse.Namespace) -> dict[str, Figures]:
    """All figures of one seed, by method: both parts from the cache, or made and kept there."""

    def part(name: str, make: Callable[[], dict[str, Figures]]) -> dict[str, Figures]:
        return kept(_figures(name, seed, options), make, again=options.again)

    @cache
    def prepared() -> tuple[Units, Path, dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
        units, result = cached_units(
            Path(options.cache).expanduser(),
            seed,
            num_units=300 if options.quick else options.units,
            quick=options.quick,
            language=options.language,
        )
        geometries = described(units)
        return units, result.checkpoints[-1], geometries, labels_of(units, geometries, seed)

    def emergence() -> dict[str, Figures]:
        units, _, geometries, labels = prepared()
        emerging = co_emerging(units, geometries, labels, seed)
        found: dict[str, Figures] = {}
        for name, columns in emerging.items():
            found[name] = {column: value.value for column, value in columns.items()}
            found[name] |= {f"{column}: documents": (value.high - value.low) / 2 for column, value in columns.items()}
            for column, value in columns.items():
                if column in emerging[DEFAULT]:
                    gain = co_emergence_gain(emerging[DEFAULT][column], value)[1]
                    found[name][f"{column}: default less this"] = gain
        return found

    def transfer(blocks: str) -> dict[str, Figures]:
        units, folder, _, labels = prepared()
        num_quanta = 3 if options.quick else NUM_QUANTA
        moved = transferring(units, folder, labels, seed, num_quanta=num_quanta, blocks=blocks)
        return {name: {how: totals.selectivity for how, totals in steps.items()} for name, steps in moved.items()}

    found = part(f"co-emergence-{RECIPE}", emergence)
    if not options.no_transfer:
        for blocks, where in (("all", ""), ("paper", ", own weights")):
            kind = f"transfer-{STEPS_RECIPE}{'' if blocks == 'all' else f'-{blocks}'}"
            for name, figures in part(kind, partial(transfer, blocks)).items():
                found[name] |= {how + where: value for how, value in figures.items()}
    print(f"seed {seed}: done", flush=True)
    return found


def bars_of(found: list[dict[str, Figures]]) -> list[Bar]:
    """The default against the best rival, and against random groups, in each column."""
    columns = [c for c in found[0][DEFAULT] if ":" not in c]
    bars = []
    for column in columns:
        rivals = [n for n in found[0] if is_rival(n) and all(column in f[n] for f in found)]
        if not rivals:
            continue
        best = max(rivals, key=lambda name: np.mean([f[name][column] for f in found]))
        gains = np.array([f[DEFAULT][column] - f[best][column] for f in found])
        low = float(gains.mean() - half_interval(gains)) if len(gains) > 1 else float(gains[0])
        bars.append(Bar(name=f"{column}: gradients less {best}", value=low, limit=0.0, holds=low > 0))
    return bars


def table(found: list[dict[str, Figures]]) -> list[dict[str, object]]:
    rows = []
    for name in found[0]:
        row: dict[str, object] = {"rows": name}
        for column in found[0][name]:
            if ":" in column:
                continue
            values = np.array([f[name][column] for f in found if column in f.get(name, {})])
            row[column] = float(values.mean())
            row[f"{column} ±"] = half_interval(values)
            if name != DEFAULT and column in found[0][DEFAULT]:
                gains = np.array([f[DEFAULT][column] - f[name][column] for f in found if column in f.get(name, {})])
                row[f"{column}: default less this"] = float(gains.mean())
                row[f"{column}: default less this ±"] = half_interval(gains)
        rows.append(row)
    return rows


def main() -> None:
    parser = arguments("Are the units of a quantum learned together?")
    parser.add_argument("--cache", default="~/.cache/quantascope", help="the demonstration's cache")
    parser.add_argument("--language", choices=("python", "english"), default="python", help="what the models read")
    parser.add_argument("--seeds", type=int, help="models; the default is 5, or 1 with --quick")
    parser.add_argument("--units", type=int, default=1_500, help="token losses of each model")
    parser.add_argument("--no-transfer", action="store_true", help="co-emergence alone")
    parser.add_argument("--again", action="store_true", help="measure again what the cache has figures of")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    num_seeds = options.seeds or (1 if options.quick else 5)
    found = []
    with threadpool_limits(options.threads):
        for seed in range(options.seed, options.seed + num_seeds):
            found.append(measure(seed, options))
    rows = table(found)
    columns = ["rows", *[c for c in rows[1] if ":" not in c and "±" not in c and c != "rows"]]
    name = "learned_together" + ("" if options.language == "python" else f"_{options.language}")
    finish(name, columns, rows, bars_of(found), options)


def _figures(part: str, seed: int, options: argparse.Namespace) -> Path:
    kind = "quick" if options.quick else str(options.units)
    kind += "" if options.language == "python" else f"-{options.language}"
    return Path(options.cache).expanduser() / "learned-together" / f"{part}-{kind}-{seed}.json"


def _is_clustered(name: str) -> bool:
    return "layer " not in name and "all blocks" not in name and name != "gradient, whitened" and "32" not in name


def _can_be_halved(labels: np.ndarray, document: np.ndarray) -> np.ndarray:
    """Of each unit whether its quantum has two halves of other documents, of some units each."""
    able = np.zeros(len(labels), dtype=bool)
    for quantum in np.unique(labels):
        own = np.sort(np.unique(document[labels == quantum], return_counts=True)[1])[::-1]
        able[labels == quantum] = len(own) >= 2 and own.sum() >= 2 * MIN_HALF and own[1:].sum() >= MIN_HALF
    return able


def _whitened(rows: np.ndarray, strength: Literal["half", "full"], damping: float = 0.1) -> np.ndarray:
    """All directions have scales of their own: with a rank of 512, half whitening loses 0.01 of co-emergence."""
    config = WhiteningConfig(strength=strength, damping=damping, max_exact=10_000)
    return Whitener.fit(rows, config).apply(rows)


def _within(labels: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels shuffled among the units of each target token."""
    shuffled = np.empty_like(labels)
    shuffled[np.argsort(target, kind="stable")] = labels[np.lexsort((rng.random(len(target)), target))]
    return shuffled


def _nearest_in(values: np.ndarray, units: Units, count: int) -> csr_array:
    """Nearest in one number: rows on a circle so large that cosines rank by distance."""
    angle = (values - values.min()) / max(float(np.ptp(values)), 1e-9) * (np.pi / 2)
    rows = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return nearest_mates(rows, units.target, units.document, num_neighbours=count)


if __name__ == "__main__":
    main()
