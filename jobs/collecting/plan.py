"""From a configuration and a model to a plan: blocks, projection, rows per block, and what it will cost."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...attribution.blocks import Block, Coverage, find_blocks
from ...attribution.energy import energy_shares
from ...attribution.engine import GradientEngine
from ...attribution.losses import TokenBatch, mean_losses, token_losses
from ...attribution.projection import Identity, Pair, Projection
from ...attribution.projection.describe import from_description
from ...attribution.projection.split import split_dim
from ...errors import ConfigurationError, NoSpaceError
from ..models.model import LoadedModel
from .batch_size import find_batch_tokens
from .block_time import bounded_rows, nominal_seconds
from .config import MARGIN, PAIR, RowConfig, SetConfig, UnitType
from .precondition import Factors, kept_moments, preconditioned

_CHUNK_BYTES = 16_000_000
_UNIT_BYTES = 150
"""About what a unit's line in the units and selection files takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a collection would cost."""

    num_units: int
    """Rows, about: as if every token-loss unit were selected, documents filled their windows, and every document (or
    group) had as many tokens as a window."""
    dim: int
    num_bytes: int
    seconds: float
    """At the rate of a batch measured here, over the workers asked for."""


def window_tokens(config: SetConfig, loaded: LoadedModel) -> int:
    """The window length; ConfigurationError if the model's context is shorter."""
    context = loaded.facts.context_tokens
    wanted = config.selection.window_tokens
    if wanted is None:
        reads_whole = config.selection.unit_type in ("document", "span")
        return context or 1024 if reads_whole else min(context or 1024, 1024)
    if context is not None and wanted > context:
        raise ConfigurationError(
            f"--window-tokens is {wanted}, the model's context is {context} tokens: give at most that."
        )
    return wanted


def make_projection(config: RowConfig, loaded: LoadedModel, blocks: tuple[Block, ...]) -> Projection:
    """The projection that the configuration names; ConfigurationError if there are too few numbers for the blocks."""
    if config.shares == "energy" and config.precondition == "none" and config.projection != "none":
        shares = energy_shares(loaded.model, blocks, vocab_size=loaded.model.config.vocab_size)
        return shared_projection(config, blocks, shares)
    return shared_projection(config, blocks)


