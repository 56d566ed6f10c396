"""The rows of some units: which tokens go through the model together, for each type of unit.

Pure functions of a run's documents, a selection and an engine: the same units give the same batches on any worker.
Knows nothing of blocks of rows, commits or Ray.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Float32, Int

from ...attribution.devices import Arrivals, on_device
from ...attribution.engine import GradientEngine
from ...attribution.losses import (
    SpanBatch,
    TokenBatch,
    mean_losses,
    span_losses,
    span_sums,
    sum_losses,
    token_losses,
    token_margins,
)
from ...attribution.losses.completions import TokenValues
from ...attribution.schedule import schedule_tokens
from ...storage.run import Run
from ..data.tokens import spans
from .candidates import grouped_windows
from .config import MARGIN, SelectionConfig

_MAX_PADDING = 0.05

Span = tuple[int, int, int]
"""Document, first token, last token exclusive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Units whose rows are wanted."""

    run: Run
    units: pa.Table
    """Consecutive lines of the selection."""
    around: pa.Table
    """The same with what lies before and after them, so far that no window of theirs goes on beyond."""
    engine: GradientEngine[Any]
    plan: dict[str, Any]
    """The row set's plan: unit type, window length, batch size, selection."""

    @property
    def takes_mean(self) -> bool:
        """Whether a unit's loss is the mean of its tokens' losses, or else their sum."""
        return bool(self.plan["selection"]["loss_reduction"] == "mean")

    def column(self, name: str) -> Int[np.ndarray, " unit"]:
        """A column of the units."""
        return np.asarray(self.units[name])

    def batches(self, lengths: Int[np.ndarray, " text"]) -> Iterator[tuple[Int[np.ndarray, " example"], int]]:
        """Texts that go through the model together, long ones first, and the longest's number of tokens."""
        return fill_batches(lengths, int(self.plan["batch_tokens"]))

    def tokens(self, spans: list[Span], length: int, example: np.ndarray, position: np.ndarray) -> TokenBatch:
        """Texts padded to `length`, and the tokens among them whose losses are asked for."""
        return TokenBatch(
            ids=batch_ids(self.run, spans, length, self.engine.device),
            example=on_device(example.astype(np.int64), self.engine.device),
            position=on_device(position.astype(np.int64), self.engine.device),
        )

    def counted(self, spans: list[Span], length: int) -> TokenBatch:
        """The same with every token that counts for its text's loss; the first has nothing before it."""
        positions = [np.flatnonzero(self.run.documents[d].counts[first:last]) for d, first, last in spans]
        positions = [p[p > 0] for p in positions]
        example = np.repeat(np.arange(len(spans)), [len(p) for p in positions])
        return self.tokens(spans, length, example, np.concatenate(positions))


def fill_batches(
    lengths: Int[np.ndarray, " text"], batch_tokens: int
) -> Iterator[tuple[Int[np.ndarray, " example"], int]]:
    """Texts that go through the model together, long ones first, and the longest's number of tokens.

    A batch holds at most `batch_tokens` padded tokens (or one text), of which at most a twentieth is padding.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        candidates = order[start : start + max(1, batch_tokens // longest)]
        padding = 1 - np.cumsum(lengths[candidates]) / (longest * np.arange(1, len(candidates) + 1))
        chosen = candidates[: max(1, int(np.searchsorted(padding, _MAX_PADDING, side="right")))]
        start += len(chosen)
        yield chosen, longest


class UnitRows:
    """What units come to; NaN until it is stored and has arrived."""

    def __init__(self, task: Task) -> None:
        self._columns = task.engine.columns
        dtype = np.float64 if task.engine.dtype == torch.float64 else np.float32
        self.rows: Float[np.ndarray, "unit dim"] = np.full((len(task.units), task.engine.dim), np.nan, dtype)
        self.losses: Float32[np.ndarray, " unit"] = np.full(len(task.units), np.nan, np.float32)
        self.num_tokens = 0
        """How many tokens were read for them, each unit's context counted."""
        self._stored: list[Int[np.ndarray, " some"]] = []
        self._arrivals = Arrivals()

    @property
    def block_norms(self) -> Float32[np.ndarray, "unit block"]:
        """Norm of each block of each row."""
        norms = [np.linalg.norm(self.rows[:, c].astype(np.float64), axis=1) for c in self._columns]
        return np.stack(norms, axis=1).astype(np.float32)

    def store(self, units: Int[np.ndarray, " some"], rows: torch.Tensor, losses: torch.Tensor) -> None:
        """Keep what some of the units came to: at once on a CPU, on other devices while the next batch is computed."""
        self._stored.append(units)
        self._arrivals.add(rows, losses.float())
        if rows.device.type == "cpu":
            self.arrive()

    def arrive(self) -> None:
        """Wait for what was stored, so that rows and losses can be read."""
        for units, (rows, losses) in zip(self._stored, self._arrivals.all(), strict=True):
            self.rows[units] = rows.numpy()
            self.losses[units] = losses.numpy()
        self._stored.clear()


