"""What ledgers of every grade share: one open step at a time, between the optimiser's hooks.

Knows optimisers and the order of calls; nothing of what is booked.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, TypeVar

import torch

from ...errors import ConfigurationError
from .linear_steps import require_same_start, will_step


class OpenStep:
    """One step of the optimiser, while its gradients are gathered."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._num_examples = 0
        self._has_gradients = False
        self.is_booked = False

    def require_ready(self) -> None:
        """ConfigurationError if the optimiser may not step yet."""
        if self._num_examples or not self._has_gradients:
            raise ConfigurationError("optimizer.step() before Step.backward: there are no gradients to book.")
        if self.is_booked:
            raise ConfigurationError("optimizer.step() twice in one ledger.step(); open one for each.")

    def end(self) -> None:
        """Stop listening."""
        self._stack.close()

    def _require_labels(self, labels: Sequence[str | None]) -> list[str | None]:
        """Before a batch's forward pass."""
        if self._num_examples:
            raise ConfigurationError("The batch before has had no backward pass; call Step.backward for every batch.")
        if labels is None or isinstance(labels, str) or len(labels) == 0:
            raise ConfigurationError("The batch has no labels; give the kind of each of its examples.")
        return list(labels)

    def _require_begun(self) -> None:
        """Before a batch's backward pass."""
        if not self._num_examples:
            raise ConfigurationError("Step.backward needs the batch's labels first: ledger.step(labels), or begin.")

    def _over(self) -> None:
        """After a batch's backward pass."""
        self._stack.close()
        self._num_examples, self._has_gradients = 0, True


S = TypeVar("S", bound=OpenStep)


class StepKeeper(ABC, Generic[S]):
    """Listens to an optimiser; subclasses say what happens before and after a step that it makes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.num_steps = 0
        self.num_skipped = 0
        """Steps that were begun and never made (overflow), booked as nothing."""
        self._open: S | None = None
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @contextmanager
    def _opened(self, step: S) -> Iterator[S]:
        """The step while it is open. ConfigurationError for a second one, and after the end."""
        if self._open is not None:
            raise ConfigurationError("A step of this ledger is open already; end it first.")
        if not self._hooks:
            raise ConfigurationError("This ledger is closed; open another one for more steps.")
        self._open = step
        try:
            yield step
            if not step.is_booked:
                self.num_skipped += 1
        finally:
            step.end()
            self._open = None

    def _let_go(self) -> None:
        """Of the optimiser, for good."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @abstractmethod
    def _take_up(self, step: S) -> None:
        """The optimiser is about to step."""

    @abstractmethod
    def _book(self, step: S) -> None:
        """It has."""

    @torch.no_grad()
    def _before_step(self, _optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401
        step = self._open
        if step is None:
            raise ConfigurationError(
                "optimizer.step() outside of ledger.step(): the ledger cannot book it. Step within the `with` block, "
                "or close the ledger first."
            )
        step.require_ready()
        if not will_step(self.optimizer, args, kwargs):
            return
        require_same_start(self.optimizer, self.num_steps)
        self._take_up(step)
        step.is_booked = True

    @torch.no_grad()
    def _after_step(self, _optimizer: Any, _args: Any, _kwargs: Any) -> None:  # noqa: ANN401 - torch's protocol
        if self._open is None or not self._open.is_booked:
            return
        self.num_steps += 1
        self._book(self._open)
