"""The demonstration's tokens: a byte-level BPE tokenizer, and windows of the corpus for training and holding out.

Knows a folder of UTF-8 files. Knows nothing of models.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantascope.errors import DatasetNotFoundError, EncodingError

from .corpus import read_corpus
from .recipe import TrainingConfig

END_OF_TEXT = "<|endoftext|>"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Token windows of the two parts of a corpus, int64 [window, window_tokens + 1]."""

    train: torch.Tensor
    held_out: torch.Tensor
    held_out_names: list[str]
    token_bytes: torch.Tensor
    """Bytes that each token of the vocabulary stands for, int64 [vocabulary]."""


def prepare_windows(config: TrainingConfig, corpus_folder: Path) -> tuple[Any, Windows]:
    """The tokenizer of a corpus and its windows, those for training shuffled by the seed.

    Raises DatasetNotFoundError where the corpus is empty or has too few documents as long as a window, and
    EncodingError where a file is not UTF-8.
    """
    texts = {name: _decoded(corpus_folder / name, content) for name, content in read_corpus(corpus_folder).items()}
    tokenizer = train_tokenizer(list(texts.values()), vocabulary_size=config.vocabulary_size)
    inner = tokenizer.backend_tokenizer
    encoded = inner.encode_batch(list(texts.values()), add_special_tokens=False)
    held_out = _held_out_names(list(texts), config.held_out_share)
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for name, encoding in zip(texts, encoded, strict=True):
        parts[name in held_out].extend(_cut(np.array(encoding.ids, dtype=np.int64), config.window_tokens))
    if not parts[0] or not parts[1]:
        raise DatasetNotFoundError(
            f"{corpus_folder} has too few documents of more than {config.window_tokens} tokens to train on some and "
            "hold others out. Take more files or a smaller window_tokens."
        )
    order = np.random.default_rng(config.seed).permutation(len(parts[0]))
    vocabulary = [inner.id_to_token(i) or "" for i in range(config.vocabulary_size)]
    return tokenizer, Windows(
        train=torch.from_numpy(np.stack(parts[0])[order]),
        held_out=torch.from_numpy(np.stack(parts[1])),
        held_out_names=sorted(held_out),
        token_bytes=torch.tensor([0 if token == END_OF_TEXT else len(token) for token in vocabulary]),
    )


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EncodingError(
            f"{path} is not UTF-8 (byte {error.start}). Convert it, or take it out of the corpus."
        ) from error


def _held_out_names(names: list[str], share: float) -> set[str]:
    """Files at even distances in the order of names, at least one: each folder gives its share, tables too."""
    ranked = sorted(names)
    count = max(1, round(share * len(ranked)))
    return {ranked[int((i + 0.5) * len(ranked) / count)] for i in range(count)}


def _cut(tokens: np.ndarray, window_tokens: int) -> list[np.ndarray]:
    """Windows of `window_tokens` + 1 that share one token with the next; the rest at the end is left out."""
    starts = range(0, len(tokens) - window_tokens, window_tokens)
    return [tokens[start : start + window_tokens + 1] for start in starts]
