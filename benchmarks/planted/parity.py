"""Multitask sparse parity: a network that has to learn several independent skills, of known frequencies.

The toy of Michaud et al. (arXiv 2303.13506, section 3). An example has one control bit set, which names its task, and
`num_bits` random bits; its label is the parity of the k bits that belong to that task. Task i (from 1) is drawn with
probability ∝ i^−(α+1). The network has one hidden layer of ReLU, and learns by Adam with a linear decay.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityConfig:
    """The tasks, the network and its training."""

    num_tasks: int = 8
    num_bits: int = 24
    subset_size: int = 3
    """Bits that a task's parity is taken of (k)."""
    exponent: float = 1.2
    """α + 1: task i is used ∝ i^−exponent."""
    width: int = 256
    """Hidden units."""
    num_steps: int = 6_000
    batch_size: int = 1_000
    learning_rate: float = 3e-3
    """Adam's at the start; it falls linearly to zero where `decay` is on."""
    decay: bool = True
    num_checkpoints: int = 60
    """At equal distances, from the first step to the last."""
    samples_per_task: int = 256
    """Held-out examples of each task for the curves."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """A batch of parity examples."""

    inputs: Tensor
    """[example, num_tasks + num_bits], float32, 0 or 1."""
    labels: Tensor
    """[example], 0 or 1."""
    tasks: Tensor
    """[example]."""
    patterns: Tensor
    """[example]: the task's own bits as a number below 2^k."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParityProblem:
    """Which bits belong to which task."""

    config: ParityConfig
    subsets: np.ndarray
    """[task, k], the bits of each task."""
    frequencies: np.ndarray
    """[task], falling, sums to 1."""

    @classmethod
    def draw(cls, seed: int, config: ParityConfig) -> "ParityProblem":
        """Distinct subsets of the bits, drawn by the seed."""
        rng = np.random.default_rng(seed)
        chosen: list[tuple[int, ...]] = []
        while len(chosen) < config.num_tasks:
            subset = tuple(sorted(rng.choice(config.num_bits, config.subset_size, replace=False).tolist()))
            if subset not in chosen:
                chosen.append(subset)
        weights = np.arange(1, config.num_tasks + 1, dtype=np.float64) ** -config.exponent
        return cls(config=config, subsets=np.array(chosen), frequencies=weights / weights.sum())

    def examples(self, tasks: Tensor, generator: torch.Generator) -> Examples:
        """One example of each of these tasks, with fresh random bits."""
        config = self.config
        bits = torch.randint(0, 2, (len(tasks), config.num_bits), generator=generator)
        own = bits.gather(1, torch.from_numpy(self.subsets)[tasks])
        powers = 2 ** torch.arange(config.subset_size)
        control = nn.functional.one_hot(tasks, config.num_tasks)
        return Examples(
            inputs=torch.cat([control, bits], dim=1).float(),
            labels=own.sum(1) % 2,
            tasks=tasks,
            patterns=(own * powers).sum(1),
        )

    def sample(self, count: int, generator: torch.Generator) -> Examples:
        """Examples whose tasks follow the frequencies."""
        weights = torch.from_numpy(self.frequencies)
        return self.examples(torch.multinomial(weights, count, replacement=True, generator=generator), generator)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParityRun:
    """A trained network, and when it learned what."""

    problem: ParityProblem
    model: nn.Sequential
    steps: np.ndarray
    """[checkpoint], training steps done, rising; the first is 0."""
    losses: np.ndarray
    """[checkpoint, subtask], mean cross-entropy in nats on held-out examples; log 2 before it is learned."""

    @property
    def mean_losses(self) -> np.ndarray:
        """[checkpoint], nats, subtasks weighted by their frequencies."""
        return self.losses @ self.problem.frequencies


def train_parity(seed: int, config: ParityConfig | None = None) -> ParityRun:
    """Draw the tasks, train the network, and measure every subtask at each checkpoint; same seed, same run.

    Some 10 s for the default configuration on one thread. torch's own random state is left as it was.
    """
    config = config or ParityConfig()
    problem = ParityProblem.draw(seed, config)
    generator = torch.Generator().manual_seed(seed)
    held_out = problem.examples(torch.arange(config.num_tasks).repeat_interleave(config.samples_per_task), generator)
    model = _network(config, generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    wanted = np.unique(np.linspace(0, config.num_steps, config.num_checkpoints).round().astype(int))
    losses = [_by_task(model, held_out, config)]
    for step in range(1, config.num_steps + 1):
        if config.decay:
            optimiser.param_groups[0]["lr"] = config.learning_rate * (1 - (step - 1) / config.num_steps)
        batch = problem.sample(config.batch_size, generator)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(cross_entropy(model(batch.inputs), batch.labels))
        optimiser.step()
        if step in wanted:
            losses.append(_by_task(model, held_out, config))
    return ParityRun(problem=problem, model=model.eval().requires_grad_(False), steps=wanted, losses=np.array(losses))


def _network(config: ParityConfig, generator: torch.Generator) -> nn.Sequential:
    """torch's own initialisation (uniform within 1/√inputs), drawn from the generator."""
    with torch.random.fork_rng(devices=[]):  # modules draw from torch's own state before they are filled here
        model = nn.Sequential(
            nn.Linear(config.num_tasks + config.num_bits, config.width), nn.ReLU(), nn.Linear(config.width, 2)
        )
    with torch.no_grad():
        for layer in (model[0], model[2]):
            bound = layer.in_features**-0.5
            for parameter in layer.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
    return model


@torch.no_grad()
def _by_task(model: nn.Module, examples: Examples, config: ParityConfig) -> np.ndarray:
    losses = cross_entropy(model(examples.inputs), examples.labels, reduction="none")
    return losses.view(config.num_tasks, config.samples_per_task).mean(1).double().numpy()
