"""How the loss of multitask sparse parity falls with parameters, training steps and training examples.

The Quantization Model (arXiv 2303.13506, section 2) says: with tasks used ∝ k^−(α+1), the loss falls with exponents
α_N = α in parameters, α_S = α/(α+1) in steps of one pass, and α_D = α/(α+1) in examples. What the paper measured on its
toy (500 tasks, 100 bits, 200,000 steps of 20,000 examples; its notebooks) lies beside. Here there are 20 bits, and so
fewer steps and examples, because a parity of three among few bits is found sooner; that fits on one core.

*Quantum by quantum*: when a task is half learned over steps, and from which width on; whether frequent tasks come first
(Spearman's correlation with frequency, beside the 1st percentile of shuffled frequencies); and how much of the mean
loss at the end is that of tasks not half learned, which is all of it in the theory.

Networks of several widths learn side by side, as blocks of one: their weights do not meet, Adam works on each number by
itself, and each sees the same examples as if it were alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .parity import Examples, ParityConfig, ParityProblem

ALPHAS = (0.2, 0.4, 0.8)
PAPER = {0.2: (0.269, 0.267, None), 0.4: (0.332, 0.346, 0.308), 0.8: (0.582, 0.482, 0.404)}
"""α_N, α_S and α_D that the paper's notebooks show, where they do."""
WIDTHS = (8, 11, 16, 23, 32, 45, 64, 91, 128)
EXAMPLES = (4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000)
LARGE_WIDTH = 384
_LEARNED, _BEGUN, _HALF = 0.1, 0.9, 0.5
"""Nats below which a task is learned; shares of log 2 below which the mean loss has begun to fall, and a task is half
learned."""
_NUM_SHUFFLES = 1_000
_PATIENCE, _WORSE = 8, 1.05
"""Training on a fixed set ends after so many checkpoints whose loss is so many times the least."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Falling:
    """Losses of networks that learned side by side."""

    steps: np.ndarray
    """[checkpoint]."""
    losses: np.ndarray
    """[checkpoint, network, task], nats, on held-out examples."""
    frequencies: np.ndarray
    """[task]."""
    parameters: np.ndarray
    """[network], how many each has."""

    @property
    def means(self) -> np.ndarray:
        """[checkpoint, network], tasks weighed by their frequencies."""
        return np.asarray(self.losses @ self.frequencies)

    @property
    def learned(self) -> np.ndarray:
        """[checkpoint, network], how many tasks are."""
        return np.asarray((self.losses < _LEARNED).sum(axis=2))

    @property
    def half_learned(self) -> np.ndarray:
        """[checkpoint, network, task], whether each is."""
        return np.asarray(self.losses < _HALF * np.log(2))


class SideBySide(nn.Module):
    """Networks of one hidden layer of ReLU that share nothing but the call; logits are [example, network, class].

    The control bits' columns of the first layer are looked up by task, which is their product with a one-hot input.
    """

    def __init__(self, num_tasks: int, num_bits: int, widths: tuple[int, ...], generator: torch.Generator) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        network = torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))
        total, num_inputs = len(network), num_tasks + num_bits
        self.control = nn.Parameter(_uniform(num_inputs, (num_tasks, total), generator))
        self.first = nn.Parameter(_uniform(num_inputs, (num_bits, total), generator))
        self.first_bias = nn.Parameter(_uniform(num_inputs, (total,), generator))
        width = torch.tensor(widths, dtype=torch.float32)[network]
        self.second = nn.Parameter(_uniform(1, (total, 2), generator) * width[:, None].rsqrt())
        self.second_bias = nn.Parameter(torch.zeros(len(widths), 2))
        self.own = nn.functional.one_hot(network).float()

    def forward(self, examples: Examples) -> Tensor:
        bits = examples.inputs[:, self.num_tasks :]
        start = nn.functional.embedding(examples.tasks, self.control)
        hidden = torch.relu(torch.addmm(start, bits, self.first) + self.first_bias)
        spread = (self.own[:, :, None] * self.second[:, None, :]).flatten(1)
        return (hidden @ spread).view(len(hidden), -1, 2) + self.second_bias


def fall(
    seed: int, config: ParityConfig, widths: tuple[int, ...], *, num_training_examples: int | None = None
) -> Falling:
    """Train networks of these widths (`config.width` is not used); same seed, same losses.

    `num_training_examples` is a fixed training set, drawn again and again till the loss on held-out examples has long
    been above its least; None draws fresh examples for every step.
    """
    problem = ParityProblem.draw(seed, config)
    generator = torch.Generator().manual_seed(seed)
    held_out = problem.examples(torch.arange(config.num_tasks).repeat_interleave(config.samples_per_task), generator)
    model = SideBySide(config.num_tasks, config.num_bits, widths, generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    fixed = problem.sample(num_training_examples, generator) if num_training_examples else None
    wanted = np.unique(np.geomspace(20, config.num_steps, config.num_checkpoints).round().astype(int))
    steps, losses = [], []
    for step in range(1, config.num_steps + 1):
        batch = problem.sample(config.batch_size, generator) if fixed is None else _drawn(fixed, config, generator)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(_losses(model, batch).sum() / len(batch.labels))
        optimiser.step()
        if step in wanted:
            steps.append(step)
            losses.append(_by_task(model, held_out, config))
            means = np.array(losses) @ problem.frequencies
            if fixed is not None and (means[-_PATIENCE:] > _WORSE * means.min()).all() and len(means) > _PATIENCE:
                break
    parameters = np.array([width * (config.num_tasks + config.num_bits + 3) + 2 for width in widths])
    return Falling(
        steps=np.array(steps), losses=np.array(losses), frequencies=problem.frequencies, parameters=parameters
    )


def measure_scaling(seed: int, *, quick: bool) -> list[dict[str, object]]:
    """One table row for each α: exponents measured, expected, and the paper's; some five minutes each on one core."""
    rows: list[dict[str, object]] = []
    for alpha in ALPHAS[1:2] if quick else ALPHAS:
        base = ParityConfig(
            num_tasks=20 if quick else 500, num_bits=20, exponent=alpha + 1, num_steps=1_000 if quick else 15_000,
            batch_size=1_000, learning_rate=5e-3, num_checkpoints=80, samples_per_task=64,
        )  # fmt: skip
        widths, sizes = (WIDTHS[:3], EXAMPLES[:2]) if quick else (WIDTHS, EXAMPLES)
        fresh = fall(seed, base, (*widths, LARGE_WIDTH))
        again = [fall(seed, base, (LARGE_WIDTH,), num_training_examples=size) for size in sizes]
        paper = PAPER[alpha]
        rows.append({"α": alpha} | _exponents(fresh, again, sizes) | _by_quantum(fresh, seed))
        rows[-1] |= {
            "α_N paper": paper[0], "α_N theory": alpha, "α_S paper": paper[1], "α_S theory": alpha / (alpha + 1),
            "α_D paper": paper[2], "α_D theory": alpha / (alpha + 1),
        }  # fmt: skip
        print(f"α = {alpha}: done", flush=True)
    return rows