def token_values(plan: dict[str, Any]) -> TokenValues:
    """What of each token a plan's rows are the gradients of."""
    return token_margins if plan["loss"] == MARGIN else token_losses


def unit_rows(task: Task) -> UnitRows:
    """The rows of the task's units, in their order."""
    result = UnitRows(task)
    _ROWS[task.plan["unit_type"]](task, result)
    result.arrive()
    return result


def _token_loss_rows(task: Task, result: UnitRows) -> None:
    document, first, last = (task.column(c) for c in ("document", "first_token", "last_token"))
    keys, window = np.unique(np.stack([document, first], axis=1), axis=0, return_inverse=True)
    position = last - first
    values = token_values(task.plan)
    known = torch.from_numpy(task.column("loss").astype(np.float32)) if values is token_margins else None
    for batch in schedule_tokens(window.reshape(-1), position, batch_tokens=int(task.plan["batch_tokens"])):
        texts = [(int(d), int(f), int(f) + batch.length) for d, f in keys[batch.window]]
        tokens = task.tokens(texts, batch.length, batch.example, position[batch.unit])
        example = torch.from_numpy(batch.example)  # on the CPU, where the engine asks for its numbers
        made = task.engine.rows(tokens, values, example, num_examples=len(texts))
        result.store(batch.unit, made.rows, made.losses if known is None else known[batch.unit])
        result.num_tokens += int((position[batch.unit] + 1).sum())


def _text_rows(task: Task, result: UnitRows) -> None:
    """Windows and documents: everything that counts between their first and last token."""
    columns = (task.column(c).tolist() for c in ("document", "first_token", "last_token"))
    texts = [(d, first, last + 1) for d, first, last in zip(*columns, strict=True)]
    for chosen, rows, losses in _rows_of_texts(task, texts, takes_mean=task.takes_mean):
        result.store(chosen, rows, losses)
    result.num_tokens += _num_tokens(texts)


def _span_rows(task: Task, result: UnitRows) -> None:
    """Spans that read from the same token on share a forward pass."""
    document, first, last = (task.column(c) for c in ("document", "first_token", "last_token"))
    keys, text = np.unique(np.stack([document, first], axis=1), axis=0, return_inverse=True)
    text = text.reshape(-1)
    lengths = np.zeros(len(keys), np.int64)
    np.maximum.at(lengths, text, last + 1 - first)
    for chosen, longest in task.batches(lengths):
        place = np.full(len(keys), -1)
        place[chosen] = np.arange(len(chosen))
        units = np.flatnonzero(place[text] >= 0)
        targets = [_span_targets(task.run, int(document[u]), int(first[u]), int(last[u])) for u in units]
        own = np.repeat(np.arange(len(units)), [len(t) for t in targets])
        example = place[text[units]]
        texts = [(int(keys[c, 0]), int(keys[c, 1]), int(keys[c, 1] + lengths[c])) for c in chosen]
        tokens = task.tokens(texts, longest, example[own], np.concatenate(targets))
        device = task.engine.device
        batch = SpanBatch(tokens=tokens, unit=on_device(own, device), example=on_device(example, device))
        losses = span_losses if task.takes_mean else span_sums
        made = task.engine.rows(batch, losses, torch.from_numpy(example), num_examples=len(texts))
        result.store(units, made.rows, made.losses)
    result.num_tokens += int((last + 1 - first).sum())


def _span_targets(run: Run, document: int, first: int, last: int) -> Int[np.ndarray, " token"]:
    """Positions, counted from `first`, of the run of counted tokens that ends with `last`."""
    begin = next(a for a, b in spans(run.documents[document].counts) if b == last + 1)
    return np.arange(max(begin, first + 1), last + 1) - first


