"""Hugging Face's Trainer with a ledger: the same books, kept while it trains.

A subclass and not a callback alone: callbacks see neither a batch's labels nor its losses, only the model before and
after. The forward and the backward pass lie in `training_step`, which is all that is replaced; a small callback opens
and closes each step, and keeps the ledger's state with each checkpoint.

Each example's loss is the sum of its tokens' cross-entropies, and the batch's is their sum over the number of tokens
of the whole step, as the Trainer itself has it for causal language models.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainingArguments

from ...attribution.ledger import Evaluation, Ledger, SketchedLedger, Step
from ...attribution.ledger.sketched import SketchedStep
from ...errors import ConfigurationError, MissingFieldError
from .keeping import load_state, save_state

STATE_FILE = "ledger.safetensors"
ExampleLosses = Callable[[nn.Module, dict[str, Any]], Tensor]
"""From a model and its inputs (with `labels`) to Σ of each example's token losses, [example]."""


class LedgerTrainer(Trainer):
    """A Trainer whose `ledger` books what each kind of data does to the weights.

    Batches carry the kind of each example in the column `kind_column`, as numbers into `kinds` (a data collator makes
    tensors of numbers). One process, one device; without a label smoother or a loss of the user's own.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - Trainer's own
        kinds: Sequence[str],
        kind_column: str = "kind",
        ledger_evaluation: Evaluation | None = None,
        period_steps: int | None = None,
        example_losses: ExampleLosses | None = None,
        grade: Literal["exact", "sketched"] = "exact",
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """`example_losses` replaces the sums of token losses; the other options are `Ledger`'s.

        The sketched grade has no loss books, and cannot go on from a checkpoint.
        """
        if grade == "sketched" and (ledger_evaluation is not None or period_steps is not None):
            raise ConfigurationError("The sketched grade has no loss books and no period_steps; leave both out.")
        super().__init__(*args, **kwargs)
        self._require_plain()
        self.args.remove_unused_columns = False
        self._grade = grade
        self.ledger: Ledger | SketchedLedger | None = None
        """Opened when training begins, closed when it ends."""
        self._kinds, self._kind_column = list(kinds), kind_column
        self._evaluation, self._period_steps = ledger_evaluation, period_steps
        self._example_losses = example_losses or token_loss_sums
        self._resumed_from: Path | None = None
        self._stack = ExitStack()
        self._step: Step | SketchedStep | None = None
        self.add_callback(_Steps(self))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The Trainer's own, with one loss per example."""
        assert self._step is not None, "the callback opens a step before its first batch"
        inputs = dict(inputs)
        if self._kind_column not in inputs:
            raise MissingFieldError(
                f"A batch has no column {self._kind_column!r}; it has {', '.join(inputs)}. Give the data set one with "
                "the number of each example's kind, and let the collator keep it."
            )
        labels = [self._kind(int(number)) for number in inputs.pop(self._kind_column)]
        model.train()
        inputs = self._prepare_inputs(inputs)
        self._step.begin(labels)
        with self.compute_loss_context_manager():
            losses = self._example_losses(model, inputs)
        tokens = inputs["labels"][..., 1:].ne(-100).sum() if "labels" in inputs else len(labels)
        if num_items_in_batch is None:
            divide_by = tokens * self.current_gradient_accumulation_steps
        else:
            divide_by = num_items_in_batch
        scaler = self.accelerator.scaler
        self._step.backward(scaler.scale(losses) if scaler is not None else losses, divide_by=divide_by)
        return (losses.detach().sum() / divide_by).to(self.args.device)

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

    def _require_plain(self) -> None:
        if self.label_smoother is not None or self.compute_loss_func is not None:
            raise ConfigurationError("The ledger needs one loss per example: give example_losses in place of others.")
        if self.args.n_gpu > 1 or self.args.world_size > 1:
            raise ConfigurationError(
                f"The exact ledger books one process on one device; there are {self.args.world_size} processes with "
                f"{self.args.n_gpu} devices."
            )


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