def exponent(scales: np.ndarray, losses: np.ndarray) -> tuple[float, int]:
    """−slope of log loss over log scale by least squares, over the points where the loss has begun to fall; how many.

    NaN for fewer than three.
    """
    counts = losses < _BEGUN * np.log(2)
    if counts.sum() < 3:
        return float("nan"), int(counts.sum())
    return float(-np.polyfit(np.log(scales[counts]), np.log(losses[counts]), 1)[0]), int(counts.sum())


def _exponents(fresh: Falling, again: list[Falling], sizes: tuple[int, ...]) -> dict[str, object]:
    ends = fresh.means[-5:].mean(axis=0)  # the steps at the end are as large as before
    by_size, at_best = [], []
    for run in again:
        best = int(run.means[:, 0].argmin())  # stopped early
        by_size.append(float(run.means[best, 0]))
        at_best.append(int(run.learned[best, 0]))
    found = {
        "α_N": exponent(fresh.parameters[:-1], ends[:-1]),
        "α_S": exponent(fresh.steps, fresh.means[:, -1]),
        "α_D": exponent(np.array(sizes), np.array(by_size)),
    }
    return {
        **{name: value for name, (value, _) in found.items()},
        **{f"points of {name}": count for name, (_, count) in found.items()},
        "losses by width": ends.tolist(),
        "tasks learned by width": fresh.learned[-1].tolist(),
        "losses by steps": fresh.means[:, -1].tolist(),
        "steps": fresh.steps.tolist(),
        "losses by examples": by_size,
        "tasks learned by examples": at_best,
    }


