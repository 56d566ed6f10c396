"""Are the units of a quantum learned together? Gradients against every rival, on a model of Python over its training.

A quantum should be what is learned together, so that the evidence is about learning, and the same functions
(attribution/learning) judge gradients and rivals: activations of every layer and of all of them, as they are and
whitened, the target token, the token before it, tf–idf vectors of the context, and shuffles.

- *Co-emergence*: R² of foretelling a unit's log-loss curve over the checkpoints from its 5 or 10 nearest units, or from
  its cluster mates (100, 200, and as many clusters as there are previous tokens), always of the same target token and
  of other documents, beyond the mean curve of that token. `beyond last` is the same once the loss at the end of
  training has been allowed for.
- *Transfer* (transfer.py): selectivity of small steps: how far the log loss falls in documents of a group that took
  no part, over how much it changes in units outside; `same token` counts outside units of the same target token only.
  Groups are clusters, or of equal sizes; anchors are drawn among units that have a group of two halves by all methods.

Five models, of five seeds: the demonstration's own and four of 300 steps (python_model.py); `--language english` trains
five of 300 steps on the prose of docstrings. Means over them; bars ask
that gradients (of the paper's blocks, each made unit; whitened for co-emergence, as they are for transfer) beat the
best rival, chosen afterwards: the lower end of the 95 % interval of the paired difference (Student's t over the seeds)
is above 0; of one seed, the difference.
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
from python_model import BLOCK, Units, cached_units, kronecker, load, rows_of
from result import Bar, arguments, finish
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits
from transfer import GROUP, Group, anchors_of, by_steps, of_labels, of_nearest, to_first_order, transferring

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.clustering import average_linkage, refine
from quantascope.attribution.learning import (
    CoEmergence,
    beyond_last,
    co_emergence,
    co_emergence_gain,
    mates_in_groups,
    nearest_mates,
)
from quantascope.attribution.losses import token_losses
from quantascope.attribution.whitening import Whitener, WhiteningConfig, unit_rows

LOSS = "gradient, half whitened"
MARGIN = "gradient of margins, half whitened"
DEFAULT = "gradient, unit blocks, whitened at damping 5"
"""Chosen on seed 0 among powers and dampings; the other seeds had no say."""
PLAIN = "gradient, unit blocks"
"""Judged by transfer; chosen on the first models of both languages and the second of Python."""
RECIPE, STEPS_RECIPE = 3, 3
"""Of co-emergence and of transfer; raised when what is measured changes: figures in the cache are then made again."""
STEPPED = (
    PLAIN, LOSS, DEFAULT, "activations 4", "activations 4, half whitened", "activations of all layers",
    "tf–idf of 8 tokens", "target token", "previous token",
)  # fmt: skip
"""Whose transfer is measured, of those that a model of few layers has."""
NEIGHBOURS = (5, 10)
AS_MANY = "as many clusters as previous tokens"
CLUSTERS = {"100 clusters": 100, "200 clusters": 200}
NUM_CLUSTERS, NUM_EQUAL = 10, 16
"""Anchors of each model whose clusters, and whose groups of equal sizes, are stepped on; to first order all are."""

Figures = dict[str, float]


def described(units: Units) -> dict[str, np.ndarray]:
    """Unit rows of every description that has a geometry, by name."""
    paper = units.rows[:, units.kinds == 0]
    found = {
        "gradient": paper,
        LOSS: _whitened(paper, "half"),
        "gradient, whitened": _whitened(paper, "full"),
        "gradient, whitened at damping 5": _whitened(paper, "full", 5.0),
        PLAIN: unit_blocks(paper),
        "gradient, unit blocks, half whitened": _whitened(unit_blocks(paper), "half"),
        DEFAULT: _whitened(unit_blocks(paper), "full", 5.0),
        "gradient, equal blocks, half whitened": _whitened(equal_blocks(paper), "half"),
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
    for damping in (0.01, 1.0):
        found[f"activations of all layers, whitened at damping {damping:g}"] = _whitened(together, "full", damping)
    for length in (8, 32):
        found[f"tf–idf of {length} tokens"] = tf_idf(units.contexts(length), int(units.ids.max()) + 1)
    return {name: unit_rows(rows) for name, rows in found.items()}


def of_parts(units: Units, folder: Path) -> dict[str, np.ndarray]:
    """Unit rows of single parts of the network, and of gradients that K-FAC preconditions."""
    model, where = load(folder), (units.window, units.position)
    names = np.repeat([block.name for block in find_blocks(model, "all").blocks], BLOCK)
    found = {}
    for part in ("attention", "mlp"):
        own = units.rows[:, (units.kinds == 0) & (np.char.find(names, part) >= 0)]
        found[f"gradient of {part}, half whitened"] = _whitened(own, "half")
    rows, kinds, _ = rows_of(model, units.ids, where, token_losses, kronecker(model, units.ids, where, token_losses))
    found["gradient, K-FAC"] = rows[:, kinds == 0]
    found["gradient, K-FAC, half whitened"] = _whitened(rows[:, kinds == 0], "half")
    return {name: unit_rows(values) for name, values in found.items()}


def equal_blocks(rows: np.ndarray) -> np.ndarray:
    """Every block with the same mean share of squared norm."""
    blocks = unit_rows(rows).reshape(len(rows), -1, BLOCK)
    shares = np.square(blocks).sum(axis=2).mean(axis=0)
    return np.asarray((blocks / np.sqrt(shares)[None, :, None]).reshape(len(rows), -1))


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


def groups_of(
    units: Units, geometries: dict[str, np.ndarray], labels: dict[str, dict[str, np.ndarray]], seed: int
) -> tuple[dict[str, Group], dict[str, Group]]:
    """Clusters, and groups of equal sizes; a token's units are as near as chance has it, and then by the one before."""
    clusters = {
        name: of_labels(labels[name].get("200 clusters", labels[name][AS_MANY]))
        for name in (*STEPPED, "shuffled within target")
        if name in labels
    }
    chance = np.random.default_rng(seed).random((len(units.target), len(units.target)), dtype=np.float32)
    equal = {n: of_nearest(partial(_by_rows, geometries[n]), units) for n in STEPPED if n in geometries}
    equal["previous token"] = of_nearest(lambda a: (units.previous == units.previous[a]) + chance[a] / 2, units)
    equal["random within target"] = of_nearest(lambda a: chance[a], units)
    return clusters, equal


