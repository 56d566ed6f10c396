"""Hugging Face's Trainer with a ledger, or with rows: the same books, kept while it trains.

Subclasses and not callbacks alone: callbacks see neither a batch's labels nor its losses, only the model before and
after. The forward and the backward pass lie in `training_step`, which is all that is replaced; a small callback opens
and closes each step, and keeps the ledger's state with each checkpoint.

Each example's loss is the sum of its tokens' cross-entropies, and the batch's is their sum over the number of tokens
of the whole step, as the Trainer itself has it for causal language models.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainingArguments

from ...attribution.ledger import Evaluation, Ledger, SketchedLedger, Step
from ...attribution.ledger.sketched import SketchedStep
from ...errors import ConfigurationError, MissingFieldError
from ..collecting.config import RowConfig
from .keeping import load_state, save_state
from .rows import TrainingRows

STATE_FILE = "ledger.safetensors"
ExampleLosses = Callable[[nn.Module, dict[str, Any]], Tensor]
"""From a model and its inputs (with `labels`) to Σ of each example's token losses, [example]."""
Backward = Callable[[Tensor, "Tensor | int", Tensor], None]
"""The backward pass of Σ losses / divisor; the last says how many times its example's own loss each of them is."""


class ExampleTrainer(Trainer):
    """A Trainer that computes one loss per example, and hands each batch's to whoever keeps account of them.

    Subclasses say what comes before a batch's forward pass, and make its backward pass. One process, one device;
    without a label smoother or a loss of the user's own.
    """

    def __init__(self, *args: Any, example_losses: ExampleLosses | None = None, **kwargs: Any) -> None:  # noqa: ANN401 - Trainer's own
        """`example_losses` replaces the sums of token losses."""
        super().__init__(*args, **kwargs)
        self._require_plain()
        self.args.remove_unused_columns = False
        self._example_losses = example_losses or token_loss_sums

    def listening(self, inputs: dict[str, Any]) -> AbstractContextManager["Backward"]:
        """For one batch, whose own column is taken out of `inputs`: its forward pass, and the backward pass given."""
        raise NotImplementedError

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The Trainer's own, with one loss per example."""
        inputs = dict(inputs)
        with self.listening(inputs) as backward:
            model.train()
            inputs = self._prepare_inputs(inputs)
            with self.compute_loss_context_manager():
                losses = self._example_losses(model, inputs)
            counts = _num_tokens(inputs, losses)
            if num_items_in_batch is None:
                divide_by = counts.sum() * self.current_gradient_accumulation_steps
            else:
                divide_by = num_items_in_batch
            scaler = self.accelerator.scaler
            scaled = scaler.scale(losses) if scaler is not None else losses
            weights = counts.clamp(min=1)
            backward(scaled, divide_by, weights if scaler is None else weights * scaler.get_scale())
        return (losses.detach().sum() / divide_by).to(self.args.device)

    def column(self, inputs: dict[str, Any], name: str, what: str) -> list[int]:
        """Take a column of numbers out of a batch; MissingFieldError where it has none."""
        if name not in inputs:
            raise MissingFieldError(
                f"A batch has no column {name!r}; it has {', '.join(inputs)}. Give the data set one with "
                f"{what}, and let the collator keep it."
            )
        return [int(number) for number in inputs.pop(name)]

    def _require_plain(self) -> None:
        if self.label_smoother is not None or self.compute_loss_func is not None:
            raise ConfigurationError("Give example_losses in place of other losses: one loss per example is needed.")
        if self.args.n_gpu > 1 or self.args.world_size > 1:
            raise ConfigurationError(
                f"Examples are accounted for in one process on one device; there are {self.args.world_size} processes "
                f"with {self.args.n_gpu} devices."
            )


