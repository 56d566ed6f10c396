"""Rows that are collected while a model trains: one for every example that every step saw, without a second pass.

    rows = TrainingRows(model)
    for documents, batch in data:                       # documents: row numbers in the data set
        with rows.batch(documents) as step:
            step.backward(losses(model, batch))         # in place of losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained("trained")
    write_rows("runs/training", rows, model=ModelSource(model="trained"), data=DataSource(dataset="data.jsonl"))

Until they are written, rows lie in a file without a name, in float32. A row is of its example's loss at the weights of
its step, so that rows of different steps are rows of different models: what they can be traced with is the model that
came out. `EntryRows` are of the same examples in a ledger that kept them: not what each asked for, but what it did to
the final weights. Joins taps and books to storage; knows neither optimisers nor transformers' Trainer (trainer.py).
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from tempfile import TemporaryFile
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from ...attribution.blocks import Block, find_blocks
from ...attribution.ledger import ExampleRecord, Ledger, example_effects
from ...attribution.ledger.row_taps import RowTaps
from ...attribution.projection import Projection
from ...errors import ConfigurationError, RunMismatchError
from ...storage.rowset import RowBlock, RowSet
from ...storage.run import Run
from ..collecting.collection import Collection
from ..collecting.config import RowConfig, SelectionConfig, SetConfig
from ..collecting.ingest import ingest
from ..collecting.opening import open_run
from ..collecting.plan import make_plan, shared_projection
from ..collecting.select import Selecting, select_units
from ..data.source import DataSource
from ..models.model import LoadedModel, ModelSource, load_model, model_fingerprint


class KeptRows(Protocol):
    """What `write_rows` needs of rows."""

    kind: Literal["gradients", "entries"]
    model: nn.Module
    config: RowConfig
    projection: Projection

    def __len__(self) -> int: ...

    def columns(self) -> dict[str, np.ndarray]:
        """Document, loss and step of each row."""
        ...

    def read(self, first: int, last: int) -> Float32[np.ndarray, "row dim"]:
        """Rows `first` to before `last`, as they came."""
        ...

    def block_norms(self, rows: Float32[np.ndarray, "row dim"]) -> Float32[np.ndarray, "row block"]:
        """Norm of each block of each row."""
        ...


class TrainingRows:
    """Rows of the examples of a training, in the order in which it saw them.

    The configuration's shares of the blocks are those by size or equal ones, since a training's model is not the same
    at its end; without a preconditioner. ConfigurationError for others.
    """

    kind: Literal["gradients"] = "gradients"

    def __init__(self, model: nn.Module, *, config: RowConfig | None = None) -> None:
        """Without a configuration: two-sided projections with 1,024 numbers in all, by the blocks' sizes."""
        self.model, self.config = model, _unmeasured(config)
        blocks = find_blocks(model, self.config.blocks).blocks
        self.projection = shared_projection(self.config, blocks)
        self._taps = RowTaps(model, self.projection, blocks)
        self._file = TemporaryFile()  # noqa: SIM115 - closed when this object goes
        weakref.finalize(self, self._file.close)
        self._documents: list[int] = []
        self._losses: list[float] = []
        self._steps: list[int] = []

    def __len__(self) -> int:
        return len(self._documents)

    @contextmanager
    def batch(self, documents: Sequence[int], *, step: int | None = None) -> Iterator["RowBatch"]:
        """One forward and backward pass; the data set's row of each example. `step` counts batches unless given."""
        number = step if step is not None else (self._steps[-1] + 1 if self._steps else 1)
        with self._taps.listening(len(documents)):
            yield RowBatch(self, [int(d) for d in documents], number)

    def keep(self, rows: Tensor, losses: Tensor, documents: list[int], step: int) -> None:
        """Append the rows of a batch and the losses that they are of."""
        rows.detach().float().cpu().numpy().tofile(self._file)
        self._documents += documents
        self._losses += losses.detach().double().cpu().tolist()
        self._steps += [step] * len(documents)

    def columns(self) -> dict[str, np.ndarray]:
        """Document, loss and step of each row."""
        kinds = {"document": np.int64, "loss": np.float32, "step": np.int64}
        values = (self._documents, self._losses, self._steps)
        return {name: np.array(own, kind) for (name, kind), own in zip(kinds.items(), values, strict=True)}

    def read(self, first: int, last: int) -> Float32[np.ndarray, "row dim"]:
        """Rows `first` to before `last`, as they came."""
        self._file.seek(4 * first * self._taps.dim)
        found = np.fromfile(self._file, np.float32, (last - first) * self._taps.dim)
        self._file.seek(0, 2)
        return found.reshape(last - first, self._taps.dim)

    def block_norms(self, rows: Float32[np.ndarray, "row dim"]) -> Float32[np.ndarray, "row block"]:
        """Norm of each block of each row."""
        return _norms(rows, self._taps.columns)