def carried_over(
    units: Units, folder: Path, groups: tuple[dict[str, Group], dict[str, Group]], seed: int, *, quick: bool
) -> dict[str, Figures]:
    """Selectivity by method and column: steps made with few anchors, and to first order with all."""
    found: dict[str, Figures] = {}
    made, foretold = by_steps(units, folder), to_first_order(units, folder)
    for own, kind, num, least in zip(
        groups, ("clusters", "equal sizes"), (NUM_CLUSTERS, NUM_EQUAL), (0, 3 * GROUP), strict=True
    ):
        anchors = anchors_of(own, units, np.random.default_rng(seed), least=0 if quick else least)
        for falls, chosen in ((made, anchors[: 3 if quick else num]), (foretold, anchors)):
            for name, figures in transferring(units, own, chosen, seed, falls).items():
                found.setdefault(name, {}).update({f"{how}, {kind}": value for how, value in figures.items()})
    return found


def _by_rows(rows: np.ndarray, anchor: int) -> np.ndarray:
    return np.asarray(rows @ rows[anchor])


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
        units, folder, geometries, labels = prepared()
        emerging = co_emerging(units, geometries | of_parts(units, folder), labels, seed)
        found: dict[str, Figures] = {}
        for name, columns in emerging.items():
            found[name] = {column: value.value for column, value in columns.items()}
            found[name] |= {f"{column}: documents": (value.high - value.low) / 2 for column, value in columns.items()}
            for column, value in columns.items():
                if column in emerging[DEFAULT]:
                    gain = co_emergence_gain(emerging[DEFAULT][column], value)[1]
                    found[name][f"{column}: default less this"] = gain
        return found

    def transfer() -> dict[str, Figures]:
        units, folder, geometries, labels = prepared()
        return carried_over(units, folder, groups_of(units, geometries, labels, seed), seed, quick=options.quick)

    found = part(f"co-emergence-{RECIPE}", emergence)
    if not options.no_transfer:
        for name, figures in part(f"transfer-{STEPS_RECIPE}", transfer).items():
            found[name] = found.get(name, {}) | figures
    print(f"seed {seed}: done", flush=True)
    return found


def bars_of(found: list[dict[str, Figures]]) -> list[Bar]:
    """Gradients against the best rival in each column."""
    columns = [c for c in found[0][DEFAULT] if ":" not in c]
    bars = []
    for column in columns:
        ours = PLAIN if _is_transfer(column) else DEFAULT
        if not all(column in f[ours] for f in found):  # too few units of equal tokens outside, on some model
            continue
        rivals = [n for n in found[0] if is_rival(n) and all(column in f[n] for f in found)]
        if not rivals:
            continue
        best = max(rivals, key=lambda name: np.mean([f[name][column] for f in found]))
        gains = np.array([f[ours][column] - f[best][column] for f in found])
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
            ours = PLAIN if _is_transfer(column) else DEFAULT
            if name != ours and column in found[0][ours]:
                both = [f for f in found if column in f.get(name, {}) and column in f[ours]]
                gains = np.array([f[ours][column] - f[name][column] for f in both])
                row[f"{column}: ours less this"] = float(gains.mean())
                row[f"{column}: ours less this ±"] = half_interval(gains)
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


def _is_transfer(column: str) -> bool:
    return "step" in column or "first order" in column


def _is_clustered(name: str) -> bool:
    aside = ("layer ", "all blocks", "equal blocks", "gradient, whitened", "32")
    return not any(part in name for part in aside) or name == "gradient, whitened at damping 5"


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