class RowTrainer(ExampleTrainer):
    """A Trainer whose `rows` keep the row of every example that it trains on, from its own backward passes.

    Batches carry each example's row number in the data set in the column `document_column`. When training is over and
    the model is saved, `rows.write_rows` makes them a row set of a run. Rows are of the examples' mean token losses.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - Trainer's own
        row_config: RowConfig | None = None,
        document_column: str = "document",
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **kwargs)
        self._document_column = document_column
        self.rows = TrainingRows(self.model, config=row_config)

    @contextmanager
    def listening(self, inputs: dict[str, Any]) -> Iterator["Backward"]:
        """As `ExampleTrainer` has it."""
        documents = self.column(inputs, self._document_column, "the number of each example's row in the data set")
        with self.rows.batch(documents, step=self.state.global_step + 1) as batch:
            yield lambda losses, divide_by, weights: batch.backward(losses, divide_by=divide_by, weights=weights)


class LedgerTrainer(ExampleTrainer):
    """A Trainer whose `ledger` books what each kind of data does to the weights.

    Batches carry the kind of each example in the column `kind_column`, as numbers into `kinds` (a data collator makes
    tensors of numbers).
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - Trainer's own
        kinds: Sequence[str],
        kind_column: str = "kind",
        ledger_evaluation: Evaluation | None = None,
        period_steps: int | None = None,
        grade: Literal["exact", "sketched"] = "exact",
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """The sketched grade has no loss books, and cannot go on from a checkpoint; other options are `Ledger`'s."""
        if grade == "sketched" and (ledger_evaluation is not None or period_steps is not None):
            raise ConfigurationError("The sketched grade has no loss books and no period_steps; leave both out.")
        super().__init__(*args, **kwargs)
        self._grade = grade
        self.ledger: Ledger | SketchedLedger | None = None
        """Opened when training begins, closed when it ends."""
        self._kinds, self._kind_column = list(kinds), kind_column
        self._evaluation, self._period_steps = ledger_evaluation, period_steps
        self._resumed_from: Path | None = None
        self._stack = ExitStack()
        self._step: Step | SketchedStep | None = None
        self.add_callback(_Steps(self))

    @contextmanager
    def listening(self, inputs: dict[str, Any]) -> Iterator["Backward"]:
        """As `ExampleTrainer` has it."""
        step = self._step
        assert step is not None, "the callback opens a step before its first batch"
        numbers = self.column(inputs, self._kind_column, "the number of each example's kind")
        step.begin([self._kind(number) for number in numbers])
        yield lambda losses, divide_by, _weights: step.backward(losses, divide_by=divide_by)

    def open_ledger(self) -> None:
        """Before the first step, when the optimiser is there."""
        if self._grade == "sketched":
            if self._resumed_from is not None:
                raise ConfigurationError("A sketched ledger cannot go on from a checkpoint: train from the start.")
            self.ledger = SketchedLedger(self.model, self.optimizer, self._kinds)
            return
        self.ledger = Ledger(
            self.model,
            self.optimizer,
            self._kinds,
            evaluation=self._evaluation,
            period_steps=self._period_steps,
        )
        if self._resumed_from is not None:
            load_state(self.ledger, self._resumed_from / STATE_FILE)

    def open_step(self) -> None:
        """Before a step's first batch."""
        ledger = self.ledger
        assert ledger is not None
        if isinstance(ledger, SketchedLedger):
            self._step = self._stack.enter_context(ledger.step())
        else:
            self._step = self._stack.enter_context(ledger.step())

    def close_step(self) -> None:
        """After the optimiser has stepped, or has not."""
        self._stack.close()
        self._step = None

    def keep_ledger(self, folder: Path) -> None:
        """Beside a checkpoint; a sketched ledger keeps none."""
        if isinstance(self.ledger, Ledger):
            save_state(self.ledger, folder / STATE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ANN401
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._resumed_from = Path(resume_from_checkpoint)

    def _kind(self, number: int) -> str:
        if not 0 <= number < len(self._kinds):
            raise ConfigurationError(
                f"A batch has kind {number}; kinds are numbered 0 to {len(self._kinds) - 1} ({', '.join(self._kinds)})."
            )
        return self._kinds[number]


class _Steps(TrainerCallback):
    """When a step begins and ends, and when a checkpoint is written."""

    def __init__(self, trainer: LedgerTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401 - transformers' signature
        self._trainer.open_ledger()

    def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401
        self._trainer.open_step()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401
        self._trainer.close_step()

    def on_save(self, args: TrainingArguments, state: Any, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401
        self._trainer.keep_ledger(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401
        if self._trainer.ledger is not None:
            self._trainer.ledger.close()


def token_loss_sums(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Σ of each example's next-token cross-entropies, in nats; labels of −100 do not count."""
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    logits = model(**inputs).logits[:, :-1]
    targets = labels[:, 1:]
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    losses = cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
    return losses.reshape(targets.shape).sum(1)


def _num_tokens(inputs: dict[str, Any], losses: Tensor) -> Tensor:
    """Of each example, that its loss is the sum over; 1 without labels."""
    labels = inputs.get("labels")
    return torch.ones_like(losses, dtype=torch.int64) if labels is None else labels[..., 1:].ne(-100).sum(-1)
