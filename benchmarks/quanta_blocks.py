"""Which blocks, weighed and whitened how: what gradient rows say about learning, by the blocks that are clustered.

Needs a run with loss curves over checkpoints (`quantascope demo` makes one) and, for the blocks that the paper leaves
out, a row set of the same units collected with `--blocks all`:

    quantascope collect … --out RUN --name all-blocks --blocks all
    python benchmarks/quanta_blocks.py RUN --rows token-loss all-blocks

For each choice: co-emergence (R² of foretelling a unit's log-loss curve beyond its target token's, from units of the
same target token in other documents) of the ten nearest units and of as many average-linkage quanta for every choice,
with 95 % intervals over documents, and the next token that those quanta tell. One run, one model.
"""

import argparse
import time

import numpy as np
from result import Bar, arguments, finish

from quantascope.attribution.clustering import AverageLinkage
from quantascope.attribution.learning.co_emergence import co_emergence, mates_in_groups, nearest_mates
from quantascope.attribution.quanta.block_choice import BlockChoice, choose_blocks
from quantascope.attribution.quanta.evidence import next_token_evidence
from quantascope.attribution.quanta.stability import random_directions
from quantascope.attribution.whitening import Whitener, WhiteningConfig
from quantascope.jobs.change.curves import load_curves
from quantascope.jobs.quanta.contexts import Contexts
from quantascope.storage.run import Run

CHOICES = {
    "all": BlockChoice(),
    "paper": BlockChoice(blocks=("paper",)),
    "paper, equal shares": BlockChoice(blocks=("paper",), equal=True),
    "all, equal shares": BlockChoice(equal=True),
    "attention": BlockChoice(blocks=("*attention*",)),
    "mlp": BlockChoice(blocks=("*mlp*",)),
    "first layer": BlockChoice(blocks=("*layers.0.*",)),
    "last layer": BlockChoice(blocks=("*layers.3.*",)),
}
DEFAULT = "paper"


def main() -> None:
    parser = arguments("Blocks of gradient rows, compared by what they say about learning.")
    parser.add_argument("run", help="a run with curves")
    parser.add_argument("--rows", nargs="+", default=["token-loss"], help="row sets of the same units")
    parser.add_argument("--num-quanta", type=int, default=400)
    options = parser.parse_args()
    run = Run.open(options.run)
    rows: list[dict[str, object]] = []
    curves = load_curves(run, options.rows[0]).losses
    for name in options.rows:
        rows += of_set(run, name, curves, options)
    best = max(float(str(row["nearest"])) for row in rows)
    ours = [float(str(r["nearest"])) for r in rows if r["blocks"] == DEFAULT and r["whitening"] == "half"]
    bars = [
        Bar(name="default less the best choice (R²)", value=ours[0] - best, limit=-0.03, holds=ours[0] - best >= -0.03)
    ]
    columns = ["rows", "blocks", "whitening", "nearest", "low", "high", "quanta", "next token", "dim", "seconds"]
    finish("quanta_blocks", columns, rows, bars, options)


def of_set(run: Run, name: str, curves: np.ndarray, options: argparse.Namespace) -> list[dict[str, object]]:
    row_set = run.row_set(name)
    assert row_set.plan["selection_sha256"] == run.row_set(options.rows[0]).plan["selection_sha256"], "other units"
    kept, rows = row_set.unit_rows()
    units = row_set.units().take(kept)
    document, contexts = np.asarray(units["document"]), Contexts(run)
    target = contexts.token_ids(units)
    logs = np.log(np.maximum(curves[kept], 1e-4))
    squares = np.square(row_set.block_norms()[kept].astype(np.float64))
    shares = (squares / squares.sum(axis=1, keepdims=True)).mean(axis=0)
    found: list[dict[str, object]] = []
    names = [str(block["name"]) for block in row_set.plan["blocks"]]
    choices = {n: c for n, c in CHOICES.items() if "all-blocks" in name or n not in ("all", "all, equal shares")}
    for choice_name, choice in choices.items():
        chosen = choose_blocks(choice, row_set.plan["blocks"], shares).apply(rows)
        for whitening in ("none", "half", "full") if choice_name in ("all", "paper") else ("half",):
            start = time.perf_counter()
            prepared = Whitener.fit(chosen, WhiteningConfig(strength=whitening)).apply(chosen)  # type: ignore[arg-type]
            line = judged(prepared, logs, target, document, options.num_quanta)
            found.append({"rows": name, "blocks": choice_name, "whitening": whitening} | line)
            found[-1]["seconds"] = time.perf_counter() - start
            print(found[-1], flush=True)
    noise = judged(random_directions(len(rows), 64, seed=options.seed), logs, target, document, options.num_quanta)
    found.append({"rows": name, "blocks": f"random directions ({len(names)} blocks)", "whitening": "none"} | noise)
    return found


def judged(
    rows: np.ndarray, logs: np.ndarray, target: np.ndarray, document: np.ndarray, num_quanta: int
) -> dict[str, object]:
    near = co_emergence(logs, nearest_mates(rows, target, document, num_neighbours=10), target, document)
    labels = AverageLinkage(num_quanta=min(num_quanta, len(rows))).cluster(rows).assignments
    within = co_emergence(logs, mates_in_groups(labels, target, document), target, document)
    token = next_token_evidence(labels, target, document, num_shuffles=20, num_resamples=200)
    return {
        "nearest": near.value,
        "low": near.low,
        "high": near.high,
        "quanta": within.value,
        "next token": token.value,
        "dim": rows.shape[1],
    }


if __name__ == "__main__":
    main()