def _contribution_rows(task: Task, result: UnitRows) -> None:
    """The positions' shares of their windows' rows; what no unit of the window holds goes to its rest."""
    document, first, last = (task.column(c) for c in ("document", "first_token", "last_token"))
    is_rest = np.asarray(task.units["rest"]).astype(np.bool_)
    keys, window = np.unique(np.stack([document, first], axis=1), axis=0, return_inverse=True)
    window = window.reshape(-1)
    lengths = task.run.documents.lengths()
    texts = [(int(d), int(f), min(int(f) + int(task.plan["window_tokens"]), int(lengths[d]))) for d, f in keys]
    for chosen, longest in task.batches(np.array([end - begin for _, begin, end in texts])):
        parts = [texts[c] for c in chosen]
        batch = task.counted(parts, longest)
        losses = mean_losses if task.takes_mean else sum_losses
        made = task.engine.contributions(batch, losses, num_examples=len(parts), num_positions=longest)
        device = made.rows.device
        place = np.full(len(keys), -1)
        place[chosen] = np.arange(len(chosen))
        units = np.flatnonzero((place[window] >= 0) & ~is_rest)
        example = on_device(place[window[units]], device)
        shares = made.rows[example, on_device(last[units] - first[units], device)]
        result.store(units, shares, made.losses[example])
        units = np.flatnonzero((place[window] >= 0) & is_rest)
        example = on_device(place[window[units]], device)
        left = on_device(~_placed(task, parts, longest), device).to(made.rows.dtype)
        rest = made.unplaced + torch.einsum("epd,ep->ed", made.rows, left)
        result.store(units, rest[example], made.losses[example])
    result.num_tokens += _num_tokens(texts)


def _placed(task: Task, texts: list[Span], length: int) -> Bool[np.ndarray, "example position"]:
    """Which positions of some windows are units of their own, in whichever block."""
    document, first, last, is_rest = (
        np.asarray(task.around[c]) for c in ("document", "first_token", "last_token", "rest")
    )
    placed = np.zeros((len(texts), length), np.bool_)
    for number, (index, begin, _) in enumerate(texts):
        own = slice(*np.searchsorted(document, [index, index + 1]))  # units stand in the order of their documents
        is_placed = (first[own] == begin) & ~is_rest[own].astype(np.bool_)
        placed[number, last[own][is_placed] - begin] = True
    return placed


def _group_rows(task: Task, result: UnitRows) -> None:
    """Each group whole: the sum over its windows, for a mean divided by its number of counted tokens."""
    config = SelectionConfig(**task.plan["selection"])
    groups = grouped_windows(task.run, config, int(task.plan["window_tokens"]))
    values = task.units[f"label_{config.group_by}"].to_pylist()
    for unit, (value, count) in enumerate(zip(values, task.units["num_tokens"].to_pylist(), strict=True)):
        texts = [(int(d), int(f), int(e)) for d, f, e in groups[value]]
        row = torch.zeros(task.engine.dim, dtype=torch.float64, device=task.engine.device)
        loss = torch.zeros((), dtype=torch.float64, device=task.engine.device)
        for _, rows, losses in _rows_of_texts(task, texts, takes_mean=False):
            row += rows.double().sum(0)
            loss += losses.double().sum()
        share = 1 / count if task.takes_mean else 1.0
        result.store(np.array([unit]), row[None] * share, loss[None] * share)
        result.num_tokens += _num_tokens(texts)


def _rows_of_texts(
    task: Task, texts: list[Span], *, takes_mean: bool
) -> Iterator[tuple[Int[np.ndarray, " example"], torch.Tensor, torch.Tensor]]:
    """Batch by batch: which texts, their rows, their losses."""
    losses = mean_losses if takes_mean else sum_losses
    for chosen, longest in task.batches(np.array([last - first for _, first, last in texts])):
        batch = task.counted([texts[c] for c in chosen], longest)
        made = task.engine.rows(batch, losses, num_examples=len(chosen))
        yield chosen, made.rows, made.losses


def _num_tokens(texts: list[Span]) -> int:
    return sum(last - first for _, first, last in texts)


def batch_ids(run: Run, spans: list[Span], length: int, device: torch.device) -> torch.Tensor:
    """Token ids of spans (document, first, last exclusive), cut or padded with 0 on the right to `length`."""
    ids = np.zeros((len(spans), length), np.int64)
    for row, (document, first, last) in zip(ids, spans, strict=True):
        tokens = run.documents[document].tokens[first:last][:length]
        row[: len(tokens)] = tokens
    return on_device(ids, device)


_ROWS: dict[str, Callable[[Task, UnitRows], None]] = {
    "token-loss": _token_loss_rows,
    "window": _text_rows,
    "document": _text_rows,
    "span": _span_rows,
    "token-contribution": _contribution_rows,
    "group": _group_rows,
}
