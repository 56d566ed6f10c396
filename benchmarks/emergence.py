"""When skills form: are the fitted times those of the curves, and do frequent skills come first?

Sparse parity (benchmarks/planted/parity.py): each subtask's own curve is its loss on 1,024 examples every 20 steps, and
its time the first step half way down, without a fit. Emergence sees a few units of each subtask, at some thirty
checkpoints alone. `scale` says in what the logistic is one. The null of the order shuffles the frequencies.

The planted language (planted_language.py): the same for its 50 skills, whose answer tokens are the units; a skill's own
curve is its mean loss in other text. Skills are not equally hard there, which is no concern of their times, and
weakens the order.
"""

import argparse
from typing import Any, Protocol

import numpy as np
import torch
from planted.language import SKILLS, Language
from planted.parity import ParityConfig, ParityProblem
from planted_language import WINDOW, new_trainer, text_losses
from result import Bar, arguments, finish
from torch import nn
from torch.nn.functional import cross_entropy

from quantascope.attribution.change.emergence import EmergenceConfig, find_emergence, order_against_frequency
from quantascope.attribution.change.transitions import half_way

_EVERY = 20
_DENSE_EXAMPLES = 1_024
_LEAST_UNITS = 5


class Curves(Protocol):
    """One training run: dense losses of skills, and the losses of single units at the checkpoints."""

    frequency: np.ndarray
    task: np.ndarray
    checkpoints: np.ndarray
    dense_steps: np.ndarray
    dense: np.ndarray
    losses: np.ndarray


class ParityCurves:
    """Of the subtasks of sparse parity."""

    def __init__(self, config: ParityConfig, seed: int, *, units_per_task: int, num_checkpoints: int) -> None:
        problem = ParityProblem.draw(seed, config)
        self.frequency = problem.frequencies
        generator = torch.Generator().manual_seed(seed)
        tasks = torch.arange(config.num_tasks)
        dense = problem.examples(tasks.repeat_interleave(_DENSE_EXAMPLES), generator)
        units = problem.examples(tasks.repeat_interleave(units_per_task), generator)
        self.task = units.tasks.numpy()
        wanted = np.geomspace(_EVERY, config.num_steps, num_checkpoints) / _EVERY
        self.checkpoints = np.unique(wanted.round().astype(np.int64)) * _EVERY
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = nn.Sequential(
                nn.Linear(config.num_tasks + config.num_bits, config.width), nn.ReLU(), nn.Linear(config.width, 2)
            )
        optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
        steps, curves, columns = [], [], []
        for step in range(config.num_steps + 1):
            if step % _EVERY == 0:
                steps.append(step)
                curves.append(_losses(model, dense.inputs, dense.labels).reshape(config.num_tasks, -1).mean(1))
            if step in self.checkpoints:
                columns.append(_losses(model, units.inputs, units.labels))
            batch = problem.sample(config.batch_size, generator)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(cross_entropy(model(batch.inputs), batch.labels))
            optimiser.step()
        self.dense_steps, self.dense = np.array(steps), np.stack(curves, axis=1)
        self.losses = np.stack(columns, axis=1)


class LanguageCurves:
    """Of the skills of the planted language, as many as are answered in both texts."""

    def __init__(self, seed: int, *, num_steps: int, num_windows: int) -> None:
        spoken = Language.draw(seed)
        texts = [spoken.text(num_windows, WINDOW, start + seed) for start in (30_000, 40_000)]
        counts = [np.bincount(text.skills[text.skills >= 0], minlength=len(SKILLS)) for text in texts]
        skills = np.flatnonzero(np.minimum(*counts) >= _LEAST_UNITS)
        self.frequency = spoken.frequencies[skills]
        place = np.full(len(SKILLS) + 1, -1)
        place[skills] = np.arange(len(skills))
        of = [place[text.skills] for text in texts]
        self.document = np.nonzero(of[0] >= 0)[0]
        self.task = of[0][of[0] >= 0]
        dense = np.unique(np.geomspace(4, num_steps, 80).round().astype(np.int64))
        self.checkpoints = np.unique(np.geomspace(4, num_steps, 32).round().astype(np.int64))
        curves, columns = [], []
        with torch.random.fork_rng(devices=[]):
            trainer = new_trainer(spoken, seed, num_steps=num_steps)
            for step in range(num_steps + 1):
                if step in self.checkpoints:
                    columns.append(text_losses(trainer.model, texts[0])[of[0] >= 0].astype(np.float64))
                if step in dense:
                    losses, own = text_losses(trainer.model, texts[1])[of[1] >= 0], of[1][of[1] >= 0]
                    curves.append(np.bincount(own, losses) / np.bincount(own))
                if step < num_steps:
                    trainer.step(step, step / num_steps)
        self.dense_steps, self.dense = dense, np.stack(curves, axis=1)
        self.losses = np.stack(columns, axis=1)


