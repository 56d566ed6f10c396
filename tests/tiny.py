"""Tiny models, tokenizers and data sets for the tests: made on the spot, seeded, never downloaded.

Knows transformers and tokenizers; knows nothing of quantascope.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SENTENCES = (
    "When John and Mary went to the store, John gave a drink to Mary.",
    "The oak is a tree whose leaves fall in autumn; the pine keeps its needles.",
    "A fungus digests what it grows on, and then drinks the broth.",
    "def add(self, left, right): return left + right",
    "One, two, three, four, five, six, seven, eight, nine, ten.",
    "Übung macht den Meister — naïve café, 東京 and 🍄 included.",
    "On the 4th of July, 1776, the paper was signed.",
    "https://example.org/a/b?c=d stands for any address.",
)
"""What `tiny_tokenizer` learns from, and what tests may use as documents."""


def tiny_tokenizer(vocab_size: int = 320) -> Any:
    """Return a byte-level BPE fast tokenizer trained on `SENTENCES`.

    Id 0 is "<|endoftext|>": end of text, beginning and padding at once, never added by itself. Any text can be
    encoded, and decoding gives it back.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, bos_token=end, pad_token=end)


def tiny_neox(
    *,
    vocab_size: int = 320,
    width: int = 16,
    layers: int = 2,
    heads: int = 2,
    context: int = 64,
    dtype: str = "float32",
    seed: int = 0,
    tied: bool = False,
) -> Any:
    """Return a GPT-NeoX of random weights in evaluation mode, without dropout; the caller's random state is kept."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=context,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPTNeoXForCausalLM(config)
    return model.to(getattr(torch, dtype)).eval()


def save_tiny(folder: str | Path, **options: Any) -> Path:
    """Save `tiny_neox(**options)` and `tiny_tokenizer()` as one model folder, and return it."""
    path = Path(folder)
    tiny_neox(**options).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write one JSON object per line, and return the path."""
    path = Path(path)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
