"""The demonstration's model over its training: units, gradient rows, activations and loss curves, in arrays.

Corpus (the standard library's sources), recipe and training are the demonstration's own, and so is the cache: what
`quantascope demo` trained is found there (seed 0), and what is missing is trained. Other seeds have other initial
weights and another order of the data, and a fixed number of steps, so that a busy machine gives the same models. The
same recipe also trains models of English, on the prose of installed packages' docstrings (english.py).
"""

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from english import docstring_files
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from quantascope import __version__
from quantascope.api.demo.corpus import read_corpus, write_corpus, write_files
from quantascope.api.demo.recipe import TrainingConfig
from quantascope.api.demo.training import TrainingResult, read_training, train_model
from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine, Losses
from quantascope.attribution.losses import TokenBatch, token_losses, token_margins
from quantascope.attribution.preconditioning.kronecker import Kronecker
from quantascope.attribution.preconditioning.measure import FactorMeter
from quantascope.attribution.projection import Projection, TensorSketch
from quantascope.attribution.selection import ends_seen_trigram, low_loss, thin

WINDOW = 96
"""Tokens of a window; shorter than in training, so that a step and its effects can be measured often."""
BLOCK = 256
"""Numbers of each block in a row."""
SEED_STEPS = 300
SEED_CHECKPOINTS = 12
_BATCH = 16
_LEAST_LOSS = 1e-4
logging.disable_progress_bar()

Where = tuple[np.ndarray, np.ndarray]
"""Window and position of each unit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Units:
    """Token losses of one trained model."""

    ids: np.ndarray
    """[window, WINDOW]."""
    window: np.ndarray
    """[unit]."""
    position: np.ndarray
    """[unit], at least 1."""
    document: np.ndarray
    """[unit], the file."""
    curves: np.ndarray
    """[unit, checkpoint], log losses, clipped at 1e-4 nats."""
    rows: np.ndarray
    """[unit, dim], raw projected gradients of all blocks."""
    margin_rows: np.ndarray
    """[unit, dim], the same of margins instead of losses (attribution/learning/margin.py)."""
    kinds: np.ndarray
    """[dim], 0 for a column of the paper's blocks, 1 for the others."""
    layers: np.ndarray
    """[dim], the layer that a column's block lies in, −1 for none."""
    activations: np.ndarray
    """[layer, unit, width]: the residual stream before each layer, and last after the final norm."""

    @property
    def target(self) -> np.ndarray:
        """[unit], the predicted token."""
        return np.asarray(self.ids[self.window, self.position])

    @property
    def previous(self) -> np.ndarray:
        """[unit], the token before it."""
        return np.asarray(self.ids[self.window, self.position - 1])

    def contexts(self, length: int) -> list[np.ndarray]:
        """The `length` tokens before each unit, fewer at a window's start."""
        return [
            self.ids[w, max(p - length, 0) : p]
            for w, p in zip(self.window.tolist(), self.position.tolist(), strict=True)
        ]

    def batch(self, units: np.ndarray) -> TokenBatch:
        """The windows of some units, each once, cut off after the last position that is asked for."""
        windows, example = np.unique(self.window[units], return_inverse=True)
        length = int(self.position[units].max()) + 1
        return TokenBatch(
            ids=torch.from_numpy(self.ids[windows, :length]),
            example=torch.from_numpy(example.reshape(-1)),
            position=torch.from_numpy(self.position[units]),
        )