@torch.no_grad()
def _losses(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    return cross_entropy(model(inputs), labels, reduction="none").double().numpy()


def parity(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[Bar]]:
    """Rows and bars of every seed."""
    config = ParityConfig(
        num_tasks=16,
        exponent=1.4,
        width=128 if options.quick else 256,
        num_steps=8_000 if options.quick else 12_000,
        decay=False,
    )
    rows: list[dict[str, Any]] = []
    for seed in range(options.seed, options.seed + (1 if options.quick else 3)):
        curves = ParityCurves(config, seed, units_per_task=32, num_checkpoints=32)
        rows += compared(f"parity, seed {seed}", curves, np.arange(len(curves.task)))
    logs = [row for row in rows if row["scale"] == "log"]
    bars = [
        _at_least("times agree with the curves' own, Spearman, worst seed", min(r["agreement"] for r in logs), 0.95),
        _at_least(
            "frequent subtasks first, Spearman with frequency (less than), worst seed",
            -max(r["order"] for r in logs),
            -max(r["null to"] for r in logs),
        ),
    ]
    return rows, bars


def language(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[Bar]]:
    """The same of the planted language."""
    rows: list[dict[str, Any]] = []
    for seed in range(options.seed, options.seed + (1 if options.quick else 3)):
        curves = LanguageCurves(
            seed, num_steps=60 if options.quick else 1_500, num_windows=100 if options.quick else 500
        )
        rows += compared(f"language, seed {seed}", curves, curves.document)
    logs = [row for row in rows if row["scale"] == "log"]
    order, null = max(r["order"] for r in logs), max(r["null to"] for r in logs)
    name = "frequent skills of the language first, Spearman with frequency (less than), worst seed"
    return rows, [Bar(name=name, value=-order, limit=-null, holds=order <= null or options.quick)]


def compared(what: str, curves: "Curves", document: np.ndarray) -> list[dict[str, Any]]:
    """A line for each scale: fitted times beside the curves' own, and against frequency."""
    own = half_way(curves.dense, curves.dense_steps)
    rows = []
    for scale in ("log", "linear"):
        config = EmergenceConfig(scale=scale)
        found = find_emergence(curves.losses, curves.checkpoints, curves.task, document, config=config)
        fell = np.array(found.status) != "flat"
        order = order_against_frequency(found, curves.frequency)
        assert order is not None
        inside = (found.low <= own) & (own <= found.high)
        rows.append(
            {
                "what": what,
                "scale": scale,
                "with a transition": int(fell.sum()),
                "agreement": _rank_correlation(found.fits.midpoint[fell], own[fell]),
                "median error": float(np.median(np.abs(np.log(found.fits.midpoint / own)[fell]))),
                "in the interval": float(inside[fell].mean()),
                "explained": float(np.median(found.fits.explained[fell])),
                "order": order.correlation,
                "null to": order.null_low,
                "slope": order.slope,
            }
        )
    return rows


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (first, second)]
    return float(np.corrcoef(ranks)[0, 1])


def _at_least(name: str, value: float, limit: float) -> Bar:
    return Bar(name=name, value=value, limit=limit, holds=value >= limit)


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(options.threads)
    rows, bars = parity(options)
    more, holds = language(options)
    rows, bars = rows + more, bars + holds
    columns = ("what", "scale", "with a transition", "agreement", "median error", "in the interval", "explained")
    finish("emergence", (*columns, "order", "null to", "slope"), rows, bars, options)


if __name__ == "__main__":
    main()
