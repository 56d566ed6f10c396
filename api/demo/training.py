"""The demonstration's model: a byte-level BPE tokenizer and a small GPT-NeoX, trained within a time budget.

Knows a folder of text files, the recipe, and how to keep checkpoints that `from_pretrained` reads. Knows nothing of
gradients of units, quanta or terminals: progress leaves through a callback.

The recipe: plain GPT-NeoX; Muon (Jordan et al. 2024: momentum whose matrix is made orthogonal by a Newton–Schulz
iteration) for the matrices of the layers and AdamW for all else; layers and output head start at zero output; the
learning rate rises shortly and falls linearly to zero at the budget's end, by the clock or by steps.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from quantascope.errors import BadWeightsError, ConfigurationError, DatasetNotFoundError, RunMismatchError

from .corpus import corpus_fingerprint, read_corpus

END_OF_TEXT = "<|endoftext|>"
RECORD_NAME = "training.json"

_RECIPE_VERSION = 1  # in the fingerprint: another recipe must not reuse an older one's checkpoints
_MAX_REFUSED_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """The model, the recipe and the budget of one training run."""

    vocabulary_size: int = 4096
    """Tokens of the vocabulary: 256 bytes, one end of text, and merges."""
    width: int = 256
    """Numbers in a hidden state; a multiple of `num_heads`."""
    num_layers: int = 4
    num_heads: int = 4
    window_tokens: int = 256
    """Tokens that each training window predicts; also the model's context."""
    batch_windows: int = 4
    seconds: float = 170.0
    """Time for the training loop, its checkpoints included. The tokenizer and the last evaluation add some 8 s."""
    num_steps: int | None = None
    """A fixed number of steps instead of `seconds`: the same on the same machine, however busy it is."""
    matrix_learning_rate: float = 0.02
    """Muon's step, as a share of a matrix of orthonormal rows."""
    table_learning_rate: float = 0.01
    """AdamW's, for embeddings, output head, norms and biases."""
    weight_decay: float = 0.1
    """Decoupled, on the layers' matrices alone."""
    warmup_share: float = 0.03
    """The share of the budget over which the learning rate rises from zero."""
    num_checkpoints: int = 8
    """At geometrically spaced moments, the last at the end."""
    held_out_share: float = 0.05
    """The share of files that training never sees; drawn by hashes of their names."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of the matrix products in training; `auto` takes bfloat16 where the processor multiplies it in tiles (AMX)."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, with ConfigurationError."""
        if self.vocabulary_size <= 257:
            raise ConfigurationError(f"vocabulary_size is {self.vocabulary_size}; it needs more than 257.")
        if self.width % self.num_heads or (self.width // self.num_heads) % 8:
            raise ConfigurationError(
                f"width {self.width} over num_heads {self.num_heads} must give heads of a multiple of 8."
            )
        for name in ("num_layers", "num_heads", "window_tokens", "batch_windows", "num_checkpoints", "seconds"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be above zero.")
        if self.num_steps is not None and self.num_steps < 1:
            raise ConfigurationError(f"num_steps is {self.num_steps}; it must be at least 1, or None.")
        if not 0 < self.held_out_share < 1:
            raise ConfigurationError(f"held_out_share is {self.held_out_share}; it lies between 0 and 1.")

    @classmethod
    def quick(cls) -> "TrainingConfig":
        """The preset of the one-minute demonstration: a smaller model for a corpus of about 1,500,000 bytes."""
        return cls(vocabulary_size=1024, width=128, num_layers=3, window_tokens=128, batch_windows=8, seconds=18.0)


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


def train_tokenizer(texts: list[str], *, vocabulary_size: int) -> Any:  # noqa: ANN401 - transformers is untyped
    """A byte-level BPE tokenizer (PreTrainedTokenizerFast) of at most `vocabulary_size` tokens; deterministic.

    It adds no special tokens by itself, and its offsets include the white space that a token begins with.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


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
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    text = json.dumps(record | {"files": files}, indent=1, sort_keys=True)
    (folder / RECORD_NAME).write_text(text, encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Windows:
    """Token windows of the two parts of a corpus, int64 [window, window_tokens + 1]."""

    train: torch.Tensor
    held_out: torch.Tensor
    held_out_names: list[str]
    token_bytes: torch.Tensor
    """Bytes that each token of the vocabulary stands for, int64 [vocabulary]."""


def _prepare(config: TrainingConfig, corpus_folder: Path) -> tuple[Any, _Windows]:
    texts = {name: content.decode("utf-8") for name, content in read_corpus(corpus_folder).items()}
    tokenizer = train_tokenizer(list(texts.values()), vocabulary_size=config.vocabulary_size)
    inner = tokenizer.backend_tokenizer
    encoded = inner.encode_batch(list(texts.values()), add_special_tokens=False)
    held_out = _held_out_names(list(texts), config.held_out_share)
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for name, encoding in zip(texts, encoded, strict=True):
        parts[name in held_out] += _cut(np.array(encoding.ids, dtype=np.int64), config.window_tokens)
    if not parts[0] or not parts[1]:
        raise DatasetNotFoundError(
            f"{corpus_folder} has too few documents of more than {config.window_tokens} tokens to train on some and "
            "hold others out. Take more files or a smaller window_tokens."
        )
    order = np.random.default_rng(config.seed).permutation(len(parts[0]))
    vocabulary = [inner.id_to_token(i) or "" for i in range(config.vocabulary_size)]
    return tokenizer, _Windows(
        train=torch.from_numpy(np.stack(parts[0])[order]),
        held_out=torch.from_numpy(np.stack(parts[1])),
        held_out_names=sorted(held_out),
        token_bytes=torch.tensor([0 if token == END_OF_TEXT else len(token) for token in vocabulary]),
    )


def _held_out_names(names: list[str], share: float) -> set[str]:
    """The files whose names have the smallest hashes; at least one."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(ranked[: max(1, round(share * len(ranked)))])


def _cut(tokens: np.ndarray, window_tokens: int) -> list[np.ndarray]:
    """Windows of `window_tokens` + 1 that share one token with the next; the rest at the end is left out."""
    starts = range(0, len(tokens) - window_tokens, window_tokens)
    return [tokens[start : start + window_tokens + 1] for start in starts]


def _build_model(config: TrainingConfig) -> Any:  # noqa: ANN401 - transformers is untyped
    """A GPT-NeoX whose layers and head put out zero at first: the first steps don't unlearn noise."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=config.vocabulary_size,
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=4 * config.width,
            max_position_embeddings=config.window_tokens,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            use_parallel_residual=True,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
    )
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        for name, parameter in model.named_parameters():
            if name.endswith(("attention.dense.weight", "mlp.dense_4h_to_h.weight")):
                parameter.zero_()
    return model
