"""How the loss of multitask sparse parity falls with parameters, training steps and training examples.

The Quantization Model (arXiv 2303.13506, section 2) says: with tasks used ∝ k^−(α+1), the loss falls with exponents
α_N = α in parameters, α_S = α/(α+1) in steps of one pass, and α_D = α/(α+1) in examples. What the paper measured on its
toy (500 tasks, 200,000 steps of 20,000 examples; its notebooks) lies beside.
"""

import numpy as np

from .parity import ParityConfig, ParityRun, train_parity

ALPHAS = (0.2, 0.4, 0.6)
PAPER = {0.2: (0.269, 0.267, None), 0.4: (0.332, 0.346, 0.308), 0.6: (0.467, 0.448, None)}
"""α_N, α_S and α_D that the paper's notebooks show, where they do."""
WIDTHS = (8, 12, 18, 27, 40, 60, 90)
EXAMPLES = (1_000, 2_000, 4_000, 8_000, 16_000, 32_000)
LARGE_WIDTH = 256


def measure_scaling(seed: int, *, quick: bool) -> list[dict[str, object]]:
    """One table row for each α: exponents measured, expected, and the paper's; about 20 s for each of 14 networks."""
    rows: list[dict[str, object]] = []
    for alpha in ALPHAS[1:2] if quick else ALPHAS:
        base = {"num_tasks": 20, "num_bits": 40, "num_steps": 1_000} if quick else {}
        widths, sizes = (WIDTHS[:3], EXAMPLES[:2]) if quick else (WIDTHS, EXAMPLES)
        large = train_parity(seed, _config(alpha, width=LARGE_WIDTH, **base))
        by_width = [train_parity(seed, _config(alpha, width=width, **base)) for width in widths]
        by_examples = [
            train_parity(seed, _config(alpha, width=LARGE_WIDTH, num_training_examples=size, **base)) for size in sizes
        ]
        paper = PAPER[alpha]
        rows.append(
            {
                "α": alpha,
                "α_N": exponent([_num_parameters(run) for run in by_width], [_final(run) for run in by_width]),
                "α_N paper": paper[0],
                "α_N theory": alpha,
                "α_S": _steps_exponent(large),
                "α_S paper": paper[1],
                "α_S theory": alpha / (alpha + 1),
                "α_D": exponent(sizes, [float(run.mean_losses.min()) for run in by_examples]),
                "α_D paper": paper[2],
                "α_D theory": alpha / (alpha + 1),
                "losses by width": [_final(run) for run in by_width],
                "losses by examples": [float(run.mean_losses.min()) for run in by_examples],
                "tasks learned": int((large.losses[-1] < 0.1).sum()),
            }
        )
    return rows


def exponent(scales: list[int] | tuple[int, ...], losses: list[float]) -> float:
    """−slope of log loss over log scale by least squares, over the points where the loss has begun to fall.

    A loss within 2 % of log 2 says that nothing was learned yet. NaN for fewer than two such points.
    """
    x, y = np.log(np.asarray(scales, dtype=np.float64)), np.log(np.asarray(losses, dtype=np.float64))
    counts = y < np.log(0.98 * np.log(2))
    if counts.sum() < 2:
        return float("nan")
    return float(-np.polyfit(x[counts], y[counts], 1)[0])


def _config(
    alpha: float,
    *,
    width: int,
    num_training_examples: int | None = None,
    num_tasks: int = 100,
    num_bits: int = 100,
    num_steps: int = 8_000,
) -> ParityConfig:
    return ParityConfig(
        num_tasks=num_tasks,
        num_bits=num_bits,
        num_steps=num_steps,
        exponent=alpha + 1,
        width=width,
        num_training_examples=num_training_examples,
        batch_size=1_000,
        learning_rate=2e-3,
        decay=False,
        num_checkpoints=80,
        samples_per_task=128,
    )


def _final(run: ParityRun) -> float:
    """Mean of the last five checkpoints: the steps at the end are as large as before."""
    return float(run.mean_losses[-5:].mean())


def _num_parameters(run: ParityRun) -> int:
    return sum(parameter.numel() for parameter in run.model.parameters())


def _steps_exponent(run: ParityRun) -> float:
    """Over the checkpoints between the first task's fall and the last one's."""
    falling = (run.mean_losses < 0.9 * np.log(2)) & ((run.losses > 0.1).sum(axis=1) > 5)
    chosen = np.flatnonzero(falling)
    return exponent(run.steps[chosen].tolist(), run.mean_losses[chosen].tolist())
