"""Multitask sparse parity: do clusters of gradients find the skills, where these are known by construction?

A network learns eight parities of three bits each (planted/parity.py); rows are the unprojected gradients of 2,000
examples' losses, drawn like the training data. Figures are adjusted Rand indices:

- `pattern`: clusters against (task, values of its three bits), 64 of them, their number given;
- `task`: groups of those clusters against the task, their number given. Signed affinities cannot see tasks: at the
  optimum the gradients of one task cancel. `opposition` joins clusters whose mean gradients are linearly dependent
  (attribution/learning/opposition.py); `chance` joins them at random into groups as large.

The columns of the control bits give the task away, so every figure stands with and without them. Means over the seeds,
± half of the 95 % interval (Student's t). `--scaling` measures instead how the loss falls with parameters, steps and
examples, for several exponents of the tasks' frequencies, beside what the paper found (far larger networks: figures
from its notebooks).
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from planted.keep import kept
from planted.parity import Examples, ParityConfig, ParityRun, train_parity
from planted.parity_scaling import measure_scaling
from planted.statistics import half_interval
from result import Bar, arguments, finish
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.clustering import AverageLinkage, Clusterer, Refined, Spectral, group_sums
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.learning import group_by_opposition
from quantascope.attribution.losses.classification import ClassificationBatch, classification_losses
from quantascope.attribution.projection import Identity
from quantascope.attribution.whitening import Whitener, WhiteningConfig, unit_rows

STRENGTHS = ("none", "half")
NUM_EXAMPLES = 2_000
RECIPE = 1
"""Raised when what is measured changes: figures in the cache are then made again."""


def gradients(run: ParityRun, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all parameters, [example, parameter], and which columns belong to a control bit's weights."""
    engine = GradientEngine[ClassificationBatch](run.model, Identity(), find_blocks(run.model, "all").blocks)
    parts = []
    for start in range(0, len(examples.labels), 500):
        part = slice(start, start + 500)
        batch = ClassificationBatch(inputs=(examples.inputs[part],), labels=examples.labels[part])
        parts.append(engine.rows(batch, classification_losses, num_examples=len(batch.labels)).rows)
    control = np.zeros(engine.dim, dtype=bool)
    first = engine.blocks[0]
    of_first = np.zeros((first.rows, first.columns), dtype=bool)
    of_first[:, : run.problem.config.num_tasks] = True
    control[engine.columns[0]] = of_first.ravel()
    return torch.cat(parts).numpy(), control


def clusterers(num_quanta: int, *, quick: bool) -> dict[str, Clusterer]:
    linked = AverageLinkage(num_quanta=num_quanta)
    found: dict[str, Clusterer] = {"linkage": linked, "default": Refined(inner=linked, keep_all=True)}
    return found if quick else found | {"the paper's": Spectral(num_quanta=num_quanta)}


def by_squared_cosines(rows: np.ndarray, quanta: np.ndarray, num_groups: int) -> np.ndarray:
    """The rival that ignores signs too: spectral clustering of the means' squared cosines."""
    names, codes = np.unique(quanta, return_inverse=True)
    means = unit_rows(group_sums(unit_rows(rows), codes, len(names)))
    affinity = np.square(means @ means.T, dtype=np.float64)
    return np.asarray(
        SpectralClustering(n_clusters=num_groups, affinity="precomputed", random_state=0).fit_predict(affinity)
    )[codes]


def _by_chance(tasks: np.ndarray, quanta: np.ndarray, grouped: np.ndarray, seed: int) -> float:
    """Mean index of groups as large as those found, with other quanta in them: what pure quanta give for nothing."""
    _, first, codes = np.unique(quanta, return_index=True, return_inverse=True)
    rng = np.random.default_rng(seed)
    return float(np.mean([adjusted_rand_score(tasks, rng.permutation(grouped[first])[codes]) for _ in range(20)]))