class EntryRows:
    """What each example did to the final weights, projected, with a gradient's sign: entries times −1.

    Their inner product with a prompt's gradient is by how much the example lowered the prompt's loss, to first order.
    Rows of a kind sum to minus the projection of its entry. Of a ledger with `keep_examples`, whose steps were given
    the data set's row numbers as `ids`; ConfigurationError for others.
    """

    kind: Literal["entries"] = "entries"

    def __init__(self, ledger: Ledger, model: nn.Module, *, config: RowConfig | None = None, net: bool = False) -> None:
        """Gross entries, or net ones (attribution/ledger/examples.py); the configuration as `TrainingRows` has it."""
        record = ledger.record
        if record is None or not record.labels:
            raise ConfigurationError("The ledger kept no examples: open it with keep_examples=True.")
        self.model, self.config = model, _unmeasured(config)
        ids = [name for own in record.ids for name in own]
        if not all(name.isdecimal() for name in ids):
            raise ConfigurationError(
                "Examples without the number of their row in the data set: give it with ledger.step(labels, ids=…)."
            )
        self._documents = np.array(ids, np.int64)
        self._steps = np.array(record.step_of, np.int64) + 1
        blocks = find_blocks(model, self.config.blocks).blocks
        self.projection = shared_projection(self.config, blocks)
        self._rows, self._columns = projected_entries(record, blocks, self.projection, net=net)

    def __len__(self) -> int:
        return len(self._documents)

    def columns(self) -> dict[str, np.ndarray]:
        """Document, loss (not known: NaN) and step of each row."""
        return {
            "document": self._documents,
            "loss": np.full(len(self), np.nan, np.float32),
            "step": self._steps,
        }

    def read(self, first: int, last: int) -> Float32[np.ndarray, "row dim"]:
        """Rows `first` to before `last`."""
        return self._rows[first:last]

    def block_norms(self, rows: Float32[np.ndarray, "row dim"]) -> Float32[np.ndarray, "row block"]:
        """Norm of each block of each row."""
        return _norms(rows, self._columns)


def projected_entries(
    record: ExampleRecord, blocks: tuple[Block, ...], projection: Projection, *, net: bool
) -> tuple[Float32[np.ndarray, "row dim"], list[slice]]:
    """Minus each example's entry under a projection, and the columns of each block."""
    like = record.gradients[0]
    made = [
        projection.block(b.name, number=i, shape=(b.rows, b.columns), dtype=like.dtype, device=like.device)
        for i, b in enumerate(blocks)
    ]
    ends = np.cumsum([0, *(own.dim for own in made)]).tolist()
    sizes = list(record.parameters.values())
    parts = []
    for effect, gradients in zip(example_effects(record, net=net), record.gradients, strict=True):
        entries = (-effect * gradients).split(sizes, dim=1)
        by_name = {n: e.reshape(len(e), *record.shapes[n]) for n, e in zip(record.parameters, entries, strict=True)}
        found = [
            own.project(b.matrix({p: by_name[p] for p in b.parameters})) for own, b in zip(made, blocks, strict=True)
        ]
        parts.append(torch.cat(found, dim=1).float().cpu().numpy())
    return np.concatenate(parts), [slice(a, b) for a, b in pairwise(ends)]


def _unmeasured(config: RowConfig | None) -> RowConfig:
    """A configuration whose projection does not depend on the weights."""
    config = config or RowConfig(projection="two-sided", dim=1024, shares="size")
    if config.shares == "energy" or config.precondition != "none":
        raise ConfigurationError(
            "Rows in training are shared out by size or equally, and are not preconditioned: both measure the "
            "model, which changes. Give RowConfig(shares='size')."
        )
    return config


def _norms(rows: Float32[np.ndarray, "row dim"], columns: list[slice]) -> Float32[np.ndarray, "row block"]:
    return np.stack([np.linalg.norm(rows[:, c], axis=1) for c in columns], axis=1)