def trained(cache: Path, seed: int, *, quick: bool, language: str = "python") -> tuple[TrainingResult, Path]:
    """The model of a seed and its corpus; trained where the cache lacks it."""
    home = cache / f"demo{'-quick' if quick else ''}-{__version__}-python-{platform.python_version()}"
    home.mkdir(parents=True, exist_ok=True)
    is_python = language == "python"
    corpus = home / ("corpus" if is_python else "english")
    if is_python:
        write_corpus(corpus, max_bytes=1_500_000 if quick else None)
    elif not corpus.is_dir():
        write_files(corpus, docstring_files(max_bytes=1_000_000 if quick else 5_000_000))
    if is_python and seed == 0 and not quick and (home / "python-stdlib").is_dir():
        return read_training(home / "python-stdlib"), corpus
    if quick:
        base = TrainingConfig.quick()
        recipe = TrainingConfig(
            vocabulary_size=base.vocabulary_size, width=base.width, num_layers=base.num_layers,
            window_tokens=base.window_tokens, batch_windows=base.batch_windows, num_steps=60, seed=seed,
        )  # fmt: skip
    elif is_python and seed == 0:
        recipe = TrainingConfig()
    else:
        recipe = TrainingConfig(num_steps=SEED_STEPS, num_checkpoints=SEED_CHECKPOINTS, seed=seed)
    name = "python-stdlib" if is_python else "docstrings"
    name += f"-seed-{seed}" if seed or quick or not is_python else ""
    return train_model(recipe, corpus, home / name), corpus


def load(folder: Path) -> Any:  # noqa: ANN401 - transformers is untyped
    """A checkpoint, frozen, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def collect(result: TrainingResult, corpus: Path, *, seed: int, num_units: int, max_loss: float = 0.2) -> Units:
    """Low-loss tokens of the files that the model was trained on, and everything that is known of them.

    Windows are drawn by the seed; at most 8 units of each, none that ends a trigram seen before in its window.
    """
    model = load(result.checkpoints[-1])
    ids, documents = _windows(result, corpus, seed, count=max(40, num_units // 4))
    losses = np.concatenate([_window_losses(model, part) for part in _parts(ids)])
    window, position = [], []
    for index, own in enumerate(losses):
        found = low_loss(own, ends_seen_trigram(ids[index].astype(np.int32)), max_loss=max_loss)
        window.append(np.full(len(found), index))
        position.append(found)
    kept = thin(np.concatenate(window), max_per_window=8, max_units=num_units)
    where = (np.concatenate(window)[kept], np.concatenate(position)[kept])
    curves = [np.log(np.maximum(_at(load(c), ids, where), _LEAST_LOSS)) for c in result.checkpoints]
    rows, kinds, layers = rows_of(model, ids, where)
    margin_rows, _, _ = rows_of(model, ids, where, token_margins)
    return Units(
        ids=ids, window=where[0], position=where[1], document=documents[where[0]],
        curves=np.stack(curves, axis=1), rows=rows, margin_rows=margin_rows, kinds=kinds, layers=layers,
        activations=activations_of(model, ids, where),
    )  # fmt: skip


def cached_units(
    cache: Path, seed: int, *, num_units: int, quick: bool, language: str = "python"
) -> tuple[Units, TrainingResult]:
    """`collect`, kept in the cache under what it depends on."""
    result, corpus = trained(cache, seed, quick=quick, language=language)
    path = cache / "learned-together" / f"2-{result.fingerprint[:12]}-{seed}-{num_units}.npz"
    names = list(Units.__dataclass_fields__)
    if path.is_file():
        with np.load(path) as stored:
            return Units(**{name: stored[name] for name in names}), result
    units = collect(result, corpus, seed=seed, num_units=num_units, max_loss=2.0 if quick else 0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **{name: getattr(units, name) for name in names})
    partial.replace(path)
    return units, result


def _windows(result: TrainingResult, corpus: Path, seed: int, *, count: int) -> tuple[np.ndarray, np.ndarray]:
    tokenizer = AutoTokenizer.from_pretrained(result.folder / result.checkpoints[-1].name)
    held_out = set(result.held_out_names)
    texts = [text.decode() for name, text in sorted(read_corpus(corpus).items()) if name not in held_out]
    encoded = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    windows, documents = [], []
    for document, encoding in enumerate(encoded):
        tokens = np.array(encoding.ids, np.int64)
        starts = range(0, len(tokens) - WINDOW + 1, WINDOW)
        windows += [tokens[start : start + WINDOW] for start in starts]
        documents += [document] * len(starts)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(windows))[:count])
    return np.stack([windows[i] for i in chosen]), np.array(documents)[chosen]


def _parts(ids: np.ndarray) -> Iterator[Tensor]:
    for start in range(0, len(ids), _BATCH):
        yield torch.from_numpy(ids[start : start + _BATCH])


@torch.no_grad()
def _window_losses(model: Any, ids: Tensor) -> np.ndarray:  # noqa: ANN401 - transformers is untyped
    """[window, position]; infinite at the first position, which nothing predicts."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    found = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return np.pad(found.view(len(ids), -1).numpy(), ((0, 0), (1, 0)), constant_values=np.inf)