def _by_quantum(fresh: Falling, seed: int) -> dict[str, object]:
    """In which order the tasks come, and whose loss is left at the end; the last network is the large one."""
    half, last = fresh.half_learned, fresh.half_learned[-1]
    stays = np.logical_and.accumulate(half[::-1, -1], axis=0)[::-1]  # half learned from here to the end
    steps = np.where(stays.any(axis=0), fresh.steps[stays.argmax(axis=0)], np.inf)
    above = np.logical_and.accumulate(last[::-1], axis=0)[::-1]  # by this network and all wider ones
    parameters = np.where(above.any(axis=0), fresh.parameters[above.argmax(axis=0)], np.inf)
    found: dict[str, object] = {}
    for name, values in (("steps", steps), ("parameters", parameters)):
        correlation, null, count = order(values, fresh.frequencies, seed)
        found |= {f"order over {name}": correlation, f"null order over {name}": null, f"tasks over {name}": count}
    not_learned = (fresh.losses[-1] * ~last) @ fresh.frequencies
    return found | {"loss of tasks not half learned, by width": (not_learned / fresh.means[-1]).tolist()}


def order(values: np.ndarray, frequencies: np.ndarray, seed: int) -> tuple[float, float, int]:
    """Spearman's correlation with frequency where values are finite, the 1st percentile of shuffles, and how many."""
    known = np.isfinite(values)
    if known.sum() < 4:
        return float("nan"), float("nan"), int(known.sum())
    rng = np.random.default_rng(seed)
    values, weights = values[known], frequencies[known]
    null = [spearmanr(values, rng.permutation(weights)).statistic for _ in range(_NUM_SHUFFLES)]
    return float(spearmanr(values, weights).statistic), float(np.percentile(null, 1)), int(known.sum())


def _drawn(fixed: Examples, config: ParityConfig, generator: torch.Generator) -> Examples:
    picked = torch.randint(0, len(fixed.labels), (config.batch_size,), generator=generator)
    return Examples(
        inputs=fixed.inputs[picked],
        labels=fixed.labels[picked],
        tasks=fixed.tasks[picked],
        patterns=fixed.patterns[picked],
    )


def _losses(model: SideBySide, examples: Examples) -> Tensor:
    """[example, network], nats."""
    logits = model(examples)
    labels = examples.labels[:, None].expand(-1, logits.shape[1])
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(len(labels), -1)


@torch.no_grad()
def _by_task(model: SideBySide, examples: Examples, config: ParityConfig) -> np.ndarray:
    """[network, task], nats."""
    losses = torch.cat([_losses(model, part) for part in _parts(examples)])
    return losses.view(config.num_tasks, config.samples_per_task, -1).mean(1).T.double().numpy()


def _parts(examples: Examples) -> Iterator[Examples]:
    for start in range(0, len(examples.labels), 4_096):
        part = slice(start, start + 4_096)
        yield Examples(
            inputs=examples.inputs[part],
            labels=examples.labels[part],
            tasks=examples.tasks[part],
            patterns=examples.patterns[part],
        )


def _uniform(num_inputs: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """torch's own initialisation of a linear layer: within 1/√inputs."""
    return torch.empty(shape).uniform_(-(num_inputs**-0.5), num_inputs**-0.5, generator=generator)
