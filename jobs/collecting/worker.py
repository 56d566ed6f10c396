"""What a Ray actor does: holds the model, scans windows for units, computes blocks of rows and commits them.

Plain functions of a run, a row set and a model, so that tests can call them without Ray.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int

from ...attribution.engine import GradientEngine
from ...attribution.losses import TokenBatch, token_losses
from ...errors import RunMismatchError, WorkerFailedError
from ...storage.rowset import RowBlock, RowSet
from ...storage.run import Run
from ..models.model import LoadedModel, ModelSource, load_model
from ..models.unpacked import one_text_per_row
from .config import SetConfig
from .plan import make_engine, window_tokens
from .precondition import stored_factors
from .select import Selecting
from .unit_rows import Task, batch_ids, unit_rows


class Worker:
    """Holds the model on its device; what it makes it commits itself, and returns a small record."""

    def __init__(self, path: str, set_name: str, model: ModelSource, config: SetConfig) -> None:
        torch.set_num_threads(config.rows.threads_per_worker)
        self._run = Run.open(path)
        self._set = self._run.new_row_set(set_name)
        self._run.documents.keep_shards(2)  # blocks and tasks go through the documents in order
        self._config = config
        self._model = model
        self._batch_tokens: int | None = None
        """Less than planned, once the device's memory did not suffice."""
        self._leaving = self._at_work = False

    @cached_property
    def _loaded(self) -> LoadedModel:
        return load_model(self._model)

    def prepare(self) -> None:
        """Load the model, and leave when asked to: after the block at work, which is committed first."""
        signal.signal(signal.SIGTERM, self._leave)
        self._loaded  # noqa: B018 - read for its effect

    def _leave(self, *_: object) -> None:
        self._leaving = True
        if not self._at_work:
            os._exit(0)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Marks a piece of work, and does not begin one on a machine that is about to go."""
        if self._leaving:
            import ray

            ray.actor.exit_actor()
        self._at_work = True
        try:
            with one_text_per_row():
                yield
        finally:
            self._at_work = False

    @cached_property
    def _engine(self) -> GradientEngine[TokenBatch]:
        planned = self._set.plan["model"]["fingerprint"]
        if planned != self._loaded.fingerprint:
            raise RunMismatchError(
                f"The worker's model has fingerprint {self._loaded.fingerprint[:12]}…, row set {self._set.name!r} was "
                f"planned with {planned[:12]}…: the model changed meanwhile."
            )
        return make_engine(self._config.rows, self._loaded, self._set.plan["projection"], stored_factors(self._set))[0]

    @cached_property
    def _selecting(self) -> Selecting:
        return make_selecting(self._run, self._set.name, self._config, self._loaded)

    def scan(self, task: int) -> dict[str, Any]:
        """Find and commit the candidates of one task of the selection; returns its record."""
        with self._working():
            return self._selecting.scan(task, partial(window_losses, self._run, self._loaded))

    def collect(self, block: int) -> dict[str, Any]:
        """Compute and commit one block; returns its record, with the tokens that its units read.

        Where the device's memory does not suffice, batches are halved, for this block and later ones, and the record
        says so. WorkerFailedError where not even one text fits.
        """
        with self._working():
            while True:
                try:
                    content, num_tokens = collect_block(
                        self._run, self._set, block, self._engine, batch_tokens=self._batch_tokens
                    )
                except torch.OutOfMemoryError as error:
                    self._batch_tokens = _halved(self._batch_tokens or int(self._set.plan["batch_tokens"]), error)
                else:
                    return self._set.commit(block, content) | {"num_tokens": num_tokens}


def make_selecting(run: Run, set_name: str, config: SetConfig, loaded: LoadedModel) -> Selecting:
    """The selection of a row set, the same on the driver and on every worker."""
    return Selecting(
        run,
        set_name,
        config.selection,
        window_tokens=window_tokens(config, loaded),
        loaded=loaded,
        num_threads=config.rows.threads_per_worker,
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
    reach = int(plan["window_tokens"]) + 1  # a window has at most so many units
    units, around = (row_set.selected.slice(first - far, last + far) for far in (0, reach))
    made = unit_rows(Task(run=run, units=units, around=around, engine=engine, plan=plan))
    table = units.set_column(units.column_names.index("loss"), "loss", pa.array(made.losses, pa.float32()))
    content = RowBlock(rows=made.rows, block_norms=made.block_norms, units=table, batch_tokens=batch_tokens)
    return content, made.num_tokens


@torch.no_grad()
def window_losses(run: Run, loaded: LoadedModel, windows: Int[np.ndarray, "window 3"]) -> list[np.ndarray]:
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