def shared_projection(config: RowConfig, blocks: tuple[Block, ...], shares: np.ndarray | None = None) -> Projection:
    """The projection for blocks with these shares of the numbers, or those that their sizes alone decide."""
    if config.projection == "none":
        return Identity()
    sizes = [b.numel for b in blocks]
    if shares is None:
        shares = np.array(np.ones(len(sizes)) if config.shares == "equal" else sizes, np.float64)
    if config.projection.startswith(PAIR):
        dims = _dims(config, config.dim // 2, shares, sizes)
        kind = config.projection.removeprefix(PAIR)
        return Pair(members=tuple(_projection(kind, dims, seed=2 * config.seed + number) for number in range(2)))
    return _projection(config.projection, _dims(config, config.dim, shares, sizes), seed=config.seed)


def _dims(config: RowConfig, dim: int, shares: np.ndarray, sizes: Sequence[int]) -> tuple[int, ...]:
    """Numbers of each block; one that has fewer itself is kept as it is."""
    return (dim,) * len(sizes) if config.shares == "each" else split_dim(dim, shares, sizes)


def _projection(name: str, dims: tuple[int, ...], *, seed: int) -> Projection:
    kind, _, factors = name.partition("two-sided-")
    description: dict[str, Any] = {"kind": kind or "two-sided", "dim_per_block": list(dims), "seed": seed}
    more: dict[str, dict[str, Any]] = {
        "two-sided": {"factors": factors or "rademacher"},
        "wide": {"side_factor": 4},
        "sparse-jl": {"nonzeros": 1},
    }
    return from_description(description | more.get(description["kind"], {}))


def make_engine(
    config: RowConfig,
    loaded: LoadedModel,
    planned: dict[str, Any] | None = None,
    factors: Factors | None = None,
) -> tuple[GradientEngine[TokenBatch], Projection, Coverage]:
    """The engine for a model under the configuration, proved on a tiny batch; and the projection without `factors`.

    `planned` is the projection's description in an existing plan, which is then taken as it stands.
    """
    coverage = find_blocks(loaded.model, config.blocks)
    if config.require_coverage:
        coverage.require()
    projection = from_description(planned) if planned else make_projection(config, loaded, coverage.blocks)
    engine = GradientEngine[TokenBatch](
        loaded.model,
        preconditioned(projection, factors),
        coverage.blocks,
        checkpoint_activations=config.checkpoint_activations,
    )
    _prove(engine, loaded)
    return engine, projection, coverage


def make_plan(config: SetConfig, loaded: LoadedModel, earlier: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The plan as set.json keeps it, without the units: everything that decides the bytes of the rows.

    `earlier` are plans of the same run: where one was asked for with the same words, of the same weights, its
    projection stands, whatever this machine would have measured; and where it has the same units, its batches and
    the size of its blocks too.
    """
    request = {
        name: getattr(config.rows, name) for name in ("projection", "dim", "shares", "seed", "precondition", "blocks")
    }
    alike = [p for p in earlier if p["request"] == request and p["model"]["fingerprint"] == loaded.fingerprint]
    engine, projection, coverage = make_engine(config.rows, loaded, alike[0]["projection"] if alike else None)
    device = torch.device(loaded.model.device).type
    length = window_tokens(config, loaded)
    units = {"unit_type": config.selection.unit_type, "window_tokens": length, "device_type": device}
    before: dict[str, Any] = next((p for p in alike if units.items() <= p.items()), {})
    plan = {
        "unit_type": config.selection.unit_type,
        "window_tokens": length,
        "model": {
            "name": loaded.facts.name,
            "revision": loaded.facts.revision,
            "fingerprint": loaded.fingerprint,
            "num_parameters": sum(p.numel() for p in loaded.model.parameters()),
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
        },
        "loss": _loss_name(config),
        "selection": config.describe()["selection"],
        "request": request,
        "projection": projection.describe(),
        "preconditioner": config.rows.precondition,
        "dim": engine.dim,
        "blocks": [
            {
                "name": b.name,
                "kind": b.kind,
                "found_by": engine.route.way(i),
                "modules": list(b.modules),
                "parameters": list(b.parameters),
                "first_column": c.start,
                "last_column": c.stop - 1,
            }
            for i, (b, c) in enumerate(zip(engine.blocks, engine.columns, strict=True))
        ],
        "coverage": {
            "covered_share": coverage.covered_share,
            "left_out": coverage.left_out,
            "uncovered": coverage.uncovered,
        },
        "rows_per_block": config.rows.rows_per_block
        or before.get("rows_per_block")
        or _rows_per_block(engine, loaded, length, device, unit_type=config.selection.unit_type),
        "batch_tokens": config.rows.batch_tokens or before.get("batch_tokens") or _batch_tokens(config, engine, length),
        "threads_per_worker": config.rows.threads_per_worker,
        "device_type": device,
    }
    if config.rows.precondition == "second-moment":
        kept, errors = kept_moments(loaded, engine.blocks, plan)
        plan["second_moment"] = {"epsilon": kept.epsilon, "factorisation_error": errors}
    return plan


def estimate(config: SetConfig, loaded: LoadedModel, *, num_tokens: int, num_workers: int) -> Estimate:
    """Rows, bytes and seconds, by timing one batch here. `num_tokens` is the data's size."""
    plan = make_plan(config, loaded)
    selection = config.selection
    length = plan["window_tokens"]
    takes_part = selection.unit_type in ("token-loss", "token-contribution", "group")
    scanned = min(num_tokens, selection.scan_tokens or num_tokens) if takes_part else num_tokens
    num_windows = max(1, scanned // length)
    most = scanned if selection.unit_type in ("token-loss", "token-contribution") else num_windows
    if selection.max_per_window:
        most = min(most, num_windows * (selection.max_per_window + (selection.unit_type == "token-contribution")))
    num_units = min(most, selection.max_units or most)
    seconds_per_unit = _time_batch(config, loaded, length=length, batch_tokens=plan["batch_tokens"])
    scan_seconds = seconds_per_unit * num_windows / 2 if selection.unit_type == "token-loss" else 0.0
    num_passes = num_units
    if selection.unit_type == "group":
        num_passes = num_windows
    elif selection.unit_type == "token-contribution":
        num_passes = min(num_windows, -(-num_units * num_windows // most))
    return Estimate(
        num_units=num_units,
        dim=plan["dim"],
        num_bytes=num_units * unit_bytes(plan),
        seconds=(seconds_per_unit * num_passes + scan_seconds) / num_workers,
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


def _loss_name(config: SetConfig) -> str:
    if config.selection.unit_type == "token-loss":
        return MARGIN if config.rows.loss == "margin" else "cross-entropy, nats"
    return "mean cross-entropy, nats" if config.selection.loss_reduction == "mean" else "summed cross-entropy, nats"


def _rows_per_block(
    engine: GradientEngine[TokenBatch], loaded: LoadedModel, length: int, device: str, *, unit_type: UnitType
) -> int:
    """As many as fit in 16 MB and about 20 s at a nominal rate; never measured, so that a plan is the same anywhere.

    A group is a piece of work by itself; a window gives as many contributions as it has tokens.
    """
    if unit_type == "group":
        return 1
    num_parameters = sum(p.numel() for p in loaded.model.parameters())
    unit_seconds = nominal_seconds(num_parameters, 1 if unit_type == "token-contribution" else length, device)
    return bounded_rows(unit_seconds, _CHUNK_BYTES / (2 * engine.dim))


def _batch_tokens(config: SetConfig, engine: GradientEngine[TokenBatch], length: int) -> int:
    """Found by trying windows in which every token counts: no batch of a collection takes more."""
    unit_type = config.selection.unit_type

    def work(num_windows: int, num_tokens: int) -> object:
        example = torch.arange(num_windows, device=engine.device).repeat_interleave(num_tokens - 1)
        place = torch.arange(1, num_tokens, device=engine.device).repeat(num_windows)
        ids = torch.zeros(num_windows, num_tokens, dtype=torch.long, device=engine.device)
        batch = TokenBatch(ids=ids, example=example, position=place)
        if unit_type == "token-contribution":
            return engine.contributions(batch, mean_losses, num_examples=num_windows, num_positions=num_tokens)
        return engine.rows(batch, mean_losses, num_examples=num_windows)

    return find_batch_tokens(
        work,
        engine.model,
        window_tokens=length,
        row_bytes=engine.dim * engine.dtype.itemsize if unit_type == "token-loss" else 0,
        num_threads=config.rows.threads_per_worker,
    )


def _prove(engine: GradientEngine[TokenBatch], loaded: LoadedModel) -> None:
    """Against autograd, on as few tokens as tell examples and positions apart: the same on every worker.

    A model that the engine refuses is refused here, before any long work.
    """
    ids = torch.arange(15, device=engine.device).reshape(3, 5) % loaded.model.config.vocab_size
    example = torch.arange(3, device=engine.device)
    batch = TokenBatch(ids=ids, example=example, position=torch.tensor([4, 2, 3], device=engine.device))
    engine.prove(batch, token_losses, example, num_examples=3)


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