@dataclass(frozen=True, slots=True)
class RowBatch:
    """One batch, between its forward and its backward pass; made by `TrainingRows.batch`."""

    _rows: TrainingRows
    _documents: list[int]
    _step: int

    def backward(
        self, losses: Tensor, *, divide_by: int | float | Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        """The backward pass of the losses' mean, one for each example, or of Σ / `divide_by`; keeps each one's row.

        `weights` says how many times its example's own loss each of them is (its number of tokens, for a sum over
        tokens; a scaler's scale): rows and losses are divided by it.
        """
        found = self._rows._taps.backward(losses, len(losses) if divide_by is None else divide_by)
        if weights is not None:
            found, losses = found / weights.to(found)[:, None], losses / weights
        self._rows.keep(found, losses, self._documents, self._step)


def write_rows(
    path: str,
    rows: KeptRows,
    *,
    model: ModelSource,
    data: DataSource,
    name: str = "training",
    max_tokens: int | None = None,
) -> RowSet:
    """Write the rows as a row set of the run at `path`, with the data set's documents; returns it.

    `model` is where the trained model was saved: what such rows are traced with. `max_tokens` is how many tokens of a
    document training read at most (None: the model's context). Units are in the order of training, and have a column
    `step`. Raises RunMismatchError where `model` is another one than was trained, and for documents that the data
    lacks; ConfigurationError for no rows.
    """
    if not len(rows):
        raise ConfigurationError("No batch was listened to: there are no rows to write.")
    loaded = load_model(model)
    _require_same_model(rows, loaded, model)
    config = SetConfig(
        selection=SelectionConfig(unit_type="document", window_tokens=max_tokens),
        rows=rows.config,
    )
    collection = Collection(out=path, model=model, data=data, config=config, name=name)
    plan = make_plan(config, loaded)
    assert plan["projection"] == rows.projection.describe(), "shares by size do not depend on the weights"
    columns = rows.columns()
    with open_run(collection, loaded) as run:
        row_set = run.new_row_set(name)
        if row_set.planned:
            raise RunMismatchError(f"{path} has a row set {name!r} already; choose another name for these rows.")
        vocab_size = loaded.model.config.vocab_size
        ingest(run, data, loaded.tokenizer, keep_text=True, vocab_size=vocab_size)
        units = _units(run, config, columns, window_tokens=int(plan["window_tokens"]), set_name=name, loaded=loaded)
        row_set.freeze(plan | {"training": {"num_steps": len(set(columns["step"].tolist())), "rows": rows.kind}}, units)
        for block in range(row_set.num_blocks):
            first, last = row_set.block_range(block)
            part = rows.read(first, last)
            content = RowBlock(rows=part, block_norms=rows.block_norms(part), units=units.slice(first, last - first))
            row_set.commit(block, content)
        run.log("rows in training", rows=name, num_rows=len(rows))
    return run.row_set(name)


def require_repeatable(row_set: RowSet) -> None:
    """RunMismatchError for rows that were collected in training: the weights of their steps are gone."""
    if "training" in row_set.plan:
        raise RunMismatchError(
            f"The rows of {row_set.name!r} were collected while the model trained, and cannot be computed again: the "
            "weights of their steps are gone. Restore a copy, or remove them with "
            f"`quantascope rm RUN --rows {row_set.name}`."
        )


def _require_same_model(rows: KeptRows, loaded: LoadedModel, source: ModelSource) -> None:
    own = model_fingerprint(rows.model)
    if own != loaded.fingerprint:
        raise RunMismatchError(
            f"{source.model} has weights {loaded.fingerprint[:12]}…, the model that was trained has {own[:12]}…: save "
            "it when training is over, and give that folder (and its dtype)."
        )


def _units(
    run: Run,
    config: SetConfig,
    columns: dict[str, np.ndarray],
    *,
    window_tokens: int,
    set_name: str,
    loaded: LoadedModel,
) -> pa.Table:
    """A unit for each row: its document's line, its own loss, and its step."""
    selecting = Selecting(run, set_name, config.selection, window_tokens=window_tokens, loaded=loaded)
    lines = select_units(selecting, _no_losses)
    selecting.done()
    row_of = np.array([document.row for document in run.documents], np.int64)
    line_of = {int(row_of[d]): line for line, d in enumerate(np.asarray(lines["document"]).tolist())}
    missing = sorted(set(columns["document"].tolist()) - set(line_of))
    if missing:
        raise RunMismatchError(
            f"The training's documents are not all in the data: row {missing[0]} is missing, or has no token to be "
            "predicted. Give the data set that was trained on, row for row."
        )
    table = lines.take(pa.array([line_of[row] for row in columns["document"].tolist()]))
    for name, values in (("unit", np.arange(len(table))), ("loss", columns["loss"])):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(place).type))
    return table.append_column("step", pa.array(columns["step"]))


def _no_losses(_windows: Any) -> list[np.ndarray]:  # noqa: ANN401 - windows are not looked at
    raise AssertionError("documents are selected without losses")
