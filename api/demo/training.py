"""The demonstration's model: a byte-level BPE tokenizer and a small GPT-NeoX, trained within a time budget.

Knows a folder of text files, the recipe, and how to keep checkpoints that `from_pretrained` reads. Knows nothing of
gradients of units, quanta or terminals: progress leaves through a callback.

The recipe: plain GPT-NeoX; Muon (Jordan et al. 2024: momentum whose matrix is made orthogonal by a Newton–Schulz
iteration) for the matrices of the layers and AdamW for all else; layers and output head start at zero output; the
learning rate rises shortly and falls linearly to zero at the budget's end, by the clock or by steps.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantascope.errors import RunMismatchError

from .corpus import corpus_fingerprint
from .recipe import LEAST_STEPS, TrainingConfig
from .trainer import Trainer
from .windows import prepare_windows, train_tokenizer

__all__ = [
    "LossPoint",
    "TrainingConfig",
    "TrainingProgress",
    "TrainingResult",
    "read_training",
    "train_model",
    "train_tokenizer",
]

RECORD_NAME = "training.json"

_RECIPE_VERSION = 1  # in the fingerprint: another recipe must not reuse an older one's checkpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProgress:
    """One event of `train_model`: where the training stands."""

    step: int
    fraction: float
    """Of the budget, from 0 to 1."""
    num_tokens: int
    tokens_per_second: float
    loss: float
    """Nats per token, a running mean over training batches."""
    held_out_loss: float | None
    """Nats per token, where it was just measured: at checkpoints, on a few held-out windows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPoint:
    """The losses at one checkpoint, nats per token."""

    step: int
    num_tokens: int
    train_loss: float
    held_out_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What lies in a finished output folder."""

    folder: Path
    checkpoints: tuple[Path, ...]
    """Folders that `from_pretrained` reads, each with the tokenizer, from the first to the last step."""
    losses: tuple[LossPoint, ...]
    """One for each checkpoint."""
    num_steps: int
    num_refused_steps: int
    """Steps without an update, since the loss or a gradient was not finite."""
    tokens_per_second: float
    num_parameters: int
    held_out_loss: float
    """Nats per token of the final model."""
    held_out_bits_per_byte: float
    held_out_names: tuple[str, ...]
    """Relative names of the files that training never saw."""
    fingerprint: str
    """Of configuration, corpus and recipe."""


def train_model(
    config: TrainingConfig,
    corpus_folder: Path,
    out_folder: Path,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> TrainingResult:
    """Train tokenizer and model on a folder of text files; `out_folder` appears once it is whole.

    A finished `out_folder` of the same configuration, corpus and recipe is read instead of trained again. Calls
    `progress` about twice a second. Threads are torch's own setting; its global random state is left as it was.

    Raises RunMismatchError where `out_folder` holds anything else, DatasetNotFoundError where the corpus is empty
    or has no document as long as a window, BadWeightsError where training diverges.
    """
    fingerprint = _fingerprint(config, corpus_folder)
    if out_folder.is_dir() and any(out_folder.iterdir()):
        return read_training(out_folder, fingerprint=fingerprint)
    partial = out_folder.with_name(f".{out_folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        record = _train(config, corpus_folder, partial, progress or (lambda event: None))
    _write_record(partial, record | {"fingerprint": fingerprint, "config": asdict(config)})
    partial.replace(out_folder)
    return read_training(out_folder, fingerprint=fingerprint)


def read_training(out_folder: Path, *, fingerprint: str | None = None) -> TrainingResult:
    """What a finished `train_model` left in a folder; checked against `fingerprint` if one is given.

    Raises RunMismatchError where the folder holds no finished training, another one, or lacks a checkpoint's file.
    """
    try:
        record = json.loads((out_folder / RECORD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunMismatchError(
            f"{out_folder} holds no finished training ({RECORD_NAME} is missing or torn). "
            "Name another folder, or remove this one."
        ) from error
    if fingerprint is not None and record["fingerprint"] != fingerprint:
        raise RunMismatchError(
            f"{out_folder} was trained with another configuration or corpus (fingerprint "
            f"{record['fingerprint'][:12]}, asked for {fingerprint[:12]}). Name another folder, or remove this one."
        )
    for name, num_bytes in record["files"].items():
        path = out_folder / name
        if not path.is_file() or path.stat().st_size != num_bytes:
            raise RunMismatchError(f"{path} is missing or torn. Remove {out_folder} and train again.")
    return TrainingResult(
        folder=out_folder,
        checkpoints=tuple(out_folder / _checkpoint_name(point["step"]) for point in record["losses"]),
        losses=tuple(LossPoint(**point) for point in record["losses"]),
        held_out_names=tuple(record["held_out_names"]),
        fingerprint=record["fingerprint"],
        **{name: record[name] for name in _PLAIN_FIELDS},
    )


_PLAIN_FIELDS = (
    "num_steps",
    "num_refused_steps",
    "tokens_per_second",
    "num_parameters",
    "held_out_loss",
    "held_out_bits_per_byte",
)


def _fingerprint(config: TrainingConfig, corpus_folder: Path) -> str:
    parts = {"config": asdict(config), "corpus": corpus_fingerprint(corpus_folder), "recipe": _RECIPE_VERSION}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _checkpoint_name(step: int) -> str:
    return f"checkpoint-{step:06d}"


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }
    text = json.dumps(record | {"files": files}, indent=1, sort_keys=True)
    (folder / RECORD_NAME).write_text(text, encoding="utf-8")


class _Clock:
    """Which share of the budget is spent, by the steps done or by the time since the first was asked for."""

    def __init__(self, config: TrainingConfig) -> None:
        self._config = config
        self.started = time.perf_counter()

    def fraction(self, step: int) -> float:
        if self._config.num_steps is not None:
            return step / self._config.num_steps
        spent = (time.perf_counter() - self.started) / self._config.seconds if step else 0.0
        return min(1.0, spent, step / LEAST_STEPS)


def _train(
    config: TrainingConfig, corpus_folder: Path, folder: Path, report: Callable[[TrainingProgress], None]
) -> dict[str, Any]:
    """Train, save checkpoints under `folder`, and return what the record needs."""
    tokenizer, windows = prepare_windows(config, corpus_folder)
    trainer = Trainer(config, windows)
    clock = _Clock(config)
    losses: list[dict[str, float]] = []
    marks = np.geomspace(1 / 128, 1, config.num_checkpoints).tolist()
    step, last_report, fraction = 0, 0.0, 0.0
    while fraction < 1:
        trainer.step(step, fraction)
        step += 1
        fraction = clock.fraction(step)
        held_out_loss = None
        if fraction >= marks[0]:
            marks = [mark for mark in marks if mark > fraction]
            held_out_loss, _ = trainer.held_out(16)
            _save(folder / _checkpoint_name(step), trainer.model, tokenizer)
            losses.append(_point(trainer, step, held_out_loss))
        now = time.perf_counter()
        if held_out_loss is not None or now - last_report > 0.5:
            last_report = now
            report(_event(trainer, step, fraction, now - clock.started, held_out_loss))
    held_out_nats, bits_per_byte = trainer.held_out(200)
    return {
        "num_steps": step,
        "num_refused_steps": trainer.num_refused,
        "tokens_per_second": trainer.num_tokens / (now - clock.started),
        "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "held_out_loss": held_out_nats,
        "held_out_bits_per_byte": bits_per_byte,
        "held_out_names": windows.held_out_names,
        "losses": losses,
    }


def _save(folder: Path, model: Any, tokenizer: Any) -> None:  # noqa: ANN401 - transformers is untyped
    with _without_bars():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers from drawing a progress bar of its own for each file."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def _point(trainer: Trainer, step: int, held_out_loss: float) -> dict[str, float]:
    return asdict(
        LossPoint(step=step, num_tokens=trainer.num_tokens, train_loss=trainer.mean_loss, held_out_loss=held_out_loss)
    )


def _event(
    trainer: Trainer, step: int, fraction: float, seconds: float, held_out_loss: float | None
) -> TrainingProgress:
    return TrainingProgress(
        step=step,
        fraction=fraction,
        num_tokens=trainer.num_tokens,
        tokens_per_second=trainer.num_tokens / seconds,
        loss=trainer.mean_loss,
        held_out_loss=held_out_loss,
    )
