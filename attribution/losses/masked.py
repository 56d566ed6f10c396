"""Masked-token loss (BERT: Devlin et al. 2019, section 3.1): guess the hidden tokens from both sides.

What is hidden depends on the seed and the example's own id alone: not on the batch, the padding, or the worker.
Knows token ids; no tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...errors import ConfigurationError
from ..randomness import random_words
from ._logits import logits_at


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedBatch:
    """Texts with hidden tokens, and what stood there. Made by `mask_tokens` or `diffusion.diffuse_tokens`."""

    ids: Int[Tensor, "example position"]
    """Token ids as the model sees them."""
    attention: Int[Tensor, "example position"]
    """1 for tokens, 0 for padding."""
    example: Int[Tensor, " hidden"]
    position: Int[Tensor, " hidden"]
    target: Int[Tensor, " hidden"]
    """The token that stood there."""
    weight: Float[Tensor, " hidden"]
    """What its cross-entropy counts in its example's loss."""


def masked_losses(model: nn.Module, batch: MaskedBatch) -> Float[Tensor, " example"]:
    """Weighted sum, in nats, of the hidden tokens' cross-entropies, each given the whole masked text.

    0, with a gradient of 0, for an example in which nothing is hidden. The model takes input_ids and attention_mask.
    """
    logits = logits_at(model, batch.example, batch.position, input_ids=batch.ids, attention_mask=batch.attention)
    losses = cross_entropy(logits, batch.target, reduction="none") * batch.weight.to(logits.dtype)
    return losses.new_zeros(len(batch.ids)).index_add(0, batch.example, losses)


def mask_tokens(
    ids: Int[Tensor, "example position"],
    counts: Bool[Tensor, "example position"],
    keys: Sequence[str],
    *,
    mask_id: int,
    vocab_size: int,
    attention: Int[Tensor, "example position"] | None = None,
    share: float = 0.15,
    seed: int = 0,
) -> MaskedBatch:
    """Hide a share of each example's tokens as BERT does; the loss is their mean cross-entropy.

    `counts` says which tokens may be hidden (no special tokens, no padding), `keys` are the examples' ids, `share` is
    above 0 and at most 1. Of n tokens, max(1, round(share · n)) are chosen, without replacement: 80 % of them become
    `mask_id`, 10 % a random id below `vocab_size`, 10 % stay, each by its own draw. Without `attention`, every
    position counts as a token. The ids are copied. Raises ConfigurationError for another share.
    """
    if not 0 < share <= 1:
        raise ConfigurationError(f"share is {share}; accepted are numbers above 0 and up to 1.")
    seen = ids.cpu().numpy().copy()
    allowed = counts.cpu().numpy()
    hidden: list[tuple[int, int, float]] = []
    for number, key in enumerate(keys):
        places = np.flatnonzero(allowed[number])
        if not len(places):
            continue
        order = np.argsort(random_words(seed, key, "hide", seen.shape[1])[places], kind="stable")
        chosen = np.sort(places[order[: max(1, round(share * len(places)))]])
        draw = uniform(seed, key, "become", seen.shape[1])[chosen]
        words = random_words(seed, key, "word", seen.shape[1])[chosen] % np.uint64(vocab_size)
        kept = np.where(draw < 0.9, words.astype(seen.dtype), seen[number, chosen])
        seen[number, chosen] = np.where(draw < 0.8, mask_id, kept)
        hidden += [(number, int(p), 1 / len(chosen)) for p in chosen]
    return hidden_batch(ids, seen, hidden, attention)


def uniform(seed: int, key: str, axis: str, count: int) -> Float[np.ndarray, " count"]:
    """Numbers from 0 (inclusive) to 1 (exclusive) that belong to an example's id, one per position."""
    return (random_words(seed, key, axis, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hidden_batch(
    ids: Int[Tensor, "example position"],
    seen: Int[np.ndarray, "example position"],
    hidden: list[tuple[int, int, float]],
    attention: Int[Tensor, "example position"] | None,
) -> MaskedBatch:
    """The batch of (example, position, weight), on the device of `ids`; `seen` are the ids with tokens hidden."""
    example, position = (torch.tensor([h[i] for h in hidden], dtype=torch.long, device=ids.device) for i in (0, 1))
    return MaskedBatch(
        ids=torch.from_numpy(seen).to(ids.device),
        attention=torch.ones_like(ids) if attention is None else attention,
        example=example,
        position=position,
        target=ids[example, position],
        weight=torch.tensor([h[2] for h in hidden], dtype=torch.float64, device=ids.device),
    )