def measure(seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The figures of one seed, by rows, whitening and method, with a semicolon between them."""
    run = train_parity(seed, ParityConfig(num_steps=2_500) if options.quick else None)
    config = run.problem.config
    generator = torch.Generator().manual_seed(1_000 + seed)
    examples = run.problem.sample(1_000 if options.quick else NUM_EXAMPLES, generator)
    rows, control = gradients(run, examples)
    with torch.no_grad():
        hidden = run.model[:2](examples.inputs).numpy()
    tasks = examples.tasks.numpy()
    patterns = tasks * 2**config.subset_size + examples.patterns.numpy()
    num_quanta, num_tasks = len(np.unique(patterns)), len(np.unique(tasks))
    found: dict[str, dict[str, float]] = {}
    named = {"gradients": rows, "gradients, no control columns": rows[:, ~control], "activations": hidden}
    for name, values in named.items():
        for strength in STRENGTHS:
            whitened = Whitener.fit(values, WhiteningConfig(strength=strength)).apply(values)
            for method, clusterer in clusterers(num_quanta, quick=options.quick).items():
                if method == "the paper's" and (name, strength) != ("gradients", "none"):
                    continue  # a minute each, and far behind
                labels = clusterer.cluster(whitened).assignments
                grouped = group_by_opposition(values, labels, num_tasks)
                squared = by_squared_cosines(values, labels, num_tasks)
                signed = AverageLinkage(num_quanta=num_tasks).cluster(whitened).assignments
                found[f"{name}; {strength}; {method}"] = {
                    "pattern": adjusted_rand_score(patterns, labels),
                    "task by opposition": adjusted_rand_score(tasks, grouped),
                    "task by squared cosines": adjusted_rand_score(tasks, squared),
                    "task by linkage": adjusted_rand_score(tasks, signed),
                    "task by chance": _by_chance(tasks, labels, grouped, seed),
                }
    found["network; ; "] = {"mean loss": float(run.mean_losses[-1])}
    if options.curves:
        folder = Path(options.curves)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(
            folder / f"parity-{seed}.npz",
            steps=run.steps,
            losses=run.losses,
            frequencies=run.problem.frequencies,
        )
    return found


def clusters(options: argparse.Namespace) -> None:
    num_seeds = options.seeds or (1 if options.quick else 5)
    kind = "quick" if options.quick else str(NUM_EXAMPLES)
    folder = Path(options.cache).expanduser() / "sparse-parity"
    found = [
        kept(folder / f"figures-{RECIPE}-{kind}-{seed}.json", partial(measure, seed, options), again=options.again)
        for seed in range(options.seed, options.seed + num_seeds)
    ]
    rows = []
    for key in found[0]:
        figures: dict[str, object] = dict(zip(("rows", "whitening", "method"), key.split("; "), strict=True))
        for name in found[0][key]:
            values = np.array([f[key][name] for f in found])
            figures[name] = float(values.mean())
            figures[f"± {name}"] = half_interval(values)
        rows.append(figures)
    bars = []
    for name, limit in (("gradients", 0.6), ("gradients, no control columns", 0.5)):
        value = float(np.mean([f[f"{name}; half; default"]["pattern"] for f in found]))
        bars.append(Bar(name=f"{name}: index of (task, bits)", value=value, limit=limit, holds=value >= limit))
    columns = ["rows", "whitening", "method", "pattern", "± pattern", "task by opposition", "± task by opposition"]
    finish(
        "sparse_parity", [*columns, "task by squared cosines", "task by linkage", "task by chance"], rows, bars, options
    )


def main() -> None:
    parser = arguments("Clusters of gradients on multitask sparse parity.")
    parser.add_argument("--seeds", type=int, help="networks; the default is 5, or 1 with --quick")
    parser.add_argument("--curves", metavar="FOLDER", help="keep each seed's losses [checkpoint, subtask] there")
    parser.add_argument("--scaling", action="store_true", help="measure the exponents of the loss instead")
    parser.add_argument("--cache", default="~/.cache/quantascope", help="where the figures of each seed are kept")
    parser.add_argument("--again", action="store_true", help="measure again what the cache has figures of")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        if options.scaling:
            rows = measure_scaling(options.seed, quick=options.quick)
            columns = [name for name, value in rows[0].items() if not isinstance(value, list)]
            finish("sparse_parity_scaling", columns, rows, [], options)
        clusters(options)


if __name__ == "__main__":
    main()
