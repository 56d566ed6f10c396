"""From a configuration and a model to a plan: blocks, projection, rows per block, and what it will cost."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..attribution.blocks import Coverage, find_blocks
from ..attribution.engine import GradientEngine
from ..attribution.losses import TokenBatch, token_losses
from ..attribution.projection import Projection, TensorSketch, TwoSided
from ..errors import ConfigurationError, NoSpaceError
from .config import RowConfig, SetConfig
from .model import LoadedModel

_CHUNK_BYTES = 16_000_000
_BLOCK_SECONDS = 20
_NOMINAL_RATE = {"cpu": 2e10, "cuda": 1e14}
"""Floating-point operations per second and worker that rows per block are sized for."""
_UNIT_BYTES = 150
"""About what a unit's line in the units and selection files takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a collection would cost."""

    num_units: int
    """Rows, about: as if every token-loss unit were selected, and documents filled their windows."""
    dim: int
    num_bytes: int
    seconds: float
    """At the rate of a batch measured here, over the workers asked for."""


def window_tokens(config: SetConfig, loaded: LoadedModel) -> int:
    """The window length; ConfigurationError if the model's context is shorter."""
    context = loaded.facts.context_tokens
    wanted = config.selection.window_tokens
    if wanted is None:
        return min(context or 1024, 1024)
    if context is not None and wanted > context:
        raise ConfigurationError(
            f"--window-tokens is {wanted}, the model's context is {context} tokens: give at most that."
        )
    return wanted


def make_projection(config: RowConfig, num_blocks: int) -> Projection:
    """The projection that the configuration names; ConfigurationError if there are too few numbers for the blocks."""
    if config.projection == "none":
        return TwoSided.full()
    each = config.dim // num_blocks
    if each < 2:
        raise ConfigurationError(
            f"--dim {config.dim} leaves {each} numbers for each of the model's {num_blocks} blocks; "
            f"give at least {2 * num_blocks}, better {64 * num_blocks}."
        )
    if config.projection == "two-sided":
        return TwoSided(side=int(each**0.5), seed=config.seed)
    return TensorSketch(dim_per_block=each, seed=config.seed)


def make_engine(config: RowConfig, loaded: LoadedModel) -> tuple[GradientEngine[TokenBatch], Projection, Coverage]:
    """The engine for a model under the configuration."""
    coverage = find_blocks(loaded.model, config.blocks)
    if config.require_coverage:
        coverage.require()
    projection = make_projection(config, len(coverage.blocks))
    return GradientEngine(loaded.model, projection, coverage.blocks), projection, coverage


def make_plan(config: SetConfig, loaded: LoadedModel) -> dict[str, Any]:
    """The plan as set.json keeps it, without the units: everything that decides the bytes of the rows."""
    engine, projection, coverage = make_engine(config.rows, loaded)
    _probe(engine)
    device = torch.device(loaded.model.device).type
    length = window_tokens(config, loaded)
    return {
        "unit_type": config.selection.unit_type,
        "window_tokens": length,
        "model": {
            "name": loaded.facts.name,
            "revision": loaded.facts.revision,
            "fingerprint": loaded.fingerprint,
            "num_parameters": sum(p.numel() for p in loaded.model.parameters()),
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
        },
        "loss": "cross-entropy, nats" if config.selection.unit_type == "token-loss" else "mean cross-entropy, nats",
        "selection": config.describe()["selection"],
        "request": {"projection": config.rows.projection, "dim": config.rows.dim, "blocks": config.rows.blocks},
        "projection": projection.describe(),
        "preconditioner": "none",
        "dim": engine.dim,
        "blocks": [
            {
                "name": b.name,
                "modules": list(b.modules),
                "parameters": list(b.parameters),
                "first_column": c.start,
                "last_column": c.stop - 1,
            }
            for b, c in zip(engine.blocks, engine.columns, strict=True)
        ],
        "coverage": {
            "covered_share": coverage.covered_share,
            "left_out": coverage.left_out,
            "uncovered": coverage.uncovered,
        },
        "rows_per_block": config.rows.rows_per_block or _rows_per_block(engine, loaded, length, device),
        "batch_tokens": config.rows.batch_tokens or (512 if device == "cpu" else 16_384),
        "threads_per_worker": config.rows.threads_per_worker,
        "device_type": device,
    }


def estimate(config: SetConfig, loaded: LoadedModel, *, num_tokens: int, num_workers: int) -> Estimate:
    """Rows, bytes and seconds, by timing one batch here. `num_tokens` is the data's size."""
    plan = make_plan(config, loaded)
    selection = config.selection
    length = plan["window_tokens"]
    scanned = min(num_tokens, selection.scan_tokens or num_tokens)
    num_windows = max(1, scanned // length)
    most = num_windows if selection.unit_type == "window" else scanned
    if selection.max_per_window and selection.unit_type == "token-loss":
        most = min(most, num_windows * selection.max_per_window)
    num_units = min(most, selection.max_units or most)
    seconds_per_unit = _time_batch(config, loaded, length=length, batch_tokens=plan["batch_tokens"])
    scan_seconds = seconds_per_unit * num_windows / 2 if selection.unit_type == "token-loss" else 0.0
    return Estimate(
        num_units=num_units,
        dim=plan["dim"],
        num_bytes=num_units * unit_bytes(plan),
        seconds=(seconds_per_unit * num_units + scan_seconds) / num_workers,
    )


def unit_bytes(plan: dict[str, Any]) -> int:
    """What one unit takes on disk: its row, block norms, and its lines in selection and units."""
    return int(2 * plan["dim"] + 4 * len(plan["blocks"]) + _UNIT_BYTES)


def require_space(needed_bytes: int, free_bytes: int, where: str) -> None:
    """NoSpaceError, before anything is computed, if the rows cannot fit."""
    if needed_bytes > free_bytes:
        raise NoSpaceError(
            f"The rows take {needed_bytes / 1e9:.2f} GB, {where} has {free_bytes / 1e9:.2f} GB free: "
            "give a smaller --max-units or --dim, or another --out."
        )


def _rows_per_block(engine: GradientEngine[TokenBatch], loaded: LoadedModel, length: int, device: str) -> int:
    """As many as fit in 16 MB and about 20 s at a nominal rate; never measured, so that a plan is the same anywhere."""
    operations = 4 * sum(p.numel() for p in loaded.model.parameters()) * length
    by_time = _BLOCK_SECONDS * _NOMINAL_RATE.get(device, 2e10) / operations
    by_size = _CHUNK_BYTES / (2 * engine.dim)
    return int(np.clip(min(by_time, by_size), 8, 65_536))


def _probe(engine: GradientEngine[TokenBatch]) -> None:
    """Rows of a tiny batch: a model that the engine refuses is refused before any long work."""
    ids = torch.zeros(2, 3, dtype=torch.long, device=engine.device)
    example = torch.arange(2, device=engine.device)
    engine.rows(TokenBatch(ids=ids, example=example, position=example + 1), token_losses, example)


def _time_batch(config: SetConfig, loaded: LoadedModel, *, length: int, batch_tokens: int) -> float:
    """Seconds per unit of one full batch, the better of two."""
    engine, _, _ = make_engine(config.rows, loaded)
    num_windows = max(1, batch_tokens // length)
    example = torch.arange(num_windows, device=loaded.model.device)
    batch = TokenBatch(
        ids=torch.zeros(num_windows, length, dtype=torch.long, device=loaded.model.device),
        example=example,
        position=torch.full_like(example, length - 1),
    )
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        engine.rows(batch, token_losses, example).rows.sum().item()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / num_windows
