"""What a Ray actor does: holds the model, scans windows for units, computes blocks of rows and commits them.

Plain functions of a run, a row set and a model, so that tests can call them without Ray.
"""

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int

from ..attribution.engine import GradientEngine
from ..attribution.losses import TokenBatch, token_losses
from ..attribution.selection import ends_seen_trigram, low_loss
from ..errors import RunMismatchError, WorkerFailedError
from ..storage.rowset import RowBlock, RowSet
from ..storage.run import Run
from .config import SetConfig
from .model import LoadedModel, ModelSource, load_model
from .plan import make_engine
from .precondition import stored_factors
from .unit_rows import Task, batch_ids, unit_rows

_SCAN_BATCH = 16
"""Windows that go through the model together while scanning."""


class Worker:
    """Holds the model on its device; what it makes it commits itself, and returns a small record."""

    def __init__(self, path: str, set_name: str, model: ModelSource, config: SetConfig) -> None:
        torch.set_num_threads(config.rows.threads_per_worker)
        self._run = Run.open(path)
        self._set = self._run.new_row_set(set_name)
        self._config = config
        self._loaded = load_model(model)
        self._batch_tokens: int | None = None
        """Less than planned, once the device's memory did not suffice."""

    @cached_property
    def _engine(self) -> GradientEngine[TokenBatch]:
        planned = self._set.plan["model"]["fingerprint"]
        if planned != self._loaded.fingerprint:
            raise RunMismatchError(
                f"The worker's model has fingerprint {self._loaded.fingerprint[:12]}…, row set {self._set.name!r} was "
                f"planned with {planned[:12]}…: the model changed meanwhile."
            )
        return make_engine(self._config.rows, self._loaded, self._set.plan["projection"], stored_factors(self._set))[0]

    def scan(self, windows: Int[np.ndarray, "window 3"]) -> pa.Table:
        """The token-loss candidates of some windows (document, first token, last token exclusive), sorted."""
        return scan_windows(self._run, windows, self._loaded, max_loss=self._config.selection.max_loss)

    def collect(self, block: int) -> dict[str, Any]:
        """Compute and commit one block; returns its record, with the tokens that its units read.

        Where the device's memory does not suffice, batches are halved, for this block and later ones, and the record
        says so. WorkerFailedError where not even one text fits.
        """
        while True:
            try:
                content, num_tokens = collect_block(
                    self._run, self._set, block, self._engine, batch_tokens=self._batch_tokens
                )
            except torch.OutOfMemoryError as error:
                self._batch_tokens = _halved(self._batch_tokens or int(self._set.plan["batch_tokens"]), error)
            else:
                return self._set.commit(block, content) | {"num_tokens": num_tokens}


def scan_windows(run: Run, windows: Int[np.ndarray, "window 3"], loaded: LoadedModel, *, max_loss: float) -> pa.Table:
    """Tokens with a loss below `max_loss` nats that end no seen trigram and count for the loss."""
    parts = []
    for start in range(0, len(windows), _SCAN_BATCH):
        chosen = windows[start : start + _SCAN_BATCH]
        losses = _all_losses(run, chosen, loaded)
        for (document, first, last), loss in zip(chosen, losses, strict=True):
            stored = run.documents[int(document)]
            seen = ends_seen_trigram(stored.tokens)[first:last] | ~stored.counts[first:last]
            position = low_loss(loss, seen, max_loss=max_loss)
            target = int(first) + position
            parts.append(
                {
                    "document": np.full(len(position), document),
                    "first_token": np.full(len(position), first),
                    "last_token": target,
                    "text_start": stored.starts[target],
                    "text_end": stored.ends[target],
                    "loss": loss[position],
                }
            )
    columns = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return pa.table(
        {
            "document": pa.array(columns["document"], pa.int64()),
            "first_token": pa.array(columns["first_token"], pa.int32()),
            "last_token": pa.array(columns["last_token"], pa.int32()),
            "text_start": pa.array(columns["text_start"], pa.int32()),
            "text_end": pa.array(columns["text_end"], pa.int32()),
            "loss": pa.array(columns["loss"], pa.float32()),
        }
    )


def _halved(batch_tokens: int, error: torch.OutOfMemoryError) -> int:
    if batch_tokens <= 1:  # one text at a time
        raise WorkerFailedError(
            f"One text does not fit in the device's memory ({str(error).splitlines()[0]}). Give a smaller "
            "--window-tokens, fewer --blocks, or --dtype bfloat16. What was committed is safe."
        ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return batch_tokens // 2


def collect_block(
    run: Run,
    row_set: RowSet,
    block: int,
    engine: GradientEngine[TokenBatch],
    *,
    batch_tokens: int | None = None,
) -> tuple[RowBlock, int]:
    """The rows of one block's units, in order, and the number of tokens that they read.

    `batch_tokens` is for a device whose memory does not suffice for the plan's; rows then differ by rounding.
    """
    plan = row_set.plan if batch_tokens is None else row_set.plan | {"batch_tokens": batch_tokens}
    first, last = row_set.block_range(block)
    selection = row_set.selection()
    units = selection.slice(first, last - first)
    made = unit_rows(Task(run=run, units=units, selection=selection, engine=engine, plan=plan))
    table = units.set_column(units.column_names.index("loss"), "loss", pa.array(made.losses, pa.float32()))
    content = RowBlock(rows=made.rows, block_norms=made.block_norms, units=table, batch_tokens=batch_tokens)
    return content, made.num_tokens


@torch.no_grad()
def _all_losses(run: Run, windows: Int[np.ndarray, "window 3"], loaded: LoadedModel) -> list[np.ndarray]:
    """Each window's token losses; infinity for its first token, which nothing predicts."""
    spans = [(int(d), int(f), int(e)) for d, f, e in windows]
    lengths = [last - first for _, first, last in spans]
    device = loaded.model.device
    example = np.concatenate([np.full(n - 1, i) for i, n in enumerate(lengths)])
    position = np.concatenate([np.arange(1, n) for n in lengths])
    batch = TokenBatch(
        ids=batch_ids(run, spans, max(lengths), device),
        example=torch.from_numpy(example).to(device),
        position=torch.from_numpy(position).to(device),
    )
    losses = token_losses(loaded.model, batch).float().cpu().numpy()
    cuts = np.cumsum([n - 1 for n in lengths])[:-1]
    return [np.concatenate([[np.inf], part]).astype(np.float32) for part in np.split(losses, cuts)]
