"""How much of a row's geometry each projection keeps: error of cosines between real token-loss gradients, against D.

Real rows: token losses of a model trained for some seconds on the standard library (`--model FOLDER` for another, the
demonstration's checkpoint for instance). The dense count sketches form each gradient in full: per block, as rows are
stored, the mark to reach; of the whole gradient at once, what equal shares of D for unequal blocks cost.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from result import Bar, arguments, finish

from quantascope.api.demo.corpus import read_corpus, write_corpus
from quantascope.api.demo.recipe import TrainingConfig
from quantascope.api.demo.training import train_model
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import TokenBatch, token_losses
from quantascope.attribution.projection import Projection, TensorSketch, TwoSided
from quantascope.attribution.randomness import random_signs, random_words
from quantascope.jobs.model import ModelSource, load_model


def real_batches(folder: Path, corpus: Path, num_units: int, seed: int) -> tuple[torch.nn.Module, list[TokenBatch]]:
    """One low-loss token of each of as many windows, eight windows to a batch."""
    loaded = load_model(ModelSource(model=str(folder)))
    length = min(128, loaded.facts.context_tokens or 128)
    texts = [data.decode() for data in read_corpus(corpus).values()]
    ids = np.concatenate([loaded.tokenizer(text)["input_ids"] for text in texts])
    windows = torch.from_numpy(ids[: len(ids) // length * length].reshape(-1, length).astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(windows)))[:num_units]
    batches = []
    for part in torch.split(windows[order], 8):
        example, position = torch.meshgrid(torch.arange(len(part)), torch.arange(16, length), indexing="ij")
        every = TokenBatch(ids=part, example=example.flatten(), position=position.flatten())
        with torch.no_grad():
            losses = token_losses(loaded.model, every).reshape(len(part), -1)
        low = losses.argsort(dim=1)[:, 3]  # among the lowest, without being the most trivial
        batches.append(TokenBatch(ids=part, example=torch.arange(len(part)), position=low + 16))
    return loaded.model, batches


def cosines(rows: torch.Tensor) -> torch.Tensor:
    unit = rows / rows.norm(dim=1, keepdim=True)
    first, second = torch.triu_indices(len(rows), len(rows), offset=1)
    return (unit @ unit.T).double()[first, second]


def collect(model: torch.nn.Module, projection: Projection, batches: list[TokenBatch]) -> torch.Tensor:
    engine = GradientEngine[TokenBatch](model, projection)
    return torch.cat([engine.rows(b, token_losses, b.example).rows for b in batches])


def dense_count_sketch(full: torch.Tensor, dim: int, name: str) -> torch.Tensor:
    signs = torch.from_numpy(random_signs(0, name, "sign", full.shape[1]))
    buckets = torch.from_numpy((random_words(0, name, "bucket", full.shape[1]) % dim).astype(np.int64))
    return full.new_zeros(len(full), dim).index_add_(1, buckets, full * signs)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", help="a model folder; without it one is trained for 18 s")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus"
        write_corpus(corpus, max_bytes=1_500_000)
        folder = Path(options.model) if options.model else None
        if folder is None:
            folder = train_model(TrainingConfig.quick(), corpus, Path(scratch) / "model").checkpoints[-1]
        model, batches = real_batches(folder, corpus, 96 if options.quick else 240, options.seed)
    full = collect(model, TwoSided.full(), batches)
    true = cosines(full)
    columns = GradientEngine[TokenBatch](model, TwoSided.full()).columns
    num_blocks = len(columns)
    names = ("two-sided", "tensor sketch", "dense, per block", "dense, whole")
    rows, worst = [], 0.0
    for side in (4, 8, 16, 32):
        dim = num_blocks * side**2
        errors: dict[str, list[float]] = {name: [] for name in names}
        correlation: dict[str, list[float]] = {name: [] for name in names}
        for seed in range(options.seed, options.seed + (2 if options.quick else 5)):
            made = {
                "two-sided": collect(model, TwoSided(side=side, seed=seed), batches),
                "tensor sketch": collect(model, TensorSketch(dim_per_block=side**2, seed=seed), batches),
                "dense, per block": torch.cat(
                    [dense_count_sketch(full[:, c], side**2, f"{seed} {i}") for i, c in enumerate(columns)], dim=1
                ),
                "dense, whole": dense_count_sketch(full, dim, f"{seed}"),
            }
            for name, projected in made.items():
                found = cosines(projected)
                errors[name].append(float((found - true).square().mean().sqrt()))
                correlation[name].append(float(torch.corrcoef(torch.stack([found, true]))[0, 1]))
        for name in errors:
            rows.append(
                {
                    "projection": name,
                    "D": dim,
                    "RMS error of cosines": float(np.mean(errors[name])),
                    "correlation": float(np.mean(correlation[name])),
                }
            )
        worst = max(worst, float(np.mean(errors["tensor sketch"]) / np.mean(errors["dense, per block"])))
    bar = Bar(name="tensor sketch's error over the dense per block's", value=worst, limit=1.05, holds=worst <= 1.05)
    finish("projection", ["projection", "D", "RMS error of cosines", "correlation"], rows, [bar], options)


if __name__ == "__main__":
    main()