def _at(model: Any, ids: np.ndarray, where: Where) -> np.ndarray:  # noqa: ANN401 - transformers is untyped
    used, window = np.unique(where[0], return_inverse=True)
    losses = np.concatenate([_window_losses(model, part) for part in _parts(ids[used])])
    return np.asarray(losses[window.reshape(-1), where[1]])


@torch.no_grad()
def activations_of(model: Any, ids: np.ndarray, where: Where) -> np.ndarray:  # noqa: ANN401 - transformers is untyped
    """Where the prediction is made: one position before the token."""
    used, window = np.unique(where[0], return_inverse=True)
    parts = [
        torch.stack(model(input_ids=part, use_cache=False, output_hidden_states=True).hidden_states).numpy()
        for part in _parts(ids[used])
    ]
    return np.ascontiguousarray(np.concatenate(parts, axis=1)[:, window.reshape(-1), where[1] - 1])


def rows_of(
    model: Any,  # noqa: ANN401 - transformers is untyped
    ids: np.ndarray,
    where: Where,
    losses: Losses[TokenBatch] = token_losses,
    preconditioned: Callable[[Projection], Projection] | None = None,
    *,
    projection_seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of all blocks, BLOCK numbers for each, and which set and layer each column belongs to."""
    projection: Projection = TensorSketch(dim_per_block=BLOCK, seed=projection_seed)
    blocks = find_blocks(model, "all").blocks
    engine = GradientEngine[TokenBatch](model, preconditioned(projection) if preconditioned else projection, blocks)
    paper = {block.name for block in find_blocks(model, "paper").blocks}
    kinds, layers = np.empty(engine.dim, np.int8), np.empty(engine.dim, np.int8)
    for block, columns in zip(blocks, engine.columns, strict=True):
        kinds[columns] = block.name not in paper
        numbers = [int(part) for part in block.name.split(".") if part.isdecimal()]
        layers[columns] = numbers[0] if numbers else -1
    rows = np.empty((len(where[0]), engine.dim), np.float32)
    for units, batch in batches_of(ids, where):
        rows[units] = engine.rows(batch, losses, batch.example, num_examples=len(batch.ids)).rows.numpy()
    return rows, kinds, layers


def batches_of(ids: np.ndarray, where: Where) -> Iterator[tuple[np.ndarray, TokenBatch]]:
    """Units and their batch, 16 windows at a time."""
    used = np.unique(where[0])
    for start in range(0, len(used), _BATCH):
        windows = used[start : start + _BATCH]
        units = np.flatnonzero(np.isin(where[0], windows))
        yield (
            units,
            TokenBatch(
                ids=torch.from_numpy(ids[windows]),
                example=torch.from_numpy(np.searchsorted(windows, where[0][units])),
                position=torch.from_numpy(where[1][units]),
            ),
        )


def kronecker(
    model: Any,  # noqa: ANN401 - transformers is untyped
    ids: np.ndarray,
    where: Where,
    losses: Losses[TokenBatch],
) -> Callable[[Projection], Projection]:
    """K-FAC's whitening of these gradients, its factors measured on the first 128 windows."""
    meter = FactorMeter[TokenBatch](model, find_blocks(model, "all").blocks)
    for _, (_, batch) in zip(range(8), batches_of(ids, where), strict=False):
        meter.add(batch, losses, batch.example, num_examples=len(batch.ids))
    factors = meter.factors()
    return lambda base: Kronecker(base=base, factors=factors)
